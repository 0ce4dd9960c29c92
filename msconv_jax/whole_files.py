"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

__all__ = ["written_whole"]


@contextlib.contextmanager
def written_whole(file: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A path to write to, whose file takes the name of another one at the end, or goes if something fails.

    Args:
        file: the name at the end; a file of this name is replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder) / "notes.txt"
        ...     with written_whole(target) as part:
        ...         _ = part.write_text("all of it")
        ...     target.read_text()
        'all of it'
    """
    target = pathlib.Path(file)
    # In the same folder, or the replacement would be a copy; not by tempfile, which hides the file from other users.
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
