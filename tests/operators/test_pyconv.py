import functools

import numpy as np
import pytest
from flax import nnx

from msconv_jax import PyConv, lattice_convolve
from msconv_jax.operators.pyconv import pyconv_groups, pyconv_lattice, pyconv_split
from tests.operators.rows import Row
from tests.reference import naive_convolve, whole

ROWS = [
    Row(
        PyConv,
        {"kernel_sizes": (3, 5), "groups": (1, 4)},
        settings=[
            {"growth": (0, 2), "groups": (1, 4)},
            {"growth": (0, 2, 4), "groups": (1, 1, 1), "feature_group_count": 2},
        ],
        plain={"growth": (0,), "groups": (1,)},
    )
]


def pyconv(x, kernels, strides=1, padding="SAME", *, lowering="auto", **options):
    lattice = pyconv_lattice(
        x.shape[-1],
        sum(kernel.shape[-1] for kernel in kernels),
        [kernel.shape[:-2] for kernel in kernels],
        groups=[x.shape[-1] // kernel.shape[-2] for kernel in kernels],
        level_features=[kernel.shape[-1] for kernel in kernels],
        **options,
    )
    banks = [
        np.concatenate([kernel for kernel in kernels if kernel.shape[:-1] == bank.shape[:-1]], axis=-1)
        for bank in lattice.banks
    ]
    return lattice_convolve(x, banks, lattice, strides, padding, lowering=lowering)


def naive_pyconv(x, kernels, groups, stride):
    """Each level as its own grouped convolution, padded by half of its kernel."""
    levels = []
    for kernel, count in zip(kernels, groups, strict=True):
        fan_in, fan_out = kernel.shape[-2], kernel.shape[-1] // count
        for g in range(count):
            own = x[..., g * fan_in : (g + 1) * fan_in], kernel[..., g * fan_out : (g + 1) * fan_out]
            levels.append(naive_convolve(*own, stride, [size // 2 for size in kernel.shape[:-2]]))
    return np.concatenate(levels, axis=-1)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("sizes", "groups", "features", "stride"),
    [
        ((3, 5, 7, 9), (1, 2, 4, 8), (4, 4, 8, 8), 1),
        ((3, 5, 7), (1, 4, 8), (2, 4, 8), 2),
        ((5, 3), (4, 4), (4, 8), 3),
        ((3, 3, 5), (2, 2, 1), (2, 4, 3), 1),  # two levels that share a bank
        (((3, 1), (5, 7)), (1, 2), (3, 4), 2),
        ((3,), (1,), (5,), 2),
    ],
    ids=str,
)
def test_levels_are_grouped_convolutions_side_by_side(sizes, groups, features, stride):
    sizes = [size if isinstance(size, tuple) else (size, size) for size in sizes]
    x = whole((2, 7, 6, 8), 0)
    kernels = [
        whole((*size, 8 // count, outputs), n)
        for n, (size, count, outputs) in enumerate(zip(sizes, groups, features, strict=True))
    ]
    y = pyconv(x, kernels, stride, tuple(min(own) // 2 for own in zip(*sizes, strict=True)))
    np.testing.assert_array_equal(y, naive_pyconv(x, kernels, groups, stride))


@pytest.mark.parametrize("lowering", ["tiles", "packs", "grouped", "dense", "shifts", "scatter"])
def test_every_lowering_gives_the_same(lowering):
    x = whole((1, 7, 6, 8), 0)
    kernels = [whole((3, 3, 8, 4), 1), whole((5, 5, 2, 8), 2)]
    np.testing.assert_array_equal(pyconv(x, kernels, 2, 1, lowering=lowering), pyconv(x, kernels, 2, 1))


def test_volumes():
    """The video network's kernels, small here: one frame more at each level, larger planes."""
    x = whole((1, 5, 6, 7, 4), 0)
    kernels = [whole((3, 3, 3, 4, 2), 1), whole((5, 7, 7, 2, 2), 2)]
    y = pyconv(x, kernels, (1, 2, 2), 1)
    np.testing.assert_array_equal(y, naive_pyconv(x, kernels, (1, 2), (1, 2, 2)))
    module = PyConv(4, 4, ((3, 3, 3), (5, 7, 7)), (1, 2, 2), groups=(1, 2), padding=1, use_bias=False, rngs=nnx.Rngs(0))
    assert [kernel.shape for kernel in module.kernels] == [kernel.shape for kernel in kernels]
    module.kernels[0][...], module.kernels[1][...] = kernels
    np.testing.assert_array_equal(module(x), y)


def test_dilation_keeps_all_levels_one_size():
    x = whole((1, 9, 8, 4), 0)
    kernels = [whole((3, 3, 4, 2), 1), whole((5, 5, 4, 2), 2)]
    dilated = [np.zeros((2 * (k - 1) + 1, 2 * (k - 1) + 1, 4, 2), np.float32) for k in (3, 5)]
    for sparse, kernel in zip(dilated, kernels, strict=True):
        sparse[::2, ::2] = kernel
    np.testing.assert_array_equal(pyconv(x, kernels, kernel_dilation=2), naive_pyconv(x, dilated, (1, 1), 1))


def test_groups_multiply_those_of_every_level():
    make = functools.partial(PyConv, 16, 16, (3, 5), padding=1, rngs=nnx.Rngs(0))
    ours, theirs = make(groups=(1, 2), feature_group_count=4), make(groups=(4, 8))
    assert ours.lattice == theirs.lattice
    assert [kernel.shape for kernel in ours.kernels] == [kernel.shape for kernel in theirs.kernels]


@pytest.mark.parametrize(
    ("out_features", "levels", "expected"),
    [
        (64, 4, (16, 16, 16, 16)),
        (64, 3, (16, 16, 32)),
        (64, 2, (32, 32)),
        (64, 1, (64,)),
        (64, 5, (8, 8, 16, 16, 16)),
    ],
)
def test_split_is_that_of_the_public_networks(out_features, levels, expected):
    assert pyconv_split(out_features, levels) == expected
    assert PyConv(64, 64, range(3, 3 + 2 * levels, 2), rngs=nnx.Rngs(0)).level_features == expected


def test_the_papers_rule_for_groups():
    # 25/9 = 2.78, 49/9 = 5.44, 81/9 = 9: the closest divisors of both sides
    assert pyconv_groups(64, (16, 16, 16, 16), (3, 5, 7, 9)) == (1, 2, 4, 8)
    assert pyconv_groups(60, (15, 15, 30), (3, 5, 7)) == (1, 3, 5)
    assert pyconv_groups(7, (7, 7), (3, 9)) == (1, 7)
    assert pyconv_groups(8, (3, 5), (3, 5)) == (1, 1)
    assert pyconv_groups(64, (32, 32), ((3, 3, 3), (5, 7, 7))) == (1, 8)  # 245 / 27 = 9.07
    assert PyConv(64, 64, (3, 5, 7, 9), rngs=nnx.Rngs(0)).groups == (1, 2, 4, 8)
    assert pyconv_lattice(64, 64, (3, 5), feature_group_count=8) == pyconv_lattice(64, 64, (3, 5), groups=(8, 16))


def test_costs_are_those_of_the_formula():
    sizes, groups, features = (3, 5, 7, 9), (1, 4, 8, 16), (16, 16, 16, 16)
    module = PyConv(64, 64, sizes, groups=groups, use_bias=False, rngs=nnx.Rngs(0))
    expected = sum(k * k * 64 // g * o for k, g, o in zip(sizes, groups, features, strict=True))
    assert module.lattice.num_parameters == expected == sum(kernel[...].size for kernel in module.kernels)
    assert module.lattice.macs((56, 56)) == expected * 56 * 56


def test_one_per_stage_replaces_the_convolutions_of_a_network():
    import msconv_jax

    conv = [
        functools.partial(PyConv, kernel_sizes=(3, 5), groups=(1, 4)),
        functools.partial(PyConv, kernel_sizes=(3,), groups=(1,)),
    ]
    model = nnx.eval_shape(
        lambda: msconv_jax.create_model("resnet50", layers=(1, 1), conv=conv, width=16, rngs=nnx.Rngs(0))
    )
    assert [kernel.shape for kernel in model.layer1[0].conv2.kernels] == [(3, 3, 16, 8), (5, 5, 4, 8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_sizes": 3}, "kernel_sizes=3"),
        ({"kernel_sizes": ()}, "kernel_sizes"),
        ({"kernel_sizes": (3, 4)}, "odd"),
        ({"kernel_sizes": (3, (3, 3, 3))}, "number of axes"),
        ({"groups": (1, 3)}, r"level 1 \(kernel 5x5\) has 3 groups.*take one of \[1, 2, 4\]"),
        ({"groups": (1,)}, r"groups=\(1,\).*each of the 2 levels"),
        ({"groups": 1}, "each of the 2 levels"),
        ({"groups": (1, 0)}, "groups"),
        ({"level_features": (4, 3)}, "add up to 7"),
        ({"kernel_sizes": (3, 5, 7), "out_features": 6}, "does not divide into 4 shares"),
        ({"feature_group_count": 3}, "feature_group_count=3"),
        ({"kernel_size": (5, 5)}, "first level"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(options, message):
    options = {"out_features": 8, "kernel_sizes": (3, 5), **options}
    out_features, sizes = options.pop("out_features"), options.pop("kernel_sizes")
    with pytest.raises(ValueError, match=message):
        PyConv(8, out_features, sizes, rngs=nnx.Rngs(0), **options)
