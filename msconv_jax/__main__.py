"""Prints facts about the registered networks.

    python -m msconv_jax list [PATTERN]
    python -m msconv_jax summary NAME [--size 224]
    python -m msconv_jax explain NAME [--size 224] [--batch 1] [--backend cpu|gpu|tpu|onnx]

`list` prints a table for each task of the registered names that match a wildcard pattern, with parameters,
multiply-accumulates for one image and published accuracies in per cent. `summary` prints the parts of one network with
their output, parameters and multiply-accumulates for one image. `explain` prints how the convolutions are computed: see
:func:`msconv_jax.explain`. `summary` and `explain` use shapes only, without weights.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.lowering.cost import COST_MODELS
from msconv_jax.lowering.explain import explain
from msconv_jax.models import ImageModel, create_model, list_models, model_entry
from msconv_jax.models.registry import TASKS


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table with aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


# Published accuracies for each task: column heading and attribute of `Published`.
ACCURACIES = {
    "classification": {"top-1": "top1", "top-5": "top5"},
    "segmentation": {"mIoU": "miou", "pixel accuracy": "pixel_accuracy"},
}


def listing(pattern: str) -> str:
    """A table for each task of the registered networks that match a pattern."""
    return "\n\n".join(listing_of(names, task) for task in TASKS if (names := list_models(pattern, task)))


def listing_of(names: Sequence[str], task: str) -> str:
    """A table of networks for one task: size, cost, published accuracies and sources."""
    accuracies = ACCURACIES[task]
    rows: list[tuple[str, ...]] = [
        (
            *("name", "input", "classes", "parameters", "million MACs", *accuracies, "published in"),
            *("licence of weights", "paper"),
        )
    ]
    for name in names:
        entry = model_entry(name)
        published = entry.published
        macs = None if entry.macs is None else f"{entry.macs / 1e6:,.0f}"
        parameters = None if entry.parameters is None else f"{entry.parameters:,}"
        measured = (getattr(published, attribute) for attribute in accuracies.values())
        figures = (parameters, macs, *measured, published.table, published.weights)
        cells = ("" if value is None else str(value) for value in figures)
        rows.append((name, "x".join(map(str, entry.input_size)), str(entry.num_classes), *cells, entry.paper))
    return table(rows)


def summary(name: str, size: int | None) -> str:
    """The parts of a network: output, parameters, millions of multiply-accumulates."""
    model, (height, width, channels) = _abstract_model(name, size)
    model.eval()
    outputs = _map_sizes(model, (height, width, channels)) if isinstance(model, ImageModel) else {}
    macs = layer_macs(model, (height, width, channels))
    rows = [("part", "output", "parameters", "million MACs")]
    total = 0
    called = list(dict.fromkeys(path.split(".")[0] for path in macs))
    # Call order; parts without products (the stem's normalisation) come after the stem.
    place = {part: float(called.index(part)) if part in called else 0.5 for part in vars(model)}
    for part, value in sorted(vars(model).items(), key=lambda item: place[item[0]]):
        modules = list(value) if isinstance(value, nnx.List) else [value]
        parameters = sum(count_parameters(module) for module in modules if isinstance(module, nnx.Module))
        if parameters:
            part_macs = sum(count for path, count in macs.items() if path.split(".")[0] == part)
            total += parameters
            stem = outputs.get("act1", "") if part == "conv1" else outputs.get(part, "")
            rows.append((part, stem, f"{parameters:,}", f"{part_macs / 1e6:,.2f}"))
    rows.append(("all", str(model.num_classes), f"{total:,}", f"{sum(macs.values()) / 1e6:,.2f}"))
    return f"{name} at {height}x{width}: {model_entry(name).paper}\n\n{table(rows)}"


def explanation(name: str, size: int | None, batch: int, backend: str | None) -> str:
    """The plans of a network's convolutions, in words."""
    model, input_size = _abstract_model(name, size)
    return str(explain(model, (batch, *input_size), backend))


def _abstract_model(name: str, size: int | None) -> tuple[Any, tuple[int, int, int]]:
    """A network without values, and its input size: as published, or with another height and width."""
    height, width, channels = model_entry(name).input_size
    input_size = (height, width, channels) if size is None else (size, size, channels)
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0))), input_size


def _map_sizes(model: ImageModel, input_size: tuple[int, int, int]) -> dict[str, str]:
    """The size of each map of a classifier, by the part that makes it."""
    graphdef, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((1, *input_size), jnp.float32)
    maps = jax.eval_shape(lambda state, x: nnx.merge(graphdef, state).feature_maps(x), state, images)
    return {f["module"]: "x".join(map(str, m.shape[1:])) for f, m in zip(model.feature_info, maps, strict=True)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escapes characters outside the encoding
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser("python -m msconv_jax", description="Facts about the registered networks.")
    commands = parser.add_subparsers(dest="command", required=True)
    of_list = commands.add_parser("list", help="the registered networks")
    of_list.add_argument("pattern", nargs="?", default="*", help="wildcards such as 'ps_*'")
    of_summary = commands.add_parser("summary", help="the parts of one network")
    of_explain = commands.add_parser("explain", help="how the convolutions of one network are computed")
    for command in (of_summary, of_explain):
        command.add_argument("name")
        command.add_argument("--size", type=int, help="height and width of the images (default: as published)")
    of_explain.add_argument("--batch", type=int, default=1, help="number of images (default: 1)")
    of_explain.add_argument("--backend", choices=list(COST_MODELS), help="(default: that of JAX)")
    options = parser.parse_args(arguments)
    if options.command == "list":
        if not list_models(options.pattern):
            parser.error(f"no registered network matches {options.pattern!r}; `list` without a pattern shows all")
        print(listing(options.pattern))
        return
    for flag in ("size", "batch"):
        value = getattr(options, flag, None)
        if value is not None and value < 1:
            parser.error(f"--{flag} {value}: must be at least 1")
    try:
        if options.command == "summary":
            text = summary(options.name, options.size)
        else:
            text = explanation(options.name, options.size, options.batch, options.backend)
    except ValueError as error:  # an unknown name, a model that needs further arguments, or an invalid size
        parser.error(str(error))
    print(text)


if __name__ == "__main__":
    main()
