"""Times the library's plain convolution over `nnx.Conv` outside XLA's fast paths, and layers in a loop.

    python -m benchmarks.hard_places [--rounds 3]

Kernels larger than the image, a loop over layers with its gradients, and the compile time that such a loop saves. Few
rounds, because one can take ten seconds.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from benchmarks.tables import BACKWARD, FORWARD, LEGEND, Comparison, Row
from benchmarks.timing import machine, time_interleaved
from msconv_jax import GroupedConv, PSConv

ROUNDS = 3
LARGE_KERNEL = ((7, 128), (4, 256))  # sizes and widths for a 9x9 kernel
IN_A_LOOP = ((28, 128), (14, 256))
LAYERS = 6


def work_on(function: Callable[..., jax.Array]) -> dict[str, Callable[..., Any]]:
    """The function of parameters and input, and the function with both gradients."""
    total = lambda state, x: jnp.sum(function(state, x) ** 2)  # noqa: E731
    return {FORWARD: function, BACKWARD: jax.value_and_grad(total, argnums=(0, 1))}


def layers_of(operator: Callable[..., nnx.Module], width: int) -> tuple[nnx.GraphDef, list[nnx.State]]:
    """The common structure and the parameters of `LAYERS` equal layers."""
    options = {"kernel_size": (3, 3), "padding": 1, "use_bias": False}
    modules = [
        operator(width, width, rngs=nnx.Rngs(jax.random.key(seed, impl="rbg")), **options) for seed in range(LAYERS)
    ]
    return nnx.split(modules[0])[0], [nnx.split(module)[1] for module in modules]


def unrolled(graphdef: nnx.GraphDef, states: list[nnx.State], x: jax.Array) -> jax.Array:
    """Applies the layers one after the other."""
    for state in states:
        x = jnp.tanh(nnx.merge(graphdef, state)(x))
    return x


def looped(graphdef: nnx.GraphDef, states: list[nnx.State], x: jax.Array) -> jax.Array:
    """Applies the layers in a `lax.scan` over stacked parameters."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return lax.scan(lambda x, state: (jnp.tanh(nnx.merge(graphdef, state)(x)), None), x, stacked)[0]


def timed_rows(
    shape: str, base: Callable[..., jax.Array], own: Callable[..., jax.Array], arguments: dict[str, Any], rounds: int
) -> dict[str, Row]:
    """A row for each kind of work."""
    base_work, own_work = work_on(base), work_on(own)
    rows = {}
    for work in base_work:
        timed = time_interleaved({"base": base_work[work], "own": own_work[work]}, arguments, rounds)
        rows[work] = Row(shape, timed["base"], timed["own"])
    return rows


def images(batch: int, size: int, width: int) -> jax.Array:
    """Random images."""
    return jax.random.normal(jax.random.key(0), (batch, size, size, width))


def by_work(rows: list[dict[str, Row]]) -> dict[str, list[Row]]:
    """A list of rows for each kind of work."""
    return {work: [of_shape[work] for of_shape in rows] for work in (FORWARD, BACKWARD)}


def large_kernels(batch: int, rounds: int) -> Comparison:
    """A 9x9 kernel on smaller images."""
    rows = []
    for size, width in LARGE_KERNEL:
        options: dict[str, Any] = {"kernel_size": (9, 9), "padding": 4, "use_bias": False}
        rngs = nnx.Rngs(jax.random.key(0, impl="rbg"))
        (base, state), (own, own_state) = (
            nnx.split(operator(width, width, rngs=rngs, **options)) for operator in (nnx.Conv, GroupedConv)
        )
        x = images(batch, size, width)
        applied = [lambda state, x, graphdef=graphdef: nnx.merge(graphdef, state)(x) for graphdef in (base, own)]
        arguments = {"base": (state, x), "own": (own_state, x)}
        rows.append(timed_rows(f"{size}x{size}x{width}", *applied, arguments, rounds))
    setting = "Kernel 9x9, one group, on images smaller than the kernel."
    return Comparison("GroupedConv, large kernel", "nnx.Conv", setting, by_work(rows))


def loops(batch: int, rounds: int) -> Comparison:
    """Equal layers in a loop: the library's over Flax's."""
    rows = []
    for size, width in IN_A_LOOP:
        (base, states), (own, own_states) = (layers_of(operator, width) for operator in (nnx.Conv, GroupedConv))
        x = images(batch, size, width)
        applied = [functools.partial(looped, graphdef) for graphdef in (base, own)]
        arguments = {"base": (states, x), "own": (own_states, x)}
        rows.append(timed_rows(f"{size}x{size}x{width}", *applied, arguments, rounds))
    setting = f"{LAYERS} plain 3x3 layers in a `lax.scan`."
    return Comparison("GroupedConv in a loop", "nnx.Conv in a loop", setting, by_work(rows))


def loop_or_not(batch: int, rounds: int) -> Comparison:
    """Layers in a loop over the same layers without a loop."""
    rows = []
    for size, width in IN_A_LOOP:
        graphdef, states = layers_of(PSConv, width)
        x = images(batch, size, width)
        applied = [functools.partial(how, graphdef) for how in (unrolled, looped)]
        rows.append(timed_rows(f"{size}x{size}x{width}", *applied, dict.fromkeys(("base", "own"), (states, x)), rounds))
    setting = f"{LAYERS} layers. XLA compiles equal operations once, so a loop has little to save."
    return Comparison("PSConv in a loop", "PSConv one by one", setting, by_work(rows))


def compare_all(batch: int = 8, rounds: int = ROUNDS) -> Iterator[Comparison]:
    """All comparisons."""
    for compare in (large_kernels, loops, loop_or_not):
        yield compare(batch, rounds)


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.hard_places", description="Time convolutions in hard places."
    )
    parser.add_argument("--batch", type=int, default=8, help="images at a time (default 8)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"timings of each function (default {ROUNDS})")
    options = parser.parse_args()
    if min(options.batch, options.rounds) < 1:
        parser.error("--batch and --rounds must be at least 1")
    print(f"{machine()}; batch {options.batch}, float32, {options.rounds} interleaved rounds\n\n{LEGEND}\n")
    for comparison in compare_all(options.batch, options.rounds):
        print(comparison.markdown(), flush=True)


if __name__ == "__main__":
    main()
