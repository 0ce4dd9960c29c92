"""A network split into its constant structure, its parameters and its other variables."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from train.errors import UserError


class SplitModel(NamedTuple):
    """The parts of a network that training does not change."""

    graphdef: Any  # its structure
    rng: dict  # its random keys
    frozen: tuple[str, ...] = ()  # paths of modules that stay in evaluation mode

    def merge(self, params: dict, other_state: dict, step: jax.typing.ArrayLike, *, training: bool) -> Any:
        """Merges the network with its variables; its random numbers depend only on the seed and the step."""
        rng = jax.tree.map(lambda leaf: jax.random.fold_in(leaf, step) if _is_key(leaf) else leaf, self.rng)
        # Without the copy, BatchNorm would write statistics into arrays of an outer trace.
        network = nnx.merge(self.graphdef, params, rng, other_state, copy=True)
        network.train() if training else network.eval()
        if training and self.frozen:
            for path, module in nnx.iter_modules(network):
                if starts_with(path, self.frozen):
                    module.eval()
        return network


def split_model(network: nnx.Module, frozen: Sequence[str] = ()) -> tuple[SplitModel, dict, dict]:
    """Splits a network into its constant parts, its parameters and its other variables."""
    graphdef, *parts = nnx.split(network, nnx.Param, nnx.RngState, ...)
    params, rng, other_state = map(nnx.to_pure_dict, parts)
    return SplitModel(graphdef, rng, tuple(frozen)), params, other_state


def split_shapes(create: Callable[[], nnx.Module], frozen: Sequence[str] = ()) -> tuple[SplitModel, dict, dict]:
    """Splits the network of `create` like `split_model`, with shapes and dtypes in place of arrays.

    Nothing is initialised, and all random keys are equal, because evaluation draws no random numbers.
    """
    model, params, other_state = split_model(nnx.eval_shape(create), frozen)

    def constant(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.broadcast_to(jax.random.key(0) if _is_key(leaf) else jnp.zeros((), leaf.dtype), leaf.shape)

    return model._replace(rng=jax.tree.map(constant, model.rng)), params, other_state


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def starts_with(path: Sequence[Any], prefixes: Sequence[str]) -> bool:
    """Whether a path, such as ("layer1", 0, "conv1"), begins with one of several dotted paths, such as "layer1.0".

    Example:
        >>> starts_with(("layer1", 0, "conv1"), ("layer1.0",)), starts_with(("layer10",), ("layer1",))
        (True, False)
    """
    dotted = ".".join(map(str, path)) + "."
    return any(dotted.startswith(prefix + ".") for prefix in prefixes)


def check_paths(setting: str, prefixes: Sequence[str], params: dict) -> None:
    """Raises a `UserError` if no parameter's path begins with one of the paths of a setting."""
    paths = [tuple(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(params)]
    for prefix in prefixes:
        if not any(starts_with(path, (prefix,)) for path in paths):
            parts = sorted({str(path[0]) for path in paths})
            raise UserError(
                f"{setting} names {prefix!r}, but no parameter's path begins so; the network has {', '.join(parts)}"
            )
