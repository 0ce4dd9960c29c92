"""Shared functions of the readers of folders: they find and check files, and report unusable ones."""

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
    """An unused entry of the folder.

    Attributes:
        path: its printable path, relative to the folder.
        reason: a short reason.
        is_damaged: whether it is in a place for data but unusable.
    """

    path: str
    reason: str
    is_damaged: bool


@dataclasses.dataclass(frozen=True)
class FolderReport:
    """The contents of a folder.

    Attributes:
        folder: its path.
        totals: the number of images by split.
        images: the number of images by split and class.
        left_out: unused entries, sorted by path.
        notes: further remarks, a sentence each.
    """

    folder: str
    totals: dict[Split, int]
    images: dict[Split, dict[str, int]]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """Formats the report; the first line is a summary."""
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
    """A file is unusable; the message is a short reason."""

    def __init__(self, reason: str, *, is_damaged: bool = True):
        super().__init__(reason)
        self.is_damaged = is_damaged


class Rejects:
    """Collects the unused entries of a folder.

    Args:
        strict: whether damaged entries raise errors, `config.data.strict_images`.
    """

    def __init__(self, strict: bool):
        self._strict = strict
        self.entries: list[LeftOut] = []

    def add(self, path: str, reason: str, is_damaged: bool = False) -> None:
        """Adds an entry by its path, relative to the folder.

        Raises:
            UserError: if the entry is damaged and `strict` is set.
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
    """Normalises a name to the Unicode form NFC, for comparison."""
    return unicodedata.normalize("NFC", name)


def join_path(place: str, name: str) -> str:
    """Joins the folder `place` and `name`; `place` is relative to the folder of the data, "" for that folder."""
    return f"{place}/{name}" if place else name


def list_folder(folder: epath.Path) -> list[str]:
    """Lists a folder, sorted by NFC name.

    Raises:
        UnusableError: if it cannot be listed.
    """
    try:
        return sorted((path.name for path in folder.iterdir()), key=lambda name: (nfc(name), name))
    except OSError as error:
        raise UnusableError(f"cannot be listed: {error.strerror or error}") from error


def list_required_folder(folder: epath.Path) -> list[str]:
    """Lists a required folder; see `list_folder`.

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
        UnusableError: if the path cannot be accessed.
    """
    if path.is_dir():  # False after any error
        return True
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UnusableError(f"cannot be read: {error.strerror or error}") from error
    return False


def open_root(data_dir: str) -> epath.Path:
    """Opens the folder `config.data.dir`.

    Raises:
        UserError: if it is not a folder.
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
    """Whether a file is hidden by its name, or a system's file such as a cache of thumbnails."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def read_checked_file(path: epath.Path) -> bytes:
    """Reads a file that the check of the folder accepted.

    Raises:
        UserError: if the file can no longer be read.
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
    """Reads an untrusted file.

    Args:
        path: the file.
        limit: the largest accepted size in bytes.

    Raises:
        UnusableError: if the file is not regular, too large or cannot be read.
    """
    try:
        return _read(path, limit)
    except OSError as error:
        raise UnusableError(f"cannot be read: {error.strerror or error}") from error


def _read(path: epath.Path, limit: int) -> bytes:
    local = os.fspath(path)
    if os.path.lexists(local) and not os.path.isfile(local):  # reading a pipe would block
        raise UnusableError("no regular file" if os.path.exists(local) else "a link to nothing")
    size = path.stat().length
    if size <= limit:
        with path.open("rb") as file:
            data = file.read(limit + 1)  # limited, even if the file grows
        size = len(data)
        if size <= limit:
            return data
    raise UnusableError(f"it has {size:,} bytes, and at most {limit:,} are read")


def folder_state(root: epath.Path, named: Iterable[str]) -> bytes:
    """Computes a checksum of the names, sizes and times of all files; the check is repeated only if it changes.

    For a bucket it is constant.

    Args:
        root: the folder.
        named: folders of splits, which may be outside `root`.
    """
    digest = hashlib.blake2b(digest_size=16)
    for folder in (root, *(root / name for name in named)):
        place = os.path.realpath(folder)
        digest.update(os.fsencode(place))
        _add_state(place, digest)
    return digest.digest()


def _add_state(folder: str, digest: Any, depth: int = 3) -> None:
    """Adds a folder to the checksum; the deepest pictures are in <split>/<class>/."""
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
    """Finds the folders of splits, relative to `root`; returns none if the data are in `root` itself.

    Args:
        root: the folder.
        named: `config.data.splits`.

    Raises:
        UserError: if a named folder does not exist, folders are named but train has none, or a folder cannot be
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
    # A folder "train" without folders in it is a class.
    train = root / found["train"]
    if not named and not any(
        _is_accessible_folder(train / name) for name in list_required_folder(train) if not is_hidden(name)
    ):
        return {}
    return found


def _named_folder(root: epath.Path, entries: list[str], split: Split, name: str) -> str:
    """Finds the named folder of a split, in any Unicode spelling."""
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
    """Lists the splits without folders: `division.divide` makes validation, and test is the same as validation."""
    notes = []
    if folders and "validation" not in folders:
        notes.append("There is no folder for validation: a tenth of the training pictures is held back.")
    if folders and "test" not in folders:
        notes.append("There is no folder for the test: the validation pictures are the test too.")
    return notes


def check_in_threads(check: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Iterator[_Result]:
    """Checks items in several threads, yields results in order, and shows the progress of long checks."""
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
