"""One operator or head: outputs, gradients and, in training mode, the statistics after the step."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from msconv_jax import edo
from msconv_jax.torch_weights import Conversion, conversion_of
from tests.families import FAMILIES
from tests.families.family import CannotBuildError
from tests.parity.results import MODULE_TOLERANCE, Arrays, Result, deviation, norm_deviations, relative, worst
from tests.parity.weights import recipe_state_dict


def check_operator(path: Path) -> Result:
    """Checks a fixture of ``ops/``."""
    name = f"ops/{path.stem}"
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    meta = json.loads(str(data.pop("meta")))
    if meta["family"] == "EDO":
        return _check_search(name, meta, data)
    if meta["family"] not in FAMILIES:
        return Result(name, math.nan, "", MODULE_TOLERANCE, f"unknown kind {meta['family']!r}")
    return check_module(name, meta, data)


def check_module(name: str, meta: Mapping[str, Any], data: Arrays) -> Result:
    """Checks outputs, gradients and, in training mode, batch statistics after the step of one module.

    The parameters are stored, or follow from the recipe; with the recipe, most gradients are stored as norms only.
    """
    family = FAMILIES[meta["family"]]
    module = nnx.eval_shape(lambda: family.build(meta["ctor"]))
    module.train() if meta["mode"] == "train" else module.eval()
    graphdef, _ = nnx.split(module)
    sizes: dict[str, int] = {}  # for each normalisation, the number of values per channel

    def numbered(stem: str) -> list[str]:
        return sorted(key for key in data if key == stem or (key[: len(stem)] == stem and key[len(stem) :].isdigit()))

    def with_prefix(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}

    is_recipe = meta.get("weights") == "recipe"
    parameters = recipe_state_dict(meta) if is_recipe else with_prefix("param:")
    conversion = conversion_for(module, parameters)

    def apply(parameters: Arrays, inputs: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], Arrays]:
        merged = nnx.merge(graphdef, as_state(module, conversion.convert(parameters)))
        with _recording_sizes(merged, sizes):
            outputs = family.call(merged, *(x.transpose(0, 2, 3, 1) for x in inputs))
        statistics = {name: value[...] for name, value in _flat(nnx.state(merged, nnx.BatchStat)).items()}
        return tuple(y.transpose(0, 3, 1, 2) for y in outputs), statistics

    inputs = tuple(jnp.asarray(data[key]) for key in numbered("x"))
    cotangents = tuple(jnp.asarray(data[key]) for key in numbered("ct"))

    @jax.jit
    def run(parameters: Arrays, inputs: tuple[jax.Array, ...]) -> Any:
        outputs, pullback, statistics = jax.vjp(apply, parameters, inputs, has_aux=True)
        return outputs, pullback(cotangents), statistics

    outputs, (of_parameters, of_inputs), statistics = run(jax.tree.map(jnp.asarray, parameters), inputs)
    got: dict[str, Any] = dict(zip(numbered("y"), outputs, strict=True))
    got |= dict(zip(numbered("grad_x"), of_inputs, strict=True))
    got |= {f"grad:{key}": value for key, value in of_parameters.items() if f"grad:{key}" in data}
    golden = dict(data)
    if after := with_prefix("after:"):
        before, expected = conversion.convert(parameters), conversion.convert({**parameters, **after})
        for key, value in statistics.items():
            golden[f"after:{key}"] = expected[key]
            got[f"after:{key}"] = _unbiased(value, before[key], sizes[key]) if key.endswith("var") else value
    missing = [key for key in data if key.startswith(("y", "grad")) and key not in got]
    if missing:
        raise CannotBuildError(f"nothing to compare with {', '.join(missing)}")
    for key, used in _used(conversion, parameters).items():
        if f"grad:{key}" not in got:
            continue
        if np.any(np.asarray(parameters[key])[~used]):
            raise CannotBuildError(f"{key} has weights that are not zero where the module has none")
        if "aux:zero_mask" not in data:  # otherwise both gradients are zero there
            golden[f"grad:{key}"] = np.where(used, golden[f"grad:{key}"], 0)
    for key in ("grad:conv.weight", "grad:pwc.weight"):
        if "aux:zero_mask" in data and key in got:
            got[key] = np.where(data["aux:zero_mask"] == 1, 0, got[key])
    deviations = {key: relative(value, golden[key]) for key, value in got.items()}
    deviations |= norm_deviations(of_parameters, meta.get("grad_norms", {}))
    return worst(name, deviations, MODULE_TOLERANCE)


def _used(conversion: Conversion, parameters: Arrays) -> dict[str, np.ndarray]:
    """Masks of the used entries, for each tensor that the module uses in part.

    The public code keeps some weights at zero: in PSConv2d's dense kernel those of the dilated kernels, in HetConv's
    those of the 3x3 kernels. The module does not have these weights, but autograd returns gradients for them.
    """
    values, pullback = jax.vjp(conversion.convert, {key: jnp.asarray(value) for key, value in parameters.items()})
    (sums,) = pullback(jax.tree.map(jnp.ones_like, values))
    used = {key: np.asarray(value) != 0 for key, value in sums.items()}
    return {key: places for key, places in used.items() if not places.all()}


def _flat(state: Any) -> dict[str, Any]:
    """The variables of a state by dotted names."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def conversion_for(module: nnx.Module, parameters: Mapping[str, np.ndarray]) -> Conversion:
    """The conversion of exactly these parameters to a module's.

    Raises:
        CannotBuildError: if the module needs other parameters.
    """
    conversion = conversion_of(module, parameters)
    for key, shape in conversion.shapes.items():
        if key not in parameters or parameters[key].shape != tuple(shape):
            raise CannotBuildError(f"{key} {tuple(shape)} is not among the fixture's parameters")
    if unused := sorted(set(parameters) - set(conversion.shapes)):
        raise CannotBuildError(f"nothing takes the parameters {', '.join(unused)}")
    return conversion


def as_state(module: nnx.Module, values: Mapping[str, Any]) -> nnx.State:
    """The module's state with these values."""
    flat = nnx.to_flat_state(nnx.state(module))
    names = [".".join(map(str, path)) for path, _ in flat]
    if set(names) != set(values):
        raise CannotBuildError(f"converted {sorted(values)} where the module holds {sorted(names)}")
    return nnx.from_flat_state(
        [(path, variable.replace(values[name])) for name, (path, variable) in zip(names, flat, strict=True)]
    )


@contextlib.contextmanager
def _recording_sizes(module: nnx.Module, sizes: dict[str, int]) -> Iterator[None]:
    """Records the number of values per channel of each normalisation, by the name of its variance."""
    names = {
        id(child): ".".join(map(str, (*path, "var")))
        for path, child in nnx.iter_modules(module)
        if isinstance(child, nnx.BatchNorm)
    }
    call = nnx.BatchNorm.__call__

    def recording(self: nnx.BatchNorm, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        if id(self) in names:
            sizes[names[id(self)]] = x.size // x.shape[-1]
        return call(self, x, *args, **kwargs)

    with mock.patch.object(nnx.BatchNorm, "__call__", recording):
        yield


def _unbiased(after: Any, before: Any, size: int) -> Any:
    """Converts Flax's running variance after one step to PyTorch's, which uses the unbiased batch variance."""
    return 0.9 * before + (np.asarray(after) - 0.9 * before) * size / (size - 1)


def _check_search(name: str, meta: Mapping[str, Any], data: Mapping[str, np.ndarray]) -> Result:
    """Checks the errors of every dilation of a supernet's filters, and the best ones, for both readings of Eq. (4)."""
    kernel = data["W"].transpose(2, 3, 1, 0)
    size = 2 * meta["ctor"]["k"] + 1
    deviations = {}
    for objective, label in (("sum", "eq4"), ("abs", "l1")):
        errors = edo.dilation_errors(kernel, (size, size), objective=objective)
        golden = data[f"err_{label}"]
        deviations[f"err_{label}"] = relative(errors, golden)
        deviations[f"sel_{label}"] = deviation(edo.best_dilations(errors), data[f"sel_{label}"], 0)
    return worst(name, deviations, MODULE_TOLERANCE)
