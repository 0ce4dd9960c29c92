"""Prepares data sets of TensorFlow Datasets (tfds) for training and verifies them; used by `train.prepare`."""

import importlib.util
import logging
import os
import re
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging
from rich.progress import track

from train.data.readers.descriptions import Description
from train.data.readers.prepared import find_prepared, is_name, one_line, prepared_root, repair_advice, unknown_name
from train.data.readers.scaled_digits import ScaledDigits
from train.data.readers.tfds import Records, allow_open_files, find_features, open_records
from train.errors import UserError

# Archives to be downloaded by hand, and the full numbers of images; tfds accepts an incomplete set of archives.
MANUAL_FILES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
FULL_COUNTS = {"imagenet2012": {"train": 1_281_167, "validation": 50_000}}
# Data sets of this project, which encode their images without TensorFlow.
WITHOUT_TENSORFLOW = (ScaledDigits.name,)
_BLOCK = 256  # records a thread reads at once


def prepare(name: str, data_dir: str, manual_dir: str) -> None:
    """Downloads a data set and writes its files, until the end to a folder named ``incomplete.*``.

    Args:
        name: the name in tfds.
        data_dir: the folder of prepared data sets, or "" for tfds's default.
        manual_dir: the folder of archives downloaded by hand, or "" for ``downloads/manual`` in `data_dir`.

    Raises:
        UserError: if TensorFlow or files are missing, the data set does not exist, or tfds fails.
    """
    if not is_name(name):
        raise unknown_name("--dataset", name)
    if re.split("[/:]", name)[0] not in WITHOUT_TENSORFLOW and not _has_tensorflow():
        raise UserError(
            "preparing a data set takes TensorFlow, which is not installed; install it with "
            "pip install 'msconv_jax[prepare]' (training does not need it)"
        )
    # TensorFlow reads these variables at its import, which tfds delays.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # prints a notice if on, and nothing is computed here
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # warns of each retry of a download
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    folder = prepared_root(data_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from TensorFlow and its imports
        try:
            builder: Any = tfds.builder(name, data_dir=folder, file_format="array_record")
        except tfds.core.DatasetNotFoundError as error:
            raise unknown_name("--dataset", name) from error
        except Exception as error:
            raise UserError(f"--dataset is {name!r}, which tfds cannot make: {one_line(error)}") from error
        find_features(builder.info)
        if manual_dir and not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise UserError(
                f"--manual_dir={manual_dir} is for what is downloaded by hand, and {name!r} is not; leave it out"
            )
        manual = Path(manual_dir or Path(folder, "downloads", "manual")).expanduser()
        _check_manual_files(builder, manual, Path(folder))
        for left_over in Path(builder.data_dir).parent.glob("incomplete.*"):
            print(f"{left_over} is left from an interrupted preparation; remove it if none is running")
        try:
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False),
            )
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                raise  # its message names the file, or a full disk
            raise UserError(f"tfds could not prepare {name!r}: {one_line(error)}") from error


def prepare_once(name: str, data_dir: str, manual_dir: str = "") -> bool:
    """Prepares a data set unless its files exist; existing files are not verified.

    Returns:
        Whether this call prepared it.

    Raises:
        UserError: as `prepare`.
    """
    if find_prepared(name, data_dir) is not None:
        return False
    print(f"preparing {name} in {prepared_root(data_dir)} ...", flush=True)
    prepare(name, data_dir, manual_dir)
    return True


def _has_tensorflow() -> bool:
    return importlib.util.find_spec("tensorflow") is not None


def _check_manual_files(builder: Any, manual: Path, folder: Path) -> None:
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        return
    needed = [manual / file for file in MANUAL_FILES.get(builder.name, ())]
    missing = [path.name for path in needed if not path.is_file()]
    if missing or not manual.is_dir():
        files = f"the files {' and '.join(missing)} are" if missing else "the folder is"
        raise UserError(
            f"{builder.name!r} has to be downloaded by hand, and {files} not in {manual}; put them there or name their "
            f"folder by --manual_dir ({one_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)})"
        )
    size = sum(path.stat().st_size for path in needed)
    exists = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(exists).free
    if size > free:
        raise UserError(
            f"{builder.name!r} takes as much room as its archives, {size / 1e9:.1f} GB, but {exists} has "
            f"{free / 1e9:.1f} GB left; make room, or name a folder on another disk by --data_dir"
        )


def verify(prepared: Description, advice: str) -> dict[str, int]:
    """Reads every record of a prepared data set and decodes the first and the last image of each split.

    Args:
        prepared: the result of `find_prepared`.
        advice: how to repair damaged files, for error messages.

    Returns:
        The number of records of each split.

    Raises:
        UserError: if a file is missing or damaged, a split has another number of records than described, a label is
            not a class, or an image cannot be decoded.
    """
    counts = {}
    allow_open_files(sum(len(info.shard_lengths) for info in prepared.splits.values()))
    for split, info in prepared.splits.items():
        if not info.num_examples:
            continue
        records = open_records(prepared, split, advice)
        if len(records) != info.num_examples:
            raise UserError(f"{split} has {len(records)} records and should have {info.num_examples}; {advice}")
        for position in (0, len(records) - 1):
            _check_image(records, position, advice)
        blocks = range(0, len(records), _BLOCK)
        with ThreadPoolExecutor() as threads:
            unlabelled = sum(
                track(
                    threads.map(lambda start, records=records: _read_block(records, start), blocks),
                    description=f"reading {split}",
                    total=len(blocks),
                    disable=not sys.stdout.isatty(),
                )
            )
        if 0 < unlabelled < len(records):
            raise UserError(f"{unlabelled} of the {len(records)} records of {split} have no label; {advice}")
        counts[split] = len(records)
        names, segmentation = records.features.classes, records.features.segmentation
        labels = f"labels among {len(names)} classes" if names or not segmentation else "no labels but segmentations"
        labels = "no labels" if unlabelled else labels
        print(f"{split}: {len(records)} records, all read; {labels}")
    return counts


def _read_block(records: Records, start: int) -> int:
    """Reads a block of records and counts those without a label."""
    stop = min(start + _BLOCK, len(records))
    return sum(records.read(position, unlabelled=True).label == -1 for position in range(start, stop))


def _check_image(records: Records, position: int, advice: str) -> None:
    height, width, channels = records.features.shape
    try:
        shape = records.read(position, unlabelled=True).decoded(channels).pixels.shape
    except ValueError as error:
        raise UserError(f"record {position} of {records.file_of(position)}: {error}; {advice}") from error
    if (height or shape[0], width or shape[1], channels) != shape:
        raise UserError(
            f"record {position} of {records.file_of(position)} is an image of shape {shape} and should be "
            f"{records.features.shape}; {advice}"
        )


def prepare_and_verify(name: str, data_dir: str, manual_dir: str) -> None:
    """Prepares a data set unless its files exist, and verifies them; see `prepare` and `verify`."""
    is_new = prepare_once(name, data_dir, manual_dir)
    prepared = find_prepared(name, data_dir)
    if prepared is None:
        raise UserError(f"tfds prepared {name!r} but no files of it are in {prepared_root(data_dir)}")
    if not is_new:
        print(f"{name} is already prepared in {prepared.folder}; reading it ...")
    try:
        counts = verify(prepared, repair_advice(name, data_dir, prepared))
    except UserError as error:
        if is_new:
            prepared.folder.rmtree()
            raise UserError(
                f"what was written is not whole and was removed again; is the disk full? ({error})"
            ) from error
        raise
    full = FULL_COUNTS.get(prepared.name, {})
    for split in full:
        if counts.get(split) != full[split]:
            print(f"note: the full {name} has {full[split]:,} images in {split}; were the archives complete?")
    place = f" --config.data.dir={data_dir}" if data_dir else ""
    print(f"whole, in {prepared.folder}; train on it with --config.data.source={name}{place}")
