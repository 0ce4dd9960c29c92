"""Atomic writes: a file is written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

__all__ = ["atomic_write"]


@contextlib.contextmanager
def atomic_write(file: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """Yields a temporary path, which is renamed to `file` at the end, or removed after an error.

    Args:
        file: the final path; replaces an existing file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder) / "notes.txt"
        ...     with atomic_write(target) as part:
        ...         _ = part.write_text("all of it")
        ...     target.read_text()
        'all of it'
    """
    target = pathlib.Path(file)
    # A rename is atomic within one folder; tempfile would hide the file from other users.
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
