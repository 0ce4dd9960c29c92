"""Checks of a config against the data and the machine."""

import zlib

import jax

from train.config import Config
from train.data.record import make_record
from train.data.source import Source
from train.engine.distributed import broadcast_from_main
from train.errors import UserError


def check_batch_size(config: Config, train_images: int, devices: int) -> None:
    """Raises a `UserError` for a batch that is larger than the train split or does not divide over the devices."""
    size = config.batch_size
    if size > train_images:
        raise UserError(
            f"config.batch_size is {size} but the train split of {config.data.source!r} has only "
            f"{train_images} images; choose at most that many"
        )
    if size % devices:
        raise UserError(
            f"config.batch_size is {size} but must be divisible by the {devices} devices of this "
            f"machine; {max(size // devices, 1) * devices} would do"
        )


def check_accumulation(config: Config, devices: int) -> None:
    """Raises a `UserError` if a device cannot split its rows of a batch into the parts of `accumulation_steps`."""
    rows, parts = config.batch_size // devices, config.optimizer.accumulation_steps
    if rows % parts:
        divisors = [count for count in range(1, rows + 1) if rows % count == 0]
        near = min(divisors, key=lambda count: abs(count - parts))
        raise UserError(
            f"config.optimizer.accumulation_steps is {parts} but must divide the {rows} images of a "
            f"batch that each of the {devices} devices has; {near} would do"
        )


def check_same_data(source: Source) -> None:
    """Raises a `UserError` if the data differ from those of process 0; all processes must call this together."""
    checksum = zlib.crc32(make_record(source).to_json().encode()) >> 1
    if broadcast_from_main(checksum) != checksum:
        raise UserError(
            f"process {jax.process_index()} has other data than process 0 under the same config.data.dir; give all "
            "hosts the same data"
        )
