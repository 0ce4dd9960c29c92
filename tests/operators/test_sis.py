import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import load_state_dict
from msconv_jax.operators.sis import SISConv
from tests.operators.rows import SPATIAL, Row

ROWS = [
    Row(
        SISConv,
        {**SPATIAL, "inner": "bnrelu", "kind": "recurrent1"},
        settings=[{}, {"kind": "interactive2"}, {"kind": "recurrent2", "share_paths": True, "feature_group_count": 2}],
    )
]

KINDS = ("basic", "interactive1", "interactive2", "recurrent1", "recurrent2")


def naive(x, kernel, stride=1, pad=None, dilation=1, groups=1):
    """A convolution of one image (H, W, C) in float64, tap by tap; without `pad`, the size is kept."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    extent = [(n - 1) * dilation + 1 for n in kernel.shape[:2]]
    pads = [((e - 1) // 2, e // 2) if pad is None else (pad, pad) for e in extent]
    x = np.pad(x, [*pads, (0, 0)])
    size = [(n - e) // stride + 1 for n, e in zip(x.shape, extent, strict=False)]
    fan_in, fan_out = kernel.shape[2], kernel.shape[3] // groups
    y = np.zeros((*size, kernel.shape[3]))
    for i, j in np.ndindex(*kernel.shape[:2]):
        part = x[i * dilation :, j * dilation :][: (size[0] - 1) * stride + 1 : stride]
        part = part[:, : (size[1] - 1) * stride + 1 : stride]
        for g in range(groups):
            outputs = slice(g * fan_out, (g + 1) * fan_out)
            y[..., outputs] += part[..., g * fan_in :][..., :fan_in] @ kernel[i, j][:, outputs]
    return y


def equations(x, k1, k2, k3, kind, steps=2, stride=1, dilation=1, groups=1):
    """The paper's component equations, one line each."""

    def conv(kernel, z):
        return naive(z, kernel, dilation=dilation, groups=groups)

    y1 = naive(x, k1, stride, dilation * (k1.shape[0] // 2), dilation, groups)
    if kind == "basic":  # Eqs. 3 to 5
        y2 = conv(k2, y1)
        y3 = conv(k3, y2)
        return np.concatenate([y1, y2, y3], -1)
    quarter = y1.shape[-1] // 2
    y11, y12 = y1[..., :quarter], y1[..., quarter:]
    y111 = conv(k2, y11)  # Eq. 8
    y121 = conv(k3, y12)  # Eq. 9
    if kind == "interactive1":
        y112 = conv(k2, y111 + y121)  # Eq. 10
        y122 = conv(k3, y111 + y121)  # Eq. 11
        return np.concatenate([y1, y112, y122], -1)
    if kind == "interactive2":
        y112 = conv(k2, y111 + y12)  # Eq. 13
        y122 = conv(k3, y11 + y121)  # Eq. 14
        return np.concatenate([y1, y112, y122], -1)
    paths = []
    for kernel, z in ((k2, y11), (k3, y12)):  # Eqs. 19 to 22
        h = [np.zeros_like(z)]
        for _ in range(steps):
            h.append(conv(kernel, h[-1] + z))
        paths.append(h[-1] if kind == "recurrent1" else sum(h))  # Eqs. 23 and 24
    return np.concatenate([y1, *paths], -1)


def by_numpy(key, shape, dtype, generator=np.random.default_rng(0)):  # noqa: B008
    """Initial values without anything to compile, new ones at each call."""
    del key
    return jnp.asarray(generator.normal(0, np.prod(shape[:-1]) ** -0.5, shape), dtype)


def build(features=(6, 8), kernel_size=(3, 3), strides=1, **options):
    return SISConv(*features, kernel_size, strides, rngs=nnx.Rngs(0), **{"kernel_init": by_numpy, **options})


def image(shape=(2, 7, 6, 6), dtype=jnp.float32, seed=0):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


CASES = [
    *({"kind": kind} for kind in KINDS),
    *({"kind": kind, "strides": 2, "feature_group_count": 2} for kind in KINDS),
    *({"kind": "recurrent1", "steps": steps} for steps in (1, 3)),
    *({"kind": "recurrent2", "steps": steps, "share_paths": True} for steps in (1, 4)),
    {"kind": "interactive1", "share_paths": True, "strides": 2},
    {"kind": "interactive2", "share_paths": True, "kernel_dilation": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_is_its_equations(case):
    dilation, groups = case.get("kernel_dilation", 1), case.get("feature_group_count", 1)
    kind, steps, stride = case["kind"], case.get("steps", 2), case.get("strides", 1)
    x, module = image(), build(padding=dilation, use_bias=False, **case)
    kernels = [None if k is None else k.kernel[...] for k in (module.k1, module.k2, module.k3)]
    got = jax.jit(module)(x)
    assert (kernels[2] is None) == case.get("share_paths", False)
    k1, k2, k3 = (kernels[1] if kernel is None else kernel for kernel in kernels)
    expected = [equations(z, k1, k2, k3, kind, steps, stride, dilation, groups) for z in np.asarray(x)]
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_two_steps_fused_are_the_printed_sum():
    """Eq. 24: Y112 + Y111; and more steps do change the output."""
    x = image()
    fused = build(kind="recurrent2")

    def with_its_kernels(**options):
        module = build(**options)
        nnx.update(module, nnx.state(fused))
        return module(x)

    once, twice = (with_its_kernels(kind="recurrent1", steps=steps) for steps in (1, 2))
    np.testing.assert_allclose(fused(x)[..., 4:], (once + twice)[..., 4:], atol=1e-6)
    assert not np.allclose(with_its_kernels(kind="recurrent2", steps=3), fused(x), atol=1e-3)


def test_shared_paths_of_the_first_interactive_kind_are_equal():
    y = build(kind="interactive1", share_paths=True)(image())
    np.testing.assert_array_equal(y[..., 4:6], y[..., 6:])


# --- counts: table (f) of weights and multiply-accumulates, as fractions of a plain convolution ---


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("setting", "weights", "macs"),
    [
        ({"kind": "basic"}, 11 / 16, 11 / 16),
        ({"kind": "interactive1"}, 5 / 8, 3 / 4),
        ({"kind": "interactive2"}, 5 / 8, 3 / 4),
        ({"kind": "interactive2", "share_paths": True}, 9 / 16, 3 / 4),
        ({"kind": "recurrent1"}, 5 / 8, 3 / 4),
        ({"kind": "recurrent1", "steps": 1}, 5 / 8, 5 / 8),
        ({"kind": "recurrent2", "steps": 5}, 5 / 8, 1 / 2 + 10 / 16),
        ({"kind": "recurrent2", "steps": 3, "share_paths": True}, 9 / 16, 1 / 2 + 6 / 16),
    ],
)
def test_counts(setting, weights, macs, groups):
    module = nnx.eval_shape(lambda: build((16, 16), feature_group_count=groups, use_bias=False, **setting))
    plain = 16 * 16 * 9 // groups
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module))) == module.num_parameters == weights * plain
    assert module.macs((5, 7)) == macs * plain * 35


def test_counts_of_unequal_channels_and_the_normalisations():
    module = nnx.eval_shape(lambda: build((6, 16), inner="bnrelu", kind="interactive1"))
    kernels = 9 * (6 * 8 + 2 * 4 * 4)
    assert module.num_parameters == kernels
    counts = {kind: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, kind))) for kind in (nnx.Param,)}
    assert counts[nnx.Param] == kernels + 16 + 2 * (8 + 4 * 4)  # a bias, and a scale and a shift each


# --- a drop-in for nnx.Conv ---


@pytest.mark.parametrize("kind", ["basic", "interactive1", "recurrent2"])
def test_output_shapes_are_those_of_nnx_conv(kind):
    images = [jax.ShapeDtypeStruct((2, *size, 6), jnp.float32) for size in ((7, 6), (8, 11), (1, 9))]

    def shapes(make, **options):
        return [y.shape for y in jax.eval_shape(lambda *images: tuple(map(make(**options), images)), *images)]

    def plain(kernel_size, strides, **options):
        return nnx.Conv(6, 8, kernel_size, strides, rngs=nnx.Rngs(0), **options)

    for strides in (1, 2, (3, 1), None):
        for kernel_size in ((1, 1), (3, 5), (2, 4)):
            for padding in ("SAME", "VALID", 1, ((0, 1), (2, 0))):
                setting = {"kernel_size": kernel_size, "strides": strides, "padding": padding}
                assert shapes(build, kind=kind, **setting) == shapes(plain, **setting), setting
    assert shapes(build, kind=kind, kernel_dilation=2, padding=2) == [(*y.shape[:-1], 8) for y in images]


@pytest.mark.parametrize("inner", [None, "bnrelu"])
def test_batch_axes(inner):
    module = build(kind="interactive2", inner=inner)
    module.eval()
    x = image((2, 3, 5, 6, 6))
    y, single, flat = jax.jit(lambda x: (module(x), module(x[1, 2]), module(x.reshape(6, 5, 6, 6))))(x)
    np.testing.assert_allclose(y[1, 2], single, atol=1e-6)
    np.testing.assert_allclose(y.reshape(6, 5, 6, 8), flat, atol=1e-6)
    signal = nnx.eval_shape(lambda: build((6, 8), (3,), kind="recurrent1", inner=inner)(jnp.ones((2, 9, 6))))
    assert signal.shape == (2, 9, 8)


def test_attributes_and_the_bias_are_those_of_nnx_conv():
    ours, theirs = build(padding=1, strides=2), nnx.Conv(6, 8, (3, 3), 2, padding=1, rngs=nnx.Rngs(0))
    for name in ("in_features", "out_features", "kernel_size", "strides", "padding", "use_bias", "dtype"):
        assert getattr(ours, name) == getattr(theirs, name), name
    x, y = image(), ours(image())
    ours.bias[...] = jnp.arange(8.0)
    np.testing.assert_allclose(ours(x), y + jnp.arange(8.0)[None, None, None], atol=1e-6)
    assert build(use_bias=False).bias is None


@pytest.mark.parametrize("setting", [{}, {"kind": "interactive1", "inner": "bnrelu"}, {"kind": "recurrent2"}], ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_in_gives_half_precision_out(setting, dtype):
    x, module = image(), build(**setting)
    casting = build(dtype=dtype, **setting)
    nnx.update(casting, nnx.state(module))
    module.eval()
    casting.eval()
    *got, expected = jax.jit(lambda x: (module(x.astype(dtype)), casting(x), module(x)))(x)
    for y in got:
        assert y.dtype == dtype
        np.testing.assert_allclose(np.float32(y), expected, atol=0.1)


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"kind": "interactive1", "inner": "bnrelu", "strides": 2},
        {"kind": "recurrent2", "share_paths": True, "inner": "bnrelu", "steps": 3},
    ],
    ids=str,
)
def test_gradients_reach_every_parameter_and_builds_are_equal(setting):
    module = build(**setting)
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    again = nnx.split(build(**setting), nnx.Param, ...)[0]
    assert graphdef == again
    assert hash(graphdef) == hash(again)
    abstract = nnx.eval_shape(lambda: build(**setting, kernel_init=nnx.initializers.lecun_normal()))
    assert jax.tree.map(jnp.shape, nnx.state(abstract)) == jax.tree.map(jnp.shape, nnx.state(module))

    @jax.jit
    def gradient(params, rest, x):
        def loss(params, x, rest):
            return jnp.mean((nnx.merge(graphdef, params, rest, copy=True)(x) - 1) ** 2)

        return jax.grad(loss, argnums=(0, 1))(params, x, rest)

    of_params, of_x = gradient(params, rest, image())
    assert bool((of_x != 0).all())
    for leaf in jax.tree.leaves(of_params):
        assert bool(jnp.isfinite(leaf).all())
        assert bool((leaf != 0).all())


# --- inner normalisation ---


def test_each_application_has_its_own_normalisation():
    module = build(kind="recurrent1", steps=3, share_paths=True, inner="bnrelu", use_bias=False)
    assert (len(module.bn2), len(module.bn3)) == (3, 3)
    x = image()

    def normalised(y):
        """With the batch's statistics."""
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
        return np.maximum((y - mean) / np.sqrt(var + 1e-5), 0)

    def conv(kernel, batch):
        return np.stack([naive(z, kernel[...]) for z in np.asarray(batch)])

    y1 = normalised(conv(module.k1.kernel, x))
    paths = []
    for z in (y1[..., :2], y1[..., 2:]):
        h = np.zeros_like(z)
        for _ in range(3):
            h = normalised(conv(module.k2.kernel, h + z))
        paths.append(h)
    np.testing.assert_allclose(module(x), np.concatenate([y1, *paths], -1), atol=1e-4)
    means = [norm.mean[...] for norm in (*module.bn2, *module.bn3)]
    assert len({tuple(mean.tolist()) for mean in means}) == 6
    module.eval()
    before = [norm.mean[...] for norm in module.bn2]
    module(x)
    np.testing.assert_array_equal(before, [norm.mean[...] for norm in module.bn2])
    assert build(kind="basic", inner="bnrelu").bn2[0].num_features == 2
    assert build().bn1 is None


# --- arguments ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "interactive"}, "kind='interactive': expected one of basic, interactive1"),
        ({"steps": 3}, "steps=3 with kind='basic': only the recurrent kinds"),
        ({"kind": "interactive1", "steps": 1}, "only the recurrent kinds"),
        ({"kind": "recurrent1", "steps": 0}, "steps=0: expected an int of at least 1"),
        ({"kind": "recurrent1", "steps": True}, "steps=True"),
        ({"kind": "recurrent1", "steps": 1.5}, "steps=1.5"),
        ({"share_paths": True}, "K2 turns C/2 channels into C/4"),
        ({"inner": "relu"}, "inner='relu': expected None or 'bnrelu'"),
        ({"features": (6, 6)}, "out_features=6 with feature_group_count=1.*multiple of 4"),
        ({"features": (8, 12), "feature_group_count": 2}, "out_features=12 .*multiple of 8"),
        ({"features": (6, 16), "feature_group_count": 4}, "feature_group_count=4 does not divide"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_unknown_arguments_and_bad_inputs_are_refused():
    with pytest.raises(TypeError, match="share_path"):
        build(share_path=True)
    with pytest.raises(ValueError, match="6 channels"):
        build()(jnp.ones((1, 5, 5, 8)))


def test_weights_load_under_our_names():
    module = build(kind="recurrent1", inner="bnrelu")
    rng = np.random.default_rng(0)
    state = {"k1.weight": (4, 6, 3, 3), "k2.weight": (2, 2, 3, 3), "k3.weight": (2, 2, 3, 3), "bias": (8,)}
    for name, features in (("bn1", 4), ("bn2.0", 2), ("bn2.1", 2), ("bn3.0", 2), ("bn3.1", 2)):
        state |= {f"{name}.{key}": (features,) for key in ("weight", "bias", "running_mean", "running_var")}
    tensors = {name: rng.random(shape, np.float32) for name, shape in state.items()}
    load_state_dict(module, tensors)
    np.testing.assert_array_equal(module.k3.kernel[...], tensors["k3.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(module.bn3[1].mean[...], tensors["bn3.1.running_mean"])
    np.testing.assert_array_equal(module.bias[...], tensors["bias"])
