"""Folders of the user's own pictures: a folder a class, and a report of what could not be used."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from train.config.schema import Config, Split
from train.data.images import ImageError, decode
from train.data.readers.files import (
    HIDDEN,
    SPLITS,
    FolderReport,
    Rejects,
    UnusableError,
    choose_split,
    find_splits,
    in_threads,
    is_hidden,
    notes_on,
    printable,
    read_now,
    read_regular,
    relative,
)
from train.data.sample import Sample
from train.data.source import IMAGENET_MEAN, IMAGENET_STD, Source
from train.errors import UserError


@dataclasses.dataclass(frozen=True)
class Files(Sequence[Sample]):
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
        """Gives the sample at a position.

        Raises:
            UserError: if the file cannot be read any more.
        """
        path = self.folder / self.names[position]
        return Sample(image=read_now(path), label=self.labels[position], file=printable(str(path)))


def folder(config: Config) -> Source:
    """The pictures below `config.data.dir`, a local folder or a bucket's.

    Either ``<split>/<class>/<file>`` with the folders ``train``, ``validation`` or ``val``, and ``test``, or those that
    `config.data.splits` names; or ``<class>/<file>``. Without split folders a tenth of each class goes to test and a
    tenth to validation, chosen by a hash of the file's bytes: copies of a picture never stand in two splits, and adding
    pictures moves no others. If only the validation folder is missing, it is a tenth of the training pictures, chosen
    likewise; if only the test folder is, the validation pictures are the test too. The class of a picture is its
    folder's name.

    All files are read once, by several threads. What cannot be used is left out and reported in the source's `report`.
    The network's input has `config.data.image_size` pixels a side, or 224.

    Raises:
        UserError: if there is no such folder, or no picture for one of the splits; and with
            `config.data.strict_images` if a file is damaged.
    """
    data = config.data
    if not data.dir:
        raise UserError(
            "config.data.dir is '' but config.data.source='folder' needs the folder of your pictures; set it"
        )
    splits, classes, report = _read(
        data.dir, tuple(sorted(data.splits.items())), data.strict_images, max(1, data.threads)
    )
    side = data.image_size or 224
    return Source(splits, classes, (side, side, 3), False, IMAGENET_MEAN, IMAGENET_STD, report=str(report))


class _Found(NamedTuple):
    """A file that stands where a picture should."""

    split: Split | None  # None: not decided by its folder
    label: str
    path: epath.Path


@functools.lru_cache(maxsize=4)  # training, and the evaluation at its end, check the folder once
def _read(
    data_dir: str, named: tuple[tuple[Split, str], ...], strict: bool, threads: int
) -> tuple[dict[Split, Files], tuple[str, ...], FolderReport]:
    root = epath.Path(data_dir)
    if not root.is_dir():
        raise UserError(f"config.data.dir is {data_dir!r}, which is no folder; name the folder of your pictures")
    folders = find_splits(root, dict(named))
    rejects = Rejects(root, strict)

    def check(file: _Found) -> tuple[_Found, Split | UnusableError]:
        try:
            return file, choose_split(_read_picture(file.path), file.split, folders)
        except UnusableError as error:
            return file, error

    # Read every file once.
    used: dict[Split, list[tuple[str, str]]] = {split: [] for split in SPLITS}  # class, path
    for file, found in in_threads(check, _walk(root, folders, rejects), threads):
        if isinstance(found, UnusableError):
            rejects.add(file.path, str(found), found.is_damaged)
        else:
            used[found].append((file.label, relative(file.path, root)))
    notes = notes_on(folders)
    if folders and "test" not in folders:
        used["test"] = used["validation"]

    # A class is known by its pictures to train on.
    counts: dict[Split, Counter[str]] = {split: Counter(label for label, _ in used[split]) for split in SPLITS}
    classes = sorted(counts["train"])
    for split in ("validation", "test"):
        for label in sorted(counts[split].keys() - set(classes)):
            number = counts[split].pop(label)
            notes.append(f"Class {printable(label)!r} has nothing to train on: {number} pictures of {split} left out.")
    for split in SPLITS:
        if not counts[split]:
            raise UserError(
                f"config.data.dir is {data_dir!r}, which holds no picture for {split} ({len(rejects.entries)} entries "
                f"left out{rejects.first()}); it must be <class>/<picture> or <split>/<class>/<picture>, with more "
                "pictures"
            )
    position = {label: place for place, label in enumerate(classes)}
    splits: dict[Split, Files] = {}
    for split, pairs in used.items():
        known = [(label, name) for label, name in pairs if label in position]
        splits[split] = Files(root, [name for _, name in known], [position[label] for label, _ in known])
    images: dict[Split, dict[str, int]] = {
        split: {printable(label): counts[split][label] for label in classes} for split in SPLITS
    }
    totals: dict[Split, int] = {split: len(splits[split]) for split in SPLITS}
    report = FolderReport(printable(data_dir), totals, images, tuple(sorted(rejects.entries)), tuple(notes))
    return splits, tuple(map(printable, classes)), report


def _walk(root: epath.Path, folders: dict[Split, epath.Path], rejects: Rejects) -> Iterator[_Found]:
    """Finds everything that stands where a picture should; leaves out what stands elsewhere."""
    if folders:
        for path in sorted(root.iterdir()):
            if path not in folders.values():
                rejects.add(path, "not a folder of a split")
    for split, place in folders.items() or [(None, root)]:
        for class_folder in sorted(place.iterdir()):
            if is_hidden(class_folder):
                rejects.add(class_folder, HIDDEN)
            elif not class_folder.is_dir():
                rejects.add(class_folder, "not in the folder of a class")
            else:
                try:
                    paths = sorted(class_folder.iterdir())
                except OSError as error:
                    rejects.add(class_folder, f"cannot be listed: {error.strerror or error}")
                    continue
                if not paths:
                    rejects.add(class_folder, "an empty folder")
                yield from (_Found(split, class_folder.name, path) for path in paths)


def _read_picture(path: epath.Path) -> bytes:
    if is_hidden(path):
        raise UnusableError(HIDDEN, is_damaged=False)
    if path.is_dir():
        raise UnusableError("a folder within the folder of a class; only files are read there", is_damaged=False)
    data = read_regular(path)
    try:
        decode(data, channels=1, reduction=8, strict=True)
    except ImageError as error:
        raise UnusableError(str(error)) from error
    return data
