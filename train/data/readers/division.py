"""Dividing pictures into splits by their contents, class by class, and notes on copies."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from train.config.schema import Split
from train.untrusted import printable_name

DIGEST_BYTES = 16
_SHARE = 10  # one of so many contents of a class goes to each split that is taken from the others
_MIN_CONTENTS = 3  # contents of a class, of which each split has one
_PAIRS: tuple[tuple[Split, Split], ...] = (("train", "validation"), ("train", "test"), ("validation", "test"))


def content_digest(data: bytes) -> bytes:
    """Gives the 16 bytes by which contents of files are compared and ordered."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def number_contents(digests: bytes | bytearray) -> np.ndarray:
    """Numbers contents in the order of their digests; copies have the same number.

    Args:
        digests: those of n files, one behind the other.

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
    """Chooses the split of every picture, where its folder does not decide.

    Without folders of splits a tenth of each class goes to test and a tenth to validation. If only validation has no
    folder, it is a tenth of each class of the train folder. A tenth of n different contents is n / 10, rounded with
    halves up, and at least 1 if n is 3 or more; a class of one or two contents is all for training. The test has the
    contents with the least digests, validation those with the largest. So

    * copies of a picture go where it goes; neither names nor the order of `contents` matter;
    * another picture in a class moves at most two others of it, and none between validation and test.

    A content that stands in several classes is taken for a split only if each of them still has room there, and its
    copies go together. Then a class can fall short of its tenth, and further pictures can move.

    Args:
        contents: (n,) as `number_contents` gives them.
        classes: (n,) int, the class of each.
        found: the split whose folder each stands in, or None.
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
    """Chooses the contents that are not for training."""
    count = int(classes.max(initial=0)) + 1
    pairs = np.unique(contents * count + classes)  # of content and class, each once, ascending
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
    """Names copies that stand in two splits or in two classes.

    Args:
        names: the path of each picture.
        contents: (n,) as `number_contents` gives them.
        classes: (n,) int, the class of each.
        splits: the split of each.

    Returns:
        A sentence for each kind that occurs.
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
