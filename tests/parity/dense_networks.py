"""Whole segmentation networks: logits in evaluation mode, and losses and gradients of one training step.

Weights follow from the recipe, images from a seed. A fixture may store the logits of the first images only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from msconv_jax.segmentation import Segmenter, pyconv_segnet, seg_baseline
from msconv_jax.vision import segmentation_cross_entropy
from tests.families.family import CannotBuildError
from tests.parity.modules import as_state, conversion_for
from tests.parity.results import NETWORK_TOLERANCE, Arrays, Result, deviation, norm_deviations, relative, worst
from tests.parity.weights import recipe_state_dict

AUXILIARY_WEIGHT = 0.4

# The programs run once, and their convolutions are precompiled kernels: LLVM would take most of the time.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def build(builder: Callable[..., Segmenter], ctor: Mapping[str, Any]) -> Segmenter:
    """The abstract network, without dropout as in the fixtures."""
    known = {"backbone", "classes", "output_stride", "dilation_rule", "auxiliary", "zoom"}
    if unknown := sorted(set(ctor) - known):
        raise CannotBuildError(f"the networks have no {', '.join(unknown)}")
    return nnx.eval_shape(
        lambda: builder(
            ctor["backbone"],
            num_classes=ctor["classes"],
            output_stride=ctor.get("output_stride", 8),
            zoom=ctor.get("zoom", 8),
            auxiliary=ctor.get("auxiliary", True),
            dropout_rate=0.0,
            backbone_options={"dilation_rule": ctor["dilation_rule"]} if "dilation_rule" in ctor else {},
            rngs=nnx.Rngs(0),
        )
    )


FAMILIES: dict[str, Callable[..., Segmenter]] = {"PyConvSegNet": pyconv_segnet, "SegBaseline": seg_baseline}


def check_network(name: str, meta: Mapping[str, Any], data: Arrays) -> Result:
    """Checks logits and, with a training step, losses, stored gradients and the norms of all gradients."""
    if unknown := [key for key in data if key != "out" and not key.startswith("train:")]:
        raise CannotBuildError(f"nothing to compare with {', '.join(unknown)}")
    model = build(FAMILIES[meta["family"]], meta["ctor"])
    parameters = {key: jnp.asarray(value) for key, value in recipe_state_dict(meta).items()}
    images = np.random.Generator(np.random.PCG64(0)).standard_normal(meta["input_shape"]).astype(np.float32)
    x = jnp.asarray(images.transpose(0, 2, 3, 1) * np.float32(meta.get("input_scale", 1.0)))
    logits = _logits(model, parameters, x[: len(data["out"])])
    deviations = {"out": deviation(logits.transpose(0, 3, 1, 2), data["out"], data["out"].std())}
    if "train:labels" in data:
        golden = {key.removeprefix("train:"): value for key, value in data.items() if key.startswith("train:")}
        labels = golden.pop("labels")
        with jax.enable_x64(True):
            double = {key: jnp.asarray(value, jnp.float64) for key, value in parameters.items()}
            losses, gradients = _step(model, double, jnp.asarray(x, jnp.float64), labels)
        got = {**losses, **{f"grad:{key}": value for key, value in gradients.items()}}
        deviations |= {f"train:{key}": relative(got[key], value) for key, value in golden.items()}
        deviations |= norm_deviations(gradients, meta["train_grad_norms"])
    return worst(name, deviations, NETWORK_TOLERANCE)


def _logits(model: Segmenter, parameters: Arrays, x: jax.Array) -> jax.Array:
    conversion = conversion_for(model, parameters)
    model.eval()
    graphdef = nnx.graphdef(model)

    def run(parameters: Arrays, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, as_state(model, conversion.convert(parameters)))(x)

    return jax.jit(run, compiler_options=_QUICKLY)(parameters, x)


def _step(
    model: Segmenter, parameters: Arrays, x: jax.Array, labels: np.ndarray
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """The losses of a training step, and the gradients in PyTorch's layouts, in double precision.

    In a deep network batch statistics amplify float32's rounding errors a thousand times, in PyTorch as well.
    """
    conversion = conversion_for(model, parameters)
    model.train()
    graphdef = nnx.graphdef(model)
    step = 8 // model.zoom  # logits of a lower resolution are at every `step`-th pixel
    small_labels = jnp.asarray(labels[:, ::step, ::step])

    def mean_loss(logits: jax.Array) -> jax.Array:
        losses, weights = segmentation_cross_entropy(logits, small_labels)
        return losses.sum() / weights.sum()

    def total(parameters: Arrays) -> tuple[jax.Array, dict[str, jax.Array]]:
        outputs = nnx.merge(graphdef, as_state(model, conversion.convert(parameters)))(x)
        main, *auxiliary = (mean_loss(logits) for logits in (outputs if isinstance(outputs, tuple) else (outputs,)))
        losses = {"loss_main": main, "loss": main}
        if auxiliary:
            losses |= {"loss_aux": auxiliary[0], "loss": main + AUXILIARY_WEIGHT * auxiliary[0]}
        return losses["loss"], losses

    gradients, losses = jax.jit(jax.grad(total, has_aux=True), compiler_options=_QUICKLY)(parameters)
    return losses, gradients
