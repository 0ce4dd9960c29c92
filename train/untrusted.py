"""Values from untrusted files: texts for messages and names of files, JSON, numbers."""

import json
import re
import sys
import unicodedata
from collections.abc import Collection
from typing import Any

_MAX_NAME_BYTES = 90  # UTF-8; file systems allow 255, and names get numbers, endings and ".tmp"
_MAX_DEPTH = 100  # levels of JSON


def escaped(text: str, keep: str = "") -> str:
    r"""Escapes all characters that are not printable, except those in `keep`.

    Example:
        >>> print(escaped("a\x1b[31m\udcff"))
        a\x1b[31m\udcff
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def printable_name(name: str) -> str:
    r"""Escapes a path so that it can be printed and stored; different paths stay different.

    Unprintable characters, and spaces at the ends, are escaped; a backslash that would look like an escape is doubled.

    Example:
        >>> print(printable_name("a\nb\\nc "))
        a\nb\\nc\x20
    """
    start, stop = len(name) - len(name.lstrip(" ")), len(name.rstrip(" "))
    is_plain = [c.isprintable() and start <= place < stop for place, c in enumerate(name)]
    if all(is_plain) and "\\" not in name:
        return name
    parts = []
    for place, c in enumerate(name):
        after = name[place + 1 : place + 2]
        if not is_plain[place]:
            parts.append(_escape(c))
        elif c == "\\" and after and (after in "\\nrtuUx" or not is_plain[place + 1]):
            parts.append("\\\\")
        else:
            parts.append(c)
    return "".join(parts)


def _escape(character: str) -> str:
    return r"\x20" if character == " " else character.encode("unicode_escape").decode()


def shortened(text: str, limit: int = 80) -> str:
    """Omits the middle of a text of more than `limit` characters.

    Example:
        >>> shortened("0123456789" * 10, 20)
        '012345678 ... 456789'
    """
    if len(text) <= limit:
        return text
    head = (limit - 5) * 3 // 5 if limit > 20 else limit - 11
    return f"{text[:head]} ... {text[head + 5 - limit :]}"


def quoted(value: object, limit: int = 80) -> str:
    r"""Formats a value from a file for a message: its `repr`, escaped and shortened.

    Example:
        >>> quoted("cat\n")
        "'cat\\n'"
    """
    try:
        text = repr(value[: 2 * limit] if isinstance(value, str | bytes) else value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more than 4300 digits
        text = "a value that is too large to print"
    return shortened(escaped(text), limit)


def list_names(names: Collection[str], limit: int = 5) -> str:
    """Lists at most `limit` names for a message, quoted, and the number of other names.

    Example:
        >>> list_names(["a", "b", "c"], limit=2)
        "'a', 'b' and 1 more"
    """
    first = [quoted(name) for _, name in zip(range(limit), names, strict=False)]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(first) + more


def file_name(text: str, used: set[str]) -> str:
    """Makes the name of a file, without its ending, from any text.

    It has letters, digits, "-" and "_", and at most 100 bytes of UTF-8. It differs from the `used` names, to which it
    is added, also on file systems that ignore case or normalise Unicode.

    Example:
        >>> used = set()
        >>> [file_name(text, used) for text in ("C#", "C++", "c_")]
        ['C_', 'C__2', 'c__3']
    """
    safe = re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", text)) or "_"
    stem = name = safe.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    number = 1
    while (key := unicodedata.normalize("NFKC", name.casefold())) in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(key)
    return name


def load_json(data: bytes) -> Any:
    """Parses untrusted JSON.

    Raises:
        ValueError: if it is not JSON in UTF-8, or is nested more than 100 times.

    Example:
        >>> load_json(b'{"step": 3}')
        {'step': 3}
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} times") from None
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [item for items in inner if isinstance(items, list) for item in items]
        if not level:
            return value
    raise ValueError(f"it is nested more than {_MAX_DEPTH} times")


def finite(value: Any) -> float:
    """Converts a number to a float; raises a TypeError for other types, and a ValueError if it is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a {type(value).__name__} is not a number")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError("a number is not finite")
    return float(value)
