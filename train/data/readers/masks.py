"""Folders of the user's own pictures with masks, the class of every pixel, and a report of what could not be used."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from train.config.schema import Config, Split
from train.data.images import ImageError, decode, jpeg_size
from train.data.indexed_png import read_indices
from train.data.limits import MAX_NAME_LENGTH, MAX_TEXT_BYTES
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
from train.data.sample import IGNORED, Sample
from train.data.source import IMAGENET_MEAN, IMAGENET_STD, Source
from train.errors import UserError

_CLASSES = "classes.txt"
_ONE_FOLDER = "a folder where files should be; only files are read there"


@dataclasses.dataclass(frozen=True)
class Pairs(Sequence[Sample]):
    """Images of a folder with their masks, each read when it is asked for.

    Attributes:
        folder: the folder.
        names: the paths of image and mask within it.
    """

    folder: epath.Path
    names: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: Any) -> Any:
        """Gives the sample at a position, its mask decoded.

        Raises:
            UserError: if a file cannot be read any more.
        """
        image, mask = (self.folder / name for name in self.names[position])
        try:
            segmentation = read_indices(read_now(mask))
        except ImageError as error:
            raise UserError(
                f"{printable(str(mask))}: {error}; repair or remove it, then give the same command again"
            ) from error
        return Sample(image=read_now(image), segmentation=segmentation, file=printable(str(image)))


def masks(config: Config) -> Source:
    """The pictures below `config.data.dir`, a local folder or a bucket's, with the class of every pixel.

    Either ``images/<name>.*`` and ``masks/<name>.png``, or both of these in each of the folders ``train``,
    ``validation`` or ``val``, and ``test``, or those that `config.data.splits` names. Without split folders the split
    is chosen as by `train.data.readers.folder`, by a hash of the image's file.

    A mask is a palette or grey PNG file of the image's size. Its values are the numbers of classes, 255 where a pixel
    does not count. ``classes.txt`` in `config.data.dir`, if it is there, holds the name of a class a line; otherwise
    there are as many classes as the largest number asks for, and numbers are their names.

    All files are read once, by several threads. What cannot be used is left out and reported in the source's `report`.
    The source's image shape is that of the images if all have one, else `config.data.image_size` pixels a side, or 224.

    Raises:
        UserError: if there is no such folder, no pair of image and mask for one of the splits, fewer than two classes,
            or `classes.txt` cannot be used; and with `config.data.strict_images` if a file cannot be.
    """
    data = config.data
    if not data.dir:
        raise UserError(
            "config.data.dir is '' but config.data.source='masks' needs the folder of your pictures; set it"
        )
    found = _read(data.dir, tuple(sorted(data.splits.items())), data.strict_images, max(1, data.threads))
    side = data.image_size or 224
    height, width = found.size if found.size and not data.image_size else (side, side)
    return Source(
        splits=found.splits,
        classes=(),
        image_shape=(height, width, 3),
        is_sized=found.size == (height, width),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        fields=frozenset({"segmentation"}),
        segmentation_classes=found.classes,
        report=str(found.report),
    )


class _Folder(NamedTuple):
    """What a folder holds; `size` is that of all images, or None."""

    splits: dict[Split, Pairs]
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    report: FolderReport


class _Pair(NamedTuple):
    """An image that has a file for its mask."""

    split: Split | None  # None: not decided by its folder
    image: epath.Path
    mask: epath.Path


class _Checked(NamedTuple):
    """What a pair holds."""

    split: Split
    size: tuple[int, int]
    classes: np.ndarray  # the numbers that occur, ascending, without 255


class _Bad(NamedTuple):
    """Why a pair is left out, and for which of its files."""

    path: epath.Path
    reason: str


@functools.lru_cache(maxsize=4)  # training, and the evaluation at its end, check the folder once
def _read(data_dir: str, named: tuple[tuple[Split, str], ...], strict: bool, threads: int) -> _Folder:
    root = epath.Path(data_dir)
    if not root.is_dir():
        raise UserError(f"config.data.dir is {data_dir!r}, which is no folder; name the folder of your pictures")
    known = _read_classes(root / _CLASSES)
    folders = find_splits(root, dict(named))
    rejects = Rejects(root, strict)

    # Read every file once.
    used: dict[Split, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    occurrences: dict[Split, np.ndarray] = {split: np.zeros(IGNORED, int) for split in SPLITS}
    sizes = set()
    pairs = _walk(root, folders, rejects)
    for pair, found in in_threads(lambda pair: (pair, _check(pair, folders, len(known))), pairs, threads):
        if isinstance(found, _Bad):
            rejects.add(found.path, found.reason, is_damaged=True)
            continue
        used[found.split].append((relative(pair.image, root), relative(pair.mask, root)))
        occurrences[found.split][found.classes] += 1
        sizes.add(found.size)
    if folders and "test" not in folders:
        used["test"], occurrences["test"] = used["validation"], occurrences["validation"]
    for split in SPLITS:
        if not used[split]:
            raise UserError(
                f"config.data.dir is {data_dir!r}, which holds no picture with a mask for {split} "
                f"({len(rejects.entries)} entries left out{rejects.first()}); it must be images/<name>.* and "
                "masks/<name>.png, or these in a folder for each split, with more pictures"
            )

    largest = max((int(np.flatnonzero(counts)[-1]) for counts in occurrences.values() if counts.any()), default=-1)
    classes = known or tuple(str(number) for number in range(largest + 1))
    if len(classes) < 2:
        raise UserError(
            f"config.data.dir is {data_dir!r}, whose masks have no class but {' and '.join(classes) or 'none'}, and "
            f"at least two are needed; write the classes as 0, 1, ... ({IGNORED} marks pixels that do not count)"
        )
    notes = notes_on(folders)
    untrained = [name for name, count in zip(classes, occurrences["train"], strict=False) if not count]
    if untrained:
        notes.append(f"No training picture shows {', '.join(untrained)}.")
    report = FolderReport(
        printable(data_dir),
        totals={split: len(used[split]) for split in SPLITS},
        images={split: dict(zip(classes, map(int, occurrences[split]), strict=False)) for split in SPLITS},
        left_out=tuple(sorted(rejects.entries)),
        notes=tuple(notes),
    )
    splits: dict[Split, Pairs] = {split: Pairs(root, names) for split, names in used.items()}
    return _Folder(splits, classes, sizes.pop() if len(sizes) == 1 else None, report)


def _read_classes(path: epath.Path) -> tuple[str, ...]:
    """Reads the names of classes; none if there is no such file."""
    if not path.exists():
        return ()
    try:
        text = read_regular(path, MAX_TEXT_BYTES).decode()
    except (UnusableError, UnicodeDecodeError) as error:
        raise UserError(f"{printable(str(path))} cannot be read ({error}); it must be text, a class a line") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    is_named = all(0 < len(name) <= MAX_NAME_LENGTH for name in names) and len(set(names)) == len(names)
    if not 2 <= len(names) <= IGNORED or not is_named:
        raise UserError(
            f"{printable(str(path))} has the lines {[name[:80] for name in names[:4]]} ..., but must hold 2 to "
            f"{IGNORED} names of classes, one a line, none empty, none twice and none of more than {MAX_NAME_LENGTH} "
            "characters; the first line is class 0"
        )
    return tuple(map(printable, names))


def _walk(root: epath.Path, folders: dict[Split, epath.Path], rejects: Rejects) -> Iterator[_Pair]:
    """Finds images that have a file for their mask; leaves out all else."""
    if folders:
        for path in sorted(root.iterdir()):
            if path not in folders.values() and path != root / _CLASSES:
                rejects.add(path, "not a folder of a split")
    for split, place in folders.items() or [(None, root)]:
        images, masks = place / "images", place / "masks"
        for path in sorted(place.iterdir()):
            if path not in (images, masks, root / _CLASSES):
                rejects.add(path, HIDDEN if is_hidden(path) else "neither images nor masks")
        names = {path.name: path for path in _files(masks, rejects)}
        taken: dict[str, str] = {}  # from masks to images
        for path in _files(images, rejects):
            mask = f"{path.name.rpartition('.')[0] or path.name}.png"
            if mask not in names:
                rejects.add(path, f"it has no mask masks/{printable(mask)}", is_damaged=True)
            elif mask in taken:
                rejects.add(path, f"masks/{printable(mask)} is the mask of {printable(taken[mask])}", is_damaged=True)
            else:
                taken[mask] = path.name
                yield _Pair(split, path, names[mask])
        for name in sorted(names.keys() - taken.keys()):
            is_png = name.endswith(".png")
            reason = "it has no image" if is_png else "not a PNG file by its name, <name>.png"
            rejects.add(names[name], reason, is_damaged=True)


def _files(folder: epath.Path, rejects: Rejects) -> list[epath.Path]:
    """Lists a folder's files that are not hidden; none if there is no such folder."""
    files = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if is_hidden(path):
            rejects.add(path, HIDDEN)
        elif path.is_dir():
            rejects.add(path, _ONE_FOLDER)
        else:
            files.append(path)
    return files


def _check(pair: _Pair, folders: dict[Split, epath.Path], class_count: int) -> _Checked | _Bad:
    path = pair.image
    try:
        data = read_regular(path)
        size = _size(data)
        path = pair.mask
        mask = read_indices(read_regular(path))
    except (UnusableError, ImageError) as error:
        return _Bad(path, str(error))
    if mask.shape != size:
        return _Bad(path, f"it has {_written(mask.shape)} pixels, but its image has {_written(size)}")
    numbers = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[:IGNORED])
    if class_count and numbers.size and numbers[-1] >= class_count:
        return _Bad(
            path, f"it has pixels of the class {numbers[-1]}, but {_CLASSES} names the classes 0 to {class_count - 1}"
        )
    return _Checked(choose_split(data, pair.split, folders), size, numbers)


def _size(data: bytes) -> tuple[int, int]:
    """Gives the height and width of an image after it was decoded, for a JPEG at an eighth of its size."""
    size = jpeg_size(data)
    pixels = decode(data, channels=1, reduction=8 if size else 1, strict=True)
    return size or (pixels.shape[0], pixels.shape[1])


def _written(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
