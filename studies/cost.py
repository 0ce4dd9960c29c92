"""Estimates what a run costs: parameters, multiply-accumulates and hours on an A100.

    python -m train.cost --config=configs/ps_imagenet.py

Training on an image takes three times the multiply-accumulates of its forward pass. The hours are those of an A100 that
runs at a fifth of its peak of 312e12 floating-point operations a second, two for each multiply-accumulate. ResNet-50
achieves this in good frameworks, some 2,500 images a second. Networks of many small convolutions are slower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from train.config import Config, parse_command_line
from train.errors import UserError

if TYPE_CHECKING:
    from train.data import Source

# Slow imports are inside functions, so that errors of the command line are reported at once.

PEAK_FLOPS = 312e12
UTILISATION = 0.2

# Training images, classes and image shape of the recipes' data sets, so that costs need no download.
KNOWN = {
    "imagenet2012": (1_281_167, 1000, (224, 224, 3)),
    "cifar10": (50_000, 10, (32, 32, 3)),
    "cifar100": (50_000, 100, (32, 32, 3)),
}


class Cost(NamedTuple):
    """What a run costs.

    Attributes:
        parameters: the number of parameters.
        macs: multiply-accumulates of the forward pass of one training image.
        images: images that the run trains on, repeated ones included.
    """

    parameters: int
    macs: int
    images: int

    @property
    def hours(self) -> float:
        """Hours on one A100, as the top of this file explains."""
        return 3 * 2 * self.macs * self.images / (PEAK_FLOPS * UTILISATION) / 3600


def cost(config: Config) -> Cost:
    """Counts what a config's run costs.

    Raises:
        UserError: if its network cannot be built, or its source is not in `KNOWN` and not available.
    """
    from flax import nnx

    from msconv_jax.counting import count_parameters, layer_macs
    from train.tasks import Segmentation, task_kind

    train_images, source = training_data(config)
    task = task_kind(config)(config, source)
    network = nnx.eval_shape(task.create)
    shape = (*task.crop, source.image_shape[-1]) if isinstance(task, Segmentation) else source.image_shape
    macs = sum(layer_macs(network, shape).values())
    return Cost(count_parameters(network), macs, train_images * config.epochs)


def training_data(config: Config) -> tuple[int, Source]:
    """Returns the number of a config's training images, and the source.

    The classification data of `KNOWN` need not be available; their source holds no samples.

    Raises:
        UserError: if another source is not available.
    """
    from train.data import Source, load_source
    from train.tasks import Classification, task_kind

    kind, side = task_kind(config), config.data.image_size
    if config.data.source not in KNOWN or kind is not Classification:
        source = load_source(config, kind.needs)
        return len(source.splits["train"]), source
    train_images, classes, shape = KNOWN[config.data.source]
    size = (side, side) if side else shape[:2]
    names = tuple(map(str, range(classes)))
    return train_images, Source({}, names, (*size, shape[-1]), side == 0, (0.0,) * 3, (1.0,) * 3)


def cost_line(found: Cost) -> str:
    """Formats a cost for the header of a recipe."""
    return (
        f"{found.parameters / 1e6:.1f} M parameters, {found.macs / 1e9:.2f} G multiply-accumulates an image, "
        f"about {found.hours:.2g} hours of one A100 (python -m train.cost)."
    )


def main(argv: list[str]) -> int:
    """Runs the program; see the top of this file."""
    values = flags.FlagValues()
    config, _ = parse_command_line(argv, __doc__, values=values, needs_workdir=False)
    if values["workdir"].present:
        raise UserError("--workdir is given, but nothing is trained or written; leave it out")
    from train.config.network import check_network

    check_network(config)
    print(cost_line(cost(config)))
    return 0
