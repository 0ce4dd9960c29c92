"""Compares the library with numbers recorded from the papers' public code.

    python -m tests.parity DIR [--only GLOB]

runs every fixture in ``DIR/ops`` (``NAME.npz``) and ``DIR/models`` (``NAME.npz`` beside ``NAME.json``), prints a line
for each with its largest deviation, and exits with status 1 if one deviates, cannot be built or is of an unknown kind.
``--only`` takes a pattern over ``ops/NAME`` and ``models/NAME``.

An operator fixture holds inputs, parameters, outputs, a cotangent for each output and the gradients, all in PyTorch's
layouts. An adapter below turns the PyTorch parameters into ours by differentiable operations, so that the gradients
come out in PyTorch's layouts again, and with respect to every one of its parameters.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import msconv_jax

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


class CannotBuildError(Exception):
    """The fixture asks for something that the library does not offer."""


# --- operators: adapters from a fixture's meta to f(parameters, inputs) -> outputs, all in PyTorch's layouts ---

Apply = Callable[[Arrays, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


def psconv2d(meta: Mapping[str, Any]) -> Apply:
    """PSConv2d and PSGConv2d: y = gwconv(x) + gwconv_shift(x, halves swapped) + conv(x)."""
    ctor = meta["ctor"]
    groups, parts, dilation = ctor.get("groups", 1), ctor["parts"], ctor["dilation"]
    if parts != 4:
        raise CannotBuildError(f"parts={parts}: only 4 parts are a pattern (1, d, 1, 2d)")
    if not ctor.get("paper_mask", groups in (1, parts)):
        raise CannotBuildError(
            f"groups={groups} with the mask of the public code, which leaves extra dilation-1 weights beside the "
            "dilated ones; PSConv follows the paper"
        )
    module = nnx.eval_shape(
        lambda: msconv_jax.PSConv(
            ctor["in_channels"],
            ctor["out_channels"],
            (ctor.get("kernel_size", 3),) * 2,
            ctor["stride"],
            padding=ctor.get("padding", 1),
            pattern=(1, dilation, 1, 2 * dilation),
            feature_group_count=groups,
            use_bias=ctor.get("bias", False),
            rngs=nnx.Rngs(0),
        )
    )
    graphdef = nnx.graphdef(module)

    def apply(parameters: Arrays, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        state = {"kernel": psconv_kernel(parameters, groups)}
        if module.use_bias:
            state["bias"] = sum(parameters[f"{name}.bias"] for name in ("gwconv", "gwconv_shift", "conv"))
        (x,) = inputs
        y = nnx.merge(graphdef, nnx.State(jax.tree.map(nnx.Param, state)))(x.transpose(0, 2, 3, 1))
        return (y.transpose(0, 3, 1, 2),)

    return apply


def psconv_kernel(parameters: Arrays, groups: int = 1, prefix: str = "") -> jax.Array:
    """The one HWIO kernel that PSConv2d (4 parts) keeps in three weights; its masked entries are left out."""
    diagonal, swapped, dense = (
        jnp.asarray(parameters[f"{prefix}{name}.weight"]) for name in ("gwconv", "gwconv_shift", "conv")
    )
    outputs, fan_in = dense.shape[0] // (4 * groups), dense.shape[1] // 4  # of a part
    columns = []
    for group in range(groups):
        for p in range(4):
            rows = slice((4 * group + p) * outputs, (4 * group + p + 1) * outputs)
            of_part = [dense[rows, q * fan_in : (q + 1) * fan_in] for q in range(4)]
            of_part[p], of_part[(p + 2) % 4] = diagonal[rows], swapped[rows]
            columns.append(jnp.concatenate(of_part, axis=1))
    return jnp.concatenate(columns, axis=0).transpose(2, 3, 1, 0)


OPERATORS: dict[str, Callable[[Mapping[str, Any]], Apply]] = {
    "PSConv2d": psconv2d,
    "PSGConv2d": psconv2d,
    "PSGConv2d (paper_mask)": psconv2d,
}


def check_operator(path: Path) -> Result:
    """Outputs and gradients of one operator fixture."""
    name = f"ops/{path.stem}"
    with np.load(path, allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    meta = json.loads(str(data.pop("meta")))
    if meta["family"] not in OPERATORS:
        return Result(name, math.nan, "", OPERATOR_TOLERANCE, f"unknown kind {meta['family']!r}")
    apply = OPERATORS[meta["family"]](meta)

    def numbered(stem: str) -> list[str]:
        return sorted(key for key in data if key == stem or (key[: len(stem)] == stem and key[len(stem) :].isdigit()))

    parameters = {key.removeprefix("param:"): data[key] for key in data if key.startswith("param:")}
    inputs = tuple(jnp.asarray(data[key]) for key in numbered("x"))
    cotangents = tuple(jnp.asarray(data[key]) for key in numbered("ct"))

    @jax.jit
    def run(parameters: Arrays, inputs: tuple[jax.Array, ...]) -> Any:
        outputs, pullback = jax.vjp(apply, parameters, inputs)
        return outputs, pullback(cotangents)

    outputs, (of_parameters, of_inputs) = run(jax.tree.map(jnp.asarray, parameters), inputs)
    got = dict(zip(numbered("y"), outputs, strict=True))
    got |= dict(zip(numbered("grad_x"), of_inputs, strict=True))
    got |= {f"grad:{key}": value for key, value in of_parameters.items() if f"grad:{key}" in data}
    missing = [key for key in data if key.startswith(("y", "grad")) and key not in got]
    if missing:
        raise CannotBuildError(f"nothing to compare with {', '.join(missing)}")
    deviations = {key: _deviation(value, data[key], np.abs(data[key]).max()) for key, value in got.items()}
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
        state[key] = value.astype(np.float32)
    return state


def psconv_resnet50(state: Mapping[str, np.ndarray]) -> nnx.Module:
    """PS-ResNet-50 with the weights of the public backbone and a linear head."""
    model = nnx.eval_shape(lambda: msconv_jax.create_model("ps_resnet50", rngs=nnx.Rngs(0)))
    used: set[str] = set()

    def take(key: str) -> np.ndarray:
        used.add(key)
        return state[key]

    def norm(target: nnx.BatchNorm, key: str) -> None:
        target.scale, target.bias = nnx.Param(take(f"{key}.weight")), nnx.Param(take(f"{key}.bias"))
        target.mean, target.var = (nnx.BatchStat(take(f"{key}.running_{name}")) for name in ("mean", "var"))

    def dense(target: nnx.Conv, key: str) -> None:
        target.kernel = nnx.Param(take(f"{key}.weight").transpose(2, 3, 1, 0))

    dense(model.conv1, "conv1")
    norm(model.bn1, "bn1")
    for stage in (1, 2, 3, 4):
        for number, block in enumerate(getattr(model, f"layer{stage}")):
            key = f"layer{stage}.{number}"
            for part in (1, 2, 3):
                norm(getattr(block, f"bn{part}"), f"{key}.bn{part}")
            dense(block.conv1, f"{key}.conv1")
            dense(block.conv3, f"{key}.conv3")
            weights = {n: take(f"{key}.conv2.{n}.weight") for n in ("gwconv", "gwconv_shift", "conv")}
            block.conv2.kernel = nnx.Param(psconv_kernel({f"{n}.weight": value for n, value in weights.items()}))
            if f"{key}.downsample.0.weight" in state:
                dense(block.downsample.conv, f"{key}.downsample.0")
                norm(block.downsample.bn, f"{key}.downsample.1")
    model.fc.kernel, model.fc.bias = nnx.Param(take("fc.weight").T), nnx.Param(take("fc.bias"))
    if used != set(state):
        raise CannotBuildError(f"weights left over: {', '.join(sorted(set(state) - used)[:5])}")
    return model


MODELS: dict[str, Callable[[Mapping[str, np.ndarray]], nnx.Module]] = {"psconv_resnet50": psconv_resnet50}


def check_model(path: Path) -> Result:
    """Logits and stage outputs of one model fixture, at every input size that it holds."""
    name = f"models/{path.stem}"
    if path.stem not in MODELS:
        return Result(name, math.nan, "", MODEL_TOLERANCE, f"unknown kind {path.stem!r}")
    manifest = json.loads(path.with_suffix(".json").read_text())
    model = MODELS[path.stem](recipe_state_dict(manifest))
    model.eval()
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: Any, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        model = nnx.merge(graphdef, state)
        maps = model.feature_maps(x)[1:]  # without the stem
        return model.forward_head(maps[-1]), maps

    deviations = {}
    with np.load(path, allow_pickle=False) as file:
        sizes = sorted(key.removeprefix("logits_") for key in file.files if key.startswith("logits_"))
        for size in sizes:
            shape = manifest[f"input_{size}"]
            x = np.random.Generator(np.random.PCG64(0)).standard_normal(shape).astype(np.float32)
            logits, maps = run(state, x.transpose(0, 2, 3, 1))
            golden = file[f"logits_{size}"]
            deviations[f"logits_{size}"] = _deviation(logits, golden, golden.std())
            for stage, got in enumerate(maps):
                key, spread = f"stage {stage + 1} at {size}", file[f"stage_std_{size}"][stage]
                sample = file[f"stage_sample_{size}"][stage]
                of_stage = (
                    _deviation(np.mean(got), file[f"stage_mean_{size}"][stage], spread),
                    _deviation(np.std(got), spread, spread),
                    _deviation(got[0, 0, 0, : len(sample)], sample, spread),
                )
                deviations[key] = max(of_stage, key=_nan_is_worst)
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
