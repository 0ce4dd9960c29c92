"""The 3x3 baseline: its weights' names, its arguments, and a network of small images that learns."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import msconv_jax
from msconv_jax import PSConv
from msconv_jax.models import create_model, model_entry
from msconv_jax.torch_weights import conversion_of
from msconv_jax.vision import segmentation_cross_entropy


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def abstract(name, **options):
    return nnx.eval_shape(lambda: create_model(name, rngs=rngs(), **options))


@cache
def shapes():
    return conversion_of(abstract("seg_baseline_resnet50", num_classes=11)).shapes


def test_the_public_names():
    heads = {name: shape for name, shape in shapes().items() if not name.startswith("layer")}
    assert heads["cls.0.weight"] == (512, 2048, 3, 3)
    assert heads["cls.4.weight"] == (11, 512, 1, 1)
    assert heads["aux.0.weight"] == (256, 1024, 3, 3)
    assert heads["aux.4.bias"] == (11,)
    assert {name.rpartition(".")[0] for name in heads} == {f"{p}.{n}" for p in ("cls", "aux") for n in (0, 1, 4)}
    assert shapes()["layer0.0.weight"] == (64, 3, 7, 7)
    assert "layer4.2.conv3.weight" in shapes()


def test_weights_of_several_devices_load(tmp_path):
    small = {"num_classes": 3, "features": 16, "auxiliary_features": 8}
    model = create_model("seg_baseline_ps_resnet8", conv=nnx.Conv, **small, rngs=rngs())
    random = np.random.default_rng(0)
    names = conversion_of(model).shapes
    state = {name: random.normal(size=shape).astype(np.float32) for name, shape in names.items()}
    path = tmp_path / "weights.safetensors"
    msconv_jax.write_safetensors(path, {f"module.{name}": value for name, value in state.items()})
    msconv_jax.load_torch_checkpoint(model, path)
    np.testing.assert_array_equal(model.classifier.conv.bias[...], state["cls.4.bias"])
    np.testing.assert_array_equal(model.head.conv.kernel[...], state["cls.0.weight"].transpose(2, 3, 1, 0))


def test_arguments_go_to_the_backbone():
    model = abstract(
        "seg_baseline_resnet50",
        conv=partial(PSConv, pattern=(1, 2)),
        in_channels=4,
        output_stride=16,
        backbone_options={"layers": (1, 1, 1, 2), "width": 16, "dilation_rule": "torchvision"},
        features=16,
    )
    assert type(model.backbone.model.layer4[1].conv2) is PSConv
    assert model.backbone.model.conv1.kernel.shape[2] == 4
    assert [f["reduction"] for f in model.backbone.feature_info] == [16, 16]
    kept = abstract("seg_baseline_ps_resnet8")
    assert type(kept.backbone.model.layer1[0].conv1) is PSConv  # no conv keeps the network's
    assert model_entry("seg_baseline_ps_resnet8").input_size == (33, 33, 3)


def test_a_backbone_without_an_argument_is_refused():
    with pytest.raises(TypeError, match="model 'res2net_dla60' has no argument 'output_stride'"):
        abstract("seg_baseline_resnet50", backbone="res2net_dla60")
    with pytest.raises(TypeError, match="model 'sis_resnet50' has no argument 'conv'"):
        abstract("seg_baseline_resnet50", backbone="sis_resnet50", conv=PSConv)
    with pytest.raises(ValueError, match="features=0: must be an integer of at least 1"):
        abstract("seg_baseline_resnet50", features=0)


def test_bfloat16_keeps_the_logits_in_float32():
    model = abstract("seg_baseline_ps_resnet8", dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    on_grid = nnx.eval_shape(lambda model, x: model.head(model.backbone(x)[-1]), model, images)
    logits = nnx.eval_shape(lambda model, x: model(x), model, images)
    assert on_grid.dtype == jnp.bfloat16
    assert {y.dtype for y in logits} == {jnp.dtype(jnp.float32)}


@pytest.mark.optimised
@pytest.mark.slow
def test_a_small_network_learns_where_a_square_lies():
    model = create_model(
        "seg_baseline_ps_resnet8",
        num_classes=2,
        features=16,
        auxiliary_features=8,
        backbone_options={"width": 8},
        rngs=rngs(),
    )
    random = np.random.default_rng(0)
    labels = np.zeros((8, 33, 33), np.int32)
    for label, (top, left) in zip(labels, random.integers(2, 20, (8, 2)), strict=True):
        label[top : top + 11, left : left + 11] = 1
    images = random.normal(0, 0.3, (*labels.shape, 3)).astype(np.float32) + labels[..., None]
    labels[:, :2] = 255
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            total = 0.0
            for share, logits in zip((1.0, 0.4), model(images), strict=True):
                losses, weights = segmentation_cross_entropy(logits, jnp.asarray(labels))
                total += share * losses.sum() / weights.sum()
            return total

        value, gradients = nnx.value_and_grad(loss)(model)
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to the number of steps
            optimizer.update(model, gradients)
        return value

    first = float(step(model, optimizer))
    for _ in range(24):
        last = float(step(model, optimizer))
    assert last < 0.4 * first
