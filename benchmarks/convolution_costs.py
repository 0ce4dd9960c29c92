"""The measurements behind the cost model of msconv_jax/lowering.py, for the backend that runs here.

    python -m benchmarks.convolution_costs

For dense 3x3 convolutions of several widths, for a sum of shifts (depthwise) and for the native grouped convolution:
giga multiply-accumulates a second, forward and with both gradients, and the time of the smallest one, its overhead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks.timing import machine, time_interleaved
from msconv_jax.convolution import convolve


def rates(size: int, batch: int, inputs: int, outputs: int, groups: int, lowering: str) -> str:
    """A line of the table."""
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


def main() -> None:
    """Runs the program."""
    print(f"{machine()}\n")
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
