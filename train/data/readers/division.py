"""Divides pictures into splits by their contents, class by class, and reports copies."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from train.config.schema import Split
from train.untrusted import printable_name

DIGEST_BYTES = 16
_SHARE = 10  # each held-out split takes one in ten contents of a class
_MIN_CONTENTS = 3  # the fewest contents of a class for one in each split
_PAIRS: tuple[tuple[Split, Split], ...] = (("train", "validation"), ("train", "test"), ("validation", "test"))


def content_digest(data: bytes) -> bytes:
    """Computes the 16-byte digest that compares and orders contents of files."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def number_contents(digests: bytes | bytearray) -> np.ndarray:
    """Numbers contents in the order of their digests; copies share a number.

    Args:
        digests: the concatenated digests of n files.

    Returns:
        (n,) int64.

    Example:
        >>> number_contents(b"b" * 16 + b"a" * 16 + b"b" * 16).tolist()
        [1, 0, 1]
    """
    high, low = np.frombuffer(bytes(digests), ">u8").reshape(-1, 2).astype(np.uint64).T
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    is_new = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.concatenate([np.zeros(min(1, len(order)), np.int64), np.cumsum(is_new)])
    return numbers


def divide(
    contents: np.ndarray, classes: np.ndarray, found: Sequence[Split | None], folders: Sequence[Split]
) -> list[Split]:
    """Chooses the split of every picture that has no folder of a split.

    Without split folders, test and validation each take a tenth of each class. If only the validation folder is
    missing, validation takes a tenth of each class of the train folder. A tenth of n different contents is n / 10,
    rounded half up, and at least 1 if n >= 3; a class of one or two contents is all in train. Test takes the contents
    with the smallest digests, validation those with the largest. Therefore:

    * copies of a picture are in one split; neither names nor the order of `contents` matter;
    * a new picture of a class moves at most two others of the class, and none between validation and test.

    A content of several classes is held out only if each class still needs contents for the split; its copies stay
    together. A class can then have less than its tenth, and further pictures can move.

    Args:
        contents: (n,) from `number_contents`.
        classes: (n,) int, the class of each picture.
        found: the split of each picture's folder, or None.
        folders: the splits that have a folder.

    Example:
        >>> divide(np.arange(6), np.array([0, 1, 0, 1, 1, 0]), 6 * [None], [])
        ['test', 'test', 'train', 'train', 'validation', 'validation']
    """
    drawn = np.array([split in (None, "train") for split in found], bool)
    missing: tuple[Split, ...] = ("validation",) if folders else ("test", "validation")
    chosen = _choose_held_out(contents[drawn], classes[drawn], missing) if "validation" not in folders else {}
    return [
        chosen.get(content, "train") if split in (None, "train") else split
        for content, split in zip(contents.tolist(), found, strict=True)
    ]


def _choose_held_out(contents: np.ndarray, classes: np.ndarray, splits: Sequence[Split]) -> dict[int, Split]:
    """Chooses the held-out contents."""
    count = int(classes.max(initial=0)) + 1
    pairs = np.unique(contents * count + classes)  # distinct pairs of content and class, ascending
    sizes = np.bincount(pairs % count, minlength=count)
    share = np.where(sizes < _MIN_CONTENTS, 0, np.maximum(1, (sizes + _SHARE // 2) // _SHARE))
    chosen: dict[int, Split] = {}
    for split in splits:
        room = share.tolist()
        ordered = (pairs if split == "test" else pairs[::-1]).tolist()
        for content, group in itertools.groupby(ordered, key=lambda pair: pair // count):
            among = [pair % count for pair in group]
            if content not in chosen and all(room[place] for place in among):
                chosen[content] = split
                for place in among:
                    room[place] -= 1
    return chosen


def copy_notes(names: Sequence[str], contents: np.ndarray, classes: np.ndarray, splits: Sequence[Split]) -> list[str]:
    """Reports copies in two splits or two classes.

    Args:
        names: the path of each picture.
        contents: (n,) from `number_contents`.
        classes: (n,) int, the class of each picture.
        splits: the split of each picture.

    Returns:
        A sentence for each kind of copies found.
    """
    copied = np.flatnonzero(np.bincount(contents)[contents] > 1).tolist()
    first: dict[tuple[int, Split], int] = {}
    shared: list[tuple[int, int]] = []
    seen: dict[int, int] = {}
    for place in copied:
        content = int(contents[place])
        first.setdefault((content, splits[place]), place)
        before = seen.setdefault(content, place)
        if classes[place] != classes[before]:
            shared.append((before, place))
    notes = []
    if shared:
        number = len({before for before, _ in shared})
        notes.append(f"{_pictures(number)} {_are(number)} in several classes, {_both(names, shared[0])} for one.")
    for left, right in _PAIRS:
        both = [
            (first[content, left], place)
            for place in copied
            if splits[place] == right and (content := int(contents[place]), left) in first
        ]
        if both:
            notes.append(
                f"{_pictures(len(both))} of {right} {_are(len(both))} also in {left}, {_both(names, both[0])} for one."
            )
    return notes


def _pictures(number: int) -> str:
    return "1 picture" if number == 1 else f"{number:,} pictures"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _both(names: Sequence[str], places: tuple[int, int]) -> str:
    return " and ".join(printable_name(names[place]) for place in places)
