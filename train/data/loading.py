"""From the name of a source to its records."""

from collections.abc import Callable

from train.data.augment import create_augmentation
from train.data.digits import digits
from train.data.evaluation import create_evaluation
from train.data.folder import folder
from train.data.miniature import miniature, miniature32
from train.data.sources import Source
from train.errors import UserError
from train.settings import Config

SOURCES: dict[str, Callable[[Config], Source]] = {
    "digits": digits,
    "folder": folder,
    "miniature": miniature,
    "miniature32": miniature32,
}


def load_source(config: Config) -> Source:
    """Builds the source that a config names, and checks the config's augmentation and evaluation.

    A name that is not in SOURCES is a prepared data set's of TensorFlow Datasets.

    Raises:
        UserError: for an image size that the source does not have, and what the source, `create_augmentation` and
            `create_evaluation` refuse.
    """
    if config.source in SOURCES:
        source = SOURCES[config.source](config)
    else:
        from train.data.tfds import tfds_source  # takes a second, for which other sources do not wait

        source = tfds_source(config, SOURCES)
    side = source.image_shape[0]
    if config.image_size not in (0, side):
        raise UserError(
            f"config.image_size is {config.image_size} but the images of {config.source!r} have {side} pixels a side; "
            "leave it 0"
        )
    if config.pixel_mean:
        source = source._replace(mean=tuple(config.pixel_mean))
    if config.pixel_std:
        source = source._replace(std=tuple(config.pixel_std))
    for name in ("mean", "std"):
        values = getattr(source, name)
        if len(values) != source.image_shape[-1]:
            raise UserError(
                f"config.pixel_{name} is {list(values)} but must have a number for each of the "
                f"{source.image_shape[-1]} channels"
            )
    create_augmentation(config, source)
    create_evaluation(config, source)
    return source
