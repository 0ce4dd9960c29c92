"""The configuration of a run: read from a Python file, overridden by flags, checked, stored.

A config file gives an `ml_collections.ConfigDict`; what it does not set is as `train.settings` has it.
"""

import dataclasses
import json
import os
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from train.errors import UserError, parse_flags, required, suggest
from train.settings import TRAINING, Config, Schema, checked, defaults, flatten
from train.smoke import smoke

C = TypeVar("C")


def parse_command_line(
    argv: Sequence[str],
    description: str | None,
    schema: Schema[C] = TRAINING,
    values: flags.FlagValues | None = None,
    *,
    needs_workdir: bool = True,
) -> tuple[C, Path]:
    """Reads ``--config=FILE --config.key=value --workdir=FOLDER``.

    Args:
        argv: the command line, the program's name first.
        description: the text of ``--help``.
        schema: the kind of config.
        values: further flags of the program, which are read along.
        needs_workdir: whether there must be a work folder; otherwise it may be missing and is then the present one.

    Returns:
        The checked config and the work folder.

    Raises:
        UserError: for missing or unknown flags, a missing config file, and unknown keys, wrong
            types or values out of range in the config.
    """
    values = flags.FlagValues() if values is None else values
    flags.DEFINE_string("workdir", None, "folder of this run", flag_values=values)
    # The file is loaded here, not by config_flags.DEFINE_config_file: that one reports a missing
    # file and an unknown key by tracebacks, and loads modules in a way Python 3.15 removes.
    path, argv = _take_config_path(argv)
    if path is None:
        flags.DEFINE_string("config", None, "Python file with get_config()", flag_values=values)
        parse_flags(values, argv, description)
        required(values, "config", "configs/ps_resnet_digits.py")
    config = load_config(str(path))
    for key, value in defaults(schema).items():
        if key not in config:  # so that a flag can set it; a list's flag is a tuple's
            config[key] = tuple(value) if isinstance(value, list) else value
    _check_override_names(argv, config)
    try:
        config_flags.DEFINE_config_dict("config", config, "the config", values, lock_config=True, sys_argv=list(argv))
        arguments = parse_flags(values, argv, description)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"the overrides of the config cannot be read: {error}") from error
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; every setting is a --flag=value")
    workdir = required(values, "workdir", "runs/digits") if needs_workdir else values["workdir"].value or ""
    return checked(config.to_dict(), schema), Path(workdir)


def _take_config_path(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes ``--config=FILE`` or ``--config FILE`` (the last one counts) out of a command line."""
    path, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-config"):
            rest.append(argument)
            continue
        path = value if equals else next(arguments, "")
        if not path:
            raise UserError("--config names no file; give one, --config=configs/FILE.py")
    return path, rest


def _check_override_names(argv: Sequence[str], config: ConfigDict) -> None:
    known = [*flatten(config.to_dict()), *config]
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in known:
            raise UserError(f"the config has no key {match[1]!r}; {suggest(match[1], known)}")


VARIANTS: dict[str, Callable[[ConfigDict], ConfigDict]] = {"smoke": smoke}


def load_config(name: str) -> ConfigDict:
    """Reads a config file, ``FILE.py`` or ``FILE.py:smoke`` for what `train.smoke` makes of it.

    Raises:
        UserError: if there is no such file or variant, or the file lacks a usable ``get_config``.
    """
    path, colon, variant = name.rpartition(":")
    if not colon or Path(name).is_file() or not path.endswith(".py"):
        return load_config_file(Path(name))
    if variant not in VARIANTS:
        raise UserError(f"--config={name} asks for the variant {variant!r}; {suggest(variant, VARIANTS)}")
    try:
        return VARIANTS[variant](load_config_file(Path(path)))
    except (KeyError, AttributeError, ValueError) as error:
        raise UserError(f"--config={name}: {path} has no {variant} variant: {error}") from error


def load_config_file(path: Path) -> ConfigDict:
    """Runs a config file and returns what its ``get_config()`` gives.

    Raises:
        UserError: if there is no such file or it lacks a usable ``get_config``.
    """
    if not path.is_file():
        others = [str(other) for other in path.parent.glob("*.py")]
        hint = suggest(str(path), others) if others else "give the path of a Python file"
        raise UserError(f"there is no config file {str(path)!r}; {hint}")
    get_config = runpy.run_path(str(path)).get("get_config")
    config = get_config() if callable(get_config) else None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} must define get_config() returning an ml_collections.ConfigDict")
    return config


def check_batch_size(config: Config, train_images: int, devices: int) -> None:
    """Checks what depends on the data and the machine.

    Raises:
        UserError: if the batch is larger than the train split or does not divide over the devices.
    """
    size = config.batch_size
    if size > train_images:
        raise UserError(
            f"config.batch_size is {size} but the train split of {config.source!r} has only "
            f"{train_images} images; choose at most that many"
        )
    if size % devices:
        raise UserError(
            f"config.batch_size is {size} but must be divisible by the {devices} devices of this "
            f"machine; {max(size // devices, 1) * devices} would do"
        )


def check_accumulation(config: Config, devices: int) -> None:
    """Checks that every device can divide its own rows of a batch into the parts of `accumulation_steps`.

    Raises:
        UserError: if it cannot.
    """
    own_rows = config.batch_size // devices
    if own_rows % config.accumulation_steps:
        divisors = [count for count in range(1, own_rows + 1) if own_rows % count == 0]
        near = min(divisors, key=lambda count: abs(count - config.accumulation_steps))
        raise UserError(
            f"config.accumulation_steps is {config.accumulation_steps} but must divide the {own_rows} images of a "
            f"batch that each of the {devices} devices has; {near} would do"
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: after a crash there is the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_config(workdir: Path, config: Any, schema: Schema[Any] = TRAINING) -> None:
    """Stores the config of a run in its folder, which is made if need be."""
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)
    write_text(workdir / schema.file, text + "\n")


def read_config(workdir: Path, schema: Schema[C] = TRAINING) -> C:
    """Reads the config of a run from its folder.

    Raises:
        UserError: if there is none or it is not a valid config.
    """
    path = workdir / schema.file
    if not path.is_file():
        raise UserError(
            f"{str(workdir)!r} is not the folder of a run: it has no {schema.file}; give the "
            "--workdir that python -m train was given"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also covers text that is not UTF-8
        raise UserError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged, it does not hold a dictionary")
    try:
        return checked(values, schema)
    except UserError as error:
        raise UserError(f"{path} does not fit this version: {error}") from error


def check_workdir(workdir: Path, config: Any, schema: Schema[Any] = TRAINING) -> None:
    """Makes sure that a folder is free for this config, or already holds its run.

    Raises:
        UserError: if it is a file, holds something else, or the run of another config.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder, new or of an earlier run")
    if not (workdir / schema.file).exists():
        foreign = sorted(p.name for p in workdir.iterdir() if p.name != f".{schema.file}.tmp")
        if foreign:
            raise UserError(
                f"--workdir={workdir} holds files that are not of a run ({', '.join(foreign[:3])}"
                f"{', ...' if len(foreign) > 3 else ''}); choose a new or an empty folder"
            )
        return
    old = flatten(dataclasses.asdict(read_config(workdir, schema)))
    new = flatten(dataclasses.asdict(config))
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
