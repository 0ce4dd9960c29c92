"""Networks of ``models/``: logits and stage outputs, with the weights of the fixtures' recipe."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import msconv_jax
from msconv_jax.models import DLA, OctResNet, list_ic_patterns
from msconv_jax.segmentation import PyConvSegNet, pyconv_segnet
from tests.families.family import CannotBuildError
from tests.parity.results import NETWORK_TOLERANCE, Arrays, Result, deviation, worst
from tests.parity.weights import recipe_state_dict


def without_masked_weights(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights with the zero mask of the public PSConv's constructor."""
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
    """The output of every stage, without the stem; both maps of an octave stage."""
    if isinstance(model, OctResNet):
        return [part for maps in model.octave_maps(x) for part in (maps if isinstance(maps, tuple) else (maps,))]
    maps = model.feature_maps(x)
    return list(maps if isinstance(model, DLA) else maps[1:])


def check_model(path: Path) -> Result:
    """Checks logits and stage outputs of one model fixture at each of its input sizes."""
    name = f"models/{path.stem}"
    if path.stem in SEGMENTATION:
        return _check_segmentation(path, name)
    if path.stem not in MODELS:
        return Result(name, math.nan, "", NETWORK_TOLERANCE, f"unknown kind {path.stem!r}")
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
            deviations[f"logits_{size}"] = deviation(logits, golden, golden.std())
            if len(maps) != len(manifest["stages"]):
                raise CannotBuildError(f"{len(maps)} stage outputs where the fixture has {len(manifest['stages'])}")
            for number, (stage, got) in enumerate(zip(manifest["stages"], maps, strict=True)):
                deviations[f"{stage} at {size}"] = _stage_deviation(got, file, size, number)
    return worst(name, deviations, NETWORK_TOLERANCE)


def _stage_deviation(got: Any, file: Arrays, label: str, number: int) -> float:
    """The largest deviation of a stage's mean, standard deviation and first values."""
    spread, sample = file[f"stage_std_{label}"][number], file[f"stage_sample_{label}"][number]
    return max(
        deviation(np.mean(got), file[f"stage_mean_{label}"][number], spread),
        deviation(np.std(got), spread, spread),
        deviation(got[0, 0, 0, : len(sample)], sample, spread),
        key=lambda value: math.inf if math.isnan(value) else value,
    )


# The backbone of each segmentation network.
SEGMENTATION = {"pyconvsegnet_pyconvresnet50": "pyconv_resnet50"}


def _segmentation_outputs(model: PyConvSegNet, x: jax.Array) -> tuple[jax.Array, list[jax.Array], jax.Array]:
    """The logits, every stage's output and the auxiliary head's logits on the backbone's grid."""
    maps = model.backbone.model.feature_maps(x)
    contexts = [model.head.local_context(maps[-1]), model.head.global_context(maps[-1])]
    assert model.auxiliary is not None
    return model(x), [*maps, *contexts, model.head(maps[-1])], model.auxiliary(maps[-2])


def _check_segmentation(path: Path, name: str) -> Result:
    """Checks every output of a segmentation fixture, ``out_c<classes>_z<zoom>_os<output stride>``, and its stages."""
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
            deviations[f"out_{label}"] = deviation(logits.transpose(0, 3, 1, 2), golden, golden.std())
            if len(stages) != len(manifest["stages"]):
                raise CannotBuildError(f"{len(stages)} stage outputs where the fixture has {len(manifest['stages'])}")
            for number, (stage, got) in enumerate(zip(manifest["stages"], stages, strict=True)):
                deviations[f"{stage} of {label}"] = _stage_deviation(got, file, label, number)
            if (key := f"aux_c{classes}_os{stride}") in auxiliary:
                deviations[key] = deviation(aux.transpose(0, 3, 1, 2), file[key], file[key].std())
        if unchecked := sorted(auxiliary - set(deviations)):
            raise CannotBuildError(f"nothing to compare with {', '.join(unchecked)}")
    return worst(name, deviations, NETWORK_TOLERANCE)
