"""PyConvSegNet: sizes, counts, modes, weights' names."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import fold_batch_norm, load_state_dict
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.models import create_model
from msconv_jax.segmentation import MapClassifier, PyConvHead, PyConvSegNet, pyconv_segnet
from msconv_jax.torch_weights import conversion_of


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


SMALL = {"layers": (1, 1, 1, 1), "width": 8}
HEAD = {"features": 64, "merged_features": 16}


def small(*, output_stride=8, out_indices=(-2, -1), backbone=None, **options):
    maps = create_model(
        "resnet50",
        features_only=True,
        out_indices=out_indices,
        output_stride=output_stride,
        rngs=rngs(),
        **SMALL,
        **(backbone or {}),
    )
    return PyConvSegNet(maps, 5, rngs=rngs(), **HEAD, **options)


def shape_of(model, height, width):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    return jax.tree.map(lambda y: y.shape, nnx.eval_shape(lambda model, x: model(x), model, images))


@pytest.mark.parametrize(
    ("zoom", "output_stride", "size"),
    [(8, 8, (33, 41)), (8, 16, (33, 41)), (4, 16, (17, 21)), (2, 8, (9, 11)), (1, 8, (5, 6)), (1, 16, (3, 3))],
)
def test_the_logits_size_and_the_pair_in_training(zoom, output_stride, size):
    model = nnx.eval_shape(lambda: small(zoom=zoom, output_stride=output_stride))
    first, second = shape_of(model, 33, 41)
    assert first == second == (2, *size, 5)
    model.eval()
    assert shape_of(model, 33, 41) == (2, *size, 5)
    model.train()
    assert len(shape_of(model, 33, 41)) == 2


def test_without_an_auxiliary_head():
    model = nnx.eval_shape(lambda: small(auxiliary=False, out_indices=(-1,)))
    assert shape_of(model, 33, 41) == (2, 33, 41, 5)


def filled(model):
    """An abstract network with values as if it were trained: quicker than its initialisation."""
    random = np.random.default_rng(0)
    graphdef, state = nnx.split(model)
    flat = []
    for path, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.RngKey):
            value = jax.random.key(0, impl="rbg")
        elif isinstance(variable, nnx.RngCount):
            value = jnp.zeros((), variable.dtype)
        elif path[-1] in ("scale", "var"):
            value = random.uniform(0.5, 1.5, variable.shape)
        else:
            spread = (2 / np.prod(variable.shape[:-1])) ** 0.5 if len(variable.shape) > 1 else 0.3
            value = random.normal(0, spread, variable.shape)
        value = value if isinstance(value, jax.Array) else jnp.asarray(value, variable.dtype)
        flat.append((path, variable.replace(value)))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


@cache
def computed():
    """A network with such values, images, and its logits in evaluation mode."""
    model = filled(nnx.eval_shape(small))
    model.eval()
    x = jax.random.normal(jax.random.key(1), (2, 33, 41, 3))
    return model, x, *_evaluated(model, x)


@nnx.jit
def _evaluated(model, x):
    return model(x), model.classifier.conv(model.head(model.backbone(x)[-1]))


def enlarged(x, size):
    """Bilinear interpolation with the corners fixed, position by position."""
    x = np.asarray(x, np.float64)
    y = np.zeros((x.shape[0], *size, x.shape[-1]))
    for i, j in np.ndindex(*size):
        row, column = (n * (old - 1) / (new - 1) for n, old, new in zip((i, j), x.shape[1:3], size, strict=True))
        top, left = min(int(row), x.shape[1] - 2), min(int(column), x.shape[2] - 2)
        a, b = row - top, column - left
        above = (1 - b) * x[:, top, left] + b * x[:, top, left + 1]
        below = (1 - b) * x[:, top + 1, left] + b * x[:, top + 1, left + 1]
        y[:, i, j] = (1 - a) * above + a * below
    return y


def test_in_evaluation_nothing_is_dropped_and_corners_stay():
    _, _, logits, on_grid = computed()
    np.testing.assert_allclose(logits, enlarged(on_grid, (33, 41)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits[:, -1, 0], on_grid[:, -1, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_folded_network_is_the_network():
    model, x, logits, _ = computed()
    folded = fold_batch_norm(model)
    assert not [path for path, module in nnx.iter_modules(folded) if isinstance(module, nnx.BatchNorm)]
    got = nnx.jit(lambda model, x: model(x))(folded, x)
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5 * float(np.abs(logits).max()))


@pytest.mark.slow
def test_training_reaches_every_parameter_with_a_finite_gradient():
    graphdef, params, rest = nnx.split(small(backbone={"zero_init_last": False}), nnx.Param, ...)
    x = jax.random.normal(jax.random.key(1), (2, 33, 41, 3))

    def loss(params):
        logits, auxiliary = nnx.merge(graphdef, params, rest, copy=True)(x)
        return sum(w * -jax.nn.log_softmax(y)[..., 0].mean() for w, y in ((1.0, logits), (0.4, auxiliary)))

    for path, leaf in nnx.to_flat_state(jax.jit(jax.grad(loss))(params)):
        value = np.asarray(leaf[...])
        assert np.isfinite(value).all(), path
        assert value.any(), path


def test_whole_channels_are_dropped():
    model = nnx.eval_shape(lambda: small(dropout_rate=0.5))
    dropouts = {path for path, module in nnx.iter_modules(model) if getattr(module, "rate", 0) == 0.5}
    assert dropouts == {("classifier", "dropout"), ("auxiliary", "classifier", "dropout")}
    dropped = np.asarray(MapClassifier(16, 2, dropout_rate=0.5, rngs=rngs()).dropout(jnp.ones((3, 4, 5, 16))))
    assert (dropped == dropped[:, :1, :1]).all()
    assert set(dropped.ravel().tolist()) == {0.0, 2.0}
    assert (dropped[0] != dropped[1]).any()


def test_bfloat16_keeps_the_logits_in_float32():
    model = nnx.eval_shape(lambda: small(dtype=jnp.bfloat16, backbone={"dtype": jnp.bfloat16}))
    images = jax.ShapeDtypeStruct((1, 33, 41, 3), jnp.float32)

    def run(model, x):
        return model.head(model.backbone(x)[-1]), model(x)

    on_grid, logits = nnx.eval_shape(run, model, images)
    assert on_grid.dtype == jnp.bfloat16
    assert {y.dtype for y in logits} == {jnp.dtype(jnp.float32)}


@cache
def abstract(name, output_stride=8):
    return nnx.eval_shape(lambda: pyconv_segnet(name, output_stride=output_stride, rngs=rngs()))


def test_the_parts_parameters():
    model = abstract("pyconv_resnet50")  # all networks' totals are tested with the registry
    assert count_parameters(model.head) == 8_452_608
    assert count_parameters(model.auxiliary) == 2_398_358
    assert count_parameters(model.classifier) == 38_550


@pytest.mark.parametrize(
    ("output_stride", "total"), [(8, 104_670_221_312), pytest.param(16, 32_338_906_112, marks=pytest.mark.slow)]
)
def test_multiply_accumulates(output_stride, total):
    assert sum(layer_macs(abstract("pyconv_resnet50", output_stride), (473, 473, 3)).values()) == total


def test_multiply_accumulates_of_the_auxiliary_head():
    assert sum(layer_macs(abstract("pyconv_resnet50").auxiliary, (60, 60, 1024)).values()) == 8_631_705_600


def test_the_public_names():
    shapes = conversion_of(abstract("pyconv_resnet50")).shapes
    stems = {name.rpartition(".")[0] for name in shapes}
    head = {f"local_context.layers.{n}" for n in (0, 1, 4, 6, 7)}
    head |= {f"local_context.layers.3.conv2_{n}" for n in (1, 2, 3, 4)}
    head |= {f"global_context.features.{n}" for n in (1, 2, 5, 7, 8)}
    head |= {f"global_context.features.4.conv2_{n}" for n in (1, 2, 3, 4)}
    head |= {f"merge_context.features.{n}" for n in (0, 1)}
    assert {stem for stem in stems if stem.startswith("pyconvhead")} == {f"pyconvhead.{name}" for name in head}
    assert {stem for stem in stems if not stem.startswith(("pyconvhead", "layer"))} == {
        "aux.0",
        "aux.1",
        "aux.4",
        "cls.1",
    }
    assert {stem for stem in stems if stem.startswith("layer0")} == {"layer0.0", "layer0.1"}
    assert shapes["layer4.0.downsample.1.weight"] == (2048, 1024, 1, 1)  # 0 is the pooling, whose stride is 1
    assert shapes["aux.4.weight"] == (150, 256, 1, 1)


def test_a_classifiers_weights_fit_the_backbone():
    model = filled(nnx.eval_shape(small))
    network = nnx.eval_shape(lambda: create_model("resnet50", **SMALL, rngs=rngs()))
    own = conversion_of(network)
    random = np.random.default_rng(0)
    state = {name: random.normal(size=shape).astype(np.float32) for name, shape in own.shapes.items()}
    load_state_dict(model.backbone, state, strict=False)
    kernel = np.asarray(model.backbone.model.layer4[0].conv2.kernel[...])
    np.testing.assert_array_equal(kernel, state["layer4.0.conv2.weight"].transpose(2, 3, 1, 0))


def test_bad_arguments_are_refused():
    backbone = nnx.eval_shape(lambda: create_model("resnet50", features_only=True, **SMALL, rngs=rngs()))
    single = nnx.eval_shape(lambda: create_model("resnet8", features_only=True, out_indices=(-1,), rngs=rngs()))
    for arguments, message in (
        (
            (backbone.model,),
            r"backbone of type ResNet: must be a FeatureBackbone; use create_model\(\.\.\., features_only",
        ),
        ((single,), r"one map, .* use out_indices=\(-2, -1\), or auxiliary=False"),
    ):
        with pytest.raises(ValueError, match=message):
            PyConvSegNet(*arguments, rngs=rngs())
    for options, message in (
        ({"zoom": 3}, "zoom=3: must be 1, 2, 4 or 8"),
        ({"num_classes": 0}, "num_classes=0: .* a head alone has no classifier"),
        ({"dropout_rate": 1.0}, r"dropout_rate=1\.0: must be in \[0, 1\)"),
        ({"features": 0}, "features=0"),
        ({"features": 40}, "groups=.*40"),
    ):
        with pytest.raises(ValueError, match=message):
            nnx.eval_shape(lambda options=options: PyConvSegNet(backbone, rngs=rngs(), **{**HEAD, **options}))
    with pytest.raises(TypeError, match="no argument 'output_stride'"):
        pyconv_segnet("res2net_dla60", rngs=rngs())
    with pytest.raises(ValueError, match="backbone_options has conv, dtype: give these as arguments"):
        pyconv_segnet("resnet50", backbone_options={"conv": None, "dtype": None}, rngs=rngs())
    with pytest.raises(TypeError, match="no argument 'widht'"):
        pyconv_segnet("resnet50", backbone_options={"widht": 8}, rngs=rngs())


@pytest.mark.parametrize("size", [(32, 33), (33, 40)])
def test_images_whose_corners_do_not_fall_together_are_refused(size):
    model = nnx.eval_shape(small)
    with pytest.raises(
        ValueError, match=rf"images of {size[0]} x {size[1]} pixels: .* crop or pad them to 33 x (33|41)"
    ):
        shape_of(model, *size)


def test_two_builds_have_equal_graph_definitions():
    first, second = (nnx.graphdef(nnx.eval_shape(small)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_the_head_alone():
    head = nnx.eval_shape(lambda: PyConvHead(256, **HEAD, rngs=rngs()))
    x = jax.ShapeDtypeStruct((1, 5, 7, 256), jnp.float32)
    assert nnx.eval_shape(lambda head, x: head(x), head, x).shape == (1, 5, 7, 16)


def test_the_former_names_are_the_same():
    import msconv_jax.heads
    import msconv_jax.segmentation

    for name in msconv_jax.heads.__all__:
        assert getattr(msconv_jax.heads, name) is getattr(msconv_jax.segmentation, name)


def test_a_head_of_sixteen_channels_on_a_network_of_small_images():
    model = nnx.eval_shape(
        lambda: create_model(
            "pyconv_segnet_resnet50",
            backbone="ps_resnet8",
            num_classes=3,
            in_channels=1,
            features=16,
            merged_features=16,
            reduced_features=16,
            level_groups=(1, 2, 4, 4),
            rngs=rngs(),
        )
    )
    images = jax.ShapeDtypeStruct((2, 33, 41, 1), jnp.float32)
    logits, auxiliary = nnx.eval_shape(lambda model, x: model(x), model, images)
    assert logits.shape == auxiliary.shape == (2, 33, 41, 3)
    assert count_parameters(model.head) < 15_000
