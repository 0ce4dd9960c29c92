"""The counted cost of a run."""

import numpy as np
import pytest

from msconv_jax.counting import count_parameters, layer_macs
from studies import cost as program
from studies.cost import cost, training_data
from tests.train.helpers import ROOT
from train.config import parse_command_line, update_config, validate_config
from train.data import Sample, Source
from train.tasks.network import create_network

SEGMENTATION = {
    "data": {"source": "anything"},
    "model": {
        "name": "seg_baseline_ps_resnet8",
        "kwargs": {
            "features": 8,
            "backbone_options": {"width": 8, "stem": {"kernel_size": 3, "strides": 2, "max_pool": False}},
        },
    },
    "task": {"name": "segmentation", "crop": [33, 65]},
    "optimizer": {"learning_rate": 0.1},
    "epochs": 3,
    "batch_size": 2,
}


def test_cost_counts_what_the_paper_counts(capsys):
    config, _ = parse_command_line(["cost", f"--config={ROOT / 'configs/ps_imagenet.py'}"], None, needs_workdir=False)
    found = cost(config)
    assert found.parameters == 25_557_032
    assert found.macs == pytest.approx(4.089e9, rel=1e-3)
    assert found.images == 120 * 1_281_167
    # Three times two operations at a fifth of 312e12 a second.
    assert found.hours == pytest.approx(6 * found.macs * found.images / 62.4e12 / 3600)
    assert program.main(["cost", f"--config={ROOT / 'configs/ps_resnet_digits.py'}"]) == 0
    assert "0.1 M parameters, 0.00 G multiply-accumulates an image" in capsys.readouterr().out


def test_a_segmentation_is_counted_on_its_crops(monkeypatch):
    source = Source(
        splits={"train": [Sample(image=np.zeros((9, 9, 3), np.uint8))] * 7},
        classes=(),
        image_shape=(40, 50, 3),
        is_sized=False,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        segmentation_classes=("ground", "digit"),
    )
    needed = []
    monkeypatch.setattr("train.data.load_source", lambda config, needs: needed.append(needs) or source)
    config = validate_config(SEGMENTATION)
    found = cost(config)
    network = create_network(config, 2, 3)
    assert (found.parameters, found.images) == (count_parameters(network), 7 * 3)
    assert found.macs == sum(layer_macs(network, (33, 65, 3)).values())
    assert needed == [{"segmentation"}]
    # Nothing is known of the segmentations of a data set that is only known by its labels.
    training_data(update_config(config, {"data.source": "cifar10"}))
    assert len(needed) == 2
