"""A network split into what training changes and what it does not."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from train.errors import UserError


class SplitModel(NamedTuple):
    """What training does not change of a network."""

    graphdef: Any  # its structure
    rng: dict  # its random keys
    frozen: tuple[str, ...] = ()  # paths of modules that stay in evaluation mode

    def merge(self, params: dict, rest: dict, step: jax.typing.ArrayLike, *, training: bool) -> Any:
        """Puts the network together; its random numbers depend on the seed and the step alone."""
        rng = jax.tree.map(lambda leaf: jax.random.fold_in(leaf, step) if _is_key(leaf) else leaf, self.rng)
        # Without the copy, BatchNorm would write statistics into arrays of an outer trace.
        network = nnx.merge(self.graphdef, params, rng, rest, copy=True)
        network.train() if training else network.eval()
        if training and self.frozen:
            for path, module in nnx.iter_modules(network):
                if starts_with(path, self.frozen):
                    module.eval()
        return network


def split_model(network: nnx.Module, frozen: Sequence[str] = ()) -> tuple[SplitModel, dict, dict]:
    """Splits a network into what stays, the parameters, and the rest of the variables."""
    graphdef, *parts = nnx.split(network, nnx.Param, nnx.RngState, ...)
    params, rng, rest = map(nnx.to_pure_dict, parts)
    return SplitModel(graphdef, rng, tuple(frozen)), params, rest


def split_shapes(create: Callable[[], nnx.Module], frozen: Sequence[str] = ()) -> tuple[SplitModel, dict, dict]:
    """Splits the network that `create` would make as `split_model`, with shapes and dtypes in place of arrays.

    Nothing is initialised, and the random keys are all alike; evaluation draws no random numbers.
    """
    model, params, rest = split_model(nnx.eval_shape(create), frozen)

    def constant(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.broadcast_to(jax.random.key(0) if _is_key(leaf) else jnp.zeros((), leaf.dtype), leaf.shape)

    return model._replace(rng=jax.tree.map(constant, model.rng)), params, rest


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def starts_with(path: Sequence[Any], beginnings: Sequence[str]) -> bool:
    """Says whether a path, such as ("layer1", 0, "conv1"), begins with one of some dotted paths, such as "layer1.0".

    Example:
        >>> starts_with(("layer1", 0, "conv1"), ("layer1.0",)), starts_with(("layer10",), ("layer1",))
        (True, False)
    """
    dotted = ".".join(map(str, path)) + "."
    return any(dotted.startswith(beginning + ".") for beginning in beginnings)


def check_paths(setting: str, beginnings: Sequence[str], params: dict) -> None:
    """Raises a `UserError` for a path of a setting that no parameter's path begins with."""
    paths = [tuple(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(params)]
    for beginning in beginnings:
        if not any(starts_with(path, (beginning,)) for path in paths):
            parts = sorted({str(path[0]) for path in paths})
            raise UserError(
                f"{setting} names {beginning!r}, but no parameter's path begins so; the network has {', '.join(parts)}"
            )
