"""The config of a run in its folder, by which the folder is known to belong to that run."""

import errno
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from train.config.checking import checked, flatten
from train.config.schema import Config, Settings
from train.errors import UserError, program
from train.untrusted import load_json

C = TypeVar("C", bound=Settings)

LOCK = ".lock"  # the file by which a process owns the folder
_MAX_BYTES = 2**26


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one piece: after a crash or a power cut there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 as `write_bytes` does; what UTF-8 lacks, such as parts of damaged names, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def sync_folder(folder: Path) -> None:
    """Makes sure that the names of the files in a folder survive a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have nothing to do here
            raise
    finally:
        os.close(number)


def write_config(workdir: Path, config: Settings) -> None:
    """Stores the config of a run in its folder, which is made if need be."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.model_dump(), indent=2, sort_keys=True)
    write_text(workdir / config.file, text + "\n")


def read_config(workdir: Path, kind: type[C] = Config) -> C:
    """Reads the config of a run from its folder.

    Raises:
        UserError: if there is none or it is not a valid config.
    """
    path = workdir / kind.file
    if not path.is_file():
        raise UserError(
            f"{str(workdir)!r} is not the folder of a run: it has no {kind.file}; give the "
            f"--workdir that {program('train')} was given"
        )
    try:
        return checked(read_json(path), kind)
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
    """Makes sure that a folder is free for this config, or already holds its run.

    A folder in which nothing was trained is free. Otherwise the settings of `Settings.changeable` may differ, and those
    of `Settings.raisable` may be larger than before.

    Raises:
        UserError: if it is a file, holds something else, or the run of another config.
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
    if not any(workdir.rglob("checkpoints/[0-9]*")):  # it ended before its first checkpoint
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


def is_longer(workdir: Path, config: Settings) -> bool:
    """Whether a config makes the run in a folder longer, by the settings of `Settings.raisable`."""
    before, now = flatten(read_config(workdir, type(config)).model_dump()), flatten(config.model_dump())
    return any(before[name] < now[name] for name in config.raisable)
