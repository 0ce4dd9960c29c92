"""Comparisons: their settings, their numbers and pictures, and a whole small one."""

import json
import re

import cv2
import numpy as np
import pytest

from studies import compare as program
from studies.compare_config import CompareConfig
from studies.comparing import compare
from studies.comparison import Row, accuracy_by, draw, gains, table
from tests.train.helpers import ROOT, tiny_values
from train.config import Config, merge_changes, parse_command_line, validate_config
from train.engine.results import read_arrays, read_result
from train.errors import UserError

CONFIG = ROOT / "configs" / "compare_scaled_digits.py"
RESNET8 = {"name": "resnet8", "kwargs": {"width": 4}}
TRAINING = tiny_values(model=RESNET8, epochs=1, batch_size=290, checkpoint_every=0)
VALUES = {
    "seeds": [0, 1],
    "networks": [
        {"name": "plain"},
        {"name": "psconv", "title": "PSConv {1,2}", "model": {"conv": "PSConv", "conv_kwargs": {"pattern": [1, 2]}}},
        {"name": "ic", "model": {"conv": "ICConv"}, "search": {"d_max": 3}},
    ],
    "baseline": "plain",
    "scale_edges": [],
    "timed_steps": 1,
    "training": TRAINING,
}


def config(**changes):
    return validate_config({**VALUES, **changes}, CompareConfig)


def test_a_network_is_trained_as_all_but_for_what_is_its_own():
    training = config().training_of("psconv", 5)
    assert (training.model.conv, training.model.conv_kwargs, training.seed) == ("PSConv", {"pattern": [1, 2]}, 5)
    assert (training.model.name, training.model.kwargs) == ("resnet8", {"width": 4})
    plain = config().training_of("plain", 5)
    assert (plain.model.conv, plain.seed, plain.batch_size, training.batch_size) == ("", 5, 290, 290)
    assert [config().title(name) for name in config().names] == ["plain", "PSConv {1,2}", "ic"]


def test_a_search_trains_a_supernet_of_the_shared_settings():
    search = config().search_of("ic", 5)
    assert search.supernet(5).model.conv_kwargs == {"d_max": 3}
    assert (search.supernet(5).seed, search.supernet(5).epochs, search.objective) == (5, 1, "sum")
    assert config().search_of("plain", 5) is None
    ic = {"name": "ic", "model": {"name": "resnet20", "conv": "ICConv"}, "epochs": 4, "search": {"d_max": 3}}
    supernet = config(networks=[*VALUES["networks"][:2], ic]).search_of("ic", 5).supernet(5)
    assert (supernet.model.name, supernet.epochs, supernet.model.conv) == ("resnet20", 4, "SupernetConv")
    ic["search"] = {"epochs": 7}
    assert config(networks=[*VALUES["networks"][:2], ic]).search_of("ic", 5).supernet(5).epochs == 7


def test_data_are_in_the_folder_of_the_comparison_unless_the_config_says_where(tmp_path):
    assert config().with_data_in(tmp_path) == config()
    scaled = config(training=merge_changes(TRAINING, {"data": {"source": "scaled_digits"}}, Config))
    assert scaled.with_data_in(tmp_path).training.data.dir == str(tmp_path / "data")
    elsewhere = config(training=merge_changes(TRAINING, {"data": {"source": "scaled_digits", "dir": "here"}}, Config))
    assert elsewhere.with_data_in(tmp_path).training.data.dir == "here"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "plane"}, "config.baseline is 'plane', no network of the comparison; did you mean 'plain'"),
        ({"seeds": []}, "config.seeds is .* must be a list of different whole numbers"),
        ({"networks": [{"title": "x"}]}, 'config.networks is .* each with a "name"'),
        ({"networks": []}, "config.networks is .* must be a list of dictionaries"),
        ({"networks": [{"name": "plain", "search": 3}]}, "config.networks is .* a list of dictionaries"),
        ({"networks": [{"name": "plain"}, {"name": "plain"}]}, "names twice"),
        (
            {"networks": [{"name": "plain", "epoch": 3}]},
            "config.networks .*'plain' that makes no training: .*'epoch'; did you",
        ),
        ({"networks": [{"name": "plain", "search": {"dmax": 3}}]}, "unknown key 'dmax'; did you mean 'd_max'"),
        ({"networks": [{"name": "plain"}, {"name": "data"}]}, "a network 'data', but that folder is for other things"),
        ({"networks": [{"name": "plain", "search": {}}]}, "it has a search but config.model.conv ''; set 'ICConv'"),
        ({"scale_edges": [2.0]}, "config.scale_edges is .* a list of rising numbers"),
        ({"scale_edges": [2.0, 1.0]}, "config.scale_edges is .* a list of rising numbers"),
        ({"networks": [{"name": "plain", "model": "resnet20"}]}, "config.model is now config.model.name"),
        (
            {"networks": [{"name": "plain", "model": {"conv_kwarg": {}}}]},
            "unknown key 'model.conv_kwarg'; did you mean 'model.conv_kwargs'",
        ),
        (
            {"networks": [{"name": "plain"}, {"name": "other", "task": {"name": "segmentation"}}]},
            "'other' that makes no training: config.task.name is 'segmentation' but must be 'classification'",
        ),
        ({"training": {**TRAINING, "epochs": 0}}, "config.training.epochs is 0 but must be"),
        ({"timed_steps": 0}, "config.timed_steps is 0 but must be a whole number of at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_networks_that_cannot_be_built_are_refused_before_any_is_trained(tmp_path):
    networks = [
        {"name": "plain"},
        {"name": "odd", "model": {"conv": "PSConv", "conv_kwargs": {"pattern": [1, 2, 1, 4, 1]}}},
    ]
    with pytest.raises(UserError, match=r"the network 'odd' of config.networks: .*cannot be built"):
        compare(config(networks=networks), tmp_path, "again", processes=1)
    with pytest.raises(UserError, match="the data lack the scale"):
        compare(config(scale_edges=[1.0, 2.0]), tmp_path / "other", "again", processes=1)


def test_the_kept_config_has_every_operator_and_three_seeds():
    kept, _ = parse_command_line(["compare", f"--config={CONFIG}", "--workdir=x"], None, CompareConfig)
    assert isinstance(kept, CompareConfig)
    assert len(kept.seeds) >= 3
    models = {name: kept.training_of(name, 0).model for name in kept.names}
    convs = {model.conv for model in models.values()}
    assert convs == {"", "PSConv", "PyConv", "ICConv", "HetConv", "Res2Conv", "SISConv", "ACConv"}
    assert models["octconv"].name == "oct_resnet8"
    assert models["octconv"].kwargs == {**kept.training.model.kwargs, "alpha": 0.25}
    assert kept.names[0] == kept.baseline == "plain"
    # The paper's tables 3 to 5.
    psconvs = [model.conv_kwargs for name, model in models.items() if name.startswith("psconv")]
    patterns = {tuple(arguments["pattern"]) for arguments in psconvs}
    assert patterns >= {(1, 2), (1, 2, 1, 1), (1, 2, 1, 1, 1, 1, 1, 1), (1, 4, 1, 1), (1, 2, 1, 4)}
    assert {arguments.get("vary") for arguments in psconvs} == {None, "in", "out"}


def test_the_kept_table_has_the_networks_of_the_config():
    kept, _ = parse_command_line(["compare", f"--config={CONFIG}", "--workdir=x"], None, CompareConfig)
    lines = CONFIG.with_suffix(".md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    assert [row[0] for row in cells] == [kept.title(name) for name in kept.names]
    assert {row[1] for row in cells} == {str(len(kept.seeds))}


def rows():
    plain = Row("plain", [0, 1, 2], [0.50, 0.52, 0.54], [[0.4, 0.6]] * 3, 1000, 2_000_000, 0.01)
    other = Row("other", [0, 2], [0.53, 0.55], [[0.6, 0.5], [0.6, 0.5]], 500, 1_500_000, 0.02)
    return [plain, other]


def test_accuracies_are_told_apart_by_half_open_ranges():
    values = np.array([1.0, 1.9, 2.0, 3.0, 5.0])
    right = np.array([True, False, True, True, False])
    assert accuracy_by(values, right, (1.0, 2.0, 4.0)) == [0.5, 1.0]
    with pytest.raises(UserError, match="has 6 and 7, but no test image's scale is between"):
        accuracy_by(values, right, (1.0, 6.0, 7.0))


def test_gains_are_those_over_the_same_seeds():
    np.testing.assert_allclose(gains(rows()[1], rows()[0]), [0.03, 0.01])


def test_the_table_gives_means_and_standard_deviations_in_per_cent():
    lines = table(rows(), 0, (1.0, 2.0, 6.0)).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert lines[2] == "| plain | 3 | 52.0 ± 2.0 |  | 40.0 | 60.0 | 1,000 | 2.00 | 10.0 | 1.00 |"
    assert lines[3] == "| other | 2 | 54.0 ± 1.4 | +2.0 ± 1.4 | 60.0 | 50.0 | 500 | 1.50 | 20.0 | 2.00 |"
    assert table(rows(), 0, ()).splitlines()[3].startswith("| other | 2 | 54.0 ± 1.4 | +2.0 ± 1.4 | 500 |")


@pytest.mark.parametrize("edges", [(1.0, 2.0, 6.0), ()])
def test_the_picture_is_one(tmp_path, edges):
    draw(rows() if edges else [row._replace(by_scale=[[]]) for row in rows()], 0, edges, tmp_path / "p.png")
    picture = cv2.imread(str(tmp_path / "p.png"))
    assert picture.std() > 10


@pytest.mark.slow
def test_a_comparison_stops_when_time_is_up_goes_on_and_keeps_its_results(tmp_path, monkeypatch, capfd):
    """The command of the README, shrunken: a plain network and one with a search."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    workdir = tmp_path / "run"
    command = ["compare", f"--config={CONFIG}:smoke", f"--workdir={workdir}"]
    assert program.main([*command, "--minutes=0"]) == 0
    assert (
        "2 trainings are left after 0 minutes; go on with\npython -m train.compare --config=" in capfd.readouterr().out
    )
    assert program.main(command) == 0
    out = capfd.readouterr().out
    assert "2 trainings, 0 of them done" in out
    assert re.search(r"^icconv, seed 0: test accuracy 0\.\d+ ", out, re.MULTILINE)
    summary = {row["title"]: row for row in json.loads((workdir / "summary.json").read_text())}
    assert list(summary) == ["plain", "IC-Conv, searched"]
    plain, found = summary.values()
    assert plain["parameters"] == found["parameters"]
    for name, row in (("plain", plain), ("icconv", found)):
        run = workdir / name / "seed0" / "run"
        assert row["accuracies"] == [read_result(run)["test_accuracy"]]
        assert len(read_arrays(run)["labels"]) == 40
        assert row["step_seconds"] > 0
    assert (workdir / "icconv" / "seed0" / "patterns.json").exists()
    assert (workdir / "icconv" / "seed0" / "log.txt").read_text().count("images to train on") == 2
    assert (workdir / "summary.md").read_text() in out
    assert program.main(command) == 0
    assert "2 trainings, 2 of them done" in capfd.readouterr().out
    with pytest.raises(UserError, match="another config"):
        program.main([*command, "--config.seeds=(1,)"])
