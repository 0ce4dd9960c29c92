import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import load_state_dict
from msconv_jax.convolution import convolve
from msconv_jax.operators.pac.functions import pac_convolve, pac_convolve_transpose, pac_kernel, pac_pool
from msconv_jax.operators.pac.kernel import smoothing_kernel
from msconv_jax.operators.pac.modules import PACConv, PACConvTranspose, PACPool
from tests import parity
from tests.operators.rows import FINE, GUIDE, IMAGE, SPATIAL, Row

ROWS = [
    Row(PACConv, {**SPATIAL, "padding": 1, "kernel_type": "inv_0.5_0.8"}, (IMAGE, GUIDE)),
    Row(PACConvTranspose, {**SPATIAL, "strides": 2, "kernel_type": "inv_0.5_0.8"}, (IMAGE, FINE)),
    Row(PACPool, {**SPATIAL, "padding": 1, "smooth_kernel_type": "full_3"}, (IMAGE, GUIDE)),
]

DATA = pathlib.Path(__file__).parent.parent / "data"


def normal(shape, seed, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def close(got, expected, tolerance=2e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def drawn():
    """Options of a module whose weights are NumPy's, which has nothing to compile."""

    def init(key, shape, dtype):
        del key
        return jnp.asarray(normal(shape, 9, 0.2), dtype)

    return {"kernel_init": init, "bias_init": init, "rngs": nnx.Rngs(0)}


# --- numbers of the public code ---


FIXTURES = parity.fixtures(DATA, "ops/pac*")


@pytest.mark.slow  # tests/test_parity.py runs them with the other papers' in the short run
@pytest.mark.skipif(not FIXTURES, reason="no fixture pac* in tests/data/ops")
@pytest.mark.parametrize("path", FIXTURES or [None], ids=lambda path: path.stem if path else "none")
def test_agrees_with_the_public_code(path):
    result = parity.check(path)
    assert result.passed, str(result)


# --- the definition, tap by tap in float64 ---


def pick(array, rows, columns):
    """Pixels (n, rows, columns, channels), zero outside the image."""
    result = np.zeros((len(array), len(rows), len(columns), array.shape[-1]))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if 0 <= row < array.shape[1] and 0 <= column < array.shape[2]:
                result[:, i, j] = array[:, row, column]
    return result


def naive_kernel(guide, size, strides, low, dilation, output, of_difference, smooth=None, channel_wise=False):
    """K as (n, *output, taps, 1 or channels); `low` is the padding before."""
    guide = guide.astype(np.float64)

    def places(axis, shift):
        return [o * strides[axis] - low[axis] + shift for o in range(output[axis])]

    middle = [(size[axis] - 1) // 2 * dilation[axis] for axis in (0, 1)]
    smooth = np.ones((1, 1)) if smooth is None else smooth
    centre = 0
    for i, j in np.ndindex(smooth.shape):
        shift = (middle[0] + i - smooth.shape[0] // 2, middle[1] + j - smooth.shape[1] // 2)
        centre = centre + smooth[i, j] * pick(guide, places(0, shift[0]), places(1, shift[1]))
    taps = []
    for i, j in np.ndindex(*size):
        difference = pick(guide, places(0, i * dilation[0]), places(1, j * dilation[1])) - centre
        taps.append(of_difference(difference, -1 if not channel_wise else ()))
    return np.stack(taps, axis=-2)


def gaussian(difference, axis):
    return np.exp(-(difference**2).sum(axis, keepdims=True) / 2)


def inverse(alpha, power, asym=False):
    def kernel(difference, axis):
        difference = np.maximum(difference, 0) if asym else difference
        return alpha + ((difference**2).sum(axis, keepdims=True) + 1e-4) ** (power / 2)

    return kernel


def naive_convolve(x, weights, K, strides, low, dilation, valid=None, normalize=False, ones=None):
    """Sum over the taps; with `valid` (n, H, W, 1) or normalisation also what the public code divides by."""
    size, output, total, norm, count = weights.shape[:2], K.shape[1:3], 0, 0, 0
    ones = np.ones((1, *x.shape[1:3], 1)) if ones is None else ones
    for tap, (i, j) in enumerate(np.ndindex(*size)):
        where = [
            [o * strides[axis] - low[axis] + shift * dilation[axis] for o in range(output[axis])]
            for axis, shift in enumerate((i, j))
        ]
        inside = pick(ones, *where)
        taken = inside if valid is None else pick(valid * ones, *where)
        factor = K[..., tap, :] if valid is None and not normalize else K[..., tap, :] * taken
        norm, count = norm + (factor if normalize else taken), count + inside
        term = pick(x, *where) * factor
        if weights.shape[2:] == (1, 1):
            total = total + term * weights[i, j, 0, 0]
        else:
            total = total + term @ weights[i, j].astype(np.float64)
    if not normalize:
        norm = norm / np.maximum(count, 1)
    if valid is None and not normalize:
        return total, None
    return total / np.where(norm == 0, 1, norm), norm != 0


def inserted(array, strides):
    """With zeros between the pixels."""
    shape = (len(array), *((n - 1) * s + 1 for n, s in zip(array.shape[1:3], strides, strict=True)), array.shape[-1])
    result = np.zeros(shape)
    result[:, :: strides[0], :: strides[1]] = array
    return result


def naive_transpose(x, weights, K, strides, cuts, dilation, valid=None, normalize=False):
    """Zeros inserted and around, then the operator with stride 1; `cuts` is the padding before in PyTorch's sense."""
    ones = inserted(np.ones((1, *x.shape[1:3], 1)), strides)
    low = [(n - 1) * d - cut for n, d, cut in zip(weights.shape, dilation, cuts, strict=False)]
    valid = None if valid is None else inserted(valid, strides)
    return naive_convolve(inserted(x, strides), weights, K, (1, 1), low, dilation, valid, normalize, ones)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


CONVOLUTIONS = [
    # kernel size, strides, padding, dilation, normalize, shared
    ((5, 3), (2, 3), ((3, 1), (0, 2)), (2, 1), True, False),
    ((3, 5), (3, 2), ((0, 0), (4, 4)), (3, 1), False, True),
    slow((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), False, False),
    slow((1, 1), (2, 1), ((0, 0), (1, 0)), (1, 1), True, True),
    slow((3, 3), (1, 2), ((-1, 1), (2, -2)), (2, 2), True, False),
]


@pytest.mark.parametrize(("size", "strides", "pads", "dilation", "normalize", "shared"), CONVOLUTIONS)
def test_convolution_is_the_definition(size, strides, pads, dilation, normalize, shared):
    x, guide = normal((2, 9, 8, 3), 0), normal((2, 9, 8, 2), 1, 0.7)
    weights = normal((*size, 1, 1) if shared else (*size, 3, 4), 2)
    mask = (np.random.default_rng(3).random((2, 9, 8, 1)) < 0.4).astype(np.float32)
    settings = {"kernel_dilation": dilation, "normalize_kernel": normalize}

    @jax.jit
    def run(x, guide, mask):
        K = pac_kernel(guide, size, strides, pads, kernel_dilation=dilation)
        own = pac_kernel(guide, size, strides, pads, mask=mask, **settings)
        y = pac_convolve(x, weights, guide, strides, pads, **settings)
        masked = pac_convolve(x, weights, guide, strides, pads, mask=mask, **settings)
        again = pac_convolve(x, weights, None, strides, pads, kernel_dilation=dilation, adapting_kernel=own[0])
        return K, own[1], y, masked, again

    K, own_mask, y, (masked, mask_out), again = run(x, guide, mask)
    low = [pad[0] for pad in pads]
    expected = naive_kernel(guide, size, strides, low, dilation, y.shape[1:3], gaussian)
    close(K, expected)
    close(y, naive_convolve(x, weights, expected, strides, low, dilation, None, normalize)[0])
    expected, where = naive_convolve(x, weights, expected, strides, low, dilation, mask, normalize)
    close(masked, expected)
    np.testing.assert_array_equal(mask_out, where)
    np.testing.assert_array_equal(own_mask, where)
    close(again, expected)


TRANSPOSES = [
    # kernel size, strides, padding, output padding, dilation, normalize, shared
    slow((5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), (1, 1), True, False),
    slow((1, 3), (3, 4), ((0, 0), (0, 0)), (2, 0), (1, 1), False, True),
    ((3, 3), (2, 1), ((4, 3), (-1, 1)), (3, 0), (1, 3), True, False),
]


@pytest.mark.parametrize(("size", "strides", "cuts", "extra", "dilation", "normalize", "shared"), TRANSPOSES)
def test_transpose_is_the_definition(size, strides, cuts, extra, dilation, normalize, shared):
    x = normal((2, 5, 4, 3), 0)
    weights = normal((*size, 1, 1) if shared else (*size, 3, 4), 2)
    output = tuple(
        (n - 1) * s - sum(cut) + (k - 1) * d + 1 + e
        for n, s, cut, k, d, e in zip((5, 4), strides, cuts, size, dilation, extra, strict=True)
    )
    guide = normal((2, *output, 2), 1, 0.7)
    mask = (np.random.default_rng(3).random((2, 5, 4)) < 0.5).astype(np.float32)
    settings = {"kernel_dilation": dilation, "output_padding": extra}

    @jax.jit
    def run(x, guide, mask):
        K = pac_kernel(guide, size, strides, cuts, transposed=True, **settings)
        own = pac_kernel(guide, size, strides, cuts, transposed=True, mask=mask, normalize_kernel=normalize, **settings)
        y = pac_convolve_transpose(x, weights, guide, strides, cuts, normalize_kernel=normalize, **settings)
        masked = pac_convolve_transpose(
            x, weights, guide, strides, cuts, mask=mask, normalize_kernel=normalize, **settings
        )
        again = pac_convolve_transpose(x, weights, None, strides, cuts, adapting_kernel=own[0], **settings)
        return K, own[1], y, masked, again

    K, own_mask, y, (masked, mask_out), again = run(x, guide, mask)
    centred = [(k - 1) * d // 2 for k, d in zip(size, dilation, strict=True)]
    expected = naive_kernel(guide, size, (1, 1), centred, dilation, output, gaussian)
    close(K, expected)
    before = [cut[0] for cut in cuts]
    close(y, naive_transpose(x, weights, expected, strides, before, dilation, None, normalize)[0])
    expected, where = naive_transpose(x, weights, expected, strides, before, dilation, mask[..., None], normalize)
    close(masked, expected)
    np.testing.assert_array_equal(mask_out, where[..., 0])
    np.testing.assert_array_equal(own_mask, where[..., 0])
    close(again, expected)


KINDS = [
    slow("inv_0.3_0.8", inverse(0.3, 0.8), "none"),
    ("inv_-0.1_1.5_asym_fixed", inverse(-0.1, 1.5, asym=True), "gaussian"),
    slow("gaussian", gaussian, "average_5"),
    ("inv_2_1_fixed_asym", inverse(2, 1, asym=True), "full_3"),
]


@pytest.mark.parametrize(("kind", "kernel", "smoothing"), KINDS)
def test_kernel_types_and_smoothing(kind, kernel, smoothing):
    guide, low_guide, x = normal((1, 7, 8, 2), 0), normal((1, 6, 8, 2), 1), normal((1, 3, 4, 1), 2)
    conv = PACConv(1, 1, (3, 3), (2, 1), kernel_dilation=(1, 2), padding=((1, 0), (3, 2)), kernel_type=kind,
                   smooth_kernel_type=smoothing, **drawn())  # fmt: skip
    up = PACConvTranspose(1, 1, (3, 3), 2, kernel_type=kind, smooth_kernel_type=smoothing, **drawn())
    smooth = smoothing_kernel(smoothing)
    if conv.smooth_kernel is not None:
        smooth = normal(smooth.shape, 3)
        conv.smooth_kernel[...] = up.smooth_kernel[...] = jnp.asarray(smooth)
    pooled = PACPool((3, 3), kernel_type=kind, smooth_kernel_type=smoothing, channel_wise=True, features=2)
    if pooled.smooth_kernel is not None:
        pooled.smooth_kernel[...] = jnp.asarray(smooth)
    wide = pooled.adapting_kernel(guide)
    close(wide, naive_kernel(guide, (3, 3), (1, 1), (1, 1), (1, 1), (7, 8), kernel, smooth, channel_wise=True))
    K = conv.adapting_kernel(guide)
    close(K, naive_kernel(guide, (3, 3), (2, 1), (1, 3), (1, 2), K.shape[1:3], kernel, smooth))
    expected = naive_kernel(low_guide, (3, 3), (1, 1), (1, 1), (1, 1), (6, 8), kernel, smooth)
    y = naive_transpose(x, np.asarray(up.kernel[...]), expected, (2, 2), (1, 1), (1, 1))[0]
    close(up(x, low_guide), y + np.asarray(up.bias[...]))


@pytest.mark.parametrize(("channel_wise", "normalize"), [slow(False, False), (True, True)])
def test_pooling_is_the_definition(channel_wise, normalize):
    x, guide = normal((2, 6, 7, 3), 0), normal((2, 6, 7, 3), 1, 0.7)
    mask = np.random.default_rng(2).random((2, 6, 7, 1)) < 0.5
    pool = PACPool((3, 5), (1, 2), padding=((1, 1), (2, 0)), normalize_kernel=normalize, channel_wise=channel_wise)
    y, (masked, mask_out) = jax.jit(lambda x, guide: (pool(x, guide), pool(x, guide, mask=mask)))(x, guide)
    K = naive_kernel(guide, (3, 5), (1, 2), (1, 2), (1, 1), y.shape[1:3], gaussian, channel_wise=channel_wise)
    ones = np.ones((3, 5, 1, 1))
    close(y, naive_convolve(x, ones, K, (1, 2), (1, 2), (1, 1), None, normalize)[0])
    expected, where = naive_convolve(x, ones, K, (1, 2), (1, 2), (1, 1), mask, normalize)
    close(masked, expected)
    np.testing.assert_array_equal(mask_out, where)
    again = pool(x, kernel=pool.adapting_kernel(guide))
    close(again, y)


def test_a_given_kernel_is_normalised():
    x, guide = normal((2, 6, 5, 3), 0), normal((2, 6, 5, 2), 1, 0.7)
    conv, pool = PACConv(3, 2, (3, 3), 2, normalize_kernel=True, **drawn()), PACPool((3, 3), normalize_kernel=True)
    for layer, strides in ((conv, (2, 2)), (pool, (1, 1))):
        K = naive_kernel(
            guide,
            (3, 3),
            strides,
            (0, 1) if strides == (2, 2) else (1, 1),
            (1, 1),
            layer(x, guide).shape[1:3],
            gaussian,
        )
        for given in (5 * K, layer.adapting_kernel(guide)) if layer is conv else (5 * K,):
            close(layer(x, kernel=given), layer(x, guide))
    up = PACConvTranspose(3, 3, (3, 3), 2, normalize_kernel=True, **drawn())
    plain = pac_kernel(normal((2, 12, 10, 2), 2), (3, 3), 2, transposed=True)
    close(up(x, kernel=plain), up(x, normal((2, 12, 10, 2), 2)))


# --- what the definition implies ---


def test_constant_guide_is_the_plain_convolution():
    x, guide = normal((2, 9, 8, 6), 0), np.full((2, 9, 8, 3), 1.7, np.float32)
    conv = PACConv(6, 5, (3, 5), (2, 1), kernel_dilation=(2, 1), **drawn())
    plain = convolve(x, conv.kernel[...], (2, 1), kernel_dilation=(2, 1)) + conv.bias[...][None, None, None]
    assert conv(x, guide).shape == plain.shape
    close(conv(x, guide), plain)


@pytest.mark.parametrize(("stride", "padding"), [slow(2, "VALID"), (3, ((0, 1), (2, 2)))])
def test_constant_guide_is_the_transposed_convolution_with_the_kernel_flipped(stride, padding):
    x, weights = normal((1, 5, 4, 3), 0), normal((5, 5, 3, 2), 1)
    full = np.zeros((1, 4 * stride + 5, 3 * stride + 5, 2))
    for row, column in np.ndindex(5, 4):
        spread = np.einsum("ni,klio->nklo", x[:, row, column], weights[::-1, ::-1])
        full[:, row * stride : row * stride + 5, column * stride : column * stride + 5] += spread
    if padding != "VALID":
        full = full[:, padding[0][0] : full.shape[1] - padding[0][1], padding[1][0] : full.shape[2] - padding[1][1]]
    guide = np.full((*full.shape[:-1], 2), -0.4, np.float32)
    close(pac_convolve_transpose(x, weights, guide, stride, padding), full)


def test_normalised_pooling_keeps_a_constant():
    x, guide = np.full((1, 7, 6, 2), 3.5, np.float32), normal((1, 7, 6, 4), 0)
    mean, total = jax.jit(
        lambda *arrays: (pac_pool(*arrays, (5, 5), 2, normalize_kernel=True), pac_pool(*arrays, (3, 3)))
    )(x, guide)
    close(mean, np.full((1, 4, 3, 2), 3.5))
    assert float(total.max()) > 3.5


def test_masked_pixels_do_not_matter():
    x, guide, mask = normal((1, 6, 6, 2), 0), normal((1, 6, 6, 2), 1), np.ones((1, 6, 6), bool)
    mask[:, :3, :4] = False
    conv = PACConv(2, 2, (3, 3), normalize_kernel=True, **drawn())
    first, valid = conv(x, guide, mask=mask)
    second, _ = conv(np.where(mask[..., None], x, 100).astype(np.float32), guide, mask=mask)  # compiled once
    np.testing.assert_array_equal(first, second)
    assert valid.dtype == bool
    assert valid.shape == (1, 6, 6)
    assert not valid[0, :2, :3].any()
    assert valid[0, 3:].all()
    np.testing.assert_array_equal(first[0, 0, 0], conv.bias[...])


# --- the modules ---


def test_padding_gives_the_shapes_of_the_plain_convolution():
    x = jax.ShapeDtypeStruct((1, 9, 6, 2), jnp.float32)
    for size, strides, padding, dilation in [
        ((3, 3), 2, "SAME", 1),
        ((5, 1), (1, 3), "VALID", 2),
        ((3, 5), 2, "SAME", (2, 1)),
        ((3, 3), 1, (1, (0, 2)), 1),
        ((7, 7), 1, "VALID", 1),
    ]:
        options = {"padding": padding, "kernel_dilation": dilation}

        def shape(kind, *inputs, size=size, strides=strides, options=options):
            return jax.eval_shape(lambda *xs: kind(2, 3, size, strides, **{**drawn(), **options})(*xs), *inputs).shape

        expected = shape(nnx.Conv, x)
        assert shape(PACConv, x, x) == expected
    lower, upper = (pac_convolve(normal((1, 6, 1), 0), np.eye(3, 1)[..., None], np.zeros((1, 6, 1)), 2, padding)
                    for padding in ("SAME_LOWER", "SAME"))  # fmt: skip
    np.testing.assert_allclose(lower[0, 1:, 0], normal((1, 6, 1), 0)[0, 1:5:2, 0])
    np.testing.assert_allclose(upper[0, :, 0], normal((1, 6, 1), 0)[0, ::2, 0])
    empty = jnp.ones((1, 9, 6, 2))
    assert pac_convolve(empty, jnp.ones((7, 7, 2, 3)), empty, padding="VALID").shape == (1, 3, 0, 3)
    assert pac_kernel(empty, (7, 7), padding="VALID").shape == (1, 3, 0, 49, 1)


def test_same_padding_of_the_transpose_multiplies_the_size():
    for size, stride, dilation in [(5, 2, 1), (1, 3, 1), (3, 4, 2), (7, 1, 1), (3, 6, 1)]:
        for padding in ("SAME", "SAME_LOWER"):
            shapes = (5, 2), (size, 2, 3), (5 * stride, 1)
            x, weights, guide = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)

            def run(x, weights, guide, options=(stride, padding), dilation=dilation):
                return pac_convolve_transpose(x, weights, guide, *options, kernel_dilation=dilation)

            assert jax.eval_shape(run, x, weights, guide).shape == (5 * stride, 3)
    x, guide, weights = normal((1, 4, 3, 2), 0), normal((1, 8, 6, 2), 1), normal((5, 5, 2, 2), 2)
    published = pac_convolve_transpose(x, weights, guide, 2, 2, output_padding=1)
    np.testing.assert_array_equal(pac_convolve_transpose(x, weights, guide, 2), published)


def test_any_number_of_batch_axes():
    x, guide = normal((2, 3, 5, 4, 2), 0), normal((2, 3, 5, 4, 2), 1)
    conv = PACConv(2, 3, (3, 3), **drawn())
    y, single = jax.jit(lambda x, guide: (conv(x, guide), conv(x[1, 2], guide[1, 2])))(x, guide)
    close(single, y[1, 2])
    assert jax.eval_shape(conv.adapting_kernel, guide).shape == (2, 3, 5, 4, 9, 1)
    masked, valid = jax.eval_shape(lambda x: conv(x, guide[0, 0], mask=jnp.ones((5, 4, 1))), x[0, 0])
    assert (masked.shape, valid.shape) == ((5, 4, 3), (5, 4, 1))


def test_one_and_three_spatial_axes():
    x, guide = normal((2, 7, 3), 0), normal((2, 7, 2), 1)
    weights = normal((3, 3, 4), 2)

    @jax.jit
    def run(x, weights, guide):
        line = pac_convolve(x, weights, guide, 2)
        plane = pac_convolve(x[:, None], weights[None], guide[:, None], (1, 2))[:, 0]
        volume = pac_convolve(x[:, None, None], weights[None, None], guide[:, None, None], (1, 1, 2))[:, 0, 0]
        return line, plane, volume

    line, plane, volume = run(x, weights, guide)
    close(line, plane)
    close(volume, line)


def test_half_precision():
    x, guide = normal((1, 6, 6, 8), 0), normal((1, 6, 6, 3), 1, 0.5)
    conv = PACConv(8, 4, (5, 5), normalize_kernel=True, **drawn())
    up = PACConvTranspose(8, 8, (3, 3), (2, 1), shared_filters=True, **drawn())
    half, full = jax.jit(lambda x, guide: (conv(x.astype(jnp.bfloat16), guide), conv(x, guide)))(x, guide)
    close(half.astype(jnp.float32), full, 2e-2)
    for module, signal in ((conv, x), (up, x[:, ::2])):
        for dtype in (jnp.bfloat16, jnp.float16):
            assert jax.eval_shape(module, jnp.asarray(signal, dtype), guide).dtype == dtype
    low = jnp.asarray(x, jnp.bfloat16)
    assert jax.eval_shape(lambda guide: pac_kernel(guide, (3, 3)), low).dtype == jnp.float32
    assert jax.eval_shape(pac_pool, low, guide).dtype == jnp.bfloat16
    conv.dtype = jnp.bfloat16
    assert jax.eval_shape(conv, x, guide).dtype == jnp.bfloat16


LEARNT = {"kernel_type": "inv_0.4_1.2", "smooth_kernel_type": "full_3", "normalize_kernel": True}


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (lambda: PACConv(3, 2, (3, 3), (2, 1), **{**drawn(), **LEARNT}), 6),
        slow(lambda: PACConvTranspose(3, 2, (3, 3), (2, 1), **{**drawn(), **LEARNT}), 3),
        slow(lambda: PACPool((3, 3), channel_wise=True, features=3, **LEARNT), 6),
    ],
    ids=["conv", "transpose", "pool"],
)
def test_gradients_reach_every_parameter_and_are_those_of_the_definition(make, rows):
    """By finite differences in a random direction of all inputs and parameters at once."""
    x, guide, mask = normal((1, 6, 6, 3), 0), normal((1, 6, 6, 3), 1), np.random.default_rng(5).random((1, 6, 6))
    inputs, step = (x[:, :rows], guide, np.asarray(mask[:, :rows], np.float32)), 2e-3
    graphdef, state = nnx.split(make())

    @jax.jit
    def value_and_grad(state, inputs):
        def loss(state, inputs):
            y, _ = nnx.merge(graphdef, state)(*inputs[:2], mask=inputs[2])
            return (y * normal(y.shape, 6)).sum()

        return jax.value_and_grad(loss, argnums=(0, 1))(state, inputs)

    point = (state, inputs)
    gradients = jax.tree.leaves(value_and_grad(*point)[1])
    leaves, structure = jax.tree.flatten(point)
    moves = [normal(leaf.shape, leaf.size) for leaf in leaves]
    for leaf in gradients:
        assert float(np.abs(leaf).max()) > 1e-3
    ends = []
    for sign in (-1, 1):
        moved = [np.asarray(leaf, np.float32) + sign * step * move for leaf, move in zip(leaves, moves, strict=True)]
        ends.append(float(value_and_grad(*jax.tree.unflatten(structure, moved))[0]))
    slope = sum(float((np.asarray(g) * move).sum()) for g, move in zip(gradients, moves, strict=True))
    assert abs((ends[1] - ends[0]) / (2 * step) - slope) < 2e-2 * max(1, abs(slope))


def test_parameter_counts_and_initial_values():
    conv = PACConv(6, 4, (5, 3), rngs=nnx.Rngs(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(conv, nnx.Param))) == 6 * 4 * 15 + 4
    bound = 1 / math.sqrt(6 * 15)
    assert 0.9 * bound < float(jnp.abs(conv.kernel[...]).max()) <= bound
    assert 0.2 * bound < float(jnp.abs(conv.bias[...]).max()) <= bound
    shared = PACConv(16, 16, (3, 3), shared_filters=True, use_bias=False, kernel_type="inv_1_2", rngs=nnx.Rngs(0))
    assert shared.kernel.shape == shared.kernel_shape == (3, 3, 1, 1)
    assert shared.bias is None
    assert 1 / 3 < float(jnp.abs(shared.kernel[...]).max()) <= 16 / 12
    assert (float(shared.inv_alpha[...]), float(shared.inv_lambda[...])) == (1, 2)
    ones = nnx.initializers.ones_init()
    chosen = PACConvTranspose(2, 2, (3, 3), 2, filler="linear", kernel_init=ones, bias_init=ones, rngs=nnx.Rngs(0))
    assert float(chosen.kernel[...].min()) == float(chosen.bias[...].min()) == 1
    learnt = PACPool((3, 3), kernel_type="inv_0.1_0.2", smooth_kernel_type="full_3", channel_wise=True, features=7)
    assert {path[0]: value.shape for path, value in nnx.to_flat_state(nnx.state(learnt))} == {
        "inv_alpha": (7,),
        "inv_lambda": (7,),
        "smooth_kernel": (3, 3),
    }
    assert not jax.tree.leaves(nnx.state(PACPool((3, 3), kernel_type="inv_0.1_0.2_fixed", channel_wise=True)))


def test_linear_filler_up_samples_linearly():
    up = PACConvTranspose(2, 2, (5, 3), (3, 2), filler="linear", rngs=nnx.Rngs(0))
    row = np.arange(4, dtype=np.float32)
    x = np.stack([row[:, None] + 0 * row, 10 * row + 0 * row[:, None]], -1)[None]
    y = np.asarray(up(x, np.zeros((1, 12, 8, 1), np.float32)))
    close(y[0, 1:10, 3, 0], np.arange(9) / 3)  # the first sample comes out at row 1, the last at row 10
    close(y[0, 6, :7, 1], 5 * np.arange(7), 1e-5)
    normalised = PACConvTranspose(1, 1, (5, 5), 2, normalize_kernel=True, filler="linear", rngs=nnx.Rngs(0))
    assert normalised.kernel[:, :, 0, 0].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 3, 1, 0],
        [0, 3, 9, 3, 0],
        [0, 1, 3, 1, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.slow
def test_normalised_linear_filler_keeps_a_constant():
    up = PACConvTranspose(1, 1, (5, 5), 2, normalize_kernel=True, filler="linear", rngs=nnx.Rngs(0))
    y = up(np.full((1, 4, 4, 1), 2, np.float32), np.zeros((1, 8, 8, 1), np.float32))
    close(y[:, 2:-3, 2:-3], np.full((1, 3, 3, 1), 2))  # away from the edges


def test_two_builds_have_equal_graph_definitions_and_need_no_allocation():
    makes = [
        lambda seed: PACConv(2, 3, [3, 3], kernel_type="inv_1_2_fixed", smooth_kernel_type="gaussian",
                             rngs=nnx.Rngs(seed)),
        lambda seed: PACConvTranspose(2, 2, (3, 3), (2, 2), filler="linear", smooth_kernel_type="full_3",
                                      rngs=nnx.Rngs(seed)),
        lambda seed: PACPool((3, 3), 2, kernel_type="inv_1_2", channel_wise=True, features=2),
    ]  # fmt: skip
    for make in makes:
        first, second = (nnx.split(make(seed))[0] for seed in (0, 1))
        assert first == second
        assert hash(first) == hash(second)
        abstract = nnx.eval_shape(lambda make=make: make(0))
        for leaf in jax.tree.leaves(nnx.state(abstract)):
            assert isinstance(leaf, jax.ShapeDtypeStruct)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PACConv(2, 2, (3, 4), rngs=nnx.Rngs(0)), "odd"),
        (lambda: PACConv(2, 2, 3, rngs=nnx.Rngs(0)), "kernel_size=3"),
        (lambda: PACConv(2, 2, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0)), "feature_group_count=2"),
        (lambda: PACConv(2, 2, (3, 3), lowering="dense", rngs=nnx.Rngs(0)), "lowering='dense'"),
        (lambda: PACConv(2, 3, (3, 3), shared_filters=True, rngs=nnx.Rngs(0)), "shared_filters=True"),
        (lambda: PACConv(2, 2, (3, 3), kernel_type="laplace", rngs=nnx.Rngs(0)), "kernel_type='laplace'"),
        (lambda: PACConv(2, 2, (3, 3), kernel_type="gaussian_asym", rngs=nnx.Rngs(0)), "kernel_type"),
        (lambda: PACConv(2, 2, (3, 3), kernel_type="inv_1", rngs=nnx.Rngs(0)), "kernel_type"),
        (lambda: PACConv(2, 2, (3, 3), kernel_type="inv_1_2_asym_asym", rngs=nnx.Rngs(0)), "kernel_type"),
        (lambda: PACConv(2, 2, (3, 3), kernel_type="inv_nan_2", rngs=nnx.Rngs(0)), "kernel_type"),
        (lambda: PACConv(2, 2, (3, 3), smooth_kernel_type="average_2", rngs=nnx.Rngs(0)), "odd size"),
        (lambda: PACConv(2, 2, (3, 3), smooth_kernel_type="box", rngs=nnx.Rngs(0)), "smooth_kernel_type='box'"),
        (lambda: PACPool((2, 2)), "odd"),
        (lambda: PACPool((3, 3), padding="WRAP"), "padding='WRAP'"),
        (lambda: PACPool((3, 3), kernel_type="inv_1_2", channel_wise=True), "features="),
        (lambda: PACConvTranspose(2, 2, (5, 5), 2, output_padding=1, rngs=nnx.Rngs(0)), "padding='SAME'"),
        (lambda: PACConvTranspose(2, 2, (5, 5), 2, output_padding=-1, padding=2, rngs=nnx.Rngs(0)), "output_padding"),
        (lambda: PACConvTranspose(2, 2, (5, 5), 2, filler="crf", rngs=nnx.Rngs(0)), "filler='crf'"),
        (lambda: PACConvTranspose(2, 3, (5, 5), 2, filler="linear", rngs=nnx.Rngs(0)), "in_features=2"),
        (lambda: PACConvTranspose(2, 2, (3, 3), 4, filler="linear", rngs=nnx.Rngs(0)), "2 \\* stride - 1"),
    ],
)
def test_bad_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_arguments():
    for call in (
        lambda: PACConv(2, 2, (3, 3), kernel="gaussian", rngs=nnx.Rngs(0)),
        lambda: PACConv(2, 2, (3, 3), filler="linear", rngs=nnx.Rngs(0)),
        lambda: pac_kernel(jnp.ones((3, 3, 1)), (3, 3), kernel_typ="gaussian"),
    ):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()


def test_bad_inputs():
    x, K = jnp.ones((1, 6, 6, 2)), jnp.ones((1, 6, 6, 9, 1))
    conv = PACConv(2, 2, (3, 3), **drawn())
    up = PACConvTranspose(2, 2, (5, 5), 2, **drawn())
    pool = PACPool((3, 3), channel_wise=True)
    smoothing, W = PACConv(2, 2, (3, 3), smooth_kernel_type="average_3", **drawn()), jnp.ones((3, 3, 2, 2))
    for call, message in (
        (lambda: conv(x, x[:, :5]), "guide has shape"),
        (lambda: conv(x, x[0]), "guide has shape"),
        (lambda: up(x, x), "size of the output"),
        (lambda: conv(x), "neither was"),
        (lambda: conv(x, x, kernel=K), "both were"),
        (lambda: conv(x, kernel=K[..., :8, :]), "adapting kernel has shape"),
        (lambda: conv(x, kernel=jnp.ones((1, 6, 6, 9, 2))), "one channel"),
        (lambda: conv(x, kernel=K, mask=x[..., 0]), "a mask with"),
        (lambda: conv(x, x, mask=x), "mask has shape"),
        (lambda: pool(x, kernel=K), r"channel_wise=True with an adapting kernel of shape \(1, 6, 6, 9, 1\)"),
        (lambda: smoothing(x, kernel=K), "smooth_kernel, or a layer with smooth_kernel_type"),
        (lambda: pac_convolve(x, W, adapting_kernel=K, smooth_kernel=jnp.ones((3, 3))), "Give the guide in place"),
        (lambda: conv(x[..., :1], x), "2 channels"),
        (lambda: pool(x, jnp.ones((1, 6, 6, 3))), "3 guide channels"),
        (lambda: pac_convolve(x, jnp.ones((3, 3, 2, 2)), x, channel_wise=True), "only PACPool"),
        (lambda: pac_convolve(x, jnp.ones((3, 3, 3, 2)), x), "3 channels"),
        (lambda: pac_kernel(x, (3, 3), inv_alpha=1.0), "inverse kernel types"),
        (lambda: pac_kernel(x, (3, 3), kernel_type="inv_1_1", inv_alpha=jnp.ones(2)), "inv_alpha has shape"),
        (lambda: pac_kernel(x, (3, 3), smooth_kernel=jnp.ones((2, 2))), "smooth_kernel has shape"),
        (lambda: pac_kernel(x, (5, 5), 4, transposed=True), "guide of size"),
        (lambda: pac_kernel(x, (3, 3), output_padding=1), "transposed operator"),
        (lambda: conv(x, x, out_sharding="x"), "out_sharding"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_published_constants_are_checked_and_may_be_left_out():
    options = {"kernel_type": "inv_0.1_0.5_fixed", "smooth_kernel_type": "gaussian"}
    conv = PACConv(2, 3, (3, 3), **{**drawn(), **options})
    weights = {"weight": normal((3, 2, 3, 3), 0), "bias": normal((3,), 1)}
    constants = {
        "inv_alpha": np.float32(0.1),
        "inv_lambda": np.float32(0.5),
        "smooth_kernel": smoothing_kernel("gaussian")[None, None],
    }
    load_state_dict(conv, weights)
    np.testing.assert_array_equal(conv.kernel[...], weights["weight"].transpose(2, 3, 1, 0))
    load_state_dict(conv, {**weights, **constants})
    with pytest.raises(ValueError, match=r"inv_alpha: 0\.3"):
        load_state_dict(conv, {**weights, **constants, "inv_alpha": np.float32(0.3)})
    pool = PACPool((3, 3), kernel_type="inv_1_2", channel_wise=True, features=2, smooth_kernel_type="full_3")
    load_state_dict(
        pool,
        {"inv_alpha": np.ones(2), "inv_lambda": np.array([3.0, 4.0]), "smooth_kernel": normal((1, 1, 3, 3), 0)},
    )
    assert pool.inv_lambda[...].tolist() == [3, 4]
    up = PACConvTranspose(2, 3, (3, 3), 2, **drawn())
    load_state_dict(up, {"weight": normal((2, 3, 3, 3), 0), "bias": weights["bias"]})
    np.testing.assert_array_equal(up.kernel[...], normal((2, 3, 3, 3), 0).transpose(2, 3, 0, 1))


# --- memory ---


@pytest.mark.parametrize("transposed", [False, slow(True)])
def test_memory_stays_far_below_the_unfolded_signal(transposed):
    channels, size = 16, 64
    guide = jax.ShapeDtypeStruct((1, size, size, 8), jnp.float32)
    side = size // 2 if transposed else size
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    weights = jax.ShapeDtypeStruct((5, 5, channels, channels), jnp.float32)

    def forward(x, weights, guide):
        function, stride = (pac_convolve_transpose, 2) if transposed else (pac_convolve, 1)
        return function(x, weights, guide, stride, normalize_kernel=True)

    def temporary(function):
        return jax.jit(function).lower(x, weights, guide).compile().memory_analysis().temp_size_in_bytes

    unfolded = size * size * 25 * channels * 4
    gradient = jax.grad(lambda *arrays: (forward(*arrays) ** 2).sum(), argnums=(0, 1, 2))
    assert temporary(forward) < unfolded / 4
    assert temporary(gradient) < unfolded / 2


def test_costs_are_those_of_the_formula():
    module = PACConv(6, 5, (3, 3), rngs=nnx.Rngs(0))
    assert module.num_parameters + 5 == 6 * 5 * 9 + 5 == module.kernel[...].size + module.bias[...].size
    assert module.macs((4, 7), guide_features=3) == 28 * 9 * (6 * 5 + 6 + 3 + 1)
    up = PACConvTranspose(4, 4, (5, 5), 2, shared_filters=True, rngs=nnx.Rngs(0))
    assert up.num_parameters == 25
    assert up.macs((8, 8), guide_features=3) == 16 * 25 * (4 + 4 + 3 + 1)
