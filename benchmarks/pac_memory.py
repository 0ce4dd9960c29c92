"""Memory and time of the pixel-adaptive convolution, over a version that unfolds its input.

    python -m benchmarks.pac_memory [--size 256] [--channels 32] [--kernel 5] [--guide 16] [--batch 1] [--rounds 5]

Forward, and forward with the gradients of signal, guide and weights; jitted, float32, Gaussian kernel, "SAME". Memory
is XLA's for intermediate values (temp_size_in_bytes of the compiled program), without arguments and results, which are
the same for both. A ratio is the median over the rounds of the ratios within a round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import machine, time_interleaved
from msconv_jax.operators.pac.functions import pac_convolve


def unfolded(x: jax.Array, kernel: jax.Array, guide: jax.Array) -> jax.Array:
    """Eq. (3) of the paper in the usual form: all patches of signal and guide, then one matrix product."""
    rows, columns, in_features, out_features = kernel.shape

    def patches(array: jax.Array) -> jax.Array:
        height, width = array.shape[1:3]
        padded = jnp.pad(array, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)))
        shifted = [padded[:, i : i + height, j : j + width] for i, j in np.ndindex(rows, columns)]
        return jnp.stack(shifted, axis=-2)

    K = jnp.exp(-0.5 * jnp.sum((patches(guide) - guide[..., None, :]) ** 2, axis=-1, keepdims=True))
    flat = (patches(x) * K).reshape((*x.shape[:-1], -1))
    weights = kernel.reshape((rows * columns * in_features, out_features))
    return jnp.matmul(flat, weights, precision=jax.lax.Precision.HIGHEST)


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The value and all gradients of a sum over the output."""
    return jax.value_and_grad(lambda *arrays: jnp.sum(function(*arrays) ** 2), argnums=(0, 1, 2))


def table(size: int, channels: int, kernel: int, guide: int, batch: int, rounds: int) -> str:
    """The table as Markdown."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (
        (batch, size, size, channels),
        (kernel, kernel, channels, channels),
        (batch, size, size, guide),
    )
    x, weights, features = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    arguments = (x, weights / kernel, features / guide**0.5)
    subjects = {"unfolded": unfolded, "pac_convolve": lambda x, weights, features: pac_convolve(x, weights, features)}
    lines = ["| work | | temporary memory, MiB | ms | ratio | compile, s |", "|---" * 6 + "|"]
    for work, change in (("forward", lambda function: function), ("forward + backward", with_gradients)):
        functions = {name: change(function) for name, function in subjects.items()}
        timed = time_interleaved(functions, dict.fromkeys(functions, arguments), rounds)
        for name in functions:
            cells = [work, name, f"{timed[name].temporary_mib:.0f}", f"{timed[name].median_ms:.1f}"]
            cells += [f"{timed[name].ratio_to(timed['unfolded']):.2f}", f"{timed[name].compile_s:.1f}"]
            lines.append("| " + " | ".join(cells) + " |")
    patches = batch * size * size * kernel * kernel * channels * 4 / 2**20
    lines += ["", f"The unfolded signal takes {patches:.0f} MiB, the signal {patches / kernel**2:.0f} MiB."]
    return "\n".join(lines)


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser("python -m benchmarks.pac_memory", description="Memory and time of PAC.")
    parser.add_argument("--size", type=int, default=256, help="height and width (default 256)")
    parser.add_argument("--channels", type=int, default=32, help="input and output channels (default 32)")
    parser.add_argument("--kernel", type=int, default=5, help="taps per axis, odd (default 5)")
    parser.add_argument("--guide", type=int, default=16, help="guide channels (default 16)")
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each function (default 5)")
    options = parser.parse_args()
    if min(vars(options).values()) < 1 or options.kernel % 2 == 0:
        parser.error("all numbers must be at least 1, and --kernel odd")
    print(
        f"{machine()}; {options.size}x{options.size}, {options.channels} channels, kernel {options.kernel}x"
        f"{options.kernel}, guide {options.guide} channels, batch {options.batch}, float32, median of {options.rounds} "
        "interleaved rounds\n"
    )
    print(table(options.size, options.channels, options.kernel, options.guide, options.batch, options.rounds))


if __name__ == "__main__":
    main()
