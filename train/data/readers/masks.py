"""Folders of the user's pictures with masks, the class of every pixel, and a report of unusable files."""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from train.config.schema import Config, Split
from train.data.images import ImageError, decode, jpeg_size
from train.data.indexed_png import read_indices
from train.data.limits import MAX_NAME_LENGTH, MAX_TEXT_BYTES
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
    list_required_folder,
    nfc,
    open_root,
    read_checked_file,
    read_regular,
    split_notes,
)
from train.data.sample import IGNORED, Sample
from train.data.source import IMAGENET_MEAN, IMAGENET_STD, Source, fingerprint
from train.errors import UserError
from train.untrusted import printable_name

_CLASSES = "classes.txt"
_ONE_FOLDER = "a folder where files should be; only files are read there"


@dataclasses.dataclass(frozen=True)
class Pairs(Sequence[Sample]):
    """Images of a folder with their masks, read on access.

    Attributes:
        folder: the folder.
        names: the paths of image and mask, relative to the folder.
    """

    folder: epath.Path
    names: list[tuple[str, str]]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: Any) -> Any:
        """Reads the sample at a position and decodes its mask.

        Raises:
            UserError: if a file can no longer be read.
        """
        image, mask = (self.folder / name for name in self.names[position])
        try:
            segmentation = read_indices(read_checked_file(mask))
        except ImageError as error:
            raise UserError(
                f"{printable_name(str(mask))}: {error}; repair or remove it, then give the same command again"
            ) from error
        return Sample(image=read_checked_file(image), segmentation=segmentation, file=printable_name(str(image)))


def masks(config: Config) -> Source:
    """Loads the pictures and masks in `config.data.dir`, a local folder or a bucket's.

    Paths are ``images/<name>.*`` and ``masks/<name>.png``, or both of these in each of the folders ``train``,
    ``validation`` or ``val``, and ``test``, or those of `config.data.splits`. Without split folders, test and
    validation each take a tenth of all pictures by the contents of the images' files, as in
    `train.data.readers.folder`. Names of image and mask may have different Unicode forms.

    A mask is a palette or grey PNG file of the image's size. Its values are class indices, 255 for ignored pixels.
    ``classes.txt`` in `config.data.dir`, if present, has a class name on each line, in UTF-8. Without it, classes are
    numbered up to the largest index found, and their names are numbers.

    Several threads read all files once. Unusable files are left out and listed in the source's `report`. The source's
    image shape is `config.data.image_size` pixels a side if set, else the common size of the images, else 224.

    Raises:
        UserError: if the folder does not exist, a split has no pair of image and mask, there are fewer than two
            classes, `classes.txt` is unusable, or a file is unusable and `config.data.strict_images` is set.
    """
    data = config.data
    if not data.dir:
        raise UserError(
            "config.data.dir is '' but config.data.source='masks' needs the folder of your pictures; set it"
        )
    state = folder_state(epath.Path(data.dir), data.splits.values())
    found = _read(data.dir, tuple(sorted(data.splits.items())), data.strict_images, max(1, data.threads), state)
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
        fingerprints=found.fingerprints,
    )


class _Folder(NamedTuple):
    """The contents of a folder; `size` is the common size of the images, or None."""

    splits: dict[Split, Pairs]
    classes: tuple[str, ...]
    size: tuple[int, int] | None
    report: FolderReport
    fingerprints: dict[Split, str]


class _Pair(NamedTuple):
    """An image and its mask, as paths relative to the folder."""

    split: Split | None  # None without split folders
    image: str
    mask: str


class _Checked(NamedTuple):
    """The contents of a usable pair."""

    size: tuple[int, int]
    classes: np.ndarray  # (255,) bool, whether each number occurs
    image: bytes  # the digests of the files
    mask: bytes


class _Bad(NamedTuple):
    """The unusable file of a pair, and the reason."""

    name: str
    reason: str


@functools.lru_cache(maxsize=4)  # one check for training and the evaluation at its end
def _read(data_dir: str, named: tuple[tuple[Split, str], ...], strict: bool, threads: int, state: bytes) -> _Folder:
    """Checks a folder; `state` is the cache key from `folder_state`."""
    root = open_root(data_dir)
    known = _read_classes(root / _CLASSES)
    folders = find_splits(root, dict(named))
    rejects = Rejects(strict)

    # Read every file once.
    names: list[tuple[str, str]] = []
    places: list[Split | None] = []
    images, masks, shown = bytearray(), bytearray(), bytearray()  # 16, 16 and 32 bytes a picture
    sizes = set()
    pairs = _walk(root, folders, rejects)
    for pair, found in check_in_threads(lambda pair: (pair, _check(root, pair, len(known))), pairs, threads):
        if isinstance(found, _Bad):
            rejects.add(found.name, found.reason, is_damaged=True)
            continue
        names.append((pair.image, pair.mask))
        places.append(pair.split)
        images += found.image
        masks += found.mask
        shown += np.packbits(found.classes).tobytes()
        sizes.add(found.size)

    contents, one_class = number_contents(images), np.zeros(len(names), int)
    chosen = divide(contents, one_class, places, tuple(folders))
    used: dict[Split, list[int]] = {split: [] for split in SPLITS}
    occurrences: dict[Split, np.ndarray] = {split: np.zeros(IGNORED, int) for split in SPLITS}
    for place, split in enumerate(chosen):
        used[split].append(place)
        occurrences[split] += np.unpackbits(np.frombuffer(shown, np.uint8, 32, 32 * place), count=IGNORED)
    if folders and "test" not in folders:
        used["test"], occurrences["test"] = used["validation"], occurrences["validation"]
    for split in SPLITS:
        if not used[split]:
            raise UserError(
                f"config.data.dir is {data_dir!r}, which holds no picture with a mask for {split} "
                f"({len(rejects.entries)} entries left out{rejects.first()}); it must be images/<name>.* and "
                "masks/<name>.png, or these in a folder for each split, with more pictures (at least three)"
            )

    largest = max((int(np.flatnonzero(counts)[-1]) for counts in occurrences.values() if counts.any()), default=-1)
    classes = known or tuple(str(number) for number in range(largest + 1))
    if len(classes) < 2:
        raise UserError(
            f"config.data.dir is {data_dir!r}, whose masks have no class but {' and '.join(classes) or 'none'}, and "
            f"at least two are needed; write the classes as 0, 1, ... ({IGNORED} marks pixels that do not count)"
        )
    notes = split_notes(folders)
    untrained = [name for name, count in zip(classes, occurrences["train"], strict=False) if not count]
    if untrained:
        notes.append(f"No training picture shows {', '.join(untrained)}.")
    notes += copy_notes([image for image, _ in names], contents, one_class, chosen)
    report = FolderReport(
        printable_name(data_dir),
        totals={split: len(used[split]) for split in SPLITS},
        images={split: dict(zip(classes, map(int, occurrences[split]), strict=False)) for split in SPLITS},
        left_out=tuple(sorted(rejects.entries)),
        notes=tuple(notes),
    )
    splits: dict[Split, Pairs] = {split: Pairs(root, [names[place] for place in used[split]]) for split in SPLITS}
    fingerprints: dict[Split, str] = {}
    for split, taken in used.items():
        fingerprints[split] = fingerprint(
            part
            for place in taken
            for name, digests in zip(names[place], (images, masks), strict=True)
            for part in (nfc(name), bytes(digests[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)]))
        )
    return _Folder(splits, classes, sizes.pop() if len(sizes) == 1 else None, report, fingerprints)


def _read_classes(path: epath.Path) -> tuple[str, ...]:
    """Reads the class names; returns none if the file does not exist."""
    try:
        if not path.exists() and not os.path.islink(path):
            return ()
        text = read_regular(path, MAX_TEXT_BYTES).decode(
            "utf-8-sig"
        )  # some editors begin a file with a byte order mark
    except (OSError, UnusableError, UnicodeDecodeError) as error:
        raise UserError(
            f"{printable_name(str(path))} cannot be read ({error}); it must be text, a class a line"
        ) from error
    lines = text.rstrip().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    names = [nfc(line.strip()) for line in lines[: IGNORED + 1]]
    repeated = [name for name, count in Counter(names).items() if count > 1 and name]
    is_named = all(0 < len(name) <= MAX_NAME_LENGTH for name in names)
    if not 2 <= len(names) <= IGNORED or not is_named or repeated:
        shown = ", ".join(f"'{_shortened(name)}'" for name in (repeated or names)[:4])
        raise UserError(
            f"{printable_name(str(path))} has the lines {shown}{' twice' if repeated else ' ...'}, but must hold 2 to "
            f"{IGNORED} names of classes, one a line, none empty, none twice and none of more than {MAX_NAME_LENGTH} "
            "characters; the first line is class 0"
        )
    return tuple(map(printable_name, names))


def _walk(root: epath.Path, folders: dict[Split, str], rejects: Rejects) -> Iterator[_Pair]:
    """Finds pairs of image and mask; rejects all other entries."""
    if folders:
        for name in list_required_folder(root):
            if name not in folders.values() and name != _CLASSES:
                rejects.add(name, "not a folder of a split")
    for split, place in folders.items() or [(None, "")]:
        for name in list_required_folder(root / place):
            if name not in ("images", "masks") and join_path(place, name) != _CLASSES:
                rejects.add(join_path(place, name), HIDDEN if is_hidden(name) else "neither images nor masks")
        image_folder, mask_folder = join_path(place, "images"), join_path(place, "masks")
        masks = _files(root, mask_folder, rejects)
        images = _files(root, image_folder, rejects)
        # A mask belongs to the image of equal name, else to an image whose name differs in Unicode form only.
        spelled, wanted = set(masks), {_mask_of(name) for name in images}
        others = {nfc(name): name for name in masks if name not in wanted}
        taken: dict[str, str] = {}  # from masks to images
        for name in images:
            path, mask = join_path(image_folder, name), _mask_of(name)
            mask = mask if mask in spelled else others.get(nfc(mask))
            if mask is None:
                rejects.add(path, f"it has no mask masks/{printable_name(_mask_of(name))}", is_damaged=True)
            elif mask in taken:
                rejects.add(
                    path, f"masks/{printable_name(mask)} is the mask of {printable_name(taken[mask])}", is_damaged=True
                )
            else:
                taken[mask] = name
                yield _Pair(split, path, join_path(mask_folder, mask))
        for name in masks:
            if name not in taken:
                reason = "it has no image" if name.endswith(".png") else "not a PNG file by its name, <name>.png"
                rejects.add(join_path(mask_folder, name), reason, is_damaged=True)


def _mask_of(image: str) -> str:
    return f"{image.rpartition('.')[0] or image}.png"


def _files(root: epath.Path, folder: str, rejects: Rejects) -> list[str]:
    """Lists a folder's visible files; none if the folder does not exist."""
    try:
        if not is_folder(root / folder):
            return []
    except UnusableError as error:
        raise UserError(
            f"{printable_name(str(root / folder))} {error}; the folder of the data must be readable"
        ) from error
    files = []
    for name in list_required_folder(root / folder):
        path = join_path(folder, name)
        if is_hidden(name):
            rejects.add(path, HIDDEN)
        elif (root / path).is_dir():
            rejects.add(path, _ONE_FOLDER)
        else:
            files.append(name)
    return files


def _check(root: epath.Path, pair: _Pair, class_count: int) -> _Checked | _Bad:
    name = pair.image
    try:
        image = read_regular(root / name)
        size = _size(image)
        name = pair.mask
        mask = read_regular(root / name)
        indices = read_indices(mask)
    except (UnusableError, ImageError) as error:
        return _Bad(name, str(error))
    if indices.shape != size:
        return _Bad(name, f"it has {_size_text(indices.shape)} pixels, but its image has {_size_text(size)}")
    occurs = np.bincount(indices.ravel(), minlength=256)[:IGNORED] > 0
    numbers = np.flatnonzero(occurs)
    if class_count and numbers.size and numbers[-1] >= class_count:
        return _Bad(
            name, f"it has pixels of the class {numbers[-1]}, but {_CLASSES} names the classes 0 to {class_count - 1}"
        )
    return _Checked(size, occurs, content_digest(image), content_digest(mask))


def _size(data: bytes) -> tuple[int, int]:
    """Decodes an image, a JPEG at an eighth of its size, and returns its height and width."""
    size = jpeg_size(data)
    pixels = decode(data, channels=1, reduction=8 if size else 1, strict=True)
    return size or (pixels.shape[0], pixels.shape[1])


def _shortened(name: str) -> str:
    return printable_name(name if len(name) <= 40 else name[:40] + "...")


def _size_text(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
