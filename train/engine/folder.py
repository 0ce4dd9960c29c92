"""The lock on the folder of a run: one process at a time."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from train.config.stored import LOCK
from train.errors import UserError

_GLOB_CHARACTERS = "*?[\\"
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunFolder:
    """A folder that this process has locked; see `lock_folder`."""

    def __init__(self, path: Path, file: IO[str]):
        self._path = path
        self._file = file

    def check(self) -> None:
        """Checks that the folder is still the locked one.

        Raises:
            UserError: if it was removed or replaced.
        """
        if not _is_same(self._file, self._path / LOCK):
            raise UserError(
                f"--workdir={self._path} was removed or replaced while the run trained, so nothing can be saved there; "
                "give the same command again to train from what is there now"
            )


@contextlib.contextmanager
def lock_folder(workdir: Path) -> Iterator[RunFolder]:
    """Creates a folder if it does not exist, and locks it for this process until the context ends.

    The kernel releases the lock of a killed process. A folder that is still empty is removed.

    Raises:
        UserError: if another process holds the lock, or checkpoints could not be read from a folder of that name.
    """
    check_name(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"--workdir={workdir} is a file; name a folder, new or of an earlier run") from error
    with _lock(workdir) as file:
        try:
            yield RunFolder(workdir, file)
        finally:
            # Another process that waits for this file notices the removal: see `_lock`.
            if _is_same(file, workdir / LOCK):
                (workdir / LOCK).unlink()
            with contextlib.suppress(OSError):  # the folder is not empty
                workdir.rmdir()


def check_name(workdir: Path) -> None:
    """Checks that checkpoints can be read from a folder of this name.

    Raises:
        UserError: if they cannot.
    """
    name = str(workdir.absolute())
    # Orbax uses paths as glob patterns.
    if found := sorted(set(name) & set(_GLOB_CHARACTERS)):
        raise UserError(
            f"--workdir={workdir} has {' and '.join(found)} in its path, and checkpoints below such a folder cannot be "
            "read; choose a path without *, ?, [ and \\"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"--workdir={name!r} is not UTF-8, as paths of checkpoints must be; choose another path, or, if your "
            "terminal shows this one well, set PYTHONUTF8=1 in the environment"
        ) from error


@contextlib.contextmanager
def _lock(workdir: Path) -> Iterator[IO[str]]:
    path = workdir / LOCK
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                # flock would be inherited by forked processes.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    file.seek(0)
                    owner = file.read(300).strip() or "another process"
                    raise UserError(
                        f"--workdir={workdir} is in use by {owner}; wait until it has ended, stop it, or choose "
                        "another --workdir"
                    ) from error
                if error.errno not in _CANNOT_LOCK:
                    raise
                print(f"{workdir} cannot be locked ({error.strerror}): start no second run there", file=sys.stderr)
            if not _is_same(file, path):  # the previous owner has ended and removed its file
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on host {socket.gethostname()}")
            file.flush()
            yield file
            return


def _is_same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False
