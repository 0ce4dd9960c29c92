"""Values of a config, nested dictionaries: checked against their schema, changed, and compared by dotted names."""

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
    """Gives all single settings of a kind of config by their dotted names, those of every task included."""

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


# Names of settings when there were no sections, and their names now.
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
    """Writes nested dictionaries as one with dotted keys.

    Example:
        >>> flatten({"model": {"name": "resnet8", "kwargs": {}}, "epochs": 3})
        {'model.name': 'resnet8', 'model.kwargs': {}, 'epochs': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return flat


def checked(values: Mapping[str, Any], kind: type[C] = Config) -> C:
    """Checks nested values against their schema; what is not set has its default.

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
    """Puts the first of pydantic's errors into words; unknown keys come first, they may be misspelt missing ones."""
    first: Any = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    path, task = [], None
    for part in first["loc"]:
        if path[-1:] == ["task"] and part in _TASKS:  # which task it is, and no key
            task = _TASKS[part]
        else:
            path.append(part)
    known = fields(kind)
    if first["type"] == "extra_forbidden":
        return f"the config has an unknown key {'.'.join(path)!r}; {_suggest(path, task, known)}"
    if first["type"] == "value_error" and str(first["ctx"]["error"]).startswith("config."):
        prefix = "" if kind is Config or path[:1] != ["training"] else "training."
        return str(first["ctx"]["error"]).replace("config.", f"config.{prefix}")
    if first["type"] == "string_unicode":  # of a name; pydantic does not say which
        return f"{'.'.join(['config', *map(str, path)])} has a name that is not valid Unicode; change it"
    if first["type"] == "union_tag_invalid":
        path.append("name")
    names = [".".join(map(str, path[: count + 1])) for count in range(len(path))]
    name = next((name for name in names if name in known), names[-1])  # the rest is a part of a list or dictionary
    path = path[: names.index(name) + 1]
    words = known[name].description if name in known else "a dictionary of settings"
    if first["type"] == "union_tag_invalid":
        words = "one of " + first["ctx"]["expected_tags"]
    if first["type"] == "missing":
        return f"the config lacks the key {name!r}: set it to {words}"
    value = functools.reduce(lambda inside, part: inside[part], path, values)
    return f"config.{name} is {value!r} but must be {words}"


def _suggest(path: list[str], task: type[Settings] | None, known: Mapping[str, Any]) -> str:
    """Says which settings are meant: with a like name, in the same section if there are any."""
    *section, last = path
    beside = [name for name in known if name.split(".")[:-1] == section]
    beside = [name for name in beside if task is None or name.rpartition(".")[2] in task.model_fields]
    for names in (beside, [] if task else known):
        by_last = {name.rpartition(".")[2]: name for name in names}
        near = [repr(by_last[like]) for like in difflib.get_close_matches(last, by_last)]
        if near:
            return f"did you mean {' or '.join(near)}?"
    return "known are: " + ", ".join(beside or known)


def changed(config: C, changes: Mapping[str, Any]) -> C:
    """Gives a checked copy of a config with other values.

    Changes are values by dotted names, ``{"model.conv": "ICConv"}``, or nested as the config is. A dictionary changes
    some settings of a section, but is the whole value of a single setting.

    Raises:
        UserError: as `checked` does.
    """
    return checked(merged(config.model_dump(), changes, type(config)), type(config))


def merged(values: Any, changes: Mapping[str, Any], kind: type[Settings], prefix: str = "") -> dict[str, Any]:
    """Gives nested values with changes, see `changed`, unchecked. The settings of another task go.

    Example:
        >>> merged({"epochs": 3, "model": {"name": "a", "kwargs": {"width": 8}}}, {"model": {"kwargs": {}}}, Config)
        {'epochs': 3, 'model': {'name': 'a', 'kwargs': {}}}
    """
    result = dict(values) if isinstance(values, Mapping) else {}
    for name, change in changes.items():
        head, dot, rest = name.partition(".")
        inner = {rest: change} if dot else change
        is_section = any(known.startswith(f"{prefix}{head}.") for known in fields(kind))
        if dot or (is_section and isinstance(inner, Mapping)):
            held = result.get(head)
            if head == "task" and isinstance(held, Mapping) and inner.get("name", held.get("name")) != held.get("name"):
                held = None
            result[head] = merged(held, inner, kind, f"{prefix}{head}.")
        else:
            result[head] = change
    return result
