"""The backend for which convolutions are planned."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax

from msconv_jax.lowering.cost import COST_MODELS

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def current_backend() -> str:
    """The cost model's name for the platform that programs are compiled for.

    Decided when a program is traced. ``lax.platform_dependent`` would decide when it is lowered, but a gradient then
    carries the choice as a run-time value through calls and loops, and on CPU XLA compiles the convolutions of such a
    branch 30 times slower.
    """
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    platform = _platform.get() or getattr(device, "platform", device) or jax.default_backend()
    return platform if platform in COST_MODELS else "gpu"


@contextlib.contextmanager
def planning_for(platform: str) -> Iterator[None]:
    """Convolutions traced inside are planned for a platform, whatever JAX's default backend is.

    Args:
        platform: "cpu", "tpu" or "onnx"; any other name is a GPU's.

    Example:
        >>> import jax.numpy as jnp
        >>> from msconv_jax.convolution import convolve
        >>> def program(platform):
        ...     with planning_for(platform):
        ...         jaxpr = jax.make_jaxpr(lambda x, k: convolve(x, k, feature_group_count=4))(
        ...             jnp.ones((1, 56, 56, 64)), jnp.ones((3, 3, 16, 64))
        ...         )
        ...     return str(jaxpr)
        >>> [program(platform).count("conv_general_dilated[") for platform in ("cpu", "onnx")]
        [4, 1]
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
