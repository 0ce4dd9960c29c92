import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.helpers import run_python
from train.engine.checkpoint import (
    CheckpointWriter,
    best_checkpoint,
    choose_checkpoint,
    intact_checkpoints,
    latest_checkpoint,
    restore,
)
from train.engine.mesh import create_mesh, replicate
from train.errors import UserError
from train.task import Metric

SHARDING = replicate(create_mesh())
BEST = Metric("accuracy")


def folder_state(step):
    return {
        "params": {"layers": {0: {"kernel": jnp.full((30, 20), step, jnp.float32)}}},
        "step": jnp.int32(step),
    }


def result(value):
    """Results of a validation split; the best metric is neither first nor last by name."""
    return {"a": 0.0, BEST.name: value, "z": 9.0}


def write(directory, scores, best=BEST):
    """Writes a checkpoint for each score, at steps 10, 20, ..."""
    writer = CheckpointWriter(directory, best, resume="again")
    for number, score in enumerate(scores, start=1):
        writer.save(10 * number, folder_state(10 * number), None if score is None else result(score))
    writer.wait()
    writer.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    directory = tmp_path_factory.mktemp("three")
    write(directory, [0.9, 0.5, None])
    return directory


def read(directory):
    intact, _ = intact_checkpoints(directory)
    return [(checkpoint.step, checkpoint.metrics and checkpoint.metrics[BEST.name]) for checkpoint in intact]


def test_arrays_come_back_from_latest_and_best(three):
    intact, damaged = intact_checkpoints(three)
    assert not damaged
    assert read(three) == [(10, 0.9), (20, 0.5), (30, None)]
    assert intact[0].metrics == result(0.9)
    assert best_checkpoint(intact, BEST).step == 10
    template = jax.eval_shape(lambda: folder_state(0))
    for checkpoint in intact:
        state = restore(checkpoint, template, SHARDING)
        assert jax.tree.structure(state) == jax.tree.structure(template)
        assert int(state["step"]) == checkpoint.step
        np.testing.assert_array_equal(state["params"]["layers"][0]["kernel"], checkpoint.step)
        assert state["step"].sharding == SHARDING


@pytest.mark.parametrize(
    ("scores", "kept", "best"),
    [
        ([0.9, 0.1, 0.2, 0.3], [10, 30, 40], 10),
        ([0.1, 0.2, 0.3, 0.4], [30, 40], 40),
        ([0.5, 0.9, 0.9, None, None, 0.2], [30, 50, 60], 30),  # the later one of a tie
        ([None, None, None], [20, 30], None),
    ],
)
def test_the_best_and_the_two_latest_are_kept(tmp_path, scores, kept, best):
    write(tmp_path, scores)
    intact, _ = intact_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in intact] == kept
    found = best_checkpoint(intact, BEST)
    assert (found.step if found else None) == best


def test_the_best_is_the_smallest_where_the_metric_says_so(tmp_path):
    error = Metric(BEST.name, larger_is_better=False)
    write(tmp_path, [0.9, 0.1, 0.1, 0.3, None, 0.5], error)
    intact, _ = intact_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in intact] == [30, 50, 60]  # the later one of a tie
    assert best_checkpoint(intact, error).step == 30
    assert best_checkpoint(intact, BEST).step == 60
    assert best_checkpoint(intact, Metric("another")) is None


def test_a_saved_state_may_be_used_up_at_once(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    state = {"kernel": jnp.full((1000, 1000), 7.0)}
    writer = CheckpointWriter(tmp_path, BEST, resume="again")
    writer.save(1, state, result(0.5))
    jax.block_until_ready(overwrite(state))
    writer.wait()
    writer.close()
    (checkpoint,), _ = intact_checkpoints(tmp_path)
    shapes = {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    np.testing.assert_array_equal(restore(checkpoint, shapes, SHARDING)["kernel"], 7.0)


def files_of(three):
    return sorted(p.relative_to(three) for p in (three / "30").rglob("*") if p.is_file())


def test_every_flipped_byte_is_noticed(three, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    checked = 0
    for name in files_of(three):
        # Orbax's notes about the folder, without any part of the state.
        if name.name in ("_CHECKPOINT_METADATA", "commit_success.txt") and name.parent.name == "30":
            continue
        original = (copy / name).read_bytes()
        for position in {0, len(original) // 2, len(original) - 1} if original else set():
            damaged = bytearray(original)
            damaged[position] ^= 0x10
            (copy / name).write_bytes(damaged)
            intact, faulty = intact_checkpoints(copy)
            if [c.step for c in intact] == [10, 20]:
                assert faulty == [copy / "30"]
                assert f"checkpoint {copy / '30'} is damaged" in capsys.readouterr().err
                checked += 1
            else:
                # Only white space of the manifest is redundant.
                assert name.name == "manifest.json", (name, position)
        (copy / name).write_bytes(original)
    assert checked > 20


def test_orbaxs_own_notes_do_not_matter(three, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
        (copy / "30" / name).write_bytes(b"\x00\xff")
    intact, _ = intact_checkpoints(copy)
    state = restore(intact[-1], jax.eval_shape(lambda: folder_state(0)), SHARDING)
    assert int(state["step"]) == 30
    writer = CheckpointWriter(copy, BEST, resume="again")
    writer.save(40, folder_state(40), None)
    writer.wait()
    writer.close()
    assert [step for step, _ in read(copy)] == [10, 30, 40]


@pytest.mark.parametrize("harm", ["truncate", "empty", "remove", "add", "not JSON", "no manifest"])
def test_harm_to_any_file_costs_its_checkpoint(three, tmp_path, capsys, harm):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    own = {"_CHECKPOINT_METADATA", "commit_success.txt"}
    names = [name for name in files_of(three) if name.name not in own or name.parent.name != "30"]
    if harm in ("not JSON", "no manifest"):
        names = [name for name in names if name.name == "manifest.json"]
    for name in names:
        file = copy / name
        original = file.read_bytes()
        if harm == "add":
            file.with_name("more").write_bytes(original)
        elif harm in ("remove", "no manifest"):
            file.unlink()
        else:
            file.write_bytes({"truncate": original[:-1], "empty": b"", "not JSON": b"[1, 2"}[harm])
        if file.exists() and file.read_bytes() == original and harm != "add":
            continue  # an empty file cannot be truncated
        if harm == "truncate" and name.name == "manifest.json":
            assert original.endswith(b"}")  # the rest is not JSON
        assert [step for step, _ in read(copy)] == [10, 20], name
        assert f"checkpoint {copy / '30'} is damaged and not used" in capsys.readouterr().err
        (file.with_name("more") if harm == "add" else file).unlink(missing_ok=True)
        file.write_bytes(original)
    assert [step for step, _ in read(copy)] == [10, 20, 30]


def test_the_choice_is_made_among_the_intact(three, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    (copy / "30" / "manifest.json").unlink()
    assert choose_checkpoint(copy, latest_checkpoint).step == 20
    assert (copy / "30").exists()
    assert choose_checkpoint(copy, lambda found: best_checkpoint(found, BEST), repair=True).step == 10
    assert not (copy / "30").exists()
    assert "ANEW" not in capsys.readouterr().err
    for step in ("10", "20"):
        (copy / step / "manifest.json").write_text("{}")
    assert choose_checkpoint(copy, latest_checkpoint, repair=True) is None
    assert f"no intact checkpoint is left in {copy}: training starts ANEW, from step 0" in capsys.readouterr().err
    assert choose_checkpoint(copy, latest_checkpoint, repair=True) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("harm", ["truncate", "remove", "no manifest", "empty manifest", "rename"])
def test_incomplete_checkpoints_are_noticed(three, tmp_path, capsys, harm):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    largest = max((copy / "30" / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    if harm == "truncate":
        largest.write_bytes(largest.read_bytes()[:-10])
    elif harm == "remove":
        largest.unlink()
    elif harm == "no manifest":
        (copy / "30" / "manifest.json").unlink()
    elif harm == "empty manifest":
        (copy / "30" / "manifest.json").write_text('{"step": 30, "files": {}}')
    else:
        (copy / "30").rename(copy / "40")
    assert read(copy) == [(10, 0.9), (20, 0.5)]
    assert "is damaged and not used" in capsys.readouterr().err


def test_metadata_with_right_checksums_need_not_be_trusted(three, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    meta, manifest = (copy / "30" / name for name in ("meta/metadata", "manifest.json"))
    before = json.loads(meta.read_text())
    changes = [{"step": 20}, {"step": [30]}, {"metrics": {"accuracy": "\x1b"}}, {"metrics": [1]}, {"arrays": [[1]]}]
    for text in ["{", "[" * 10**5, "[]", *(json.dumps({**before, **change}) for change in changes)]:
        meta.write_text(text)
        files = json.loads((three / "30" / "manifest.json").read_text())["files"]
        files["meta/metadata"] = hashlib.sha256(text.encode()).hexdigest()
        manifest.write_text(json.dumps({"step": 30, "files": files}))
        assert read(copy) == [(10, 0.9), (20, 0.5)], text
        assert "its metadata cannot be read" in capsys.readouterr().err
    manifest.write_text('{"step": 30, "files": {"\\u001b[31m' + "x" * 9999 + '": ""}}')
    assert read(copy) == [(10, 0.9), (20, 0.5)]
    assert len(error := capsys.readouterr().err.removesuffix("\n")) < 600
    assert error.isprintable()


def test_what_is_not_a_checkpoint_is_ignored(three, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    (copy / "40.orbax-checkpoint-tmp").mkdir()
    (copy / "notes").mkdir()
    assert read(copy) == read(three)
    assert intact_checkpoints(tmp_path / "nowhere") == ([], [])


def test_temporary_folders_of_a_killed_save_are_removed(three, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(three, copy)
    (copy / "40.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    writer = CheckpointWriter(copy, BEST, resume="again")
    writer.save(40, folder_state(40), result(0.1))
    writer.wait()
    writer.close()
    assert sorted(path.name for path in copy.iterdir()) == ["10", "30", "40"]


def test_arrays_of_another_model_are_refused(three):
    intact, _ = intact_checkpoints(three)
    for layer, columns, message in (
        (0, 21, r"kernel is float32\[30, 20\] there, float32\[30, 21\] here"),
        (1, 20, r"layers.0.kernel is float32\[30, 20\] there, missing here"),
    ):
        other = {"params": {"layers": {layer: {"kernel": jnp.ones((30, columns))}}}}
        with pytest.raises(UserError, match=message):
            restore(intact[-1], {**other, "step": jnp.int32(0)}, SHARDING)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import jax
from train.engine.checkpoint import CheckpointWriter
from train.errors import run_program
from train.task import Metric

def main(argv):
    state = {"kernel": jax.random.normal(jax.random.key(0), (400, 1000))}
    writer = CheckpointWriter(Path(argv[1]), Metric("accuracy"), resume="the same command")
    writer.save(1, state, {"accuracy": 0.5})
    writer.wait()
    # No file may grow beyond this: writing fails as on a full disk (EFBIG for ENOSPC).
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        writer.save(2, state, {"accuracy": 0.6})
        writer.save(3, state, {"accuracy": 0.7})
    finally:
        writer.close()
    return 0

run_program(main)
"""


def test_a_full_disk_ends_in_a_sentence_and_leaves_what_was_there(tmp_path):
    run = run_python("-c", FULL_DISK, str(tmp_path))
    assert run.returncode == 1
    assert run.stderr.startswith("error: the checkpoint of step 2 cannot be written")
    assert run.stderr.count("\n") == 1, run.stderr
    for part in ("File too large", "earlier checkpoints are untouched", "the same command"):
        assert part in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert read(tmp_path) == [(1, 0.5)]


def test_a_disk_without_space_for_the_manifest(tmp_path, monkeypatch):
    def no_space(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.engine.checkpoint._digests", no_space)
    writer = CheckpointWriter(tmp_path, BEST, resume="again")
    with pytest.raises(UserError, match=r"step 1 cannot be written.*No space left"):
        writer.save(1, folder_state(1), result(0.5))  # the first is read back at once
    writer.close()
    assert list(tmp_path.iterdir()) == []
