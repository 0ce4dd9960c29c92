"""The config in the folder of a run, which identifies the run."""

import errno
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from train.config.checking import flatten, validate_config
from train.config.schema import Config, Settings
from train.errors import UserError, program
from train.untrusted import load_json

C = TypeVar("C", bound=Settings)

LOCK = ".lock"  # the file that a process locks
_MAX_BYTES = 2**26


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash or a power cut the old or the new file exists."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 with `write_bytes`; characters that UTF-8 lacks, such as lone surrogates, are escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def sync_folder(folder: Path) -> None:
    """Syncs a folder to disk, so that the names of its files survive a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not support it
            raise
    finally:
        os.close(number)


def write_config(workdir: Path, config: Settings) -> None:
    """Stores the config of a run in its folder, which is created if it does not exist."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.model_dump(), indent=2, sort_keys=True)
    write_text(workdir / config.file, text + "\n")


def read_config(workdir: Path, kind: type[C] = Config) -> C:
    """Reads the config of a run from its folder.

    Raises:
        UserError: if it is missing or invalid.
    """
    path = workdir / kind.file
    if not path.is_file():
        raise UserError(
            f"{str(workdir)!r} is not the folder of a run: it has no {kind.file}; give the "
            f"--workdir that {program('train')} was given"
        )
    try:
        return validate_config(read_json(path), kind)
    except UserError as error:
        raise UserError(f"{path} does not fit this version: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON dictionary.

    Raises:
        UserError: if it is too large, or holds anything else.
    """
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes, but at most {_MAX_BYTES:,} are read; it is damaged")
    try:
        values = load_json(path.read_bytes())
    except ValueError as error:  # also covers text that is not UTF-8
        raise UserError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged, it does not hold a dictionary")
    return values


def check_workdir(workdir: Path, config: Settings) -> None:
    """Checks that a folder is free, or holds the run of this config.

    A folder without checkpoints is free. Otherwise the settings of `Settings.changeable` may differ, and those of
    `Settings.raisable` may have grown.

    Raises:
        UserError: if the path is a file, or the folder holds other files or the run of another config.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder, new or of an earlier run")
    if not (workdir / config.file).exists():
        foreign = sorted(p.name for p in workdir.iterdir() if p.name not in (f".{config.file}.tmp", LOCK))
        if foreign:
            raise UserError(
                f"--workdir={workdir} holds files that are not of a run ({', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}); choose a new or an empty folder"
            )
        return
    old = flatten(read_config(workdir, type(config)).model_dump())
    if not any(workdir.rglob("checkpoints/[0-9]*")):  # the run ended before its first checkpoint
        return
    new = flatten(config.model_dump())
    differing = [
        f"{key} ({old.get(key, 'not set')!r} there, {new.get(key, 'not set')!r} now)"
        for key in sorted(old.keys() | new.keys())
        if (key not in old or key not in new or old[key] != new[key])
        and key not in config.changeable
        and not (key in config.raisable and old[key] < new[key])
    ]
    if differing:
        raise UserError(
            f"--workdir={workdir} belongs to a run with another config, which differs in "
            f"{', '.join(differing)}; choose another --workdir, or remove that folder"
        )


def extends_run(workdir: Path, config: Settings) -> bool:
    """Whether a config makes the run in a folder longer, by a larger setting of `Settings.raisable`."""
    before, now = flatten(read_config(workdir, type(config)).model_dump()), flatten(config.model_dump())
    return any(before[name] < now[name] for name in config.raisable)
