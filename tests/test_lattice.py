import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msconv_jax import KernelLattice, Tile


def two_bands(**changes):
    """Outputs 0:2 read all four inputs at dilation 1, outputs 2:4 at dilation 2."""
    arguments = {
        "in_features": 4,
        "out_features": 4,
        "tiles": (
            Tile(slice(0, 2), slice(0, 4), (3, 3)),
            Tile(slice(2, 4), slice(0, 4), (3, 3), dilation=(2, 2)),
        ),
    }
    return KernelLattice(**{**arguments, **changes})


def mixed():
    """3x3 and 1x1 cells in one row, strided slices, an empty corner."""
    return KernelLattice(
        4,
        5,
        (
            Tile(slice(0, 2), slice(0, 4, 2), (3, 3)),
            Tile(slice(0, 2), slice(1, 4, 2), (1, 1)),
            Tile(slice(2, 5), slice(1, 4), (3, 3), (1, 2)),
        ),
        base_extent=(3, 3),
    )


def tile_kernels(lattice, seed=0):
    rng = np.random.default_rng(seed)
    return [
        rng.standard_normal((*t.kernel_size, len(range(99)[t.inputs]), len(range(99)[t.outputs]))).astype(np.float32)
        for t in lattice.tiles
    ]


def test_tiles_with_the_same_channels_are_equal_however_the_slice_is_written():
    assert Tile(slice(None, 5, 2), slice(0, 1), (3, 3), 2) == Tile(slice(0, 6, 2), slice(0, 1), (3, 3), (2, 2))
    assert hash(Tile(slice(0, 4), slice(0, 1), (1,))) == hash(Tile(slice(0, 4, 1), slice(0, 1), (1,)))
    assert Tile(slice(0, 4), slice(0, 1), (1,)) != Tile(slice(0, 3), slice(0, 1), (1,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((slice(0, None), slice(0, 1), (3, 3)), "stop is written out"),
        ((slice(2, 2), slice(0, 1), (3, 3)), "names no channel"),
        ((slice(-2, 2), slice(0, 1), (3, 3)), "names no channel"),
        ((slice(0, 2, -1), slice(0, 1), (3, 3)), "names no channel"),
        ((3, slice(0, 1), (3, 3)), "expected a slice"),
        ((slice(0, 2), slice(0, 1), 3), "kernel_size=3"),
        ((slice(0, 2), slice(0, 1), (3, 0)), "positive"),
        ((slice(0, 2), slice(0, 1), (3, 3), 0), "positive"),
        ((slice(0, 2), slice(0, 1), (3, 3), (1, 1, 1)), "each of the 2 spatial axes"),
        ((slice(0, 2), slice(0, 1), (3.0, 3)), "kernel_size"),
        ((slice(0, 2), slice(0, 1), (3, 3), True), "dilation"),
    ],
)
def test_bad_tiles_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tile(*arguments)


def test_every_output_needs_a_kernel():
    with pytest.raises(ValueError, match=r"output channels 2, 3 have no kernel"):
        two_bands(tiles=(Tile(slice(0, 2), slice(0, 4), (3, 3)),))


def test_no_cell_is_covered_twice():
    with pytest.raises(ValueError, match="cover the same cells"):
        two_bands(tiles=(*two_bands().tiles, Tile(slice(3, 4), slice(3, 4), (1, 1))))


@pytest.mark.parametrize("tile", [Tile(slice(0, 5), slice(0, 4), (3, 3)), Tile(slice(0, 4), slice(0, 5), (3, 3))])
def test_channels_stay_inside_the_table(tile):
    with pytest.raises(ValueError, match="exceed the table, which has 4"):
        two_bands(tiles=(tile,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tiles": ()}, "at least one tile"),
        ({"tiles": ("3x3",)}, "only Tile objects"),
        ({"in_features": 0}, "in_features"),
        ({"out_features": 2.5}, "out_features"),
        ({"base_extent": (3, 3, 3)}, "each of the 2 spatial axes"),
        ({"tiles": (Tile(slice(0, 4), slice(0, 2), (3,)), Tile(slice(0, 4), slice(2, 4), (3, 3)))}, "spatial axes"),
    ],
)
def test_bad_lattices_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        two_bands(**changes)


def test_counts():
    assert two_bands().num_parameters == 2 * 9 * 2 * 4
    assert two_bands().macs((5, 7)) == 35 * two_bands().num_parameters
    assert mixed().num_parameters == 2 * 2 * 9 + 2 * 2 + 3 * 3 * 9


def test_tables():
    assert (two_bands().dilations[:, 0] == [[1, 1], [1, 1], [2, 2], [2, 2]]).all()
    assert mixed().dilations[4].tolist() == [[0, 0], [1, 2], [1, 2], [1, 2]]
    assert mixed().kernel_sizes[0].tolist() == [[3, 3], [1, 1], [3, 3], [1, 1]]


def test_extents():
    assert two_bands().base_extent == (3, 3)
    assert two_bands().extent == (5, 5)
    assert mixed().extent == (3, 5)
    # A base kernel larger than all tiles does not enlarge the dense kernel.
    assert two_bands(base_extent=(9, 9)).extent == (5, 5)


def test_expansion_places_taps_and_zeros():
    lattice, kernels = mixed(), tile_kernels(mixed())
    expected = np.zeros((3, 5, 4, 5), np.float32)
    expected[:, 1:4, 0:4:2, 0:2] = kernels[0]
    expected[1, 2, 1:4:2, 0:2] = kernels[1][0, 0]
    expected[:, ::2, 1:4, 2:5] = kernels[2]
    np.testing.assert_array_equal(lattice.expand(kernels), expected)


def test_packed_kernels_mean_the_same_as_tile_kernels():
    lattice, kernels = mixed(), tile_kernels(mixed())
    packed = lattice.pack(kernels)
    assert [array.shape for array in packed] == [bank.shape for bank in lattice.banks]
    assert sum(array.size for array in packed) == lattice.num_parameters
    np.testing.assert_array_equal(lattice.expand(packed), lattice.expand(kernels))
    for again, array in zip(lattice.pack(packed), packed, strict=True):
        np.testing.assert_array_equal(again, array)


def test_the_packed_kernel_of_a_full_lattice_is_the_plain_kernel():
    (bank,) = two_bands().banks
    assert bank.shape == (3, 3, 4, 4)
    kernel = np.random.default_rng(0).standard_normal(bank.shape).astype(np.float32)
    dense = np.asarray(two_bands().expand(kernel))
    np.testing.assert_array_equal(dense[1:4, 1:4, :, :2], kernel[..., :2])
    np.testing.assert_array_equal(dense[::2, ::2, :, 2:], kernel[..., 2:])


def test_wrong_kernels_are_refused_with_both_forms_named():
    with pytest.raises(ValueError, match=r"\(3, 3, 4, 4\) \(packed\) or \(3, 3, 4, 2\)"):
        two_bands().pack(np.zeros((3, 3, 4, 5)))


def test_equality_and_hash():
    assert two_bands() == two_bands()
    assert hash(two_bands()) == hash(two_bands())
    assert two_bands() != two_bands(base_extent=(5, 5))
    assert two_bands() != mixed()
    assert two_bands() != "two bands"


def test_static_under_jit():
    """Equal lattices share one trace, as a static argument and as an ordinary one."""
    traces = []

    def total(lattice, kernel):
        traces.append(lattice)
        return lattice.expand(kernel).sum()

    for jitted in (jax.jit(total), jax.jit(total, static_argnums=0)):
        traces.clear()
        assert jitted(two_bands(), jnp.ones((3, 3, 4, 4))) == 144
        assert jitted(two_bands(), jnp.ones((3, 3, 4, 4))) == 144
        jitted(two_bands(base_extent=(5, 5)), jnp.ones((3, 3, 4, 4)))
        assert len(traces) == 2


def test_repr_shows_a_line_per_tile_and_shortens_long_lists():
    assert repr(two_bands()) == (
        "KernelLattice(4 -> 4 features, 2 tiles:\n"
        "  outputs 0:2  inputs 0:4  kernel 3x3  dilation 1x1\n"
        "  outputs 2:4  inputs 0:4  kernel 3x3  dilation 2x2)"
    )
    depthwise = KernelLattice(20, 20, tuple(Tile(slice(c, c + 1), slice(c, c + 1), (3, 3)) for c in range(20)))
    assert repr(depthwise).endswith("... and 4 more)")


@pytest.mark.parametrize("lattice", [two_bands(), mixed(), two_bands(base_extent=(7, 5))])
def test_json_round_trip(lattice):
    text = lattice.to_json()
    assert KernelLattice.from_json(text) == lattice
    assert KernelLattice.from_json(json.dumps(json.loads(text))) == lattice


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "3",
        "{}",
        '{"in_features": 1, "out_features": 1, "base_extent": [1], "tiles": [{"outputs": 3}]}',
        two_bands().to_json().replace('"in_features": 4', '"in_features": 3'),
        two_bands().to_json().replace('"in_features": 4', '"in_features": "4"'),
    ],
)
def test_bad_json_is_refused(text):
    with pytest.raises(ValueError, match=r"JSON of a lattice|exceed the table|in_features"):
        KernelLattice.from_json(text)


def test_lattices_cannot_be_changed():
    with pytest.raises(AttributeError):
        two_bands().in_features = 3
    with pytest.raises(ValueError, match="read-only"):
        two_bands().rows[0, 0] = 1
