"""Finds prepared data sets of TensorFlow Datasets (tfds) by name, and makes the errors for missing ones.

A name only selects a folder: no code of the data set is imported.
"""

import difflib
import os
import re
import shlex
from collections.abc import Iterable

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import constants, naming
from tensorflow_datasets.core.utils.version import list_all_versions

from train.data.readers import scaled_digits  # noqa: F401  # registers its name in tfds
from train.data.readers.descriptions import (
    FEATURES,
    FILE_FORMAT,
    Description,
    is_config,
    read_default_config,
    read_description,
)
from train.errors import UserError, program, suggest

_VERSION = r"(?:\d{1,9}|\*)(?:\.(?:\d{1,9}|\*)){2}"
_NAME = re.compile(rf"(?P<name>[a-zA-Z]\w*)(?:/(?P<config>[^/:]+))?(?::(?P<version>{_VERSION}))?")


def is_name(name: str) -> bool:
    """Whether a name is a valid name of tfds, such as "cifar10", "imagenette/320px-v2" or "cifar10:3.0.2"."""
    match = _NAME.fullmatch(name)
    return match is not None and (match["config"] is None or is_config(match["config"]))


def find_prepared(name: str, data_dir: str) -> Description | None:
    """Finds the prepared files of a data set.

    Args:
        name: the name in tfds.
        data_dir: the folder of prepared data sets, or "" for tfds's default.

    Returns:
        The description of the data set; None if it is not prepared.

    Raises:
        UserError: if the files have another format, their description is damaged, or they cannot be opened.
    """
    if not is_name(name):
        return None
    try:
        folder = _find_folder(name, epath.Path(prepared_root(data_dir)))
        if folder is None:
            return None
        found = read_description(folder)
    except Exception as error:  # many types, from the file systems of buckets
        raise UserError(
            f"the prepared files of {name!r} in {prepared_root(data_dir)} cannot be opened: {one_line(error)}; remove "
            f"them and prepare them again: {prepare_command(name, data_dir)}"
        ) from error
    if FILE_FORMAT not in found.formats:
        raise UserError(
            f"{name!r} is prepared in {folder} as {', '.join(sorted(found.formats))}, which cannot be read image by "
            f"image; add array_record files with tfds convert_format --dataset_version_dir={shlex.quote(str(folder))} "
            f"--out_file_format={FILE_FORMAT}, or prepare it in another folder: {prepare_command(name, 'FOLDER')}"
        )
    return found


def open_prepared(name: str, data_dir: str, others: Iterable[str]) -> Description:
    """Finds a data set like `find_prepared`.

    Raises:
        UserError: if the data set is unknown or not prepared, and as `find_prepared`.
    """
    found = find_prepared(name, data_dir)
    if found is None:
        if not is_name(name) or re.split("[/:]", name)[0] not in _known_names():
            raise unknown_name("config.data.source", name, others)
        raise UserError(
            f"config.data.source is {name!r}, which is not prepared in {prepared_root(data_dir)}; prepare it once with "
            f"{prepare_command(name, data_dir)}, or set config.data.dir to the folder where it is"
        )
    return found


def _find_folder(name: str, root: epath.Path) -> epath.Path | None:
    """Finds the folder of the newest version that matches a name, by the rules of tfds."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    folder, version = root / naming.camelcase_to_snakecase(match["name"]), match["version"]
    if match["config"]:
        folder /= match["config"]
    elif not (version and (folder / version / FEATURES).exists()):
        folder /= read_default_config(folder)
    for found in reversed(list_all_versions(folder)):
        if (not version or found.match(version)) and (folder / str(found) / FEATURES).exists():
            return folder / str(found)
    return None


def unknown_name(setting: str, name: str, others: Iterable[str] = ()) -> UserError:
    """Makes the error for an unknown name.

    Args:
        setting: the setting that has the name.
        name: the name.
        others: known names besides those of tfds.
    """
    close = difflib.get_close_matches(name, {*_known_names(), *others}, n=3, cutoff=0.5)
    hint = suggest(name, close) if close else "www.tensorflow.org/datasets/catalog lists the data sets of tfds"
    return UserError(f"{setting} is {name!r}, which does not exist; {hint}")


def _known_names() -> list[str]:
    return tfds.list_builders(with_community_datasets=False)


def prepared_root(data_dir: str) -> str:
    """Returns the folder of prepared data sets."""
    return os.path.expanduser(data_dir or str(constants.DATA_DIR))


def prepare_command(name: str, data_dir: str) -> str:
    """Makes the command that prepares a data set."""
    place = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
    return f"{program('train.prepare')} --dataset={shlex.quote(name)}{place}"


def repair_advice(name: str, data_dir: str, found: Description) -> str:
    """Makes the advice to prepare a data set again."""
    return f"remove {found.folder} and prepare it again: {prepare_command(name, data_dir)}"


def one_line(error: Exception) -> str:
    """Shortens the message of a library's error for a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + " ..."
