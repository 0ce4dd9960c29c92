import numpy as np
import pytest
from flax import nnx

from msconv_jax import HetConv, lattice_convolve
from msconv_jax.operators.hetconv import hetconv_lattice
from tests.operators.rows import SPATIAL, Row
from tests.reference import naive_convolve, whole

ROWS = [
    Row(
        HetConv,
        {**SPATIAL, "parts": 2},
        settings=[
            {"parts": 4},
            {"parts": 2, "layout": "lattice", "feature_group_count": 2},
            {"parts": 2, "masked": False},
        ],
        plain={"parts": 1},
    )
]


def hetconv(x, kernel, pointwise, strides=1, padding="SAME", *, lowering="auto", **options):
    lattice = hetconv_lattice(x.shape[-1], kernel.shape[-1], kernel.shape[:-2], **options)
    kernels = [next(array for array in (kernel, pointwise) if array.shape == bank.shape) for bank in lattice.banks]
    return lattice_convolve(x, kernels, lattice, strides, padding, lowering=lowering)


def dense_kernel(kernel, pointwise, parts, layout, groups=1):
    """The k x k kernel with zeros around the 1 x 1 ones, input by input, as the size matrix S says."""
    size, fan_out = kernel.shape[:-2], kernel.shape[-1] // groups
    fan_in = kernel.shape[-2] * parts
    dense = np.zeros((*size, fan_in * groups, kernel.shape[-1]), np.float32)
    centre = tuple(k // 2 for k in size)
    for c in range(kernel.shape[-1]):
        group, within = divmod(c, fan_out)
        large = small = 0
        for k in range(fan_in):
            if layout == "lattice":
                is_large = (k - within) % parts == 0
            else:
                is_large = k // (fan_in // parts) == within // (fan_out // parts)
            if is_large:
                dense[..., group * fan_in + k, c] = kernel[..., large, c]
                large += 1
            else:
                dense[(*centre, group * fan_in + k, c)] = pointwise[..., small, c].item()
                small += 1
    return dense


@pytest.mark.parametrize("layout", ["block", "lattice"])
@pytest.mark.parametrize(
    ("features", "parts", "size", "stride", "groups"),
    [
        ((8, 12), 4, (3, 3), 1, 1),
        ((8, 4), 2, (3, 3), 2, 1),
        ((8, 8), 8, (3, 3), 1, 1),  # depthwise and pointwise
        ((8, 8), 2, (5, 3), (1, 2), 2),
    ],
    ids=str,
)
def test_sizes_follow_the_matrix(layout, features, parts, size, stride, groups):
    fan_in = features[0] // groups
    x = whole((2, 7, 6, features[0]), 0)
    kernel = whole((*size, fan_in // parts, features[1]), 1)
    pointwise = whole((1, 1, fan_in - fan_in // parts, features[1]), 2)
    pads = tuple(k // 2 for k in size)
    y = hetconv(x, kernel, pointwise, stride, pads, parts=parts, layout=layout, feature_group_count=groups)
    dense = dense_kernel(kernel, pointwise, parts, layout, groups)
    np.testing.assert_array_equal(y, naive_convolve(x, dense, stride, pads))


@pytest.mark.parametrize("layout", ["block", "lattice"])
@pytest.mark.parametrize("lowering", ["tiles", "packs", "grouped", "dense", "shifts", "scatter"])
def test_every_lowering_gives_the_same(lowering, layout):
    x, kernel, pointwise = whole((1, 6, 7, 8), 0), whole((3, 3, 2, 8), 1), whole((1, 1, 6, 8), 2)
    y = hetconv(x, kernel, pointwise, 2, 1, parts=4, layout=layout, lowering=lowering)
    np.testing.assert_array_equal(y, hetconv(x, kernel, pointwise, 2, 1, parts=4, layout=layout))


def test_layouts_are_equal_up_to_a_permutation():
    """Sorting inputs and outputs by their number modulo P turns the paper's order into the public code's."""
    parts, size = 4, 16
    order = sorted(range(size), key=lambda channel: (channel % parts, channel // parts))
    x, kernel, pointwise = whole((1, 7, 6, size), 0), whole((3, 3, 4, size), 1), whole((1, 1, 12, size), 2)
    literal = np.asarray(hetconv(x, kernel, pointwise, parts=parts, layout="lattice"))
    # The 1x1 kernels of an output stand in the order of their inputs, which the sorting changes.
    sorted_pointwise = np.empty_like(pointwise)
    for place, c in enumerate(order):
        others = [k for k in range(size) if (k - c) % parts]
        sorted_pointwise[..., place] = pointwise[:, :, [others.index(k) for k in order if (k - c) % parts], c]
    block = hetconv(x[..., order], kernel[..., order], sorted_pointwise, parts=parts, layout="block")
    np.testing.assert_array_equal(block, literal[..., order])


@pytest.mark.optimised
@pytest.mark.parametrize("layout", ["block", "lattice"])
def test_unmasked_adds_a_pointwise_convolution_on_all_inputs(layout):
    module = HetConv(8, 12, (3, 3), 2, parts=4, layout=layout, masked=False, padding=1, rngs=nnx.Rngs(0))
    masked = HetConv(8, 12, (3, 3), 2, parts=4, layout=layout, padding=1, rngs=nnx.Rngs(0))
    assert module.pointwise_kernel[...].shape == (1, 1, 8, 12)
    assert masked.pointwise_kernel[...].shape == (1, 1, 6, 12)
    x, kernel, pointwise = whole((1, 7, 6, 8), 0), whole((3, 3, 2, 12), 1), whole((1, 1, 8, 12), 2)
    module.kernel[...], module.pointwise_kernel[...] = kernel, pointwise
    grouped = dense_kernel(kernel, np.zeros((1, 1, 6, 12)), 4, layout)
    grouped[1, 1] += pointwise[0, 0]
    np.testing.assert_array_equal(module(x), naive_convolve(x, grouped, 2, (1, 1)))


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 64])
def test_costs_are_those_of_the_formula(parts):
    module = HetConv(64, 128, (3, 3), parts=parts, use_bias=False, rngs=nnx.Rngs(0))
    stored = sum(value.size for value in (module.kernel[...], module.pointwise_kernel) if value is not None)
    expected = 9 * 64 * 128 // parts + 64 * 128 * (parts - 1) // parts
    assert stored == module.lattice.num_parameters == expected
    assert module.lattice.macs((7, 7)) == 49 * expected
    assert expected / (9 * 64 * 128) == pytest.approx(1 / parts + (1 - 1 / parts) / 9)


def test_one_part_is_the_plain_convolution_and_size_one_too():
    assert hetconv_lattice(8, 8, (3, 3), parts=1).tiles[0].inputs == slice(0, 8, 1)
    assert HetConv(8, 8, (3, 3), parts=1, rngs=nnx.Rngs(0)).pointwise_kernel is None
    small = HetConv(8, 8, (1, 1), parts=4, rngs=nnx.Rngs(0))
    assert small.kernel[...].shape == (1, 1, 8, 8)
    assert small.pointwise_kernel is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": 3}, r"parts=3 does not divide.*take one of \[1, 2, 4, 8\]"),
        ({"parts": 0}, "parts=0"),
        ({"parts": 2.0}, "parts=2.0"),
        ({"parts": 8, "feature_group_count": 2}, "4 inputs and 4 outputs"),
        ({"parts": 2, "layout": "blocks"}, "block, lattice"),
        ({"parts": 2, "kernel_size": (4, 4)}, "odd"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    size = options.pop("kernel_size", (3, 3))
    with pytest.raises(ValueError, match=message):
        HetConv(8, 8, size, rngs=nnx.Rngs(0), **options)
