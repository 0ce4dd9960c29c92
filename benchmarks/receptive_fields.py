"""Measures theoretical and effective receptive fields at the ends of the stages of networks.

    python -m benchmarks.receptive_fields [--side 321] [--seeds 3] [--models resnet50 ps_resnet50 ...] [--write]

The networks are untrained: random weights, no residual branch that starts at zero, and normalisation statistics of the
random images. `--write` writes the table to `benchmarks/results/receptive-fields.md`. It takes about ten minutes on one
core.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shlex
import statistics
import sys
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from benchmarks.timing import machine
from msconv_jax import create_model
from msconv_jax.analysis import (
    ReceptiveField,
    effective_receptive_field,
    receptive_field_radius,
    receptive_field_size,
    theoretical_receptive_field,
)

RESULTS = pathlib.Path(__file__).parent / "results" / "receptive-fields.md"
MODELS = ("resnet50", "ps_resnet50", "pyconv_resnet50", "ic_resnet50", "res2net50_26w_4s")
SHARE = 0.95
LARGE = 4097  # image side for the theoretical fields; any size is free


@dataclasses.dataclass(frozen=True)
class Row:
    """The fields of the middle unit at the end of one stage.

    Attributes:
        model: name of the network.
        stage: name of the stage.
        theoretical: the theoretical field, in a large image.
        sides: side in pixels of the square with 95 % of the effective field's energy, for each seed.
        radii: standard deviation of the effective field along an axis in pixels, for each seed.
    """

    model: str
    stage: str
    theoretical: ReceptiveField
    sides: tuple[int, ...]
    radii: tuple[float, ...]


def network(name: str, seed: int, images: np.ndarray, **options: object) -> nnx.Module:
    """A network with random weights and the normalisation statistics of the images."""
    model = create_model(name, zero_init_last=False, rngs=nnx.Rngs(seed), **options)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.BatchNorm):
            module.momentum = 0.0  # keeps the statistics of this batch only
    model.train()
    model(images)
    return model


def measure(name: str, side: int, seeds: int, **options: object) -> list[Row]:
    """The fields of one network: a row for each stage."""
    shapes = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **options))
    places = range(1, len(shapes.feature_info))  # the stem's map comes first
    sides: list[list[int]] = [[] for _ in places]
    radii: list[list[float]] = [[] for _ in places]
    # Without compilation: a whole gradient takes longer to compile than to compute.
    with jax.disable_jit():
        for seed in range(seeds):
            images = np.random.default_rng(seed).standard_normal((1, side, side, 3)).astype(np.float32)
            model = network(name, seed, images, **options)
            for number, place in enumerate(places):
                field = effective_receptive_field(model, images, place)
                sides[number].append(receptive_field_size(field, SHARE, centre=(side // 2, side // 2)))
                radii[number].append(receptive_field_radius(field))
    return [
        Row(
            name,
            shapes.feature_info[place]["module"],
            theoretical_receptive_field(shapes, (LARGE, LARGE, 3), place),
            tuple(sides[number]),
            tuple(radii[number]),
        )
        for number, place in enumerate(places)
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; ratios are over the first network at the same stage."""
    first = {row.stage: statistics.mean(row.sides) for row in rows if row.model == rows[0].model}
    lines = [
        f"| network | stage | theoretical side | effective side | over {rows[0].model} | effective deviation |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        mean = statistics.mean(row.sides)
        ratio = f"{mean / first[row.stage]:.2f}" if row.stage in first else ""
        lines.append(
            f"| {row.model} | {row.stage} | {max(row.theoretical.size)}{' (cut)' if row.theoretical.cut else ''} "
            f"| {_spread(row.sides)} | {ratio} | {_spread(row.radii)} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def document(rows: Sequence[Row], side: int, seeds: int, command: str) -> str:
    """The whole document as Markdown."""
    return f"""# Receptive fields

Written by `{command}`, wholly: edit nothing here.

{machine()}; images of {side} x {side} pixels, {seeds} seeds, each with weights and an image of its own.

Of the middle unit at the end of each stage, in pixels of the image. The effective side is that of the square around it
which holds {SHARE:.0%} of the energy of its gradient (squared, its channels with gradient 1; Luo et al. 2016), mean and
standard deviation over the seeds; the effective deviation is the gradient's along one axis. Weights are random, no
residual branch starts at zero, the normalisations have the statistics of the image, and images are random numbers: this
is what the networks' structure gives before any training, and training changes it. An effective side near {side} is cut
by the image. The theoretical side is that of all pixels that can have any influence, in images of {LARGE} x {LARGE}.

{table(rows)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser("python -m benchmarks.receptive_fields", description="Measure receptive fields.")
    parser.add_argument("--side", type=int, default=321, help="of the images; one more than a multiple of 64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), help="registered names; the first is compared with"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} instead of printing")
    options = parser.parse_args(arguments)
    if options.side < 65 or options.side % 64 != 1:
        parser.error(f"--side {options.side}: one more than a multiple of 64, so that the middle unit is in the middle")
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: at least 1")
    rows = []
    for name in options.models:
        rows += measure(name, options.side, options.seeds)
        print(f"{name}: done", file=sys.stderr, flush=True)
    command = shlex.join(["python", "-m", "benchmarks.receptive_fields", *arguments])
    text = document(rows, options.side, options.seeds, command)
    if options.write:
        RESULTS.write_text(text)
        print(f"wrote {RESULTS}")
    else:
        print(text)


if __name__ == "__main__":
    main()
