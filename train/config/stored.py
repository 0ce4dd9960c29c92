"""The config of a run in its folder, by which the folder is known to belong to that run."""

import json
import os
from pathlib import Path
from typing import TypeVar

from train.config.checking import checked, flatten
from train.config.schema import Config, Settings
from train.errors import UserError, program

C = TypeVar("C", bound=Settings)


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: after a crash there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also covers text that is not UTF-8
        raise UserError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged, it does not hold a dictionary")
    try:
        return checked(values, kind)
    except UserError as error:
        raise UserError(f"{path} does not fit this version: {error}") from error


def check_workdir(workdir: Path, config: Settings) -> None:
    """Makes sure that a folder is free for this config, or already holds its run.

    Raises:
        UserError: if it is a file, holds something else, or the run of another config.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder, new or of an earlier run")
    if not (workdir / config.file).exists():
        foreign = sorted(p.name for p in workdir.iterdir() if p.name != f".{config.file}.tmp")
        if foreign:
            raise UserError(
                f"--workdir={workdir} holds files that are not of a run ({', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}); choose a new or an empty folder"
            )
        return
    old = flatten(read_config(workdir, type(config)).model_dump())
    new = flatten(config.model_dump())
    differing = [
        f"{key} ({old.get(key, 'not set')!r} there, {new.get(key, 'not set')!r} now)"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]
    if differing:
        raise UserError(
            f"--workdir={workdir} belongs to a run with another config, which differs in "
            f"{', '.join(differing)}; choose another --workdir, or remove that folder"
        )
