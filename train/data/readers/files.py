"""What readers of the user's own folders share: finding, checking and dividing files, and a report of what is wrong."""

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from etils import epath

from train.config.schema import Split
from train.data.limits import MAX_FILE_BYTES
from train.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
_SHARE = 0.1  # of the pictures, to each split that is taken from the others
_CHECKED_AT_ONCE = 1024
_PROGRESS_S = 5.0

HIDDEN = "hidden, or the system's"
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class LeftOut(NamedTuple):
    """Something in the folder that is not used.

    Attributes:
        path: within the folder, as it can be printed.
        reason: why, in a few words.
        is_damaged: whether it stands where data should and cannot be used as such.
    """

    path: str
    reason: str
    is_damaged: bool


@dataclasses.dataclass(frozen=True)
class FolderReport:
    """What a folder holds.

    Attributes:
        folder: its path.
        totals: the number of images by split.
        images: the number of images by split and class.
        left_out: what is not used, in the order of paths.
        notes: what else there is to know, a sentence each.
    """

    folder: str
    totals: dict[Split, int]
    images: dict[Split, dict[str, int]]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The report as text; the first line sums it up."""
        counts = ", ".join(f"{self.totals[split]:,} {split}" for split in SPLITS)
        damaged = sum(entry.is_damaged for entry in self.left_out)
        classes = self.images["train"]
        lines = [
            f"{self.folder}: {counts} images of {len(classes)} classes; {len(self.left_out)} entries left out, "
            f"{damaged} of them damaged"
        ]
        lines += ["", *self.notes] if self.notes else []
        lines += ["", f"left out ({len(self.left_out)}):", *(f"  {e.path}: {e.reason}" for e in self.left_out)]
        lines += ["", "images by class (train, validation, test):"]
        lines += [
            f"  {name}: " + ", ".join(f"{self.images[split].get(name, 0)}" for split in SPLITS) for name in classes
        ]
        return "\n".join(lines) + "\n"


class UnusableError(Exception):
    """A file cannot be used; the message says why, in a few words."""

    def __init__(self, reason: str, *, is_damaged: bool = True):
        super().__init__(reason)
        self.is_damaged = is_damaged


class Rejects:
    """Gathers what is left out of a folder.

    Args:
        root: the folder.
        strict: whether damage is an error, `config.data.strict_images`.
    """

    def __init__(self, root: epath.Path, strict: bool):
        self._root = root
        self._strict = strict
        self.entries: list[LeftOut] = []

    def add(self, path: epath.Path, reason: str, is_damaged: bool = False) -> None:
        """Notes that something is left out.

        Raises:
            UserError: if it is damaged and the reader is strict.
        """
        name = printable(relative(path, self._root))
        if self._strict and is_damaged:
            raise UserError(
                f"{name}: {reason}; repair or remove it, or set config.data.strict_images=False to leave it out"
            )
        self.entries.append(LeftOut(name, reason, is_damaged))

    def first(self) -> str:
        """Describes the first entry for the error of an empty folder: ": path: reason", or ""."""
        return f": {self.entries[0].path}: {self.entries[0].reason}" if self.entries else ""


def printable(name: str) -> str:
    """Writes a path so that it can be printed and stored; unreadable characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def relative(path: epath.Path, root: epath.Path) -> str:
    """Gives the path of a file within a folder."""
    return str(path)[len(str(root)) :].lstrip("/")


def is_hidden(path: epath.Path) -> bool:
    """Whether a file is hidden, or one that systems put next to pictures."""
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES


def read_now(path: epath.Path) -> bytes:
    """Reads a file that was there when the folder was checked.

    Raises:
        UserError: if the file cannot be read any more.
    """
    try:
        return _read(path, MAX_FILE_BYTES)
    except (OSError, UnusableError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(
            f"{printable(str(path))} can no longer be read ({reason}); restore it, then give the same command again"
        ) from error


def read_regular(path: epath.Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """Reads a file of which nothing is known.

    Args:
        path: the file.
        limit: the number of bytes that it may have.

    Raises:
        UnusableError: if it is no regular file, is too large or cannot be read.
    """
    try:
        return _read(path, limit)
    except OSError as error:
        raise UnusableError(f"cannot be read: {error.strerror or error}") from error


def _read(path: epath.Path, limit: int) -> bytes:
    local = os.fspath(path)
    if os.path.lexists(local) and not os.path.isfile(local):  # reading a pipe would wait forever
        raise UnusableError("no regular file" if os.path.exists(local) else "a link to nothing")
    size = path.stat().length
    if size <= limit:
        with path.open("rb") as file:
            data = file.read(limit + 1)  # no more even if it grows
        size = len(data)
        if size <= limit:
            return data
    raise UnusableError(f"it has {size:,} bytes, and at most {limit:,} are read")


def find_splits(root: epath.Path, named: dict[Split, str]) -> dict[Split, epath.Path]:
    """Finds the folder of each split that has one; gives none if the data stand in `root` itself.

    Args:
        root: the folder.
        named: `config.data.splits`.

    Raises:
        UserError: if a folder that is named does not exist, or others are named but none for train.
    """
    found: dict[Split, epath.Path] = {}
    for split in SPLITS:
        if split in named:
            found[split] = root / named[split]
            if not found[split].is_dir():
                raise UserError(
                    f"config.data.splits names {named[split]!r} for {split} but {str(root)!r} has no such folder; it "
                    "has " + (", ".join(sorted(printable(p.name) for p in root.iterdir() if p.is_dir())) or "none")
                )
            continue
        for name in _FOLDERS[split]:
            if split not in found and (root / name).is_dir():
                found[split] = root / name
    if "train" not in found:
        if named:
            raise UserError(f"config.data.splits is {named} but {str(root)!r} has no folder for train; name it, too")
        return {}
    # A class may be called "train"; then there are pictures in it, no folders.
    if not named and not any(p.is_dir() for p in found["train"].iterdir()):
        return {}
    return found


def choose_split(data: bytes, found: Split | None, folders: dict[Split, epath.Path]) -> Split:
    """Chooses the split of an image by a hash of its file, where its folder does not decide.

    A tenth goes to test and a tenth to validation; a tenth of the train folder goes to validation if that has none.
    """
    digest = hashlib.blake2b(data, digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if found is None:
        return "test" if place < _SHARE else "validation" if place < 2 * _SHARE else "train"
    return "validation" if found == "train" and "validation" not in folders and place < _SHARE else found


def notes_on(folders: dict[Split, epath.Path]) -> list[str]:
    """Says which splits are taken from others: see `choose_split`; the test's samples are the validation's."""
    notes = []
    if folders and "validation" not in folders:
        notes.append("There is no folder for validation: a tenth of the training pictures is held back.")
    if folders and "test" not in folders:
        notes.append("There is no folder for the test: the validation pictures are the test too.")
    return notes


def in_threads(check: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Checks items by several threads, in the order given, and shows the progress of long checks."""
    started = said = time.monotonic()
    done = 0
    iterator = iter(items)
    with ThreadPoolExecutor(max(threads, os.cpu_count() or 1)) as pool:
        while block := [item for _, item in zip(range(_CHECKED_AT_ONCE), iterator, strict=False)]:
            yield from pool.map(check, block)
            done += len(block)
            if time.monotonic() - said > _PROGRESS_S:
                said = time.monotonic()
                print(f"checked {done:,} images, {done / (said - started):,.0f} a second", file=sys.stderr)
