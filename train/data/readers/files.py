"""What readers of the user's own folders share: finding, checking and dividing files, and a report of what is wrong."""

import dataclasses
import hashlib
import os
import stat
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, NamedTuple, TypeVar

from etils import epath

from train.config.schema import Split
from train.data.limits import MAX_FILE_BYTES
from train.errors import UserError
from train.untrusted import printable_name

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
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
        strict: whether damage is an error, `config.data.strict_images`.
    """

    def __init__(self, strict: bool):
        self._strict = strict
        self.entries: list[LeftOut] = []

    def add(self, path: str, reason: str, is_damaged: bool = False) -> None:
        """Notes that something is left out, by its path within the folder.

        Raises:
            UserError: if it is damaged and the reader is strict.
        """
        name = printable_name(path)
        if self._strict and is_damaged:
            raise UserError(
                f"{name}: {reason}; repair or remove it, or set config.data.strict_images=False to leave it out"
            )
        self.entries.append(LeftOut(name, reason, is_damaged))

    def first(self) -> str:
        """Describes the first entry for the error of an empty folder: ": path: reason", or ""."""
        return f": {self.entries[0].path}: {self.entries[0].reason}" if self.entries else ""


def nfc(name: str) -> str:
    """Gives the one of several equal Unicode spellings of a name by which it is compared, NFC."""
    return unicodedata.normalize("NFC", name)


def join_path(place: str, name: str) -> str:
    """Gives the path of `name` in the folder `place`, both within the folder of the data, whose path is ""."""
    return f"{place}/{name}" if place else name


def list_folder(folder: epath.Path) -> list[str]:
    """Lists a folder in the order of names, whichever way they are spelled in Unicode.

    Raises:
        UnusableError: if it cannot be listed.
    """
    try:
        return sorted((path.name for path in folder.iterdir()), key=lambda name: (nfc(name), name))
    except OSError as error:
        raise UnusableError(f"cannot be listed: {error.strerror or error}") from error


def list_required_folder(folder: epath.Path) -> list[str]:
    """Lists a folder without which there are no data; see `list_folder`.

    Raises:
        UserError: if it cannot be listed.
    """
    try:
        return list_folder(folder)
    except UnusableError as error:
        raise UserError(f"{printable_name(str(folder))} {error}; the folder of the data must be readable") from error


def is_folder(path: epath.Path) -> bool:
    """Whether a path is a folder.

    Raises:
        UnusableError: if that cannot be seen.
    """
    if path.is_dir():  # false whatever fails
        return True
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnusableError(f"cannot be read: {error.strerror or error}") from error
    return False


def open_root(data_dir: str) -> epath.Path:
    """Gives the folder that `config.data.dir` names.

    Raises:
        UserError: if it is no folder.
    """
    root = epath.Path(data_dir)
    try:
        if is_folder(root):
            return root
        reason = "is no folder"
    except UnusableError as error:
        reason = str(error)
    shown = printable_name(data_dir if len(data_dir) < 300 else data_dir[:300] + "...")
    raise UserError(f"config.data.dir is '{shown}', which {reason}; name the folder of your pictures")


def is_hidden(name: str) -> bool:
    """Whether a file is hidden by its name, or one that systems put next to pictures."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def read_checked_file(path: epath.Path) -> bytes:
    """Reads a file that was there when the folder was checked.

    Raises:
        UserError: if the file cannot be read any more.
    """
    try:
        return _read(path, MAX_FILE_BYTES)
    except (OSError, UnusableError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise UserError(
            f"{printable_name(str(path))} can no longer be read ({reason}); restore it, then give the same "
            "command again"
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


def folder_state(root: epath.Path, named: Iterable[str]) -> bytes:
    """Gives a checksum of the names, sizes and times of all files, for a check to be repeated only if they changed.

    It is the same at all times for a bucket.

    Args:
        root: the folder.
        named: folders of splits, which may stand outside.
    """
    digest = hashlib.blake2b(digest_size=16)
    for folder in (root, *(root / name for name in named)):
        place = os.path.realpath(folder)
        digest.update(os.fsencode(place))
        _add_state(place, digest)
    return digest.digest()


def _add_state(folder: str, digest: Any, depth: int = 3) -> None:
    """Adds what stands in a folder; pictures stand in <split>/<class>/ at the deepest."""
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        digest.update(f"{error.errno}".encode())
        return
    for entry in entries:
        digest.update(os.fsencode(entry.name) + b"/")
        try:
            found = entry.stat()
        except OSError as error:
            digest.update(f"{error.errno}".encode())
            continue
        digest.update(f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}".encode())
        if depth > 1 and stat.S_ISDIR(found.st_mode):
            _add_state(entry.path, digest, depth - 1)


def find_splits(root: epath.Path, named: dict[Split, str]) -> dict[Split, str]:
    """Finds the folder of each split that has one, within `root`; gives none if the data stand in `root` itself.

    Args:
        root: the folder.
        named: `config.data.splits`.

    Raises:
        UserError: if a folder that is named does not exist, others are named but none for train, or a folder cannot be
            listed.
    """
    entries = list_required_folder(root)
    found: dict[Split, str] = {}
    for split in SPLITS:
        if split in named:
            found[split] = _named_folder(root, entries, split, named[split])
            continue
        for name in _FOLDERS[split]:
            if split not in found and _is_accessible_folder(root / name):
                found[split] = name
    if "train" not in found:
        if named:
            raise UserError(f"config.data.splits is {named} but {str(root)!r} has no folder for train; name it, too")
        return {}
    # A class may be called "train"; then there are pictures in it, no folders.
    train = root / found["train"]
    if not named and not any(
        _is_accessible_folder(train / name) for name in list_required_folder(train) if not is_hidden(name)
    ):
        return {}
    return found


def _named_folder(root: epath.Path, entries: list[str], split: Split, name: str) -> str:
    """Gives a folder of a split as it is spelled on the disk."""
    for spelling in (name, *(entry for entry in entries if nfc(entry) == nfc(name))):
        if _is_accessible_folder(root / spelling):
            path = str(PurePosixPath(spelling))
            return "" if path == "." else path
    raise UserError(
        f"config.data.splits names {name!r} for {split} but {str(root)!r} has no such folder; it has "
        + (", ".join(printable_name(entry) for entry in entries if _is_accessible_folder(root / entry)) or "none")
    )


def _is_accessible_folder(path: epath.Path) -> bool:
    try:
        return is_folder(path)
    except UnusableError:
        return False


def split_notes(folders: dict[Split, str]) -> list[str]:
    """Says which splits are taken from others: see `division.divide`; the test's samples are the validation's."""
    notes = []
    if folders and "validation" not in folders:
        notes.append("There is no folder for validation: a tenth of the training pictures is held back.")
    if folders and "test" not in folders:
        notes.append("There is no folder for the test: the validation pictures are the test too.")
    return notes


def check_in_threads(check: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
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
