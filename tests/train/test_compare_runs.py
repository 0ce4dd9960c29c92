"""The script that compares runs of two versions finds every difference."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.train import compare_runs


@pytest.fixture
def copy(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "runs" / "tiny")


def change_array(run, name, change):
    """Rewrites the latest checkpoint with one changed array."""
    state = run / "checkpoints" / "10" / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = {key: np.asarray(value) for key, value in checkpointer.restore(state).items()}
        shutil.rmtree(state)
        checkpointer.save(state, {key: change(value) if key == name else value for key, value in arrays.items()})


def test_equal_runs_are_identical(finished_run, copy, capsys):
    assert compare_runs.main([str(finished_run), str(copy)]) == 0
    assert capsys.readouterr().out.startswith(".: identical (")
    assert compare_runs.main([str(copy.parent), str(copy.parent)]) == 0
    assert capsys.readouterr().out.startswith("tiny: identical (")


@pytest.mark.filterwarnings("ignore:.*Sharding info not provided")
def test_an_array_that_differs_is_named(finished_run, copy, capsys):
    change_array(copy, "params.conv.kernel", lambda kernel: kernel * np.float32(1 + 1e-3))
    assert compare_runs.main([str(finished_run), str(copy)]) == 1
    assert "deviates by 0.001 at checkpoint 10 params.conv.kernel, TOO MUCH" in capsys.readouterr().out
    assert compare_runs.main([str(finished_run), str(copy), "--tolerance=1e-2"]) == 0


def test_numbers_and_files_that_differ_are_named(finished_run, copy, capsys):
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[1]["train_loss"] *= 2
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert compare_runs.main([str(finished_run), str(copy)]) == 1
    assert "deviates by 0.5 at metrics.jsonl step 10 train_loss" in capsys.readouterr().out
    (copy / "result.json").unlink()
    assert compare_runs.main([str(finished_run), str(copy)]) == 1
    assert "deviates by inf at result.json, missing after" in capsys.readouterr().out


def test_names_of_one_side_alone():
    arrays = {"params.a": np.zeros(2), "opt_state.0.a": np.zeros(2)}
    found = compare_runs.compare_named(arrays, {"params.a": np.zeros(2), "opt_state.1.a": np.zeros(2)}, "checkpoint 1")
    assert found.largest == (0, "checkpoint 1 params.a")
    assert found.remarks == [
        "checkpoint 1: only before, not compared: opt_state.0.a",
        "checkpoint 1: only after, not compared: opt_state.1.a",
    ]
    assert compare_runs.compare_named(arrays, {}, "checkpoint 1").largest.size == np.inf
