import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import ICConv, lattice_convolve
from msconv_jax.lowering.choose import choose_plan
from msconv_jax.lowering.cost import Site
from msconv_jax.operators.icconv import dilations_of_filters, icconv_lattice
from tests.operators.rows import SPATIAL, Row
from tests.reference import naive_convolve, whole

ROWS = [
    Row(
        ICConv,
        {**SPATIAL, "pattern": ((1, 1, 5), (2, 3, 3))},
        settings=[
            {"pattern": ((1, 1, 4), (1, 2, 1), (3, 1, 3))},
            {"pattern": ((1, 1), (1, 2), (3, 1), (2, 2)) * 2, "feature_group_count": 8},
        ],
        plain={"pattern": ((1, 1, 8),)},
    )
]

SHARED = pathlib.Path(__file__).parent.parent.parent.parent / "shared" / "golden" / "models"
# The second layer of stage 1 of the published detection network of depth 50: dilations and number of filters.
PUBLISHED = (
    (1, 1, 30), (1, 2, 6), (1, 3, 1), (1, 4, 1), (2, 1, 9), (2, 2, 4), (2, 3, 1), (3, 1, 1), (3, 3, 1), (4, 1, 5),
    (4, 2, 4), (4, 4, 1),
)  # fmt: skip


def icconv(x, kernel, strides=1, padding="SAME", *, lowering="auto", **options):
    inputs = kernel.shape[-2] * options.get("feature_group_count", 1)
    lattice = icconv_lattice(inputs, kernel.shape[-1], kernel.shape[:-2], **options)
    return lattice_convolve(x, kernel, lattice, strides, padding, lowering=lowering)


def naive_icconv(x, kernel, dilations, groups, stride):
    """Every filter as a convolution of its own, its kernel written out with zeros between the taps."""
    size, fan_in = kernel.shape[:2], kernel.shape[2]
    outputs = []
    for number, dilation in enumerate(dilations):
        first = number // (len(dilations) // groups) * fan_in
        sparse = np.zeros((*((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)), fan_in, 1), np.float32)
        sparse[:: dilation[0], :: dilation[1]] = kernel[..., number : number + 1]
        pads = [n // 2 for n in sparse.shape[:2]]
        outputs.append(naive_convolve(x[..., first : first + fan_in], sparse, stride, pads))
    return np.concatenate(outputs, axis=-1)


@pytest.mark.parametrize(
    ("groups", "size", "stride", "dilations"),
    [
        (1, (3, 3), 1, [(1, 1), (1, 2), (4, 1), (2, 3), (1, 1), (3, 3)]),
        (2, (3, 3), 2, [(1, 1), (1, 2), (2, 1), (1, 1), (1, 1), (2, 2)]),
        (6, (3, 3), 1, [(1, 4), (2, 2), (1, 1), (4, 1), (1, 4), (3, 1)]),  # depthwise
        (1, (5, 5), 2, [(1, 2), (2, 2), (1, 1), (2, 1), (1, 2), (3, 1)]),
        (3, (1, 5), (1, 2), [(1, 2), (1, 1), (2, 3), (1, 1), (1, 2), (3, 2)]),
    ],
    ids=str,
)
def test_every_filter_has_its_dilation(groups, size, stride, dilations):
    x, kernel = whole((2, 9, 8, 6), 0), whole((*size, 6 // groups, 6), 1)
    y = icconv(x, kernel, stride, tuple(k // 2 for k in size), pattern=dilations, feature_group_count=groups)
    np.testing.assert_array_equal(y, naive_icconv(x, kernel, dilations, groups, stride))


@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("lowering", ["tiles", "packs", "grouped", "dense", "shifts", "scatter"])
def test_every_lowering_gives_the_same(lowering, groups):
    pattern = list(itertools.islice(itertools.cycle([(1, 1), (1, 2), (3, 1)]), 8))
    x, kernel = whole((1, 8, 7, 8), 0), whole((3, 3, 8 // groups, 8), 1)
    expected = naive_icconv(x, kernel, pattern, groups, 2)
    y = icconv(x, kernel, 2, 1, pattern=pattern, feature_group_count=groups, lowering=lowering)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_tiny_bands_are_joined(backend, monkeypatch):
    """No backend gets a convolution for every one of 12 bands on a small map; the result stays the same."""
    lattice = icconv_lattice(64, 64, (3, 3), pattern=PUBLISHED)
    plan = choose_plan(lattice, "auto", backend, Site(8, (7, 7), (1, 1)))
    assert len(plan) < len(PUBLISHED)
    monkeypatch.setattr("msconv_jax.convolution.current_backend", lambda: backend)
    x, kernel = whole((1, 11, 10, 64), 0), whole((3, 3, 64, 64), 1)
    joined, apart = (icconv(x, kernel, 2, pattern=PUBLISHED, lowering=kind) for kind in ("auto", "tiles"))
    np.testing.assert_array_equal(joined, apart)


def test_the_forms_of_a_pattern_mean_the_same():
    filters = ((1, 1),) * 5 + ((1, 2),) * 2 + ((4, 1),)
    counts = [(1, 1, 5), (1, 2, 2), (2, 2, 0), (4, 1, 1)]
    published = {"(0, 0)": 5, "(0, 1)": 2, "(1, 1)": 0, "(3, 0)": 1}
    for pattern in (filters, counts, published, np.array(counts), json.loads(json.dumps(published))):
        assert dilations_of_filters(pattern, 8) == filters
        assert ICConv(4, 8, (3, 3), pattern=pattern, rngs=nnx.Rngs(0)).pattern == filters


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published patterns stand in ../shared/golden")
@pytest.mark.parametrize("name", ["ic_resnet50_k9_det", "ic_resnet101_k13_pose"])
def test_published_patterns_are_read(name):
    manifest = json.loads((SHARED / f"{name}.json").read_text())
    shapes = dict(manifest["state_dict"])
    for layer, pattern in manifest["patterns"].items():
        features = sum(count for _, _, count in pattern)
        assert dilations_of_filters(pattern, features)[0] == tuple(pattern[0][:2])
        for number, (_, _, count) in enumerate(pattern):
            assert shapes[f"{layer}.conv_list.{number}.weight"][0] == count


def test_costs_what_the_plain_convolution_costs():
    module = ICConv(64, 64, (3, 3), pattern=PUBLISHED, rngs=nnx.Rngs(0))
    assert module.lattice.num_parameters == 9 * 64 * 64 == module.kernel[...].size
    assert module.lattice.macs((56, 56)) == 56 * 56 * 9 * 64 * 64


def test_kernel_dilation_multiplies_the_pattern():
    table = icconv_lattice(2, 2, (3, 3), pattern=[(1, 2), (3, 1)], kernel_dilation=(2, 3)).dilations
    assert table[:, 0].tolist() == [[2, 6], [6, 3]]


def test_equal_arguments_share_one_lattice():
    make = [ICConv(64, 64, (3, 3), pattern=pattern, rngs=nnx.Rngs(0)) for pattern in (PUBLISHED, list(PUBLISHED))]
    assert make[0].lattice is make[1].lattice


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ((), "pattern="),
        (3, "pattern=3"),
        ("(1, 1)", "pattern="),
        ([(1, 1)] * 7, "for 7 filters"),
        ([(1, 1, 7)], "for 7 filters"),
        ([(0, 1, 8)], "at least 1"),
        ([(1, 1, 9), (1, 2, -1)], "at least 0"),
        ([(1, 1), (1, 2, 7)], "expected one tuple"),
        ([(1, 1.5)] * 8, "expected one tuple"),
        ([(1,)] * 8, "expected one tuple"),
        ({"(0, 0)": 7}, "for 7 filters"),
        ({"0": 8}, "expected one tuple"),
    ],
    ids=str,
)
def test_bad_patterns_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        ICConv(8, 8, (3, 3), pattern=pattern, rngs=nnx.Rngs(0))


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="odd"):
        ICConv(8, 8, (4, 4), pattern=((1, 1, 8),), rngs=nnx.Rngs(0))


def test_bfloat16():
    module = ICConv(8, 8, (3, 3), pattern=((1, 1, 5), (1, 3, 3)), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 9, 9, 8))
    y = module(x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), module(x), atol=5e-2)
