"""Times one network over another: forward, and the loss and gradients of a training step.

    python -m benchmarks.models [ps_resnet50 resnet50] [--size 224] [--batch 4] [--rounds 5]
    python -m benchmarks.models --folded ps_resnet50

The second form times a network with folded batch normalisation over the network itself, forward only. Names are those
of `msconv_jax.list_models()`. Forward is in evaluation mode; the training step is in training mode and also returns the
new running statistics, but updates no parameter. Jitted, float32, both networks in turn in one process; see
`benchmarks.tables.LEGEND`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from benchmarks.tables import BACKWARD, COMPILE, FORWARD, LEGEND, Comparison, Row
from benchmarks.timing import machine, time_interleaved
from msconv_jax import create_model, fold_batch_norm, list_models

TARGETS = {("ps_resnet50", "resnet50"): {FORWARD: 1.10, BACKWARD: 1.15, COMPILE: 1.5}}


def build(name: str) -> nnx.Module:
    """Creates a registered network."""
    return create_model(name, rngs=nnx.Rngs(jax.random.key(0, impl="rbg")))  # rbg keys draw fast


def forward(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """A pure function from images to logits in evaluation mode, and its first argument."""
    model.eval()
    graphdef, state = nnx.split(model)
    return lambda state, images, labels: nnx.merge(graphdef, state)(images), state  # type: ignore[operator]


def training_step(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """A pure function to the loss, the new statistics and the gradients, and its first argument."""
    model.train()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any, rest: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        logits = model(images)  # type: ignore[operator]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), nnx.state(model, nnx.BatchStat)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        return jax.value_and_grad(loss, has_aux=True)(*state, images, labels)

    return step, (params, rest)


def compare(
    name: str = "ps_resnet50", base: str = "resnet50", size: int = 224, batch: int = 4, rounds: int = 5
) -> Comparison:
    """Times the network `name` over the network `base`."""
    networks = {"base": build(base), "own": build(name)}
    images = jax.random.normal(jax.random.key(0), (batch, size, size, 3))
    labels = jnp.zeros((batch,), jnp.int32)
    rows = {}
    for work, prepare in ((FORWARD, forward), (BACKWARD, training_step)):
        functions, arguments = {}, {}
        for which, network in networks.items():
            functions[which], state = prepare(network)
            arguments[which] = (state, images, labels)
        timed = time_interleaved(functions, arguments, rounds)
        rows[work] = [Row(f"{size}x{size}", timed["base"], timed["own"])]
    setting = f"Batch {batch}, {rounds} rounds; forward + backward is a training step."
    return Comparison(name, base, setting, rows, TARGETS.get((name, base), {}))


def compare_folded(name: str = "ps_resnet50", size: int = 224, batch: int = 4, rounds: int = 5) -> Comparison:
    """Times the forward pass of the folded network over that of the network."""
    network = build(name)
    images, labels = jax.random.normal(jax.random.key(0), (batch, size, size, 3)), jnp.zeros((batch,), jnp.int32)
    functions, arguments = {}, {}
    for which, model in (("base", network), ("own", fold_batch_norm(network))):
        functions[which], state = forward(model)
        arguments[which] = (state, images, labels)
    timed = time_interleaved(functions, arguments, rounds)
    rows = {FORWARD: [Row(f"{size}x{size}", timed["base"], timed["own"])]}
    return Comparison(f"{name}, folded", name, f"Batch {batch}, {rounds} rounds.", rows, {FORWARD: 1.0})


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser("python -m benchmarks.models", description="Time a network over another.")
    parser.add_argument("name", nargs="?", default="ps_resnet50", help="what is timed (default ps_resnet50)")
    parser.add_argument("base", nargs="?", default="resnet50", help="over what it is timed (default resnet50)")
    parser.add_argument("--folded", metavar="NAME", help="time this network, folded, over itself instead")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images (default 224)")
    parser.add_argument("--batch", type=int, default=4, help="images at a time (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each function (default 5)")
    options = parser.parse_args(arguments)
    if options.folded and (options.name, options.base) != (parser.get_default("name"), parser.get_default("base")):
        parser.error("--folded times one network over itself: give no other names with it")
    for name in (options.name, options.base, *filter(None, [options.folded])):
        if name not in list_models(task="classification"):
            parser.error(f"unknown classifier {name!r}: msconv_jax.list_models(task='classification') gives all names")
    if min(options.size, options.batch, options.rounds) < 1:
        parser.error("--size, --batch and --rounds must be at least 1")
    print(f"{machine()}; float32\n\n{LEGEND}\n", flush=True)
    setting = (options.size, options.batch, options.rounds)
    compared = (
        compare_folded(options.folded, *setting) if options.folded else compare(options.name, options.base, *setting)
    )
    print(compared.markdown())


if __name__ == "__main__":
    main()
