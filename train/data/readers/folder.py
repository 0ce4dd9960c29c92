"""Folders of the user's pictures, one folder for each class, and a report of unusable files."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from train.config.schema import Config, Split
from train.data.images import ImageError, decode
from train.data.readers.division import DIGEST_BYTES, content_digest, copy_notes, divide, number_contents
from train.data.readers.files import (
    HIDDEN,
    SPLITS,
    FolderReport,
    Rejects,
    UnusableError,
    check_in_threads,
    find_splits,
    folder_state,
    is_folder,
    is_hidden,
    join_path,
    list_folder,
    list_required_folder,
    nfc,
    open_root,
    read_checked_file,
    read_regular,
    split_notes,
)
from train.data.sample import Sample
from train.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, fingerprint
from train.errors import UserError
from train.untrusted import printable_name


@dataclasses.dataclass(frozen=True)
class Files(Sequence[Sample]):
    """Images of a folder, read on access.

    Attributes:
        folder: the folder.
        names: the paths of the images, relative to the folder.
        labels: the class of each image.
    """

    folder: epath.Path
    names: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: Any) -> Any:
        """Reads the sample at a position.

        Raises:
            UserError: if the file cannot be read any more.
        """
        path = self.folder / self.names[position]
        return Sample(image=read_checked_file(path), label=self.labels[position], file=printable_name(str(path)))


def folder(config: Config) -> Source:
    """Loads the pictures in `config.data.dir`, a local folder or a bucket's.

    Paths are ``<class>/<file>``, or ``<split>/<class>/<file>`` with the folders ``train``, ``validation`` or ``val``,
    and ``test``, or those of `config.data.splits`. Without split folders, test and validation each take a tenth of each
    class by the files' contents: 5 each of 50 pictures, and one each if a class has at least three (see
    `train.data.readers.division.divide`). Copies of a picture are then in one split, and a new picture moves at most
    two others. If only the validation folder is missing, validation takes a tenth of each class of the training
    pictures by the same rule; if only the test folder is missing, the validation pictures are also the test pictures.
    The report names copies in two folders.

    The class of a picture is its folder's name in the Unicode form NFC, with unprintable characters escaped. Names that
    differ in capitals or spaces are different classes.

    Several threads read all files once. Unusable files are left out and listed in the source's `report`. The network's
    input has `config.data.image_size` pixels a side, or 224.

    Raises:
        UserError: if the folder does not exist, a split has no picture, or a file is damaged and
            `config.data.strict_images` is set.
    """
    data = config.data
    if not data.dir:
        raise UserError(
            "config.data.dir is '' but config.data.source='folder' needs the folder of your pictures; set it"
        )
    state = folder_state(epath.Path(data.dir), data.splits.values())
    found = _read(data.dir, tuple(sorted(data.splits.items())), data.strict_images, max(1, data.threads), state)
    side = data.image_size or 224
    return Source(
        splits=found.splits,
        classes=found.classes,
        image_shape=(side, side, 3),
        is_sized=False,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        report=str(found.report),
        fingerprints=found.fingerprints,
    )


class _Folder(NamedTuple):
    """The contents of a folder."""

    splits: dict[Split, Files]
    classes: tuple[str, ...]
    report: FolderReport
    fingerprints: dict[Split, str]


class _Found(NamedTuple):
    """A candidate: a file in the folder of a class."""

    split: Split | None  # None without split folders
    label: str
    name: str  # the path, relative to the folder


@functools.lru_cache(maxsize=4)  # one check for training and the evaluation at its end
def _read(data_dir: str, named: tuple[tuple[Split, str], ...], strict: bool, threads: int, state: bytes) -> _Folder:
    """Checks a folder; `state` is the cache key from `folder_state`."""
    root = open_root(data_dir)
    folders = find_splits(root, dict(named))
    rejects = Rejects(strict)

    def check(file: _Found) -> tuple[_Found, bytes | UnusableError]:
        try:
            return file, content_digest(_read_picture(root / file.name))
        except UnusableError as error:
            return file, error

    # Read every file once.
    names: list[str] = []
    labels: list[str] = []
    places: list[Split | None] = []
    digests = bytearray()  # 16 bytes a picture
    for file, found in check_in_threads(check, _walk(root, folders, rejects), threads):
        if isinstance(found, UnusableError):
            rejects.add(file.name, str(found), found.is_damaged)
        else:
            names.append(file.name)
            labels.append(file.label)
            places.append(file.split)
            digests += found

    contents = number_contents(digests)
    position = {label: place for place, label in enumerate(sorted(set(labels)))}
    numbers = np.fromiter((position[label] for label in labels), int, len(labels))
    chosen = divide(contents, numbers, places, tuple(folders))

    # Classes are those of the training pictures.
    used: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for place, split in enumerate(chosen):
        used[split].append(place)
    notes = split_notes(folders)
    if folders and "test" not in folders:
        used["test"] = used["validation"]
    counts: dict[Split, Counter[str]] = {split: Counter(labels[place] for place in used[split]) for split in SPLITS}
    classes = sorted(counts["train"])
    for split in ("validation", "test"):
        for label in sorted(counts[split].keys() - set(classes)):
            number = counts[split].pop(label)
            notes.append(
                f"Class '{printable_name(label)}' has nothing to train on: {number} pictures of {split} left out."
            )
    for split in SPLITS:
        if not counts[split]:
            raise UserError(
                f"config.data.dir is {data_dir!r}, which holds no picture for {split} ({len(rejects.entries)} entries "
                f"left out{rejects.first()}); it must be <class>/<picture> or <split>/<class>/<picture>, with at "
                "least three pictures of a class, or more pictures, where a split has no folder"
            )
    notes += copy_notes(names, contents, numbers, chosen)

    position = {label: place for place, label in enumerate(classes)}
    splits: dict[Split, Files] = {}
    fingerprints: dict[Split, str] = {}
    for split, taken in used.items():
        known = [place for place in taken if labels[place] in position]
        splits[split] = Files(root, [names[place] for place in known], [position[labels[place]] for place in known])
        fingerprints[split] = fingerprint(
            part
            for place in known
            for part in (
                labels[place],
                nfc(names[place]),
                bytes(digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)]),
            )
        )
    images: dict[Split, dict[str, int]] = {
        split: {printable_name(label): counts[split][label] for label in classes} for split in SPLITS
    }
    totals: dict[Split, int] = {split: len(splits[split]) for split in SPLITS}
    report = FolderReport(printable_name(data_dir), totals, images, tuple(sorted(rejects.entries)), tuple(notes))
    return _Folder(splits, tuple(map(printable_name, classes)), report, fingerprints)


def _walk(root: epath.Path, folders: dict[Split, str], rejects: Rejects) -> Iterator[_Found]:
    """Finds the entries of class folders; rejects all others."""
    if folders:
        for name in list_required_folder(root):
            if name not in folders.values():
                rejects.add(name, "not a folder of a split")
    for split, place in folders.items() or [(None, "")]:
        for class_name in list_required_folder(root / place):
            class_folder = join_path(place, class_name)
            if is_hidden(class_name):
                rejects.add(class_folder, HIDDEN)
                continue
            try:
                names = list_folder(root / class_folder) if is_folder(root / class_folder) else None
            except UnusableError as error:
                rejects.add(class_folder, str(error), error.is_damaged)
                continue
            if names is None:
                rejects.add(class_folder, "not in the folder of a class")
            elif not names:
                rejects.add(class_folder, "an empty folder")
            else:
                label = nfc(class_name)
                yield from (_Found(split, label, join_path(class_folder, name)) for name in names)


def _read_picture(path: epath.Path) -> bytes:
    if is_hidden(path.name):
        raise UnusableError(HIDDEN, is_damaged=False)
    if path.is_dir():
        raise UnusableError("a folder within the folder of a class; only files are read there", is_damaged=False)
    data = read_regular(path)
    try:
        decode(data, channels=1, reduction=8, strict=True)
    except ImageError as error:
        raise UnusableError(str(error)) from error
    return data
