"""The command line of a program: a config file, settings that override it, and the folder of the run.

A config file returns an `ml_collections.ConfigDict`; `train.config.schema` has the defaults of other settings.
"""

import ast
import re
import runpy
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

from absl import flags
from ml_collections import ConfigDict

from train.config.checking import fields, validate_config
from train.config.schema import Config, Settings
from train.errors import UserError, define_path, parse_flags, required, suggest

C = TypeVar("C", bound=Settings)

ROOT = Path(__file__).parents[2]  # the folder of train and configs
_EXAMPLE = "configs/ps_resnet_digits.py"
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}


def parse_command_line(
    argv: Sequence[str],
    description: str | None,
    kind: type[C] = Config,
    values: flags.FlagValues | None = None,
    *,
    needs_workdir: bool = True,
) -> tuple[C, Path]:
    """Reads ``--config=FILE --config.section.key=value --workdir=FOLDER``.

    The program's name comes first in `argv`; `description` is the text of ``--help``, `kind` the schema of the config.
    `values` holds further flags of the program, which are parsed too. Without `needs_workdir` the flag may be missing;
    the folder is then the current one.

    Raises:
        UserError: for missing or unknown flags, a missing config file, and unknown or old keys, wrong
            types or values out of range in the config.
    """
    values = flags.FlagValues() if values is None else values
    define_path(values, "workdir", "folder of this run")
    define_path(values, "config", "Python file with get_config(), or FILE.py:smoke")
    flags.DEFINE_string("config.KEY", None, "a setting that overrides the file's", flag_values=values)
    settings, others = _take_settings(argv, kind)
    arguments = parse_flags(values, others, description)
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; every setting is a --flag=value")
    config = load_config(required(values, "config", _EXAMPLE))
    with config.unlocked(), config.ignore_type():  # types are checked below
        for name, text in settings:
            _override(config, name, text, kind)
    config = validate_config(config.to_dict(), kind)
    workdir = required(values, "workdir", "runs/digits") if needs_workdir else values["workdir"].value or ""
    return config, Path(workdir)


def _take_settings(argv: Sequence[str], kind: type[Settings]) -> tuple[list[tuple[str, str]], list[str]]:
    """Extracts ``--config.key=value``, ``--config.key value``, ``--config.switch`` and ``--noconfig.switch``."""
    found, others, arguments = [], [], iter(argv)
    for argument in arguments:
        match = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if not match:
            others.append(argument)
            continue
        no, name, value = match.groups()
        if value is None:
            is_switch = name in fields(kind) and fields(kind)[name].annotation is bool
            value = "false" if no else "true" if is_switch else next(arguments, None)
        if value is None:
            raise UserError(f"--config.{name} has no value; give one, --config.{name}=...")
        found.append((name, value))
    return found, others


def _override(config: ConfigDict, name: str, text: str, kind: type[Settings]) -> None:
    section: Any = config
    *sections, key = name.split(".")
    for name_of_section in sections:
        if not isinstance(section.get(name_of_section), ConfigDict):
            section[name_of_section] = ConfigDict()
        section = section[name_of_section]
    field = fields(kind).get(name)
    value = _value(text, field.annotation if field else type(section.get(key)))
    # Keys of a setting's dictionary may be paths, such as "layer1.0".
    section[key] = ConfigDict(value, allow_dotted_keys=True) if _is_plain(value) else value


def _is_plain(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _value(text: str, annotation: Any) -> Any:
    """Parses a value for a setting: text is taken literally, other values are Python literals."""
    if annotation is str:
        return text
    if annotation is bool and text.lower() in _SWITCHES:
        return _SWITCHES[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return (value,) if get_origin(annotation) is list and not isinstance(value, list | tuple) else value


def load_config(name: str) -> ConfigDict:
    """Loads a config file, ``FILE.py``, or ``FILE.py:smoke`` for its variant of `configs.base.smoke`.

    If a relative path does not exist in the current folder, it is looked up beside the programs.

    Raises:
        UserError: if there is no such file or variant, or the file lacks a usable ``get_config``.
    """
    path, colon, variant = name.rpartition(":")
    if not colon or Path(name).is_file() or not path.endswith(".py"):
        return load_config_file(Path(name))
    if variant != "smoke":
        raise UserError(f"--config={name} asks for the variant {variant!r}; {suggest(variant, ['smoke'])}")
    config = load_config_file(Path(path))
    from configs.base.smoke import smoke  # it builds networks, which takes a second to import

    try:
        return smoke(config)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"--config={name}: {path} has no {variant} variant: {error}") from error


def load_config_file(path: Path) -> ConfigDict:
    """Runs a config file and returns the result of its ``get_config()``.

    Raises:
        UserError: if there is no such file, it is not a Python file, it raises an exception, or it lacks a usable
            ``get_config``.
    """
    found = next((place for place in (path, ROOT / path) if place.is_file()), None)
    if found is None:
        folder = path.parent if path.parent.is_dir() else (ROOT / path).parent
        others = [str(path.parent / other.name) for other in folder.glob("*.py")]
        hint = suggest(str(path), others) if others else "give the path of a Python file"
        raise UserError(f"there is no config file {str(path)!r}; {hint}")
    if found.suffix != ".py":
        raise UserError(f"--config={path} is not a Python file; name one that ends in .py, such as {_EXAMPLE}")
    try:
        get_config = runpy.run_path(str(found)).get("get_config")
        config = get_config() if callable(get_config) else None
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run{_line_of(error, found)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path} must define get_config() returning an ml_collections.ConfigDict, as {_EXAMPLE} does")
    return config


def _line_of(error: BaseException, path: Path) -> str:
    """Names the last line of a file in the traceback of an exception."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines else ""
