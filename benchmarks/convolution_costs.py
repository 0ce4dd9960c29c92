"""Measures the constants of the cost model in msconv_jax/lowering/cost.py for the current backend.

    python -m benchmarks.convolution_costs

First it prints the constants of a dense convolution, fitted to the times of several sizes, kernels and widths. Then it
prints giga multiply-accumulates per second, forward and with both gradients, for dense 3x3 convolutions, a sum of
shifts (depthwise), packs and the native grouped convolution.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import machine, time_interleaved
from msconv_jax.convolution import convolve

WIDTHS = (8, 16, 32, 64, 128)
NARROW = 16  # XLA on CPU uses another algorithm for more input or output channels


def fit(shapes: list[tuple[int, int, int, int]], times_ms: list[float]) -> dict[str, float]:
    """Constants of `CostModel` in multiply-accumulates, and multiply-accumulates per millisecond.

    The model is ``rate * time = overhead + pixels * (pixel + taps * inputs * (outputs + extra_outputs))``, by least
    squares of the relative error.

    Args:
        shapes: output pixels (with the batch), taps, inputs and outputs of each convolution.
        times_ms: times in milliseconds.
    """
    pixels, taps, inputs, outputs = np.array(shapes, float).T
    columns = np.stack([np.ones_like(pixels), pixels, pixels * taps * inputs, pixels * taps * inputs * outputs], axis=1)
    weighted = columns / np.array(times_ms)[:, None]
    scale = np.abs(weighted).max(axis=0)
    overhead, pixel, narrow, product = np.linalg.lstsq(weighted / scale, np.ones(len(times_ms)))[0] / scale
    return {
        "overhead": overhead / product,
        "pixel": pixel / product,
        "extra_outputs": narrow / product,
        "rate per ms": 1 / product,
    }


def rates(size: int, batch: int, inputs: int, outputs: int, groups: int, lowering: str) -> str:
    """One line of the table."""
    x = jnp.ones((batch, size, size, inputs))
    kernel = jnp.ones((3, 3, inputs // groups, outputs))

    def apply(x, kernel):
        return convolve(x, kernel, feature_group_count=groups, lowering=lowering)  # type: ignore[arg-type]

    def both(x, kernel):
        return jax.value_and_grad(lambda *a: jnp.sum(apply(*a) ** 2), argnums=(0, 1))(x, kernel)

    timed = time_interleaved({"f": apply, "b": both}, {"f": (x, kernel), "b": (x, kernel)}, 5)
    macs = batch * size * size * 9 * (inputs // groups) * outputs
    forward, backward = (timed[name].median_ms for name in ("f", "b"))
    shape = f"{size}x{size}, {inputs} -> {outputs}" + (f" in {groups} groups" if groups > 1 else "")
    return (
        f"| {lowering} | {shape} | {forward:.3f} | {macs / forward / 1e6:.1f} | {backward:.3f} | "
        f"{3 * macs / backward / 1e6:.1f} |"
    )


def constants(batch: int = 8) -> None:
    """Prints the fitted constants of the wide and of the narrow convolutions."""
    functions, arguments = {}, {}
    for size in (28, 14, 7):
        for kernel_size in (1, 3, 5):
            for inputs in WIDTHS:
                for outputs in (4, *WIDTHS):
                    shape = (batch * size * size, kernel_size**2, inputs, outputs)
                    functions[shape] = convolve
                    x, kernel = (batch, size, size, inputs), (kernel_size, kernel_size, inputs, outputs)
                    arguments[shape] = (jnp.ones(x), jnp.ones(kernel))
    timed = time_interleaved(functions, arguments, 5)
    for title, narrow in ((f"more than {NARROW} channels", False), (f"at most {NARROW} channels", True)):
        shapes = [shape for shape in functions if (max(shape[2:]) <= NARROW) == narrow]
        found = fit(shapes, [timed[shape].median_ms for shape in shapes])
        print(f"{title}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
    print()


def main() -> None:
    """Runs the program."""
    print(f"{machine()}\n")
    constants()
    print("| lowering | shape | forward, ms | GMAC/s | with gradients, ms | GMAC/s |\n|---|---|---|---|---|---|")
    for size in (56, 14, 7):
        for width in (1, 8, 16, 32, 64, 128):
            print(rates(size, 8, width, width, 1, "dense"), flush=True)
    for size in (56, 14):
        print(rates(size, 8, 128, 128, 128, "shifts"), flush=True)
        for lowering in ("packs", "grouped"):
            print(rates(size, 2, 128, 128, 32, lowering), flush=True)


if __name__ == "__main__":
    main()
