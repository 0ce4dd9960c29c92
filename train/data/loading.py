"""From the name of a source to its records."""

from collections.abc import Callable

from train.data.augment import create_augmentation
from train.data.digits import digits
from train.data.sources import Source
from train.errors import UserError, suggest
from train.settings import Config

SOURCES: dict[str, Callable[[Config], Source]] = {"digits": digits}


def load_source(config: Config) -> Source:
    """Builds the source that a config names, and checks the config's augmentation.

    Raises:
        UserError: for an unknown source, and what `create_augmentation` refuses.
    """
    if config.source not in SOURCES:
        raise UserError(f"config.source is {config.source!r}, which does not exist; {suggest(config.source, SOURCES)}")
    source = SOURCES[config.source](config)
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
    return source
