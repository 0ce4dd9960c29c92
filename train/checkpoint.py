"""Checkpoints: written in the background by orbax, verified by checksum before they are read.

A checkpoint is the folder ``checkpoints/<step>``. Orbax writes it under a temporary name and
renames it when it is complete. Just before that the SHA-256 of every file goes into its
``manifest.json``: orbax alone would restore a flipped byte without a word. Kept are the two latest
and the best by validation accuracy; of equals the later counts as the better. The others go, in one move, into the
folder ``removed``, and from there file by file: what bears the name of a step is whole, whenever the process dies.

Of several processes each writes the parts of arrays that its devices hold, all into the same folder: it must be on
storage that they share. Process 0 alone verifies and removes; which checkpoint is read, it tells the others.

Checkpoints are data, never code: arrays and JSON, no pickle.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from train.distributed import explain_lost, from_main
from train.errors import UserError

Tree = TypeVar("Tree")
_MANIFEST = "manifest.json"
_COMMIT_METADATA = "_CHECKPOINT_METADATA"  # orbax adds the time of the renaming to it
_COMMITTED = "commit_success.txt"  # orbax's mark of a complete checkpoint on storage that cannot rename
_REMOVED = "removed"  # the folder of checkpoints that are no longer kept
_SECONDS_TO_APPEAR = 60  # shared storage may show another host's files late


class Checkpoint(NamedTuple):
    """A checkpoint on disk whose files are as they were written.

    Attributes:
        step: training steps done.
        accuracy: of the validation split, 0..1; None if it was taken within an epoch.
        arrays: the names of its arrays, each with a word on dtype and shape.
        folder: where it lies.
    """

    step: int
    accuracy: float | None
    arrays: dict[str, str]
    folder: Path


def intact_checkpoints(directory: Path) -> tuple[list[Checkpoint], list[Path]]:
    """Verifies all checkpoints.

    Prints a sentence about every one that is damaged.

    Args:
        directory: the folder of the checkpoints; it need not exist.

    Returns:
        The intact ones in the order of their steps, and the folders of the damaged ones.
    """
    intact, damaged = [], []
    folders = directory.iterdir() if directory.is_dir() else ()
    # Orbax names complete checkpoints by their step and nothing else.
    steps = sorted(int(f.name) for f in folders if f.name.isascii() and f.name.isdecimal())
    for step in steps:
        folder = directory / str(step)
        fault = _fault(folder)
        if fault is None:
            intact.append(_read_meta(folder))
        else:
            print(f"checkpoint {folder} is damaged and not used: {fault}", file=sys.stderr)
            damaged.append(folder)
    return intact, damaged


def best_of(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Picks the best by validation accuracy, the later of equals; None if none has been scored."""
    scored = [c for c in checkpoints if c.accuracy is not None]
    return max(scored, key=lambda c: (c.accuracy, c.step), default=None)


def agreed_checkpoint(
    directory: Path, choose: Callable[[list[Checkpoint]], Checkpoint | None], *, repair: bool = False
) -> Checkpoint | None:
    """Verifies and chooses on process 0, and gives all processes what it chose.

    Args:
        directory: the folder of the checkpoints; it need not exist.
        choose: picks one of the intact checkpoints, or none.
        repair: whether the folders of damaged checkpoints are removed, as a run does that writes their steps again.

    Raises:
        UserError: if another process does not see the checkpoint.
    """
    chosen = None
    if jax.process_index() == 0:
        intact, damaged = intact_checkpoints(directory)
        chosen = choose(intact)
        if repair:
            for folder in damaged:
                shutil.rmtree(folder)
            if damaged and chosen is None:
                print(
                    f"no intact checkpoint is left in {directory}: training starts ANEW, from step 0", file=sys.stderr
                )
    step = from_main(-1 if chosen is None else chosen.step)
    if chosen is not None or step < 0:
        return chosen
    folder = directory / str(step)
    wait_until_shared(folder / _MANIFEST)
    return _read_meta(folder)


def wait_until_shared(path: Path) -> None:
    """Waits until this host sees a file that process 0 has written.

    Raises:
        UserError: if it does not appear within a minute.
    """
    latest = time.monotonic() + _SECONDS_TO_APPEAR
    while not path.exists():
        if time.monotonic() > latest:
            raise UserError(
                f"process {jax.process_index()} does not see {path}, which process 0 sees; --workdir must be on "
                "storage that all hosts share, under the same path"
            )
        time.sleep(0.2)


def latest_of(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Picks the one of most steps; None if there is none."""
    return max(checkpoints, key=lambda checkpoint: checkpoint.step, default=None)


def _read_meta(folder: Path) -> Checkpoint:
    # Not through a Checkpointer, which would wait for the other processes.
    meta: Any = ocp.JsonCheckpointHandler().restore(epath.Path(folder.absolute() / "meta"))
    return Checkpoint(meta["step"], meta["accuracy"], meta["arrays"], folder)


def restore(checkpoint: Checkpoint, template: Tree, shardings: Any) -> Tree:
    """Reads the arrays of a checkpoint; all processes must call this together.

    Args:
        checkpoint: one that `intact_checkpoints` gave.
        template: a tree of arrays, or of their shapes and dtypes, of what was saved.
        shardings: where the arrays go, whatever devices they were saved from: a tree like the template, or one
            sharding for all.

    Returns:
        A tree like the template.

    Raises:
        UserError: if the checkpoint holds other arrays than the template.
    """
    wanted = _named_leaves(template)
    differing = sorted(checkpoint.arrays.items() ^ _describe(wanted).items())
    if differing:
        name = differing[0][0]
        raise UserError(
            f"checkpoint {checkpoint.folder} holds other arrays than the model of config.json: "
            f"{name} is {checkpoint.arrays.get(name, 'missing')} there, "
            f"{_describe(wanted).get(name, 'missing')} here; use the version of msconv_jax that "
            "wrote it"
        )
    places = _named_leaves(jax.tree.broadcast(shardings, template))
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name]) for name, leaf in wanted.items()
    }
    args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        state = reader.restore(checkpoint.folder.absolute(), args=args)["state"]
    return jax.tree.unflatten(jax.tree.structure(template), [state[name] for name in wanted])


class CheckpointWriter:
    """Saves the state of a run in the background; all processes must save the same steps.

    Args:
        directory: the folder of the checkpoints; made if it does not exist. What a run left in it that was killed
            in a save, or while it removed an old checkpoint, goes.
        resume: the command that goes on with the run, for messages.
    """

    def __init__(self, directory: Path, resume: str):
        self._directory = directory
        self._resume = resume
        self._step: int | None = None
        self._failed = False
        self._silence = _Silence()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(
                [
                    LatestN(2),
                    BestN(get_metric_fn=_accuracy_of, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            best_fn=_accuracy_of,
            cleanup_tmp_directories=True,
            todelete_subdir=_REMOVED,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        self._attempt(self._empty_removed)
        self._manager = self._attempt(lambda: ocp.CheckpointManager(directory.absolute(), options=options))

    def save(self, step: int, state: Any, accuracy: float | None) -> None:
        """Starts to save, once the save before is complete; the state may be used up afterwards.

        Args:
            step: training steps done.
            state: a tree of arrays.
            accuracy: of the validation split, 0..1; None within an epoch.

        Raises:
            UserError: if this save, or the one before, cannot be written.
        """
        arrays = _named_leaves(state)
        meta = {"step": step, "accuracy": accuracy, "arrays": _describe(arrays)}
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        metrics = None if accuracy is None else {"accuracy": accuracy}
        self.wait()
        self._step = step
        self._attempt(lambda: self._manager.save(step, args=args, metrics=metrics, force=True))

    def wait(self) -> None:
        """Waits until all is saved, and no more is there than is kept.

        Raises:
            UserError: if a save could not be written.
        """
        self._attempt(self._manager.wait_until_finished)
        self._attempt(self._empty_removed)

    def reached_preemption(self, step: int) -> bool:
        """Says, after every step and of several processes, whether all are to stop after this one.

        That is so soon after SIGTERM has reached any of them; JAX has taken over that signal then.
        """
        return self._manager.reached_preemption(step)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # After a failure of one of several processes, saving would wait for the others, and they for this one.
        if kind is None or jax.process_count() == 1:
            self.close()

    def close(self) -> None:
        """Waits for what is being saved, frees what the writer holds, removes a failed save."""
        self._manager.close()
        if self._failed:
            # Threads of the failed save may still complain: their silence lasts.
            for leftover in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
        else:
            self._silence.end()

    def _empty_removed(self) -> None:
        removed = self._directory / _REMOVED
        if jax.process_index() == 0 and removed.exists():
            shutil.rmtree(removed)

    def _write_manifest(self) -> None:
        # Orbax calls this in its own thread when all files are written, before the renaming.
        if jax.process_index() == 0:
            (folder,) = self._directory.glob(f"{self._step}.*tmp*")
            digests = _digests(folder)
            manifest = {"step": self._step, "files": digests}
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    def _attempt(self, action: Callable[[], Any]) -> Any:
        # A failed write reaches us as an OSError, or as TensorStore's ValueError, and orbax may
        # wrap either; whatever it is, what matters is that no checkpoint came of it.
        try:
            return action()
        except Exception as error:
            self._failed = True
            if explain_lost(error):
                raise
            what = "a checkpoint" if self._step is None else f"the checkpoint of step {self._step}"
            raise UserError(
                f"{what} cannot be written to {self._directory} ({_reason(error)}); earlier "
                f"checkpoints are untouched: make room, then go on with {self._resume}"
            ) from error


def _accuracy_of(metrics: Any) -> float:
    return metrics["accuracy"]


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Gives the leaves of a tree by their paths in it, such as ``params.stem.conv.kernel``."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _describe(arrays: dict[str, Any]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _digests(folder: Path) -> dict[str, str]:
    """Gives the SHA-256 of every file of a checkpoint, by its path in the folder.

    Left out are the manifest, and orbax's own notes of the folder, which it writes later and never reads for a restore.
    """
    own = {folder / name for name in (_MANIFEST, _COMMIT_METADATA, _COMMITTED)}
    digests = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p not in own):
        with path.open("rb") as file:
            digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _fault(folder: Path) -> str | None:
    """Says what is wrong with the files of a checkpoint, or None if nothing is."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        step, recorded = manifest["step"], dict(manifest["files"])
    except FileNotFoundError:
        return f"it has no {_MANIFEST}"
    except (ValueError, KeyError, TypeError):
        return f"its {_MANIFEST} cannot be read"
    if str(step) != folder.name:
        return f"it was written as step {step}"
    found = _digests(folder)
    for name, digest in sorted(recorded.items()):
        if name not in found:
            return f"the file {name} is missing"
        if found[name] != digest:
            return f"the file {name} has changed since it was written"
    for name in sorted(found.keys() - recorded.keys()):
        return f"the file {name} was not written with it"
    return None if recorded else f"its {_MANIFEST} lists no files"


def _reason(error: BaseException) -> str:
    """Gives the reason of a failure in a few words, where TensorStore needs many lines."""
    text = str(error)
    for number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES):
        if os.strerror(number) in text:
            return os.strerror(number)
    line = (text.splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:200] + " ..."


class _Silence:
    """Keeps messages of the libraries below off the screen, from creation to `end`.

    * orbax warns of every checkpoint without metrics; those within an epoch have none;
    * orbax warns that a run of several processes stops at SIGTERM, which the run says itself;
    * orbax logs failed writes with their tracebacks, which `CheckpointWriter` reports in one
      sentence;
    * of several writes that fail, asyncio logs all but the first as never retrieved;
    * TensorStore's answers after a failed write find their event loop closed.
    """

    _LOGGERS = ("absl", "asyncio")

    def __init__(self):
        self._hook = sys.unraisablehook
        for name in self._LOGGERS:
            logging.getLogger(name).addFilter(self._wanted)
        sys.unraisablehook = self._unraisable

    def _wanted(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_failed_write = record.levelno == logging.ERROR and (
            "orbax" in record.pathname or "exception was never retrieved" in message
        )
        is_news = "`tracked_metric`" not in message and "Reached preemption sync point" not in message
        return not is_failed_write and is_news

    def _unraisable(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)

    def end(self) -> None:
        """Lets everything through again."""
        for name in self._LOGGERS:
            logging.getLogger(name).removeFilter(self._wanted)
        sys.unraisablehook = self._hook
