"""Checkpoints: written in the background by orbax, verified by checksum before they are read.

A checkpoint is the folder ``checkpoints/<step>``. Orbax writes it under a temporary name and renames it when it is
complete. Before the renaming, the SHA-256 of every file is written to ``manifest.json``, because orbax does not notice
a flipped byte. The two latest checkpoints are kept, and the best by one metric of the validation split; of equal ones
the later is better. Other checkpoints are moved into the folder ``removed`` and deleted there, so a folder named after
a step is always complete.

Each process writes the shards of its devices into the same folder, which must be on shared storage. Process 0 alone
verifies and removes checkpoints, and broadcasts which one is read.

Checkpoints are data, never code: arrays and JSON, no pickle.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from train.config import sync_folder
from train.engine.distributed import broadcast_from_main, describe_lost_process, first_line
from train.errors import UserError
from train.task import Metric
from train.untrusted import escaped, finite, load_json, shortened

Tree = TypeVar("Tree")
_MANIFEST = "manifest.json"
# Files that orbax writes after the manifest and does not read for a restore: the time of the renaming, and the mark of
# a complete checkpoint on storage without renaming.
_NOTES = ("_CHECKPOINT_METADATA", "commit_success.txt")
_REMOVED = "removed"  # the folder of checkpoints that are no longer kept


class Checkpoint(NamedTuple):
    """A verified checkpoint on disk."""

    step: int  # training steps done
    metrics: dict[str, float] | None  # results on the validation split; None within an epoch
    arrays: dict[str, str]  # dtype and shape of each array by its name
    folder: Path


def intact_checkpoints(directory: Path) -> tuple[list[Checkpoint], list[Path]]:
    """Returns the intact checkpoints by step, and the folders of damaged ones, which are reported on stderr."""
    intact, damaged = [], []
    folders = directory.iterdir() if directory.is_dir() else ()
    # Only complete checkpoints have a name that is a number.
    steps = sorted(int(f.name) for f in folders if f.name.isascii() and f.name.isdecimal())
    for step in steps:
        folder = directory / str(step)
        if fault := _fault(folder):
            print(f"checkpoint {folder} is damaged and not used: {shortened(escaped(fault), 300)}", file=sys.stderr)
            damaged.append(folder)
        else:
            intact.append(_read_meta(folder))
    return intact, damaged


def latest_checkpoint(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Returns the checkpoint with the most steps, or None."""
    return max(checkpoints, key=lambda checkpoint: checkpoint.step, default=None)


def best_checkpoint(checkpoints: list[Checkpoint], metric: Metric) -> Checkpoint | None:
    """Returns the best checkpoint by a metric, the later of equal ones; None if no checkpoint has the metric."""
    scored = [c for c in checkpoints if c.metrics is not None and metric.name in c.metrics]
    return max(scored, key=lambda c: (metric.sign(c.metrics[metric.name]), c.step), default=None)  # pyright: ignore


def choose_checkpoint(
    directory: Path, choose: Callable[[list[Checkpoint]], Checkpoint | None], *, repair: bool = False
) -> Checkpoint | None:
    """Verifies the checkpoints and chooses an intact one on process 0; every process gets this choice.

    With `repair` the folders of damaged checkpoints are removed, because the run writes their steps again.
    """
    chosen = None
    if jax.process_index() == 0:
        intact, damaged = intact_checkpoints(directory)
        chosen = choose(intact)
        if repair:
            for folder in damaged:
                shutil.rmtree(folder)
            if damaged and chosen is None:
                note = f"no intact checkpoint is left in {directory}: training starts ANEW, from step 0"
                print(note, file=sys.stderr)
    step = broadcast_from_main(-1 if chosen is None else chosen.step)
    if chosen is not None or step < 0:
        return chosen
    folder = directory / str(step)
    wait_until_shared(folder / _MANIFEST)
    return _read_meta(folder)


def wait_until_shared(path: Path) -> None:
    """Waits until this host sees a file that process 0 has written; raises a `UserError` after a minute."""
    latest = time.monotonic() + 60  # shared storage may be slow to show another host's files
    while not path.exists():
        if time.monotonic() > latest:
            raise UserError(
                f"process {jax.process_index()} does not see {path}, which process 0 sees; --workdir must be on "
                "storage that all hosts share, under the same path"
            )
        time.sleep(0.2)


def _read_meta(folder: Path) -> Checkpoint:
    # Orbax would wait for the other processes.
    meta = load_json((folder / "meta" / "metadata").read_bytes())
    step, metrics, arrays = meta["step"], meta["metrics"], dict[str, str](meta["arrays"])
    is_text = all(isinstance(word, str) for word in arrays.values())
    if type(step) is not int or str(step) != folder.name or step >= 2**31 or not is_text:
        raise ValueError("metadata of another checkpoint")
    if metrics is not None:
        metrics = {name: finite(value) for name, value in metrics.items()}
    return Checkpoint(step, metrics, arrays, folder)


def restore(checkpoint: Checkpoint, template: Tree, shardings: Any) -> Tree:
    """Restores the arrays of an intact checkpoint; all processes must call this together.

    The template is a tree like the saved one, of arrays or of their shapes and dtypes. The shardings are such a tree,
    or one sharding for all arrays; they need not be those of the saved arrays. Raises a `UserError` if the checkpoint
    holds other arrays than the template.
    """
    leaf_shardings = jax.tree.broadcast(shardings, template)
    wanted = _named_leaves(
        jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            template,
            leaf_shardings,
        )
    )
    saved, expected = checkpoint.arrays, _describe(wanted)
    if differing := saved.items() ^ expected.items():
        name = min(differing)[0]
        raise UserError(
            f"checkpoint {checkpoint.folder} holds other arrays than the model of config.json: {shortened(name, 200)} "
            f"is {shortened(saved.get(name, 'missing'))} there, {expected.get(name, 'missing')} here; use the version "
            "of msconv_jax that wrote it"
        )
    try:
        with ocp.StandardCheckpointer() as reader:
            state = reader.restore(checkpoint.folder.absolute() / "state", wanted)
    except (ValueError, TypeError, KeyError, OSError) as error:  # invalid files with valid checksums
        if describe_lost_process(error):
            raise
        raise UserError(
            f"checkpoint {checkpoint.folder} cannot be read ({first_line(error)}); remove that folder, and an earlier "
            "one is used"
        ) from error
    return jax.tree.unflatten(jax.tree.structure(template), [state[name] for name in wanted])


class CheckpointWriter:
    """Saves the state of a run in the background; all processes must save the same steps.

    The folder is created if it does not exist. Leftovers of a killed save or removal are deleted. The best checkpoint
    by the metric `best` is kept. Error messages name the command `resume`, which resumes the run. The first checkpoint
    is read back at once, unless checkpoints are `proven` to work in this folder.
    """

    def __init__(self, directory: Path, best: Metric, resume: str, *, proven: bool = False):
        self._directory = directory
        self._resume = resume
        self._proven = proven
        self._step: int | None = None
        self._failed = False
        # These libraries log failed writes with tracebacks; `_writing` reports them in a sentence.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._report_unraisable

        def score(metrics: Any) -> float:
            return best.sign(metrics[best.name])

        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(
                [LatestN(2), BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)]
            ),
            best_fn=score,
            cleanup_tmp_directories=True,
            todelete_subdir=_REMOVED,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        with self._writing():
            self._empty_removed()
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: Any, metrics: dict[str, float] | None) -> None:
        """Starts a save when the previous one is complete; the state, a tree of arrays, may be donated afterwards.

        The metrics are the results on the validation split; None within an epoch. Raises a `UserError` if this save or
        the previous one cannot be written.
        """
        arrays = _named_leaves(state)
        meta = {"step": step, "metrics": metrics, "arrays": _describe(arrays)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        self.wait()
        self._step = step
        with self._writing():
            self._manager.save(step, args=args, metrics=metrics, force=True)
        if not self._proven:
            self.wait()
            self._read_back(Checkpoint(step, metrics, meta["arrays"], self._directory / str(step)), state)
            self._proven = True

    def wait(self) -> None:
        """Waits until all is saved and old checkpoints are removed; raises a `UserError` if a save failed."""
        with self._writing():
            self._manager.wait_until_finished()
            if self._directory.exists():
                sync_folder(self._directory)
            self._empty_removed()

    def _read_back(self, checkpoint: Checkpoint, state: Any) -> None:
        """Raises a `UserError` if a checkpoint that was just written cannot be read."""
        shardings = jax.tree.map(lambda leaf: jnp.asarray(leaf).sharding, state)
        fault = _fault(checkpoint.folder) if jax.process_index() == 0 else None
        try:
            if not fault:
                restore(checkpoint, state, shardings)
        except (OSError, ValueError) as error:
            if describe_lost_process(error):
                raise
            fault = first_line(error)
        if fault:
            raise UserError(
                f"the first checkpoint was written to {checkpoint.folder} but cannot be read back ({fault}); choose a "
                "--workdir on another disk or under another name"
            )

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # After an error in one of several processes, closing would deadlock with the others.
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits for the last save, frees the writer's resources, removes a failed save."""
        self._manager.close()
        if self._failed:
            self._remove_leftovers()
        else:
            sys.unraisablehook = self._hook

    def _remove_leftovers(self) -> None:
        # TensorStore's threads may still add files to the folder of a failed save.
        for _ in range(10):
            for leftover in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
            time.sleep(0.1)

    def _report_unraisable(self, unraisable: Any) -> None:
        # After one failed write, TensorStore reports further ones to an event loop that orbax has closed.
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)

    def _empty_removed(self) -> None:
        removed = self._directory / _REMOVED
        if jax.process_index() == 0 and removed.exists():
            shutil.rmtree(removed)

    def _write_manifest(self) -> None:
        # Orbax calls this in a thread when all files are written, before the renaming.
        if jax.process_index() == 0:
            (folder,) = self._directory.glob(f"{self._step}.*tmp*")
            manifest = {"step": self._step, "files": _digests(folder)}
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            # After the renaming, a power cut loses nothing.
            for path in (folder, *folder.rglob("*")):
                if path.is_dir():
                    sync_folder(path)
                else:
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # A failed write raises an OSError or TensorStore's ValueError, which orbax may wrap in anything.
        try:
            yield
        except Exception as error:
            self._failed = True
            if describe_lost_process(error):
                raise
            what = "a checkpoint" if self._step is None else f"the checkpoint of step {self._step}"
            # TensorStore's message has many lines; the reason is one of these.
            numbers = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES)
            reasons = [os.strerror(number) for number in numbers if os.strerror(number) in str(error)]
            raise UserError(
                f"{what} cannot be written to {self._directory} ({[*reasons, first_line(error)][0]}); earlier "
                f"checkpoints are untouched: make room, then resume with {self._resume}"
            ) from error


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, such as ``params.stem.conv.kernel``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _describe(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _digests(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file of a checkpoint by its path, without the manifest and `_NOTES`."""
    left_out = {folder / name for name in (_MANIFEST, *_NOTES)}
    digests = {}
    for path in folder.rglob("*"):
        if path.is_file() and path not in left_out:
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _fault(folder: Path) -> str | None:
    """Describes what is wrong with the files of a checkpoint; None if they are intact."""
    try:
        manifest = load_json((folder / _MANIFEST).read_bytes())
        step, recorded = manifest["step"], {**manifest["files"]}
    except FileNotFoundError:
        return f"it has no {_MANIFEST}"
    except (ValueError, KeyError, TypeError):
        return f"its {_MANIFEST} cannot be read"
    if str(step) != folder.name:
        return f"it was written as step {step}"
    if not recorded:
        return f"its {_MANIFEST} lists no files"
    found = _digests(folder)
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            return f"the file {name} is missing"
        if name not in recorded:
            return f"the file {name} was not written with it"
        if found[name] != recorded[name]:
            return f"the file {name} has changed since it was written"
    try:
        _read_meta(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its metadata cannot be read"
    return None
