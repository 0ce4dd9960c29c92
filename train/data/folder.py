"""Folders of the user's own pictures: a folder a class, and a report of what could not be used."""

import dataclasses
import functools
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from etils import epath

from train.data.images import ImageError, decode
from train.data.sources import IMAGENET_MEAN, IMAGENET_STD, Record, Source, Split
from train.errors import UserError
from train.settings import Config

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
_SHARE = 0.1  # of the pictures, to each split that is taken from the others
_CHECKED_AT_ONCE = 1024
_PROGRESS_S = 5.0


class LeftOut(NamedTuple):
    """Something in the folder that is not used.

    Attributes:
        path: within the folder, as it can be printed.
        reason: why, in a few words.
        is_damaged: whether it stands where an image should and cannot be read as one.
    """

    path: str
    reason: str
    is_damaged: bool


@dataclasses.dataclass(frozen=True)
class FolderReport:
    """What a folder holds.

    Attributes:
        folder: its path.
        images: the number of images by split and class.
        left_out: what is not used, in the order of paths.
        notes: what else there is to know, a sentence each.
    """

    folder: str
    images: dict[Split, dict[str, int]]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The report as text; the first line sums it up."""
        counts = ", ".join(f"{sum(self.images[split].values()):,} {split}" for split in _SPLITS)
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
            f"  {name}: " + ", ".join(f"{self.images[split].get(name, 0)}" for split in _SPLITS) for name in classes
        ]
        return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Files(Sequence[Record]):
    """Images of a folder, each read when it is asked for.

    Attributes:
        folder: the folder.
        names: paths within it.
        labels: the class of each.
    """

    folder: epath.Path
    names: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: Any) -> Any:
        """Gives the record at a position.

        Raises:
            UserError: if the file cannot be read any more.
        """
        path = self.folder / self.names[position]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{printable(str(path))} can no longer be read ({error.strerror or error}); restore it, then give the "
                "same command again"
            ) from error
        return {"image": data, "label": self.labels[position], "file": printable(str(path))}


def folder(config: Config) -> Source:
    """The pictures below `config.data_dir`, a local folder or a bucket's.

    Either ``<split>/<class>/<file>`` with the folders ``train``, ``validation`` or ``val``, and ``test``, or those that
    `config.splits` names; or ``<class>/<file>``. Without split folders a tenth of each class goes to test and a tenth
    to validation, chosen by a hash of the file's bytes: copies of a picture never stand in two splits, and adding
    pictures moves no others. If only the validation folder is missing, it is a tenth of the training pictures, chosen
    likewise; if only the test folder is, the validation pictures are the test too. The class of a picture is its
    folder's name.

    All files are read once, by several threads. What cannot be used is left out and reported in the source's `report`.
    The network's input has `config.image_size` pixels a side, or 224.

    Raises:
        UserError: if there is no such folder, or no picture for one of the splits; and with `config.strict_images` if
            a file is damaged.
    """
    if not config.data_dir:
        raise UserError("config.data_dir is '' but source='folder' needs the folder of your pictures; set it")
    splits, classes, report = _read(
        config.data_dir, tuple(sorted(config.splits.items())), config.strict_images, max(1, config.data_threads)
    )
    side = config.image_size or 224
    return Source(splits, classes, (side, side, 3), False, IMAGENET_MEAN, IMAGENET_STD, str(report))


def printable(name: str) -> str:
    """Writes a path so that it can be printed and stored: what is no readable character is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


class _Found(NamedTuple):
    """A file, before it is read, and afterwards."""

    split: Split | None  # None: not decided by its folder
    label: str
    path: epath.Path
    problem: str = ""
    is_damaged: bool = False
    place: float = 0.0  # 0..1, by a hash of its bytes


@functools.lru_cache(maxsize=4)  # training, and the evaluation at its end, check the folder once
def _read(
    data_dir: str, named: tuple[tuple[str, str], ...], strict: bool, threads: int
) -> tuple[dict[Split, Files], tuple[str, ...], FolderReport]:
    root = epath.Path(data_dir)
    if not root.is_dir():
        raise UserError(f"config.data_dir is {data_dir!r}, which is no folder; name the folder of your pictures")
    folders = _split_folders(root, dict(named))
    left_out: list[LeftOut] = []

    def leave_out(path: epath.Path, reason: str, is_damaged: bool = False) -> None:
        name = printable(str(path)[len(str(root)) :].lstrip("/"))
        if strict and is_damaged:
            raise UserError(f"{name}: {reason}; repair or remove it, or set config.strict_images=False to leave it out")
        left_out.append(LeftOut(name, reason, is_damaged))

    # Read every file once.
    used: dict[Split, list[tuple[str, str]]] = {split: [] for split in _SPLITS}  # class, path
    for file in _checked(_walk(root, folders, leave_out), threads):
        if file.problem:
            leave_out(file.path, file.problem, file.is_damaged)
            continue
        split = file.split or ("test" if file.place < _SHARE else "validation" if file.place < 2 * _SHARE else "train")
        if split == "train" and folders and "validation" not in folders and file.place < _SHARE:
            split = "validation"
        used[split].append((file.label, str(file.path)[len(str(root)) :].lstrip("/")))
    notes = []
    if folders and "validation" not in folders:
        notes.append("There is no folder for validation: a tenth of the training pictures is held back.")
    if folders and "test" not in folders:
        used["test"] = used["validation"]
        notes.append("There is no folder for the test: the validation pictures are the test too.")

    # A class is known by its pictures to train on.
    counts: dict[Split, Counter[str]] = {split: Counter(label for label, _ in used[split]) for split in _SPLITS}
    classes = sorted(counts["train"])
    for split in ("validation", "test"):
        for label in sorted(counts[split].keys() - set(classes)):
            number = counts[split].pop(label)
            notes.append(f"Class {printable(label)!r} has nothing to train on: {number} pictures of {split} left out.")
    for split in _SPLITS:
        if not counts[split]:
            reason = f": {left_out[0].path}: {left_out[0].reason}" if left_out else ""
            raise UserError(
                f"config.data_dir is {data_dir!r}, which holds no picture for {split} ({len(left_out)} entries left "
                f"out{reason}); it must be <class>/<picture> or <split>/<class>/<picture>, with more pictures"
            )
    position = {label: place for place, label in enumerate(classes)}
    splits: dict[Split, Files] = {}
    for split, pairs in used.items():
        known = [(label, name) for label, name in pairs if label in position]
        splits[split] = Files(root, [name for _, name in known], [position[label] for label, _ in known])
    images: dict[Split, dict[str, int]] = {
        split: {printable(label): counts[split][label] for label in classes} for split in _SPLITS
    }
    report = FolderReport(printable(data_dir), images, tuple(sorted(left_out)), tuple(notes))
    return splits, tuple(map(printable, classes)), report


def _split_folders(root: epath.Path, named: dict[str, str]) -> dict[Split, epath.Path]:
    """The folder of each split that has one; empty if the classes stand in `root` itself."""
    found: dict[Split, epath.Path] = {}
    for split in _SPLITS:
        if split in named:
            found[split] = root / named[split]
            if not found[split].is_dir():
                raise UserError(
                    f"config.splits names {named[split]!r} for {split} but {str(root)!r} has no such folder; it has "
                    + (", ".join(sorted(printable(p.name) for p in root.iterdir() if p.is_dir())) or "none")
                )
            continue
        for name in _FOLDERS[split]:
            if split not in found and (root / name).is_dir():
                found[split] = root / name
    if "train" not in found:
        if named:
            raise UserError(f"config.splits is {named} but {str(root)!r} has no folder for train; name it, too")
        return {}
    # A class may be called "train"; then there are pictures in it, no folders.
    if not named and not any(p.is_dir() for p in found["train"].iterdir()):
        return {}
    return found


def _walk(
    root: epath.Path, folders: dict[Split, epath.Path], leave_out: Callable[[epath.Path, str], None]
) -> Iterator[_Found]:
    """Finds everything that stands where a picture should; leaves out what stands elsewhere."""
    if folders:
        for path in sorted(root.iterdir()):
            if path not in folders.values():
                leave_out(path, "not a folder of a split")
    for split, place in folders.items() or [(None, root)]:
        for class_folder in sorted(place.iterdir()):
            if _is_hidden(class_folder):
                leave_out(class_folder, "hidden, or the system's")
            elif not class_folder.is_dir():
                leave_out(class_folder, "not in the folder of a class")
            else:
                try:
                    paths = sorted(class_folder.iterdir())
                except OSError as error:
                    leave_out(class_folder, f"cannot be listed: {error.strerror or error}")
                    continue
                if not paths:
                    leave_out(class_folder, "an empty folder")
                yield from (_Found(split, class_folder.name, path) for path in paths)


def _checked(files: Iterable[_Found], threads: int) -> Iterator[_Found]:
    """Reads every file, and says what is wrong with it; in the order given."""
    started = said = time.monotonic()
    done = 0
    iterator = iter(files)
    with ThreadPoolExecutor(max(threads, os.cpu_count() or 1)) as pool:
        while block := [file for _, file in zip(range(_CHECKED_AT_ONCE), iterator, strict=False)]:
            yield from pool.map(_check, block)
            done += len(block)
            if time.monotonic() - said > _PROGRESS_S:
                said = time.monotonic()
                print(f"checked {done:,} images, {done / (said - started):,.0f} a second", file=sys.stderr)


def _check(file: _Found) -> _Found:
    path = file.path
    if _is_hidden(path):
        return file._replace(problem="hidden, or the system's")
    try:
        if path.is_dir():
            return file._replace(problem="a folder within the folder of a class; only files are read there")
        local = os.fspath(path)
        if os.path.lexists(local) and not os.path.isfile(local):  # reading a pipe would wait forever
            problem = "no regular file" if os.path.exists(local) else "a link to nothing"
            return file._replace(problem=problem, is_damaged=True)
        data = path.read_bytes()
        decode(data, channels=1, reduction=8, strict=True)
    except OSError as error:
        return file._replace(problem=f"cannot be read: {error.strerror or error}", is_damaged=True)
    except ImageError as error:
        return file._replace(problem=str(error), is_damaged=True)
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return file._replace(place=int.from_bytes(digest, "big") / 2**64)


def _is_hidden(path: epath.Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES
