import json
import shutil

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from msconv_jax import edo as search_room
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.models import registry
from studies import edo
from studies import search as searching
from studies.edo_config import SearchConfig
from studies.search import inception_convs, network_shapes, search, summary
from tests.train.helpers import ROOT, TINY_ENTRY, run_python, tiny, tiny_values
from train.config import Config, merge_changes, parse_command_line, validate_config
from train.engine.distributed import ProcessInfo
from train.engine.trained import load_best
from train.errors import UserError
from train.tasks import task_kind

RESNET8 = {"name": "resnet8", "kwargs": {"width": 4}}
TRAINING = tiny_values(model=RESNET8, epochs=1, batch_size=290, checkpoint_every=0)
VALUES = {
    "seeds": [3],
    "d_max": 2,
    "objective": "sum",
    "per": "filter",
    "axes": "both",
    "training": TRAINING,
}


def config(**changes):
    return validate_config({**VALUES, **changes}, SearchConfig)


def training(**changes):
    return merge_changes(TRAINING, changes, Config)


@pytest.fixture(scope="module")
def finished_search(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("searches") / "finished"
    assert search(config(), workdir, command="again") == 0
    return workdir


@pytest.mark.slow
def test_a_search_leaves_its_files(finished_search):
    assert sorted(path.name for path in finished_search.iterdir()) == [
        *("dilations.png", "search.json", "seed3", "summary.json", "summary.md"),
    ]
    assert sorted(path.name for path in (finished_search / "seed3").iterdir()) == [
        *("ic", "patterns.json", "plain", "plain_longer", "supernet"),
    ]
    rows = {row["name"]: row for row in json.loads((finished_search / "summary.json").read_text())}
    assert [row["epochs"] for row in rows.values()] == [1, 2, 1, 1]
    assert rows["plain"]["parameters"] == rows["ic"]["parameters"] < rows["supernet"]["parameters"]
    assert rows["plain"]["macs"] == rows["ic"]["macs"] < rows["supernet"]["macs"]
    result = json.loads((finished_search / "seed3" / "ic" / "result.json").read_text())
    assert rows["ic"]["test_accuracy"] == [result["test_accuracy"]]
    assert cv2.imread(str(finished_search / "dilations.png")).shape[1] > 500


@pytest.mark.slow
def test_the_network_found_has_the_dilations_of_its_supernet(finished_search):
    folder = finished_search / "seed3"
    network = load_best(folder / "supernet", task_kind).network()
    patterns = json.loads((folder / "patterns.json").read_text())
    assert patterns == search_room.select(network)
    ic = load_best(folder / "ic", task_kind).network()
    assert list(ic.layer2[0].conv1.pattern) == sorted(map(tuple, patterns["layer2.0.conv1"]))


@pytest.mark.slow
def test_every_phase_is_gone_on_with(finished_search, tmp_path, monkeypatch):
    expected = (finished_search / "summary.json").read_text()
    workdir = tmp_path / "search"
    shutil.copytree(finished_search, workdir)
    for lost in ("summary.json", "seed3/patterns.json"):
        (workdir / lost).unlink()
    shutil.rmtree(workdir / "seed3" / "ic")
    trained = []
    original = searching.train

    def stopped(training, kind, folder, command):
        trained.append(folder.name)
        return 143 if folder.name == "ic" else original(training, kind, folder, command)

    with monkeypatch.context() as patch:
        patch.setattr(searching, "train", stopped)
        assert search(config(), workdir, command="again") == 143
    assert trained == ["supernet", "plain", "plain_longer", "ic"]
    assert not (workdir / "summary.json").exists()
    assert search(config(), workdir, command="again") == 0
    assert (workdir / "summary.json").read_text() == expected
    with pytest.raises(UserError, match=r"differs in d_max \(2 there, 3 now\)"):
        search(config(d_max=3), workdir, command="again")
    (workdir / "seed3" / "patterns.json").write_text('{"a": [[null]]}')
    with pytest.raises(UserError, match=r"patterns.json is damaged; remove it"):
        search(config(), workdir, command="again")


@pytest.mark.slow
def test_the_command(finished_search):
    run = run_python("-m", "train.edo", "--config=configs/edo_digits.py", f"--workdir={finished_search}")
    assert (run.returncode, run.stdout) == (1, "")
    assert "belongs to a run with another config, which differs in" in run.stderr
    assert run.stderr.count("\n") == 1


def test_several_processes_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(edo, "connect", met.append)
    monkeypatch.setattr(edo.jax, "process_count", lambda: 1 + len(met))  # known once they have come together
    arguments = [f"--config={ROOT / 'configs' / 'edo_digits.py'}", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="the search runs in one process, but 2 were started together; start one"):
        edo.main(["edo", *arguments, "--coordinator=h:1", "--num_processes=2", "--process_id=1"])
    assert met == [ProcessInfo("h:1", 2, 1)]
    assert not (tmp_path / "run").exists()


def test_the_shipped_config_is_valid():
    path = ROOT / "configs" / "edo_digits.py"
    settings, workdir = parse_command_line(
        ["edo", f"--config={path}", "--workdir=x", "--config.seeds=(4, 5)", "--config.training.epochs=7"],
        None,
        SearchConfig,
    )
    assert (settings.seeds, settings.training.epochs, workdir.name) == ([4, 5], 7, "x")
    assert settings.plain(5).seed == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "config.seeds is .* a list of different whole numbers"),
        ({"seeds": [1, 1]}, "config.seeds"),
        ({"seeds": [True]}, "config.seeds"),
        ({"d_max": 1}, "config.d_max is 1"),
        ({"objective": "l1"}, "config.objective is 'l1' but must be one of 'sum', 'same', 'abs'"),
        ({"per": "net"}, "one of 'filter', 'layer'"),
        ({"axes": "one"}, "one of 'both', 'tied'"),
        ({"training": {}}, "the config lacks the key 'training.data.source'"),
        ({"training": 3}, "config.training is 3 but must be a dictionary of settings"),
        ({"training": {**TRAINING, "epochs": 0}}, "config.training.epochs is 0"),
        ({"training": {**TRAINING, "model": "resnet8"}}, "config.training.model is now config.training.model.name"),
        ({"training": training(model={"conv": "PSConv"})}, "config.training.model.conv is 'PSConv' but must be ''"),
        ({"training": training(model={"convs": {"a": {}}})}, "config.training.model.convs is {.*} but must be {}"),
        (
            {"training": training(task={"name": "segmentation"})},
            "config.training.task.name is 'segmentation' but must be 'classification'",
        ),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_a_network_that_cannot_be_searched_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, TINY_ENTRY.name, TINY_ENTRY)
    for name in ("resnet_8", TINY_ENTRY.name):  # the second takes no convolutions
        with pytest.raises(UserError, match=rf"config.model.name='{name}' cannot be built"):
            search(config(training=training(model={"name": name})), tmp_path / "run", command="again")
    assert not (tmp_path / "run").exists()


def test_a_config_may_name_convolutions_by_their_paths():
    convs = ConfigDict({"layer1.0.conv1": {"pattern": ((1, 2, 4),)}}, allow_dotted_keys=True)
    settings = ConfigDict({**TRAINING, "model": {"name": "resnet8", "conv": "ICConv", "convs": convs}})
    assert validate_config(settings.to_dict()).model.convs == {"layer1.0.conv1": {"pattern": [[1, 2, 4]]}}


def test_the_kept_table_is_of_the_shipped_config():
    settings, _ = parse_command_line(
        ["edo", f"--config={ROOT / 'configs' / 'edo_digits.py'}", "--workdir=x"], None, SearchConfig
    )
    text = (ROOT / "configs" / "edo_digits.md").read_text()
    kept = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    plain, large = network_shapes(settings.plain(0)), network_shapes(settings.supernet(0))
    rows = []
    for own, title in zip(kept[1:], searching.ROWS.values(), strict=True):
        network = large if title == "supernet" else plain
        rows.append(
            {
                "title": title,
                "epochs": settings.training.epochs * (2 if "as long" in title else 1),
                "parameters": count_parameters(network),
                "macs": sum(layer_macs(network, (8, 8, 1)).values()),
                "test_accuracy": [float(accuracy) for accuracy in own[4].split(",")],
            }
        )
        assert len(rows[-1]["test_accuracy"]) == len(settings.seeds)
        assert abs(float(own[5]) - np.mean(rows[-1]["test_accuracy"])) < 2e-4
    made = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary(rows, settings).splitlines()]
    assert kept[0] == made[0]
    assert [row[:5] for row in kept[1:]] == [row[:5] for row in made[2:]]


def test_patterns_become_counts_in_order():
    large = tiny(model={**RESNET8, "conv": "SupernetConv", "conv_kwargs": {"d_max": 2}})
    pattern = [[2, 1], [1, 1], [2, 1], [1, 2]]
    assert inception_convs(large, {"layer1.0.conv1": pattern}) == {
        "layer1.0.conv1": {"pattern": [[1, 1, 1], [1, 2, 1], [2, 1, 2]]}
    }


def test_the_table_has_every_seed_and_their_spread():
    row = {"title": "plain", "epochs": 3, "parameters": 1000, "macs": 2000000, "test_accuracy": [0.9, 0.8]}
    lines = summary([row], config(seeds=[0, 1])).splitlines()
    assert lines[2] == "| plain | 3 | 1,000 | 2,000,000 | 0.9000, 0.8000 | 0.8500 | 0.0707 |"
    assert "| 0.8500 | - |" in summary([{**row, "test_accuracy": [0.85]}], config())
