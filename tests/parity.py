"""Compares the library with numbers recorded from the papers' public code.

    python -m tests.parity DIR [--only GLOB]

runs every fixture in ``DIR/ops`` (``NAME.npz``) and ``DIR/models`` (``NAME.npz`` beside ``NAME.json``), prints a line
for each with its largest deviation, and exits with status 1 if one deviates, cannot be built or is of an unknown kind.
``--only`` takes a pattern over ``ops/NAME`` and ``models/NAME``.

An operator fixture holds inputs, parameters, outputs, a cotangent for each output and the gradients, all in PyTorch's
layouts. ``tests/families`` makes our module for it and ``msconv_jax.torch_weights`` turns PyTorch's parameters into
ours by differentiable operations, so that the gradients come out in PyTorch's layouts again, and with respect to every
one of its parameters. BatchNorm's running variance after a step is compared up to the known factor n / (n - 1):
PyTorch keeps the unbiased variance, Flax the biased one.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import functools
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import msconv_jax
from msconv_jax import edo
from msconv_jax.heads import PyConvSegNet, pyconv_segnet
from msconv_jax.models import DLA, OctResNet, list_ic_patterns
from msconv_jax.torch_weights import conversion_of
from tests.families import FAMILIES
from tests.families.family import CannotBuildError

OPERATOR_TOLERANCE = 1e-5  # of the largest value of each array
MODEL_TOLERANCE = 1e-4  # of the standard deviation of the golden logits or stage outputs

Arrays = Mapping[str, Any]


class Result(NamedTuple):
    """The outcome for one fixture: its largest relative deviation and where, or why there is none."""

    name: str
    deviation: float
    where: str
    tolerance: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the numbers agree; a NaN does not."""
        return not self.problem and self.deviation <= self.tolerance

    def __str__(self) -> str:
        if self.problem:
            return f"FAILED  {self.name}: {self.problem}"
        verdict = "ok    " if self.passed else "FAILED"
        return f"{verdict}  {self.name}: {self.deviation:.2e} in {self.where} (tolerance {self.tolerance:.0e})"


# --- operators ---


def check_operator(path: Path) -> Result:
    """Outputs, gradients and, in training mode, the statistics after the step of one operator fixture."""
    name = f"ops/{path.stem}"
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    meta = json.loads(str(data.pop("meta")))
    if meta["family"] == "EDO":
        return _check_search(name, meta, data)
    if meta["family"] not in FAMILIES:
        return Result(name, math.nan, "", OPERATOR_TOLERANCE, f"unknown kind {meta['family']!r}")
    family = FAMILIES[meta["family"]]
    module = nnx.eval_shape(lambda: family.build(meta["ctor"]))
    module.train() if meta["mode"] == "train" else module.eval()
    graphdef, _ = nnx.split(module)
    sizes: dict[str, int] = {}  # of each normalisation, the values that a channel's statistics are over

    def numbered(stem: str) -> list[str]:
        return sorted(key for key in data if key == stem or (key[: len(stem)] == stem and key[len(stem) :].isdigit()))

    def with_prefix(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}

    parameters = with_prefix("param:")
    conversion = conversion_of(module, parameters)
    for key, shape in conversion.shapes.items():
        if key not in parameters or parameters[key].shape != tuple(shape):
            raise CannotBuildError(f"{key} {tuple(shape)} is not among the fixture's parameters")
    if unused := sorted(set(parameters) - set(conversion.shapes)):
        raise CannotBuildError(f"nothing takes the parameters {', '.join(unused)}")

    def apply(parameters: Arrays, inputs: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], Arrays]:
        merged = nnx.merge(graphdef, _as_state(module, conversion.convert(parameters)))
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
    deviations = {key: _deviation(value, golden[key], np.abs(golden[key]).max()) for key, value in got.items()}
    where = max(deviations, key=lambda key: _nan_is_worst(deviations[key]))
    return Result(name, deviations[where], where, OPERATOR_TOLERANCE)


def _flat(state: Any) -> dict[str, Any]:
    """The variables of a state under dotted names."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _as_state(module: nnx.Module, values: Mapping[str, Any]) -> nnx.State:
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
    """While active, notes under the name of each normalisation's variance how many values it is taken over."""
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
    """Flax's running variance after one step as PyTorch's, which keeps the unbiased variance of the batch."""
    return 0.9 * before + (np.asarray(after) - 0.9 * before) * size / (size - 1)


def _check_search(name: str, meta: Mapping[str, Any], data: Mapping[str, np.ndarray]) -> Result:
    """The errors of every dilation of a supernet's filters, and the dilations chosen, in both readings of Eq. (4)."""
    kernel = data["W"].transpose(2, 3, 1, 0)
    size = 2 * meta["ctor"]["k"] + 1
    deviations = {}
    for objective, label in (("sum", "eq4"), ("abs", "l1")):
        errors = edo.dilation_errors(kernel, (size, size), objective=objective)
        golden = data[f"err_{label}"]
        deviations[f"err_{label}"] = _deviation(errors, golden, np.abs(golden).max())
        deviations[f"sel_{label}"] = _deviation(edo.best_dilations(errors), data[f"sel_{label}"], 0)
    where = max(deviations, key=lambda key: _nan_is_worst(deviations[key]))
    return Result(name, deviations[where], where, OPERATOR_TOLERANCE)


# --- models: weights by the fixtures' recipe, loaded into our networks ---


def recipe_state_dict(manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights that the fixtures were recorded with, from each tensor's name and shape alone."""
    state = {}
    for key, shape in manifest["state_dict"]:
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
        last = key.rsplit(".", 1)[-1]
        if last == "num_batches_tracked":
            continue
        if last == "running_mean":
            value = 0.1 * rng.standard_normal(shape)
        elif last == "running_var":
            value = 1.0 + 0.5 * rng.random(shape)
        elif last == "bias":
            value = 0.1 * rng.standard_normal(shape)
        elif len(shape) >= 2:
            value = rng.standard_normal(shape) * math.sqrt(2.0 / math.prod(shape[1:]))
        else:
            value = 1.0 + 0.1 * rng.standard_normal(shape)
            if key == "bn3.weight" or key.endswith(".bn3.weight"):
                value *= 0.2
            if key.endswith((".conv3.bn_h.weight", ".conv3.bn_l.weight")):  # Oct-ResNet
                value *= 0.1
        state[key] = value.astype(np.float32)
    return state


def without_masked_weights(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights, zero where the public PSConv's constructor makes them so."""
    masked = dict(state)
    for key, weight in state.items():
        if key.endswith(".conv2.conv.weight"):
            served = np.kron(np.eye(4) + np.roll(np.eye(4), 2, axis=1), np.ones([n // 4 for n in weight.shape[:2]]))
            masked[key] = np.where(served.astype(bool)[..., None, None], 0, weight)
    return masked


# The registered model for each fixture, and its arguments.
MODELS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "psconv_resnet50": ("ps_resnet50", dict),
    "pyconvresnet50": ("pyconv_resnet50", dict),
    "pyconvhgresnet50": ("pyconvhg_resnet50", dict),
    "oct_resnet50": ("oct_resnet50", dict),
    "res2net_dla60": ("res2net_dla60", dict),
    **{name: (name, dict) for name in ("res2net50_26w_4s", "res2net50_v1b", "res2next50")},
    **{name: (name[: name.index("_k")], functools.partial(dict, patterns=name)) for name in list_ic_patterns()},
}


def loaded_model(fixture: str, state: Mapping[str, np.ndarray]) -> nnx.Module:
    """The registered model for a fixture with these weights, in evaluation mode."""
    name, arguments = MODELS[fixture]
    model = nnx.eval_shape(lambda: msconv_jax.create_model(name, rngs=nnx.Rngs(0), **arguments()))
    return _loaded(model, without_masked_weights(state))


def _loaded(model: Any, state: Mapping[str, np.ndarray]) -> Any:
    """An abstract model with these weights, in evaluation mode."""
    nnx.update(model, jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), nnx.state(model)))
    msconv_jax.load_state_dict(model, state)
    model.eval()
    return model


def stage_outputs(model: Any, x: jax.Array) -> list[jax.Array]:
    """Every stage's output, without the stem's; of two frequencies both."""
    if isinstance(model, OctResNet):
        return [part for maps in model.octave_maps(x) for part in (maps if isinstance(maps, tuple) else (maps,))]
    maps = model.feature_maps(x)
    return list(maps if isinstance(model, DLA) else maps[1:])


def check_model(path: Path) -> Result:
    """Logits and stage outputs of one model fixture, at every input size that it holds."""
    name = f"models/{path.stem}"
    if path.stem in SEGMENTATION:
        return _check_segmentation(path, name)
    if path.stem not in MODELS:
        return Result(name, math.nan, "", MODEL_TOLERANCE, f"unknown kind {path.stem!r}")
    manifest = json.loads(path.with_suffix(".json").read_text())
    model = loaded_model(path.stem, recipe_state_dict(manifest))
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any, x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        model = nnx.merge(graphdef, state)
        return model(x), stage_outputs(model, x)

    deviations = {}
    with np.load(path, allow_pickle=False) as file:
        sizes = sorted(key.removeprefix("logits_") for key in file.files if key.startswith("logits_"))
        for size in sizes:
            shape = manifest[f"input_{size}"]
            x = np.random.Generator(np.random.PCG64(0)).standard_normal(shape).astype(np.float32)
            logits, maps = run(state, x.transpose(0, 2, 3, 1))
            golden = file[f"logits_{size}"]
            deviations[f"logits_{size}"] = _deviation(logits, golden, golden.std())
            if len(maps) != len(manifest["stages"]):
                raise CannotBuildError(f"{len(maps)} stage outputs where the fixture has {len(manifest['stages'])}")
            for number, (stage, got) in enumerate(zip(manifest["stages"], maps, strict=True)):
                deviations[f"{stage} at {size}"] = _stage_deviation(got, file, size, number)
    where = max(deviations, key=lambda key: _nan_is_worst(deviations[key]))
    return Result(name, deviations[where], where, MODEL_TOLERANCE)


def _stage_deviation(got: Any, file: Arrays, label: str, number: int) -> float:
    """The largest deviation of a stage's mean, standard deviation and first values."""
    spread, sample = file[f"stage_std_{label}"][number], file[f"stage_sample_{label}"][number]
    of_stage = (
        _deviation(np.mean(got), file[f"stage_mean_{label}"][number], spread),
        _deviation(np.std(got), spread, spread),
        _deviation(got[0, 0, 0, : len(sample)], sample, spread),
    )
    return max(of_stage, key=_nan_is_worst)


# Segmentation networks, by the backbone that our network takes.
SEGMENTATION = {"pyconvsegnet_pyconvresnet50": "pyconv_resnet50"}


def _segmentation_outputs(model: PyConvSegNet, x: jax.Array) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """The logits, every stage's output and the auxiliary head's logits on the backbone's grid."""
    maps = model.backbone.model.feature_maps(x)
    contexts = [model.head.local_context(maps[-1]), model.head.global_context(maps[-1])]
    assert model.auxiliary is not None
    return model(x), [*maps, *contexts, model.head(maps[-1])], model.auxiliary(maps[-2])


def _check_segmentation(path: Path, name: str) -> Result:
    """Every output of a segmentation fixture: ``out_c<classes>_z<zoom>_os<output stride>``, with its stages."""
    manifest = json.loads(path.with_suffix(".json").read_text())
    x = np.random.Generator(np.random.PCG64(0)).standard_normal((1, 3, 97, 97)).astype(np.float32)
    deviations = {}
    with np.load(path, allow_pickle=False) as file:
        labels = [key.removeprefix("out_") for key in file.files if key.startswith("out_")]
        auxiliary = {key for key in file.files if key.startswith("aux_")}
        for label in labels:
            classes, zoom, stride = (int(number) for number in re.findall(r"\d+", label))
            tensors = [
                (key, [classes, *shape[1:]] if key.startswith(("cls.1.", "aux.4.")) else shape)
                for key, shape in manifest["state_dict"]
            ]
            options = {"num_classes": classes, "zoom": zoom, "output_stride": stride, "dropout_rate": 0.0}
            model = _loaded(
                nnx.eval_shape(
                    lambda options=options: pyconv_segnet(SEGMENTATION[path.stem], rngs=nnx.Rngs(0), **options)
                ),
                recipe_state_dict({"state_dict": tensors}),
            )
            logits, stages, aux = nnx.jit(_segmentation_outputs)(model, x.transpose(0, 2, 3, 1))
            golden = file[f"out_{label}"]
            deviations[f"out_{label}"] = _deviation(logits.transpose(0, 3, 1, 2), golden, golden.std())
            if len(stages) != len(manifest["stages"]):
                raise CannotBuildError(f"{len(stages)} stage outputs where the fixture has {len(manifest['stages'])}")
            for number, (stage, got) in enumerate(zip(manifest["stages"], stages, strict=True)):
                deviations[f"{stage} of {label}"] = _stage_deviation(got, file, label, number)
            if (key := f"aux_c{classes}_os{stride}") in auxiliary:
                deviations[key] = _deviation(aux.transpose(0, 3, 1, 2), file[key], file[key].std())
        if unchecked := sorted(auxiliary - set(deviations)):
            raise CannotBuildError(f"nothing to compare with {', '.join(unchecked)}")
    where = max(deviations, key=lambda key: _nan_is_worst(deviations[key]))
    return Result(name, deviations[where], where, MODEL_TOLERANCE)


def _deviation(got: Any, golden: Any, scale: Any) -> float:
    if np.shape(got) != np.shape(golden):
        raise CannotBuildError(f"shape {np.shape(got)} where the fixture has {np.shape(golden)}")
    largest = float(np.abs(np.asarray(got, np.float64) - np.asarray(golden, np.float64)).max())
    return largest if scale == 0 else largest / float(scale)


def _nan_is_worst(value: float) -> float:
    return math.inf if math.isnan(value) else value


# --- the program ---


def fixtures(directory: Path, only: str = "*") -> list[Path]:
    """The fixtures below `directory` whose name, such as ops/psconv2d_s1, matches `only`."""
    found = [path for kind in ("ops", "models") for path in sorted((directory / kind).glob("*.npz"))]
    return [path for path in found if fnmatch.fnmatchcase(f"{path.parent.name}/{path.stem}", only)]


def check(path: Path) -> Result:
    """Checks one fixture; whatever goes wrong with it is its result."""
    try:
        return check_operator(path) if path.parent.name == "ops" else check_model(path)
    except Exception as error:  # a broken fixture must not hide the others
        problem = str(error) if isinstance(error, CannotBuildError) else f"{type(error).__name__}: {error}"
        return Result(f"{path.parent.name}/{path.stem}", math.nan, "", math.nan, f"cannot be built: {problem}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser("python -m tests.parity", description="Compare with recorded numbers.")
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder that holds ops/ and models/")
    parser.add_argument("--only", default="*", metavar="GLOB", help="fixtures to run, such as 'ops/psconv2d_*'")
    options = parser.parse_args(arguments)
    paths = fixtures(options.directory, options.only)
    if not paths:
        print(f"no fixture matches {options.only!r} in {options.directory}/ops or {options.directory}/models")
        return 1
    results = []
    for path in paths:
        results.append(check(path))
        print(results[-1], flush=True)
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} of {len(results)} fixtures agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
