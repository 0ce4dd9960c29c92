"""Finding the prepared data sets of TensorFlow Datasets (tfds) by name, and what there is to say if they are not there.

A name stands for a folder and for nothing else: no code of a data set is imported for it.
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

from train.data.readers import scaled_digits  # noqa: F401  # tfds knows its name from here on
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
    """Whether a data set of tfds can have this name, such as "cifar10", "imagenette/320px-v2" or "cifar10:3.0.2"."""
    match = _NAME.fullmatch(name)
    return match is not None and (match["config"] is None or is_config(match["config"]))


def find_prepared(name: str, data_dir: str) -> Description | None:
    """Looks for the prepared files of a data set.

    Args:
        name: as tfds writes it.
        data_dir: the folder of prepared data sets, or "" for tfds's own.

    Returns:
        What its files say of it; None if there are no such files.

    Raises:
        UserError: if the files are there but of another format, or what describes them is damaged, or if they cannot be
            reached.
    """
    if not is_name(name):
        return None
    try:
        folder = _find_folder(name, epath.Path(prepared_root(data_dir)))
        if folder is None:
            return None
        found = read_description(folder)
    except Exception as error:  # of many kinds: those of file systems that a bucket's name leads to
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
    """Gives what `find_prepared` does, or says why there is nothing."""
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
    """Finds the folder of the newest version that a name stands for, by the rules of tfds."""
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
    """Makes the error about a name that no data set has.

    Args:
        setting: where the name was given.
        name: the name.
        others: names that exist besides those of tfds.
    """
    close = difflib.get_close_matches(name, {*_known_names(), *others}, n=3, cutoff=0.5)
    hint = suggest(name, close) if close else "www.tensorflow.org/datasets/catalog lists the data sets of tfds"
    return UserError(f"{setting} is {name!r}, which does not exist; {hint}")


def _known_names() -> list[str]:
    return tfds.list_builders(with_community_datasets=False)


def prepared_root(data_dir: str) -> str:
    """Names the folder of prepared data sets."""
    return os.path.expanduser(data_dir or str(constants.DATA_DIR))


def prepare_command(name: str, data_dir: str) -> str:
    """Writes the command that prepares a data set."""
    place = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
    return f"{program('train.prepare')} --dataset={shlex.quote(name)}{place}"


def repair_advice(name: str, data_dir: str, found: Description) -> str:
    """Says how a data set is prepared anew."""
    return f"remove {found.folder} and prepare it again: {prepare_command(name, data_dir)}"


def one_line(error: Exception) -> str:
    """The message of somebody else's error, short enough for a sentence."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + " ..."
