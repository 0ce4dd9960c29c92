"""Validation and changes of config values, which are nested dictionaries or have dotted names."""

import difflib
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

import pydantic
from pydantic.fields import FieldInfo

from train.config.schema import Config, Settings
from train.errors import UserError

C = TypeVar("C", bound=Settings)


@functools.cache
def fields(kind: type[Settings]) -> dict[str, FieldInfo]:
    """Returns all single settings of a kind of config by their dotted names, including those of every task."""

    def walk(kind: type[Settings], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        for name, field in kind.model_fields.items():
            groups = list(_groups(field.annotation))
            for group in groups:
                yield from walk(group, f"{prefix}{name}.")
            if not groups:
                yield prefix + name, field

    return dict(walk(kind, ""))


def _groups(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for argument in get_args(annotation):
        yield from _groups(argument)


# From the names of settings before there were sections to their present names.
OLD_NAMES = {name.rpartition(".")[2]: name for name in fields(Config) if "." in name and not name.endswith(".name")} | {
    "data_dir": "data.dir",
    "data_threads": "data.threads",
    "compute_dtype": "compute.dtype",
    "model": "model.name",
    "model_kwargs": "model.kwargs",
    "optimizer": "optimizer.name",
}
_TASKS = {group.model_fields["name"].default: group for group in _groups(Config.model_fields["task"].annotation)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries to one with dotted keys.

    Example:
        >>> flatten({"model": {"name": "resnet8", "kwargs": {}}, "epochs": 3})
        {'model.name': 'resnet8', 'model.kwargs': {}, 'epochs': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return flat


def validate_config(values: Mapping[str, Any], kind: type[C] = Config) -> C:
    """Validates nested values against their schema and adds the defaults.

    The values pass through JSON, so that a run and its stored config cannot differ.

    Raises:
        UserError: for a missing, unknown or old key, a wrong type, a value out of range, or values that contradict
            each other.
    """
    try:
        plain = json.loads(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"config values must be plain numbers, strings, lists: {error}") from error
    inner, prefix = (plain, "") if kind is Config else (plain.get("training"), "training.")
    if isinstance(inner, dict):
        _refuse_old_names(inner, prefix)
        for name, field in Config.model_fields.items():
            if any(_groups(field.annotation)):
                inner.setdefault(name, {})
        if isinstance(inner["task"], dict):
            inner["task"].setdefault("name", "classification")
    try:
        return kind.model_validate(plain)
    except pydantic.ValidationError as error:
        raise UserError(_sentence(error, plain, kind)) from error


def _refuse_old_names(values: Mapping[str, Any], prefix: str) -> None:
    for name, value in values.items():
        if name in OLD_NAMES and not (name in Config.model_fields and isinstance(value, dict)):
            raise UserError(f"config.{prefix}{name} is now config.{prefix}{OLD_NAMES[name]}")


def _sentence(error: pydantic.ValidationError, values: Any, kind: type[Settings]) -> str:
    """Describes the first of pydantic's errors; unknown keys come first, because they may be misspelt required ones."""
    first: Any = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    path, task = [], None
    for part in first["loc"]:
        if path[-1:] == ["task"] and part in _TASKS:  # the name of the task is not a key
            task = _TASKS[part]
        else:
            path.append(part)
    known = fields(kind)
    if first["type"] == "extra_forbidden":
        return f"the config has an unknown key {'.'.join(path)!r}; {_suggest(path, task, known)}"
    if first["type"] == "value_error" and str(first["ctx"]["error"]).startswith("config."):
        prefix = "" if kind is Config or path[:1] != ["training"] else "training."
        return str(first["ctx"]["error"]).replace("config.", f"config.{prefix}")
    if first["type"] == "string_unicode":  # pydantic does not say which name
        return f"{'.'.join(['config', *map(str, path)])} has a name that is not valid Unicode; change it"
    if first["type"] == "union_tag_invalid":
        path.append("name")
    names = [".".join(map(str, path[: count + 1])) for count in range(len(path))]
    name = next((name for name in names if name in known), names[-1])  # further parts are inside a list or dictionary
    path = path[: names.index(name) + 1]
    words = known[name].description if name in known else "a dictionary of settings"
    if first["type"] == "union_tag_invalid":
        words = "one of " + first["ctx"]["expected_tags"]
    if first["type"] == "missing":
        return f"the config lacks the key {name!r}: set it to {words}"
    value = functools.reduce(lambda inside, part: inside[part], path, values)
    return f"config.{name} is {value!r} but must be {words}"


def _suggest(path: list[str], task: type[Settings] | None, known: Mapping[str, Any]) -> str:
    """Suggests settings with similar names, in the same section if possible."""
    *section, last = path
    siblings = [name for name in known if name.split(".")[:-1] == section]
    siblings = [name for name in siblings if task is None or name.rpartition(".")[2] in task.model_fields]
    for names in (siblings, [] if task else known):
        by_last = {name.rpartition(".")[2]: name for name in names}
        near = [repr(by_last[like]) for like in difflib.get_close_matches(last, by_last)]
        if near:
            return f"did you mean {' or '.join(near)}?"
    return "known are: " + ", ".join(siblings or known)


def update_config(config: C, changes: Mapping[str, Any]) -> C:
    """Returns a validated copy of a config with changes.

    Changes are values by dotted names, ``{"model.conv": "ICConv"}``, or nested like the config. A dictionary changes
    some settings of a section, and replaces the value of a single setting.

    Raises:
        UserError: like `validate_config`.
    """
    return validate_config(merge_changes(config.model_dump(), changes, type(config)), type(config))


def merge_changes(values: Any, changes: Mapping[str, Any], kind: type[Settings], prefix: str = "") -> dict[str, Any]:
    """Merges changes into nested values like `update_config`, without validation; a new task drops the old settings.

    Example:
        >>> merge_changes({"model": {"name": "a", "kwargs": {"width": 8}}}, {"model": {"kwargs": {}}}, Config)
        {'model': {'name': 'a', 'kwargs': {}}}
    """
    result = dict(values) if isinstance(values, Mapping) else {}
    for name, change in changes.items():
        head, dot, tail = name.partition(".")
        inner = {tail: change} if dot else change
        is_section = any(known.startswith(f"{prefix}{head}.") for known in fields(kind))
        if dot or (is_section and isinstance(inner, Mapping)):
            old = result.get(head)
            if head == "task" and isinstance(old, Mapping) and inner.get("name", old.get("name")) != old.get("name"):
                old = None
            result[head] = merge_changes(old, inner, kind, f"{prefix}{head}.")
        else:
            result[head] = change
    return result
