"""A run locks its folder, records its data, and may be extended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from msconv_jax.models import registry
from tests.train.helpers import ROOT, TINY_CONFIG, TINY_ENTRY, assert_same_runs, fail, tiny
from train import __main__ as program
from train import evaluate, predict
from train.data import load_source
from train.data.record import check_data, read_record, write_record
from train.engine import loop
from train.engine.checkpoint import CheckpointWriter
from train.engine.folder import check_name, lock_folder
from train.engine.loop import train
from train.errors import UserError
from train.task import Metric
from train.tasks import Classification, task_kind


def pictures(folder, count, seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number}.png"), rng.integers(0, 256, (9, 9, 3), np.uint8))


def folder_config(data, **changes):
    """The config of a short training on a folder of pictures."""
    values = {
        "data": {
            "source": "folder",
            "dir": str(data),
            "image_size": 8,
            "augment": {"random_resized_crop": {}},
            "threads": 0,
        }
    }
    return tiny(values, **{"batch_size": 8, "epochs": 1, "checkpoint_every": 0, **changes})


@pytest.fixture(scope="module")
def on_pictures(tmp_path_factory):
    """A folder with pictures of cats and dogs, and a run on them."""
    root = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("cat", "dog")):
        pictures(root / "data" / name, 12, seed)
    config = folder_config(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._ENTRIES, TINY_ENTRY.name, TINY_ENTRY)
        assert train(config, task_kind(config), root / "run", command="again") == 0
    return root


@pytest.fixture
def copied(on_pictures, tmp_path):
    """A copy of `on_pictures`, with the copied pictures in the config."""
    shutil.copytree(on_pictures, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "config.json"
    path.write_text(path.read_text().replace(str(on_pictures), str(tmp_path / "copy")))
    return tmp_path / "copy"


# --- what a run was trained on ---


def test_prediction_needs_no_data_and_names_the_classes_of_training(copied, capsys):
    picture = str(copied / "cat.png")
    shutil.copy(copied / "data" / "cat" / "0.png", picture)
    arguments = ["predict", f"--workdir={copied / 'run'}", picture]
    assert predict.main(arguments) == 0
    before = capsys.readouterr().out
    assert "cat " in before
    (copied / "data" / "cat").rename(copied / "data" / "wolf")
    assert predict.main(arguments) == 0
    assert capsys.readouterr().out == before
    shutil.rmtree(copied / "data")
    assert predict.main(arguments) == 0
    assert capsys.readouterr().out == before


def rename_a_class(data):
    (data / "cat").rename(data / "wolf")


def add_a_picture(data):
    cv2.imwrite(str(data / "cat" / "new.png"), np.full((9, 9, 3), 7, np.uint8))


def change_a_picture(data):
    cv2.imwrite(str(data / "dog" / "3.png"), np.full((9, 9, 3), 7, np.uint8))


def add_a_class(data):
    pictures(data / "emu", 12, 5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename_a_class, "class 0 was 'cat' and is 'dog'"),
        (add_a_picture, "split had|as many samples, but others"),
        (change_a_picture, "split has as many samples, but others"),
        (add_a_class, "there were 2 names of a class and are 3"),
    ],
)
def test_changed_data_are_refused(change, words, copied, monkeypatch, capsys):
    """Evaluation and a resumed run reject changed data, and accept the restored data."""
    shutil.copytree(copied / "data", copied / "kept")
    change(copied / "data")
    _, errors = fail(evaluate.main, monkeypatch, capsys, f"--workdir={copied / 'run'}")
    assert errors.startswith("error: the data are not those that the run in ")
    longer = folder_config(copied / "data", epochs=2)
    with pytest.raises(UserError, match=words):
        train(longer, Classification, copied / "run", command="again")
    assert (copied / "run" / "result.json").exists()
    shutil.rmtree(copied / "data")
    (copied / "kept").rename(copied / "data")
    assert evaluate.main(["evaluate", f"--workdir={copied / 'run'}"]) == 0


def test_data_may_move(copied, capsys):
    (copied / "data").rename(copied / "moved")
    config = folder_config(copied / "moved", epochs=2)
    assert train(config, Classification, copied / "run", command="again") == 0
    assert "going on from the checkpoint of step" in capsys.readouterr().out
    assert evaluate.main(["evaluate", f"--workdir={copied / 'run'}"]) == 0


def test_weights_of_a_run_on_other_classes_are_refused(copied, monkeypatch, capsys):
    config = copied / "config.py"
    values = json.loads((copied / "run" / "config.json").read_text())
    config.write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    arguments = ["evaluate", f"--config={config}", f"--weights={copied / 'run'}", "--split=train"]
    assert evaluate.main(arguments) == 0
    rename_a_class(copied / "data")
    _, errors = fail(evaluate.main, monkeypatch, capsys, *arguments[1:])
    assert "is a run on other classes" in errors
    assert "class 0 was 'cat' and is 'dog'" in errors


def test_a_record_comes_back(tmp_path):
    source = load_source(tiny())
    write_record(tmp_path, source)
    record = read_record(tmp_path)
    assert record.source() == source._replace(splits={}, fingerprints=record.fingerprints)
    assert record.counts == {"train": 1163, "validation": 270, "test": 364}
    assert dict(record.fingerprints) == dict(source.fingerprints)
    check_data(tmp_path, source)
    with pytest.raises(UserError, match=r"mean was \(0\.306,\) and is \(0\.5,\)"):
        check_data(tmp_path, source._replace(mean=(0.5,)))


@pytest.mark.parametrize(
    "change",
    [
        {"image_shape": [2**20, 2**20, 3]},
        {"image_shape": [8, 8, 2]},
        {"image_shape": [0, 8, 1]},
        {"classes": ["a\x1b[31m"]},
        {"classes": "abc"},
        {"mean": [1.0, 2.0]},
        {"std": [0.0]},
        {"std": [float("nan")]},
        {"counts": {"elsewhere": 3}},
        {"unknown": 1},
    ],
)
def test_damaged_records_are_refused(change, tmp_path):
    write_record(tmp_path, load_source(tiny()))
    path = tmp_path / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_files_that_are_no_records_are_refused(content, tmp_path):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        read_record(tmp_path)


# --- one process at a time ---


def test_a_folder_in_use_is_refused_with_host_and_process(tmp_path, monkeypatch, capsys):
    """Also for a missing folder. Killing the process frees the folder, even with a living child process."""
    workdir = tmp_path / "run"
    code = """
import os, sys, time
from pathlib import Path
from train.engine.folder import lock_folder
with lock_folder(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", code, workdir], stdout=subprocess.PIPE, cwd=ROOT, text=True) as other:
        child = int(other.stdout.readline())
        arguments = (f"--config={TINY_CONFIG}", f"--workdir={workdir}")
        _, errors = fail(program.main, monkeypatch, capsys, *arguments)
        other.kill()
        other.wait()
        with lock_folder(workdir) as folder:
            folder.check()
        os.kill(child, signal.SIGKILL)
    assert f"--workdir={workdir} is in use by process {other.pid} on host {os.uname().nodename}; wait" in errors
    assert not workdir.exists()  # nothing was written


def test_a_folder_that_was_removed_or_replaced_is_noticed(tmp_path):
    for again in (False, True):
        with lock_folder(tmp_path / "run") as folder:
            shutil.rmtree(tmp_path / "run")
            if again:
                (tmp_path / "run").mkdir()
            with pytest.raises(UserError, match="was removed or replaced while the run trained"):
                folder.check()


def test_a_folder_that_goes_away_stops_the_run_at_the_next_save(tmp_path, monkeypatch):
    original = loop.check_state

    def remove(*arguments):
        shutil.rmtree(tmp_path / "run")
        return original(*arguments)

    monkeypatch.setattr(loop, "check_state", remove)
    with pytest.raises(UserError, match="was removed or replaced while the run trained"):
        train(tiny(), Classification, tmp_path / "run", command="again")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a[b]", "what?", "x*y", "back\\slash"])
def test_names_from_which_checkpoints_cannot_be_read_are_refused(name, tmp_path, monkeypatch, capsys):
    _, errors = fail(
        program.main, monkeypatch, capsys, f"--config={TINY_CONFIG}", f"--workdir={tmp_path / name / 'run'}"
    )
    assert "checkpoints below such a folder cannot be read" in errors
    assert not (tmp_path / name).exists()


def test_other_names_do(tmp_path):
    for name in (" a b", "x;y&z", "100%41", "{a,b}", "$HOME", "'\"", "]", unicodedata.normalize("NFD", "é"), "日本"):
        check_name(tmp_path / name)
        with CheckpointWriter(tmp_path / name, Metric("accuracy"), resume="again") as writer:
            writer.save(1, {"a": jnp.arange(3.0)}, None)  # is read back


def test_a_checkpoint_that_cannot_be_read_back_stops_the_run(tmp_path, monkeypatch):
    def unreadable(*arguments):
        raise ValueError("NOT_FOUND: no such array")

    monkeypatch.setattr("train.engine.checkpoint.restore", unreadable)
    with pytest.raises(UserError, match=r"cannot be read back \(NOT_FOUND: no such array\); choose a --workdir on"):
        train(tiny(), Classification, tmp_path / "run", command="again")


# --- settings that may change ---


@pytest.mark.slow
def test_a_run_becomes_longer_and_is_the_run_that_was_so_from_the_start(tmp_path, capsys):
    constant = {"optimizer.schedule": "constant"}
    assert train(tiny(constant), Classification, tmp_path / "run", command="again") == 0
    assert train(tiny(constant, epochs=3), Classification, tmp_path / "run", command="again") == 0
    assert "going on from the checkpoint of step 10 of 15" in capsys.readouterr().out
    assert train(tiny(constant, epochs=3), Classification, tmp_path / "whole", command="again") == 0
    assert_same_runs(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(UserError, match=r"differs in epochs \(3 there, 2 now\)"):
        train(tiny(constant, epochs=2), Classification, tmp_path / "run", command="again")


def test_what_changes_no_result_may_change_while_a_run_is_stopped(tmp_path, monkeypatch, capsys):
    original = loop.check_step

    def stop(step, *arguments):
        if step == 4:
            raise KeyboardInterrupt
        return original(step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), Classification, tmp_path / "run", command="again")
    harmless = {"data.threads": 0}
    assert train(tiny(harmless, checkpoint_every=3), Classification, tmp_path / "run", command="again") == 0
    assert "going on from the checkpoint of step 2 of 10" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["checkpoint_every"] == 3


def test_a_run_that_ended_before_its_first_checkpoint_leaves_its_folder_free(tmp_path, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "shard_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(seed=1), Classification, tmp_path / "run", command="again")
    assert (tmp_path / "run" / "config.json").exists()
    assert train(tiny(epochs=1), Classification, tmp_path / "run", command="again") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 0


def test_a_folder_with_somebody_elses_config_is_not_taken(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(UserError, match=r"config\.json does not fit this version"):
        train(tiny(), Classification, tmp_path, command="again")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
