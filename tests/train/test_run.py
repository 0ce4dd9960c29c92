import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest

from tests.train.helpers import (
    ROOT,
    TINY_CONFIG,
    assert_same_runs,
    fail,
    run_python,
    stored_arrays,
    tiny,
)
from train import __main__ as program
from train import evaluate
from train.config import update_config, write_config
from train.data import load_source
from train.data.record import write_record
from train.engine import loop, trained
from train.engine.checkpoint import intact_checkpoints
from train.engine.loop import train
from train.engine.profiling import StepProfiler
from train.engine.results import read_arrays
from train.engine.trained import Scorer, load_best, load_data, score
from train.errors import UserError
from train.tasks import Classification, task_kind


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text()


def test_the_answers_of_a_run_give_its_accuracy(finished_run):
    answers, result = read_arrays(finished_run), json.loads((finished_run / "result.json").read_text())
    assert set(answers) == {"labels", "predicted", "losses", "ranks"}
    assert {len(values) for values in answers.values()} == {364}
    assert (answers["labels"] == answers["predicted"]).mean() == result["test_accuracy"]
    assert (answers["ranks"] == 0).mean() == pytest.approx(result["test_accuracy"], abs=0.01)
    assert answers["losses"].mean() == pytest.approx(result["test_loss"])


def test_damaged_answers_are_called_so(tmp_path):
    (tmp_path / "test_answers.npz").write_bytes(b"PK nothing")
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"test_answers.npz is missing or damaged .*; remove .*result.json"):
            read_arrays(folder)


def test_a_run_leaves_its_files(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names == {
        "checkpoints",
        "config.json",
        "curves.png",
        "data.json",
        "metrics.jsonl",
        "report.html",
        "test_answers.npz",
        "result.json",
        "samples",
        "speeds.jsonl",
        "tensorboard",
    }
    records = [json.loads(line) for line in lines(finished_run).splitlines()]
    assert [(record["step"], record["epoch"]) for record in records] == [(5, 1), (10, 2)]
    assert records[1]["train_loss"] < records[0]["train_loss"]
    speeds = [json.loads(line) for line in (finished_run / "speeds.jsonl").read_text().splitlines()]
    assert [(speed["step"], speed["epoch"]) for speed in speeds] == [(5, 1), (10, 2)]
    assert all(speed["images_per_second"] > 0 and 0 <= speed["waiting"] <= 1 for speed in speeds)
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    result = json.loads((finished_run / "result.json").read_text())
    assert f"test accuracy {result['test_accuracy']:.4f}" in page
    assert page.count("taken for") >= 24  # the network is poor and makes enough mistakes
    samples = sorted(path.name for path in (finished_run / "samples").iterdir())
    assert samples == [f"{digit}.png" for digit in range(10)]


def test_a_finished_run_says_so_and_repeats_its_result(finished_run, capsys, monkeypatch):
    monkeypatch.setattr(loop, "load_source", None)  # every training needs it
    assert train(tiny(), Classification, finished_run, command="again") == 0
    output = capsys.readouterr().out.splitlines()
    result = json.loads((finished_run / "result.json").read_text())
    assert "this run is finished" in output[0]
    assert output[-1] == (
        f"test accuracy {result['test_accuracy']:.4f} (step {result['step']:.0f}, best of validation)"
    )


def test_evaluate_prints_what_training_printed(finished_run, capsys):
    train(tiny(), Classification, finished_run, command="again")
    expected = capsys.readouterr().out.splitlines()[-1]
    assert evaluate.main(["evaluate", f"--workdir={finished_run}"]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_the_test_split_is_looked_at_once_and_at_the_end(tmp_path, monkeypatch):
    looked = []
    original = trained.evaluation_batches

    def watch(source, split, *others, **named):
        looked.append(split)
        return original(source, split, *others, **named)

    monkeypatch.setattr(trained, "evaluation_batches", watch)
    train(tiny(checkpoint_every=0), Classification, tmp_path / "run", command="again")
    assert looked == ["validation", "validation", "test"]


@pytest.mark.parametrize(
    ("stop_at", "number"),
    [
        (3, signal.SIGTERM),
        (5, signal.SIGINT),
        pytest.param(3, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(5, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(number, stop_at, finished_run, tmp_path, monkeypatch, capsys):
    handlers = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    original, calls = loop.create_train_step, []

    def create_stopping_step(*arguments):
        train_step = original(*arguments)

        def step(state, batch):
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), number)
            return train_step(state, batch)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_train_step", create_stopping_step)
        assert train(tiny(), Classification, tmp_path, command="the same command") == 128 + number
    output = capsys.readouterr().out
    assert f"stopped by {number.name} after step {stop_at} of 10; go on with\n" in output
    assert output.endswith("the same command\n")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert intact_checkpoints(tmp_path / "checkpoints")[0][-1].step == stop_at

    assert train(tiny(), Classification, tmp_path, command="again") == 0
    assert f"going on from the checkpoint of step {stop_at} of 10" in capsys.readouterr().out
    assert_same_runs(tmp_path, finished_run)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.train.helpers import register_tiny, tiny
from train.engine import checkpoint, loop
from train.tasks import Classification
register_tiny()
where, count, workdir = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
module, name = {"save": (checkpoint, "_digests"), "step": (loop, "shard_batch")}[where]
original = getattr(module, name)
calls = []
def deadly(*arguments):
    calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)
setattr(module, name, deadly)
loop.train(tiny(), Classification, workdir, command="again")
"""


# Saves are at steps 2, 4, 5 (the end of the first epoch), 6, 8 and 10. The first is also read back.
@pytest.mark.slow
@pytest.mark.parametrize(("where", "count", "resumed_from"), [("save", 4, 4), ("step", 8, 6)])
def test_kill_9_at_any_time_changes_nothing(where, count, resumed_from, finished_run, tmp_path, capfd):
    run = run_python("-c", KILLED, where, str(count), str(tmp_path))
    assert run.returncode == -signal.SIGKILL, run.stderr
    capfd.readouterr()
    assert train(tiny(), Classification, tmp_path, command="again") == 0
    output, errors = capfd.readouterr()
    if where == "save":
        assert f"going on from the checkpoint of step {resumed_from} of 10" in output
    else:  # the save of step 6 may have been incomplete
        assert "going on from the checkpoint of step" in output
    assert "damaged" not in errors
    assert_same_runs(tmp_path, finished_run)


def test_a_flipped_byte_costs_a_step_back_and_no_more(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    (workdir / "result.json").unlink()
    latest = workdir / "checkpoints" / "10" / "state" / "d"
    largest = max(latest.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert train(tiny(), Classification, workdir, command="again") == 0
    output, errors = capsys.readouterr()
    assert f"checkpoint {workdir / 'checkpoints' / '10'} is damaged and not used" in errors
    assert "going on from the checkpoint of step 8 of 10" in output
    assert_same_runs(workdir, finished_run)


def test_a_run_with_only_damaged_checkpoints_starts_anew_and_says_so(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    (workdir / "result.json").unlink()
    for folder in (workdir / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("{")
    assert train(tiny(), Classification, workdir, command="again") == 0
    output, errors = capsys.readouterr()
    assert errors.count("is damaged and not used: its manifest.json cannot be read") == 2
    assert f"no intact checkpoint is left in {workdir / 'checkpoints'}: training starts ANEW, from step 0" in errors
    assert "going on" not in output
    assert_same_runs(workdir, finished_run)


KILLED_BY_CHANCE = """
import os, random, signal, sys, threading
from pathlib import Path
import grain, matplotlib.figure, PIL.Image, rich.progress  # here, so that no life spends its time on it
from tests.train.helpers import register_tiny, tiny
from train.engine import loop
from train.errors import UserError
from train.tasks import Classification
register_tiny()
chance = random.Random(0)

def live(workdir, steps=0, seconds=0.0):
    import jax
    # The first life leaves its compiled programs to the others, which write none that a kill could spoil.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 60.0 if steps else 0.0)
    original, calls = loop.shard_batch, []
    def deadly(*arguments):
        calls.append(1)
        if len(calls) == steps:  # within this step, or what is saved after the one before
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(*arguments)
    loop.shard_batch = deadly
    try:
        return loop.train(tiny(epochs=16, checkpoint_every=1), Classification, workdir, command="again")
    except UserError as error:
        print("refused:", error)
        return 3

def start(*life):
    child = os.fork()
    if not child:
        sys.exit(live(*life))
    return child

def end(child):
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

whole, killed = map(Path, sys.argv[1:])
end(start(whole))
for number in range(20):
    # Of every fourth life there are two at once; steps are few, so that no life ends the run.
    for child in [start(killed, chance.randint(2, 4), chance.uniform(0, 0.05)) for _ in range(2 - bool(number % 4))]:
        end(child)
end(start(killed))
"""


@pytest.mark.slow
def test_twenty_kills_by_chance_and_starts_at_once_change_nothing(tmp_path):
    whole, workdir, temporary = tmp_path / "whole", tmp_path / "parent" / "run", tmp_path / "temporary"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    run = run_python("-u", "-c", KILLED_BY_CHANCE, str(whole), str(workdir), **environment)
    assert (run.returncode, run.stderr) == (0, "")  # no checkpoint is damaged
    output = run.stdout.splitlines()
    statuses = [line for line in output if line.startswith("status")]
    refused = [line for line in output if line.startswith("refused: ")]
    # A second process is rejected, or starts after the first one's death.
    assert statuses[0] == statuses[-1] == "status 0"
    assert statuses.count("status -9") == 25 - len(refused)
    assert statuses.count("status 3") == len(refused) > 0
    # The first process may not have written its number yet.
    owner = re.compile(r"is in use by (process \d+ on host \S+|another process); wait until it has ended")
    assert [line for line in refused if f"--workdir={workdir} " not in line or not owner.search(line)] == []
    # The kills were spread over the run.
    assert len({line for line in output if line.startswith("going on from the checkpoint of step")}) > 10
    assert_same_runs(workdir, whole)
    assert [path.name for path in workdir.parent.iterdir()] == ["run"]
    assert list(temporary.iterdir()) == []
    assert {path.name for path in workdir.iterdir()} == {path.name for path in (whole).iterdir()}
    for folder in ("checkpoints", "samples"):
        names = [sorted(p.name for p in (run / folder).iterdir()) for run in (workdir, whole)]
        assert names[0] == names[1]


@contextlib.contextmanager
def mounted(folder, options):
    """Mounts a small file system in memory, and unmounts it at the end."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


FILL = """
import runpy, sys
from tests.train.helpers import register_tiny
register_tiny()
import importlib, shutil
path, name, workdir = sys.argv[1:4]
owner = importlib.import_module(path)
owner, name = (getattr(owner, name.split(".")[0]), name.split(".")[1]) if "." in name else (owner, name)
original = getattr(owner, name)
def fill(*arguments, **named):
    with open(workdir + "/filler", "wb") as file:
        file.write(bytes(shutil.disk_usage(workdir).free))
    return original(*arguments, **named)
setattr(owner, name, fill)
sys.argv = ["train", *sys.argv[4:]]
runpy.run_module("train", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("train.engine.loop", "write_config"),
        ("train.engine.checkpoint", "CheckpointWriter.save"),
        ("train.engine.log", "MetricsLog.write"),
        ("train.engine.log", "draw_curves"),
        ("train.engine.results", "write_samples"),
        ("train.engine.results", "write_report"),
        ("train.engine.results", "write_arrays"),
        ("train.engine.results", "write_text"),  # result.json
    ],
)
def test_a_full_disk_at_any_write_ends_in_a_sentence_and_the_run_goes_on_later(module, name, finished_run, tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=8m"):
        arguments = (f"--config={TINY_CONFIG}", f"--workdir={disk / 'run'}")
        run = run_python("-c", FILL, module, name, str(disk), *arguments)
        assert run.returncode == 1, run.stderr
        assert run.stderr.startswith("error: ")
        assert run.stderr.count("\n") == 1, run.stderr
        assert "No space left on device" in run.stderr
        assert "make room" in run.stderr
        (disk / "filler").unlink()
        assert train(tiny(), Classification, disk / "run", command="again") == 0
        assert_same_runs(disk / "run", finished_run)


def test_a_workdir_that_cannot_be_written_stops_the_run_before_training(tmp_path, monkeypatch, capsys):
    def refuse(self, *arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(loop, "create_train_step", None)  # every training needs it
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    arguments = (f"--config={TINY_CONFIG}", f"--workdir={tmp_path / 'run'}")
    _, errors = fail(program.main, monkeypatch, capsys, *arguments)
    assert errors == (f"error: Read-only file system ({tmp_path / 'run'}); make it writable, or choose another place\n")


@pytest.mark.slow
def test_a_read_only_file_system_stops_the_run_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "create_train_step", None)  # every training needs it
    with mounted(tmp_path / "disk", "size=1m,ro"):
        for workdir in (tmp_path / "disk", tmp_path / "disk" / "run"):
            arguments = (f"--config={TINY_CONFIG}", f"--workdir={workdir}")
            _, errors = fail(program.main, monkeypatch, capsys, *arguments)
            assert errors.startswith(f"error: Read-only file system ({workdir}")
            assert errors.endswith("; make it writable, or choose another place\n")


FULL_DISK = """
import resource, runpy, sys
from tests.train.helpers import register_tiny
register_tiny()
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
sys.argv = ["train", *sys.argv[1:]]
runpy.run_module("train", run_name="__main__")
"""


@pytest.mark.slow
def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_later(finished_run, tmp_path):
    arguments = (f"--config={TINY_CONFIG}", f"--workdir={tmp_path / 'run'}")
    run = run_python("-c", FULL_DISK, *arguments)
    assert run.returncode == 1
    assert run.stderr.startswith("error: the checkpoint of step 2 cannot be written")
    assert run.stderr.count("\n") == 1
    assert "python -m train --config=" in run.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert train(tiny(), Classification, tmp_path / "run", command="again") == 0
    assert_same_runs(tmp_path / "run", finished_run)


@pytest.mark.slow
def test_the_three_commands(tmp_path):
    workdir = tmp_path / "a run"
    run = run_python(
        "-m",
        "train",
        f"--config={TINY_CONFIG}",
        f"--workdir={workdir}",
        "--config.model.name=resnet8",  # the tiny model is registered in the tests only
        "--config.model.kwargs.width=4",
        "--config.epochs=1",
        "--config.checkpoint_every=0",
    )
    assert (run.returncode, run.stderr) == (0, "")
    output = run.stdout.splitlines()
    assert any(line.startswith("epoch 1/1  train loss ") for line in output)
    (command,) = [line for line in output if line.startswith("predict for an image with: ")]
    assert command.endswith(f"--workdir='{workdir}' '{workdir}/samples/9.png'")
    result = json.loads((workdir / "result.json").read_text())
    assert output[-1] == (f"test accuracy {result['test_accuracy']:.4f} (step 5, best of validation)")

    run = run_python("-m", "train.evaluate", f"--workdir={workdir}")
    assert (run.returncode, run.stdout, run.stderr) == (0, output[-1] + "\n", "")

    images = [str(workdir / "samples" / "9.png"), "missing.png"]
    run = run_python("-m", "train.predict", f"--workdir={workdir}", *images, "--top=2")
    assert run.returncode == 1
    assert run.stdout.startswith(f"{images[0]}: ")
    assert run.stdout.count("%") == 2
    assert run.stderr == "error: missing.png: there is no such file\n"


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.name=ps_resnet9", "ps_resnet8"),
        ("data.source=digit", "did you mean 'digits'"),
        ("batch_size=2000", "only 1163 images"),
        ("model.frozen=('conv','nrm')", "config.model.frozen names 'nrm', but no parameter's path begins so"),
        ("optimizer.multipliers={'heads': 10.0}", "config.optimizer.multipliers names 'heads'"),
        ("data.augment.warp.shift=99", "a number from 0 to 4"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(override, part, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    arguments = (f"--config={TINY_CONFIG}", f"--workdir={workdir}", f"--config.{override}")
    _, errors = fail(program.main, monkeypatch, capsys, *arguments)
    assert part in errors
    assert not workdir.exists()


def test_the_folder_of_another_config_is_refused(finished_run, monkeypatch, capsys):
    before = sorted(finished_run.rglob("*"))
    arguments = (f"--config={TINY_CONFIG}", f"--workdir={finished_run}", "--config.seed=4")
    _, errors = fail(program.main, monkeypatch, capsys, *arguments)
    assert "differs in seed (0 there, 4 now); choose another --workdir" in errors
    assert sorted(finished_run.rglob("*")) == before


def assert_finite_checkpoints(workdir, steps):
    intact, damaged = intact_checkpoints(workdir / "checkpoints")
    assert ([checkpoint.step for checkpoint in intact], damaged) == (steps, [])
    if intact:
        for name, array in stored_arrays(workdir).items():
            assert np.isfinite(array).all(), name


@pytest.mark.parametrize("checkpoint_every", [0, 1])
def test_a_diverging_run_says_so(checkpoint_every, tmp_path):
    config = tiny(optimizer={"learning_rate": 1e30, "warmup_epochs": 0.0}, checkpoint_every=checkpoint_every)
    message = (
        r"training loss is .* gradient \S+ at step 2, so training cannot continue; lower config.optimizer.learning_rate"
    )
    with pytest.raises(UserError, match=message):
        train(config, Classification, tmp_path, command="again")
    assert_finite_checkpoints(tmp_path, [1] if checkpoint_every else [])


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    config = tiny(optimizer={"learning_rate": 1e38, "weight_decay": 1000.0, "warmup_epochs": 0.0}, checkpoint_every=1)
    with pytest.raises(UserError, match="parameters are not finite after step 1, so it is not saved"):
        train(config, Classification, tmp_path, command="again")
    assert_finite_checkpoints(tmp_path, [])


@pytest.mark.parametrize("bad_step", [3, 4])  # saves are due at steps 2 and 4
def test_an_image_that_is_not_finite_stops_the_run(bad_step, tmp_path, monkeypatch):
    original, calls = loop.shard_batch, []

    def spoil(batch, mesh):
        calls.append(1)
        if len(calls) == bad_step:
            batch["image"] = batch["image"].astype(np.float32)
            batch["image"][7, 3, 3] = np.nan
        return original(batch, mesh)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "shard_batch", spoil)
        with pytest.raises(UserError, match=rf"training loss is nan .* at step {bad_step}, .* images that are damaged"):
            train(tiny(), Classification, tmp_path, command="again")
    assert len(calls) <= bad_step + 1
    assert_finite_checkpoints(tmp_path, [2])


def test_averages_are_what_is_evaluated_and_kept(tmp_path, monkeypatch):
    config = tiny({"optimizer.ema_decay": 0.9}, epochs=1, checkpoint_every=0)
    seen = []
    original = Scorer.score

    def watch(self, params, other_state, split):
        seen.append((split, jax.tree.map(np.array, (params, other_state))))
        return original(self, params, other_state, split)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score", watch)
        assert train(config, Classification, tmp_path, command="again") == 0
    assert [split for split, _ in seen] == ["validation", "test"]
    best = load_best(tmp_path, task_kind, load_data(tmp_path, task_kind))
    jax.tree.map(np.testing.assert_array_equal, (best.params, best.other_state), seen[0][1])
    (checkpoint,) = intact_checkpoints(tmp_path / "checkpoints")[0]
    assert {"params.head.kernel", "average.params.head.kernel", "average.rest.norm.mean"} <= checkpoint.arrays.keys()
    assert {"terms.loss.0", "terms.loss.1", "terms.accuracy.0"} <= checkpoint.arrays.keys()
    loss = score(best, "validation").result()["loss"]
    assert json.loads(lines(tmp_path))["validation_loss"] == pytest.approx(loss, rel=1e-6)
    assert checkpoint.metrics == {
        "loss": pytest.approx(loss),
        "accuracy": json.loads(lines(tmp_path))["validation_accuracy"],
    }


def test_what_is_frozen_goes_through_a_run(tmp_path):
    """The optimiser, the network and the checkpoint of a run use the config's frozen paths."""
    config = tiny({"model.frozen": ["conv", "norm"], "optimizer.multipliers": {"head": 2.0}}, epochs=1)
    assert train(config, Classification, tmp_path, command="again") == 0
    best = load_best(tmp_path, task_kind, load_data(tmp_path, task_kind))
    fresh = Classification(config, best.source).create()
    np.testing.assert_array_equal(best.params["conv"]["kernel"], fresh.conv.kernel[...])
    np.testing.assert_array_equal(best.other_state["norm"]["mean"], np.zeros(8))
    assert not np.array_equal(best.params["head"]["kernel"], fresh.head.kernel[...])
    with pytest.raises(UserError, match=r"differs in model\.frozen"):
        train(update_config(config, {"model.frozen": []}), Classification, tmp_path, command="again")


@pytest.mark.slow
def test_a_profiled_run_is_the_same_and_leaves_a_trace(finished_run, tmp_path):
    assert train(tiny(profile=True), Classification, tmp_path, command="again") == 0
    assert_same_runs(tmp_path, finished_run)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert not (finished_run / "profile").exists()


@pytest.mark.parametrize(("steps", "traced"), [(1, range(1, 2)), (10, range(5, 11)), (99, range(10, 16))])
def test_which_steps_are_profiled(steps, traced, tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    profiler = StepProfiler(tmp_path, steps, enabled=True)
    for step in range(1, steps + 1):
        profiler.before(step, ())
        events.append(step)
        profiler.after(step, ())
    profiler.close()
    assert events[events.index("start") + 1 : events.index("stop")] == list(traced)
    assert [events.count(word) for word in ("start", "stop")] == [1, 1]


@pytest.fixture
def nearly_finished(finished_run, tmp_path):
    """A run that was killed before its results were written."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    for name in ("result.json", "report.html", "test_answers.npz"):
        (workdir / name).unlink()
    return workdir


def test_a_report_that_cannot_be_drawn_ends_no_finished_run(nearly_finished, finished_run, monkeypatch, capsys):
    def fail(*_):
        assert (nearly_finished / "result.json").exists()  # the numbers come first
        raise ZeroDivisionError("\x1b[31m")

    report = nearly_finished / "report.html"
    with monkeypatch.context() as patch:
        patch.setattr("train.engine.results.page_html", fail)
        assert train(tiny(), Classification, nearly_finished, command="again") == 0
    output = capsys.readouterr()
    assert output.err == "note: report.html is missing, drawing it failed with ZeroDivisionError: \\x1b[31m\n"
    assert output.out.splitlines()[-1].startswith("test accuracy ")
    assert_same_runs(nearly_finished, finished_run)
    assert len(read_arrays(nearly_finished)["labels"]) == 364
    # The rerun has nothing to do, and prints how to get the report.
    assert train(tiny(), Classification, nearly_finished, command="again") == 0
    output = capsys.readouterr()
    assert "this run is finished" in output.out
    assert f"{report} is missing; remove {nearly_finished / 'result.json'}, and the same command" in output.out
    (nearly_finished / "result.json").unlink()
    assert train(tiny(), Classification, nearly_finished, command="again") == 0
    assert report.exists()
    capsys.readouterr()
    assert train(tiny(), Classification, nearly_finished, command="again") == 0
    assert "missing" not in capsys.readouterr().out


def test_damaged_metrics_and_samples_that_cannot_be_drawn(nearly_finished, finished_run, monkeypatch, capsys):
    """Only damaged lines are lost, and the run ends without the samples."""

    def fail(image, side):
        raise ValueError("no")

    monkeypatch.setattr("train.engine.results.enlarged", fail)
    shutil.rmtree(nearly_finished / "samples")
    path = nearly_finished / "metrics.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\0\xff{\n{}\n" + second)
    assert train(tiny(), Classification, nearly_finished, command="again") == 0
    assert_same_runs(nearly_finished, finished_run)
    errors = capsys.readouterr().err
    assert "line 2: it is not JSON; line 3: it has no 'step'" in errors
    assert path.with_name("metrics.jsonl.damaged").read_bytes() == first + b"\0\xff{\n{}\n" + second
    assert errors.count("is missing, drawing it failed with ValueError: no\n") == 10
    assert (nearly_finished / "report.html").exists()


def test_a_damaged_result_is_not_repeated(finished_run, tmp_path):
    write_config(tmp_path, tiny())
    contents = ['{"step": 10}', '{"test_accuracy": 0.5}', '{"step": "ten"}', "[]", "{", "[" * 10**5]
    contents += ['{"step": 1, "test_accuracy": ' + value + "}" for value in ("NaN", "1e999", "[1]", "null", "true")]
    for content in contents:
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(UserError, match=r"result.json is damaged; remove it"):
            train(tiny(), Classification, tmp_path, command="again")


def test_folders_without_a_trained_network(tmp_path, monkeypatch, capsys):
    _, errors = fail(evaluate.main, monkeypatch, capsys, f"--workdir={tmp_path / 'nowhere'}")
    assert "is not the folder of a run" in errors
    write_config(tmp_path, tiny())
    _, errors = fail(evaluate.main, monkeypatch, capsys, f"--workdir={tmp_path}")
    assert "has no data.json, which training writes before its first step" in errors
    write_record(tmp_path, load_source(tiny()))
    _, errors = fail(evaluate.main, monkeypatch, capsys, f"--workdir={tmp_path}")
    assert "holds no intact checkpoint of a finished epoch" in errors
    _, errors = fail(evaluate.main, monkeypatch, capsys)
    assert "--workdir is missing" in errors
    _, errors = fail(evaluate.main, monkeypatch, capsys, "--workdir=x", "y")
    assert "unexpected argument 'y'" in errors


@pytest.mark.slow
def test_the_shipped_config_reaches_its_accuracy(tmp_path):
    config = ROOT / "configs" / "ps_resnet_digits.py"
    run = run_python("-m", "train", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert (run.returncode, run.stderr) == (0, "")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_accuracy"] >= 0.975
