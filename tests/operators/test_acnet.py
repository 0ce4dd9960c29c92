import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import load_state_dict
from msconv_jax.operators.acgraph import ACGraph, ac_graph, graph_constants
from msconv_jax.operators.acnet import ACConv
from tests.operators.rows import EDGES, NODES, SPATIAL, Row

ROWS = [
    Row(ACConv, SPATIAL, settings=[{}, {"mix": "channel"}, {"kind": "pixel"}], plain={"use": ("local",)}),
    Row(ACGraph, {}, (NODES, EDGES, EDGES)),
]


def by_numpy(key, shape, dtype, generator=np.random.default_rng(0)):  # noqa: B008
    """Initial values without anything to compile, new ones at each call."""
    del key
    return jnp.asarray(generator.normal(0, np.prod(shape[:-1]) ** -0.5, shape), dtype)


def build(features=(4, 6), kernel_size=(3, 3), strides=1, **options):
    module = ACConv(*features, kernel_size, strides, rngs=nnx.Rngs(0), **{"kernel_init": by_numpy, **options})
    if module.mix_logits is not None and not isinstance(module.mix_logits[...], jax.core.Tracer):
        module.mix_logits[...] = by_numpy(None, module.mix_logits.shape, jnp.float32)
    return module


def image(shape=(2, 7, 6, 4), dtype=jnp.float32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# --- the equations, tap by tap in float64 ---


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(0, keepdims=True)


def tf_same(size, extent, stride):
    """TensorFlow's SAME along one axis: zeros before, and the output's size."""
    out = -(-size // stride)
    return max((out - 1) * stride + extent - size, 0) // 2, out


def equation(module, x, before, size, centre, stride=1, dilation=1):
    """One image (H, W, C), pixel by pixel; `before` zeros, `centre` is the pointwise term's place (row, column) for an
    output of the given size, from its window's first pixel."""
    height, width, _ = x.shape
    x = np.asarray(x, np.float64)
    get = {
        name: np.asarray(getattr(module, name).kernel[...], np.float64)
        for name in ("local", "point", "fc1", "fc2", "gate1", "gate2")
        if getattr(module, name) is not None
    }
    C = module.out_features
    groups = module.feature_group_count
    z3, z1 = np.zeros((*size, C)), np.zeros((*size, C))
    for r, c in np.ndindex(*size):
        first = r * stride - before[0], c * stride - before[1]
        if "local" in get:
            for i, j in np.ndindex(*get["local"].shape[:2]):
                u, v = first[0] + i * dilation, first[1] + j * dilation
                if 0 <= u < height and 0 <= v < width:
                    for g in range(groups):
                        o, k = slice(g * C // groups, (g + 1) * C // groups), x.shape[-1] // groups
                        z3[r, c, o] += x[u, v, g * k : (g + 1) * k] @ get["local"][i, j][:, o]
        u, v = first[0] + centre[0], first[1] + centre[1]
        if "point" in get and 0 <= u < height and 0 <= v < width:
            z1[r, c] = x[u, v] @ get["point"][0, 0]
    g = np.zeros(C)
    if "fc1" in get:
        hidden = np.maximum(x.mean((0, 1)) @ get["fc1"] + np.asarray(module.fc1.bias[...]), 0)
        g = hidden @ get["fc2"] + np.asarray(module.fc2.bias[...])
    if module.kind == "pixel":
        both = np.concatenate([z3, np.broadcast_to(g, z3.shape)], -1)
        gate = np.maximum(both @ get["gate1"][0, 0], 0) @ get["gate2"][0, 0]
        return z3 + g / (1 + np.exp(-gate))
    terms = [{"local": z3, "point": z1, "global": g}[name] for name in module.use]
    p = [1 / len(terms)] * len(terms)
    if module.mix_logits is not None:
        p = softmax(np.asarray(module.mix_logits[...], np.float64))
    return sum(weight * term for weight, term in zip(p, terms, strict=True)) + np.zeros_like(z3)


def randomised(module):
    """With biases of the linear layers that are not zero."""
    for layer in (module.fc1, module.fc2):
        if layer is not None:
            layer.bias[...] = by_numpy(None, layer.bias.shape, jnp.float32)
    return module


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"mix": "channel", "feature_group_count": 2},
        {"mix": "position"},
        {"learn_mix": False},
        {"use": ("global", "local")},
        {"use": ("point",)},
        {"use": ("global",)},
        {"use": ("point", "global"), "learn_mix": False},
        {"kind": "pixel", "feature_group_count": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_is_tensorflows(setting, stride):
    """On 7 x 6 pixels with stride 2, windows of 3 start one pixel before the image on rows, at its edge on columns."""
    (top, height), (left, width) = tf_same(7, 3, stride), tf_same(6, 3, stride)
    if stride == 2:
        assert (top, left) == (1, 0)
    if setting.get("mix") == "position":
        setting = {**setting, "spatial_shape": (height, width)}
    module, x = randomised(build(strides=stride, use_bias=False, **setting)), image()
    own_pixel = (top, left)  # the pointwise term reads 0, s, 2 s
    expected = [equation(module, z, (top, left), (height, width), own_pixel, stride) for z in x]
    np.testing.assert_allclose(jax.jit(lambda x: module(x))(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "padding", "before", "centre", "options"),
    [
        ((3, 3), 1, (1, 1), (1, 1), {}),
        ((3, 5), "VALID", (0, 0), (1, 2), {}),
        ((3, 3), ((0, 2), (4, 1)), (0, 4), (1, 1), {}),
        ((2, 4), ((1, 0), (2, 1)), (1, 2), (0, 1), {}),
        ((3, 2), 2, (2, 2), (2, 1), {"kernel_dilation": 2}),
        ((1, 1), 0, (0, 0), (0, 0), {}),
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_explicit_padding_reads_the_centre(kernel_size, padding, before, centre, options, stride):
    module = randomised(build(kernel_size=kernel_size, strides=stride, padding=padding, use_bias=False, **options))
    x = image()
    y = jax.jit(lambda x: module(x))(x)
    dilation = options.get("kernel_dilation", 1)
    expected = [equation(module, z, before, y.shape[1:3], centre, stride, dilation) for z in x]
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_paddings_agree_where_they_should():
    """For stride 1 the named paddings and k // 2 read the same pixels, and for stride 2 on odd sizes."""
    x = image((1, 7, 5, 4))
    for stride in (1, 2):
        same, padded = build(strides=stride), build(strides=stride, padding=1)
        nnx.update(padded, nnx.state(same))
        np.testing.assert_allclose(same(x), padded(x), atol=1e-6)


def test_the_weights_start_equal():
    module = ACConv(4, 6, (3, 3), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(module.mix_logits[...], np.ones(3))
    fixed = ACConv(4, 6, (3, 3), learn_mix=False, rngs=nnx.Rngs(0))
    assert fixed.mix_logits is None
    np.testing.assert_allclose(module(image()), fixed(image()), atol=1e-6)


# --- counts: (f) of the specification ---


def counts(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def test_counts():
    C, size = 8, (5, 7)
    plain, area = 9 * C * C, 35
    common = {"features": (C, C), "use_bias": False, "kernel_init": nnx.initializers.lecun_normal()}
    for mix, logits in (("scalar", 3), ("channel", 3 * C), ("position", 3 * area)):
        shape = size if mix == "position" else None
        dataset = nnx.eval_shape(lambda mix=mix, shape=shape: build(mix=mix, spatial_shape=shape, **common))
        assert counts(dataset) == plain + C * C + 2 * (C * C + C) + logits
        assert dataset.macs(size) == plain * area + C * C * area + 2 * C * C
    pixel = nnx.eval_shape(lambda: build(kind="pixel", **common))
    assert counts(pixel) == plain + 5 * C * C + 2 * C
    assert pixel.macs(size) == plain * area + 3 * C * C * area + 2 * C * C
    without = nnx.eval_shape(lambda: build(use=("local", "point"), feature_group_count=2, **common))
    assert counts(without) == plain // 2 + C * C + 2
    assert without.macs(size) == (plain // 2 + C * C) * area
    alone = nnx.eval_shape(lambda: build(use=("local",), **common))
    assert counts(alone) == plain


def test_a_resnet_50_has_the_published_numbers_of_parameters():
    """Every 3 x 3 of its sixteen blocks: 29.38 M and 31.85 M beside 25.56 M."""
    extra = {"dataset": 0, "pixel": 0}
    for blocks, width, pixels in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)):
        for kind in extra:
            setting = {"mix": "position", "spatial_shape": pixels} if kind == "dataset" else {}

            def make(width=width, kind=kind, setting=setting):
                return ACConv(width, width, (3, 3), kind=kind, use_bias=False, rngs=nnx.Rngs(0), **setting)

            extra[kind] += blocks * (counts(nnx.eval_shape(make)) - 9 * width * width)
    assert 25_557_032 + extra["dataset"] == 29_378_601
    assert 25_557_032 + extra["pixel"] == 31_851_944


# --- a drop-in for nnx.Conv ---


@pytest.mark.parametrize("setting", [{}, {"use": ("global",)}], ids=str)
def test_output_shapes_are_those_of_nnx_conv(setting):
    images = [jax.ShapeDtypeStruct((2, *size, 4), jnp.float32) for size in ((7, 6), (8, 11), (1, 9))]

    def shapes(make, **options):
        return [y.shape for y in jax.eval_shape(lambda *images: tuple(map(make(**options), images)), *images)]

    def plain(kernel_size, strides, **options):
        return nnx.Conv(4, 6, kernel_size, strides, rngs=nnx.Rngs(0), **options)

    for strides in (1, 2, (3, 1), None):
        for kernel_size in ((1, 1), (3, 5), (2, 4)):
            for padding in ("SAME", "same_lower", "VALID", 1, ((0, 1), (2, 0))):
                options = {"kernel_size": kernel_size, "strides": strides, "padding": padding, "kernel_dilation": 2}
                theirs = options | ({"padding": "SAME"} if padding == "same_lower" else {})  # of the same size
                assert shapes(build, **options, **setting) == shapes(plain, **theirs), options


def test_batch_axes_and_the_bias():
    for setting in ({"mix": "channel"}, {"kind": "pixel"}, {"use": ("global",)}):
        module, x = build(**setting), image((2, 3, 5, 6, 4))
        y, single = jax.jit(lambda x, module=module: (module(x), module(x[1, 2])))(x)
        assert y.shape == (2, 3, 5, 6, 6)
        np.testing.assert_allclose(y[1, 2], single, atol=1e-6)
        module.bias[...] = jnp.arange(6.0)
        np.testing.assert_allclose(module(x), y + jnp.arange(6.0)[None, None, None, None], atol=1e-6)
    assert build(use_bias=False).bias is None
    signal = nnx.eval_shape(lambda: build(kernel_size=(3,), mix="position", spatial_shape=9)(jnp.ones((2, 9, 4))))
    assert signal.shape == (2, 9, 6)


SETTINGS = [{"mix": "position", "spatial_shape": (4, 3)}, {"kind": "pixel"}, {"use": ("point", "global")}]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_half_precision_in_gives_half_precision_out(setting):
    for dtype in (jnp.bfloat16, jnp.float16):
        module, x = build(strides=2, **setting), image()
        casting = build(strides=2, dtype=dtype, **setting)
        nnx.update(casting, nnx.state(module))

        def run(x, dtype=dtype, module=module, casting=casting):
            return module(x.astype(dtype)), casting(x), module(x)

        *got, expected = jax.jit(run)(x)
        for y in got:
            assert y.dtype == dtype
            np.testing.assert_allclose(np.float32(y), expected, atol=0.1)
    wide = nnx.eval_shape(
        lambda: build(preferred_element_type=jnp.float32, strides=2, **setting)(image(dtype=jnp.bfloat16))
    )
    assert wide.dtype == jnp.float32


@pytest.mark.parametrize("setting", [*SETTINGS, {"mix": "channel", "feature_group_count": 2}], ids=str)
def test_gradients_reach_every_parameter_and_builds_are_equal(setting):
    module = build(strides=2, **setting)
    graphdef, state = nnx.split(module)
    again = nnx.split(build(strides=2, **setting))[0]
    assert graphdef == again
    assert hash(graphdef) == hash(again)
    abstract = nnx.eval_shape(lambda: build(strides=2, **{**setting, "kernel_init": nnx.initializers.lecun_normal()}))
    assert jax.tree.map(jnp.shape, nnx.state(abstract)) == jax.tree.map(jnp.shape, state)

    @jax.jit
    def gradient(state, x):
        return jax.grad(lambda state, x: jnp.mean((nnx.merge(graphdef, state)(x) - 1) ** 2), argnums=(0, 1))(state, x)

    of_state, of_x = gradient(state, image((2, 7, 6, 4)))
    for leaf in jax.tree.leaves(of_state):
        assert bool(jnp.isfinite(leaf).all())
        assert bool((leaf != 0).any())
    assert bool((of_x != 0).all())


# --- arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "image"}, "kind='image': expected one of dataset, pixel"),
        ({"mix": "pixel"}, "mix='pixel': expected one of scalar, channel, position"),
        ({"mix": "position"}, "mix='position' with spatial_shape=None"),
        ({"spatial_shape": (3, 3)}, "mix='scalar' with spatial_shape=\\(3, 3\\)"),
        ({"mix": "position", "spatial_shape": (3, 0)}, "spatial_shape=\\(3, 0\\): expected a positive int"),
        ({"mix": "position", "spatial_shape": (3, 3, 3)}, "spatial_shape"),
        ({"use": ()}, "use=\\(\\): expected a tuple of one or more of local, point, global"),
        ({"use": "local"}, "use='local'"),
        ({"use": ("local", "local")}, "each once"),
        ({"use": ("local", "pixel")}, "use=.*'pixel'"),
        ({"kind": "pixel", "mix": "channel"}, "with kind='pixel': its gate"),
        ({"kind": "pixel", "use": ("local",)}, "with kind='pixel': its gate"),
        ({"kind": "pixel", "learn_mix": False}, "with kind='pixel': its gate"),
        ({"kind": "pixel", "mix": "position", "spatial_shape": 3}, "with kind='pixel': its gate"),
        ({"feature_group_count": 4}, "feature_group_count=4 does not divide"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_other_sizes_and_unknown_arguments_are_refused():
    module = build(mix="position", spatial_shape=(4, 3), strides=2)
    assert module(image()).shape == (2, 4, 3, 6)
    with pytest.raises(ValueError, match=r"output of size \(4, 4\).*of one of size \(4, 3\).*any size"):
        module(image((2, 7, 7, 4)))
    with pytest.raises(TypeError, match="mixing"):
        build(mixing="scalar")
    with pytest.raises(ValueError, match="4 channels"):
        build()(jnp.ones((1, 5, 5, 3)))


def test_weights_load_under_the_public_names():
    rng = np.random.default_rng(0)
    linear = {"fc1.weight": (6, 4), "fc1.bias": (6,), "bias": (6,)}
    dataset = {**linear, "z3.weight": (6, 4, 3, 3), "z1.weight": (6, 4, 1, 1), "fc3.weight": (6, 6), "fc3.bias": (6,)}
    for mix, shape in (("scalar", (3, 1, 1, 1)), ("channel", (3, 6, 1, 1)), ("position", (3, 1, 5, 7))):
        module = build(mix=mix, spatial_shape=(5, 7) if mix == "position" else None)
        tensors = {name: rng.random(s, np.float32) for name, s in {**dataset, "PPP": shape}.items()}
        load_state_dict(module, tensors)
        expected = np.broadcast_to(np.moveaxis(tensors["PPP"], 1, -1), (3, 5, 7, 6))
        own = module.mix_logits[...]
        np.testing.assert_array_equal(
            np.broadcast_to(own.reshape(3, 1, 1, -1) if mix != "position" else own, (3, 5, 7, 6)), expected
        )
        np.testing.assert_array_equal(module.fc2.kernel[...], tensors["fc3.weight"].T)
    pixel = {**linear, "conv2.weight": (6, 4, 3, 3), "fc2.weight": (6, 6), "fc2.bias": (6,)}
    pixel |= {"conv_c1.weight": (6, 12, 1, 1), "conv_c2.weight": (6, 6, 1, 1)}
    module = build(kind="pixel")
    tensors = {name: rng.random(shape, np.float32) for name, shape in pixel.items()}
    load_state_dict(module, tensors)
    np.testing.assert_array_equal(module.gate1.kernel[0, 0], tensors["conv_c1.weight"][:, :, 0, 0].T)


# --- general graphs ---


def test_the_graph_layer_is_its_equation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3))
    mask = rng.random((5, 5)) < 0.4
    zeta, xi = np.where(mask, rng.normal(size=(5, 5)), 0), rng.normal(size=(5, 5))
    layer = ACGraph(3, 4, kernel_init=by_numpy, bias_init=by_numpy, rngs=nnx.Rngs(0))
    layer.mix_logits[...] = jnp.asarray([0.5, -1.0, 2.0])
    alpha, beta, gamma = softmax(np.array([0.5, -1.0, 2.0]))
    u, v, w = (np.asarray(p[...], np.float64) for p in (layer.u, layer.v, layer.w))
    expected = np.zeros((2, 5, 4))
    for b in range(2):
        for i in range(5):
            expected[b, i] = alpha * x[b, i] @ u + np.asarray(layer.bias[...])
            for j in range(5):
                expected[b, i] += beta * zeta[i, j] * (x[b, j] @ v) * mask[i, j] + gamma * xi[i, j] * (x[b, j] @ w)
    arrays = [jnp.asarray(array, jnp.float32) for array in (x, zeta, xi)]
    np.testing.assert_allclose(layer(*arrays), expected, atol=1e-5)
    per_graph = [jnp.stack([edges, 2 * edges]) for edges in arrays[1:]]
    y = layer(arrays[0], *per_graph)
    np.testing.assert_allclose(y[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(y[1], layer(arrays[0][1], *(edges[1] for edges in per_graph)), atol=1e-5)
    half = layer(arrays[0].astype(jnp.bfloat16), *arrays[1:])
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), expected, atol=0.1)
    casting = ACGraph(3, 4, dtype=jnp.float16, kernel_init=by_numpy, use_bias=False, rngs=nnx.Rngs(0))
    assert casting(*arrays).dtype == jnp.float16
    assert casting.bias is None


def test_the_graph_layers_state():
    graphdef, state = nnx.split(ACGraph(3, 4, rngs=nnx.Rngs(0)))
    assert graphdef == nnx.split(ACGraph(3, 4, rngs=nnx.Rngs(0)))[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 3 * 3 * 4 + 3 + 4
    edges = image((5, 5), seed=1)
    gradient = jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(image((5, 3)), edges, edges) ** 2))(state)
    assert all(bool((leaf != 0).all()) for leaf in jax.tree.leaves(gradient))


def test_graph_constants_are_gaussian_on_the_neighbours():
    mask = np.random.default_rng(0).random((200, 200)) < 0.2
    mask[0] = False
    zeta, xi = graph_constants(jax.random.key(1), mask, normalize=False)
    assert bool((zeta[~mask] == 0).all())
    assert bool((zeta[mask] != 0).all())
    for values in (zeta[mask], xi):
        assert abs(float(values.mean())) < 0.05
        assert abs(float(values.std()) - 1) < 0.05
    assert abs(float(jnp.corrcoef(zeta[mask], xi[mask])[0, 1])) < 0.1
    assert not np.allclose(xi, xi.T)
    scaled_zeta, scaled_xi = graph_constants(jax.random.key(1), mask)
    np.testing.assert_allclose(scaled_xi * 200**0.5, xi, rtol=1e-5)
    np.testing.assert_allclose(scaled_zeta * np.sqrt(mask.sum(1, keepdims=True)), zeta, rtol=1e-5)
    assert graph_constants(jax.random.key(0), mask, dtype=jnp.bfloat16)[0].dtype == jnp.bfloat16


def test_bad_graphs_are_refused():
    with pytest.raises(ValueError, match="out_features=0"):
        ACGraph(3, 0, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="kernel_size"):
        ACGraph(3, 4, kernel_size=3, rngs=nnx.Rngs(0))
    x, square, edges = jnp.ones((5, 3)), jnp.ones((3, 3)), jnp.ones((5, 5))
    with pytest.raises(ValueError, match="three times"):
        ac_graph(x, square, square, jnp.ones((3, 4)), edges, edges, jnp.ones(3))
    with pytest.raises(ValueError, match="mix_logits has shape"):
        ac_graph(x, square, square, square, edges, edges, jnp.ones(2))
    with pytest.raises(ValueError, match="xi has shape \\(4, 4\\)"):
        ac_graph(x, square, square, square, edges, edges[:4, :4], jnp.ones(3))
    with pytest.raises(ValueError, match="neighbours has shape"):
        graph_constants(jax.random.key(0), jnp.ones((3, 4)))
