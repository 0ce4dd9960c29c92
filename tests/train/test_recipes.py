import numpy as np
import pytest

from studies.cost import cost, cost_line
from studies.cost import main as cost_main
from studies.edo_config import SearchConfig
from tests.train.helpers import ROOT, TINY_CONFIG
from train import __main__ as program
from train.config import parse_command_line, update_config
from train.engine.optim import create_optimiser
from train.errors import UserError

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.py") if not path.name.startswith(("edo_", "compare_")))
by_name = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def read(path, *overrides):
    return parse_command_line(["train", f"--config={path}", *overrides], None, needs_workdir=False)[0]


def test_there_is_a_recipe_for_every_paper():
    names = " ".join(path.stem for path in RECIPES)
    for part in ("ps_", "pyconv_", "icconv_", "octconv_", "res2net_", "hetconv_", "acnet_", "sis_", "modern_"):
        assert part in names


@pytest.mark.slow
@by_name
def test_the_cost_in_the_header_is_the_one_counted(path):
    if path.stem not in (
        "ps_resnet_digits",
        "scaled_digits",
        "segment_scaled_digits",
        "masks",
        "pictures",
    ):  # a time on a CPU; the cost depends on the pictures
        assert f"Cost: {cost_line(cost(read(path)))}\n" in path.read_text()


def test_cost_counts_what_the_paper_counts(capsys):
    found = cost(read(ROOT / "configs/ps_imagenet.py"))
    assert found.parameters == 25_557_032
    assert found.macs == pytest.approx(4.089e9, rel=1e-3)
    assert found.images == 120 * 1_281_167
    # Three times two operations, at a fifth of 312e12 per second.
    assert found.hours == pytest.approx(6 * found.macs * found.images / 62.4e12 / 3600)
    assert cost_main(["cost", f"--config={ROOT / 'configs/ps_resnet_digits.py'}"]) == 0
    assert "0.1 M parameters, 0.00 G multiply-accumulates an image" in capsys.readouterr().out


@by_name
def test_optimiser_of_a_recipe_can_be_built(path):
    config = read(path)
    _, learning_rate = create_optimiser(config, steps_per_epoch=10)
    assert (
        0 < float(learning_rate(10 * round(config.optimizer.warmup_epochs))) <= config.optimizer.learning_rate * 1.001
    )


@by_name
def test_smoke_keeps_what_a_recipe_is_about(path):
    whole, small = read(path), read(f"{path}:smoke")
    assert small.epochs == 2
    assert small.batch_size <= 32
    assert (small.model.name, small.model.conv) == (whole.model.name, whole.model.conv)
    assert (small.optimizer.name, small.optimizer.schedule) == (whole.optimizer.name, whole.optimizer.schedule)
    assert (small.data.augment, small.compute) == (whole.data.augment, whole.compute)
    assert small.data.source in ("digits", "miniature", "miniature32")
    per_image = whole.optimizer.learning_rate / whole.batch_size
    assert small.optimizer.learning_rate / small.batch_size == pytest.approx(per_image)
    for counted in ("warmup_epochs", "decay_growth_epochs", "schedule_epochs"):
        share = np.array(getattr(whole.optimizer, counted)) / whole.epochs
        np.testing.assert_allclose(np.array(getattr(small.optimizer, counted)) / small.epochs, share)
    # All other settings are the recipe's.
    kept = {"data.source": whole.data.source, "data.dir": whole.data.dir, "data.threads": whole.data.threads}
    kept |= {"data.splits": whole.data.splits, "data.image_size": whole.data.image_size}
    kept |= {"model.kwargs": whole.model.kwargs, "optimizer": whole.optimizer.model_dump()}
    kept |= {"task": whole.task.model_dump()}
    kept |= {name: getattr(whole, name) for name in ("epochs", "batch_size", "checkpoint_every")}
    assert update_config(small, kept) == whole


def test_smoke_makes_a_recipe_small_in_the_way_of_recorded_runs():
    small = read(f"{ROOT / 'configs/modern_imagenet.py'}:smoke")
    assert small.data.source == "miniature"
    assert (small.data.image_size, small.data.splits, small.data.dir, small.data.threads) == (32, {}, "", 2)
    assert small.model.kwargs == {"layers": [1, 1, 1, 1], "width": 8}
    assert (small.epochs, small.batch_size, small.checkpoint_every) == (2, 32, 0)
    assert small.optimizer.learning_rate == 0.5 * 32 / 1024
    assert small.optimizer.warmup_epochs == 5.0 * (2 / 600)
    assert (small.task.eval_size, small.task.eval_resize) == (0, 0)
    assert read(f"{ROOT / 'configs/ps_cifar100.py'}:smoke").optimizer.schedule_epochs == [1.0, 1.5]
    stem = read(f"{ROOT / 'configs/scaled_digits.py'}:smoke").model.kwargs["stem"]
    assert stem == {"kernel_size": 3, "strides": 2, "max_pool": False}


def test_smoke_can_be_overridden_and_searches_have_it_too():
    assert (
        read(f"{ROOT / 'configs/ps_imagenet.py'}:smoke", "--config.epochs=1", "--config.model.name=resnet18").epochs
        == 1
    )
    argv = ["train.edo", f"--config={ROOT / 'configs/edo_digits.py'}:smoke"]
    small, _ = parse_command_line(argv, None, SearchConfig, needs_workdir=False)
    assert small.seeds == [0]
    assert small.training.epochs == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/ps_imagenet.py:smok", "the variant 'smok'; did you mean 'smoke'"),
        ("configs/ps_imagenets.py:smoke", "no config file 'configs/ps_imagenets.py'"),
        (f"{TINY_CONFIG}:", "the variant ''"),
    ],
)
def test_variants_that_do_not_exist(name, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        read(name)


# test_floor.py compares the steps of the other recipes with recorded ones; all share the engine.
WHOLE = ("segment_scaled_digits", "masks", "modern_imagenet")


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem in WHOLE], ids=lambda path: path.stem)
def test_recipes_train_when_shrunken(path, tmp_path, capsys, quick_compilation):
    """Runs in one process, where recipes share compiled functions."""
    status = program.main(["train", f"--config={path}:smoke", f"--workdir={tmp_path / 'run'}"])
    assert status == 0
    result = "mean IoU" if path.stem in ("segment_scaled_digits", "masks") else "accuracy"
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"test {result} ")
    assert (tmp_path / "run" / "report.html").is_file()
