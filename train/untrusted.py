"""What comes from files that need not be trusted: texts in messages and as names of files, JSON, numbers."""

import json
import re
import sys
import unicodedata
from collections.abc import Collection
from typing import Any

_LONGEST_NAME = 90  # bytes of UTF-8; file systems allow 255, and names get numbers, endings and ".tmp"
_DEEPEST = 100  # levels of JSON


def escaped(text: str, keep: str = "") -> str:
    r"""Escapes the characters that act on a terminal or a page or cannot be encoded, all but those in `keep`.

    Example:
        >>> print(escaped("a\x1b[31m\udcff"))
        a\x1b[31m\udcff
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, limit: int = 80) -> str:
    """Leaves out the middle of a text of more than `limit` characters.

    Example:
        >>> shortened("0123456789" * 10, 20)
        '012345678 ... 456789'
    """
    if len(text) <= limit:
        return text
    head = (limit - 5) * 3 // 5 if limit > 20 else limit - 11
    return f"{text[:head]} ... {text[head + 5 - limit :]}"


def quoted(value: object, limit: int = 80) -> str:
    r"""Writes a value from a file for a message: as Python does, escaped and shortened.

    Example:
        >>> quoted("cat\n")
        "'cat\\n'"
    """
    try:
        text = repr(value[: 2 * limit] if isinstance(value, str | bytes) else value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more than 4300 digits
        text = "something too large to be shown"
    return shortened(escaped(text), limit)


def listed(names: Collection[str], shown: int = 5) -> str:
    """Lists names for a message: a few of them, quoted, and the number of the others.

    Example:
        >>> listed(["a", "b", "c"], shown=2)
        "'a', 'b' and 1 more"
    """
    first = [quoted(name) for _, name in zip(range(shown), names, strict=False)]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(first) + more


def file_name(text: str, used: set[str]) -> str:
    """Makes the name of a file, without its ending, from any text.

    It has letters, digits, "-" and "_", at most 100 bytes of UTF-8, and differs from the names `used` before, to which
    it is added, on file systems too that take capitals for small letters and join accents to their letters.

    Example:
        >>> used = set()
        >>> [file_name(text, used) for text in ("C#", "C++", "c_")]
        ['C_', 'C__2', 'c__3']
    """
    safe = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)) or "_"
    stem = name = safe.encode()[:_LONGEST_NAME].decode(errors="ignore")
    number = 1
    while (key := unicodedata.normalize("NFKC", name.casefold())) in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(key)
    return name


def load_json(data: bytes) -> Any:
    """Reads JSON that need not be trusted.

    Raises:
        ValueError: if it is not JSON in UTF-8, or is nested more than 100 times.

    Example:
        >>> load_json(b'{"step": 3}')
        {'step': 3}
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEEPEST} times") from None
    level = [value]
    for _ in range(_DEEPEST):
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [item for items in inner if isinstance(items, list) for item in items]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_DEEPEST} times")


def finite(value: Any) -> float:
    """Gives a number as a float; raises a TypeError if it is none, and a ValueError if it is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a {type(value).__name__} is no number")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError("a number is not finite")
    return float(value)
