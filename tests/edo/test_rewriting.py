import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import create_model, edo
from msconv_jax.models.families.icconv import list_ic_patterns, published_ic_convs
from msconv_jax.operators import ICConv
from msconv_jax.surgery import Where, convolutions
from tests.edo.test_selection import planted
from tests.foreign_resnet import ForeignResNet, filled


@pytest.fixture(scope="module")
def supernet():
    """Every searched filter has its taps on one grid, so that the IC network of these dilations is its equal."""
    model = filled(lambda: edo.supernet(ForeignResNet(rngs=nnx.Rngs(0)), d_max=2))
    for number, conv in enumerate(edo.supernet_convs(model).values()):
        planted(conv, seed=number)
    return model


def ic_convs(model):
    return {path: conv for path, conv in convolutions(model).items() if isinstance(conv, ICConv)}


def test_a_model_gets_the_patterns_and_keeps_the_rest(supernet):
    model = filled(lambda: ForeignResNet(rngs=nnx.Rngs(0)))
    patterns = edo.select(supernet)
    network = edo.rewrite(model, json.loads(json.dumps(patterns)))
    found = ic_convs(network)
    assert list(found) == list(patterns)
    for path, conv in found.items():
        assert list(conv.pattern) == sorted(map(tuple, patterns[path]))
        assert conv.kernel.shape == convolutions(model)[path].kernel.shape
        np.testing.assert_array_equal(conv.kernel[...], convolutions(model)[path].kernel[...])
    assert type(network.stem) is nnx.Conv
    parameters = jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(network, nnx.Param)))
    assert parameters == jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    kept = edo.rewrite(model, patterns, rearrange=False)
    assert [list(map(list, conv.pattern)) for conv in ic_convs(kept).values()] == list(patterns.values())


def test_sampled_from_its_supernet_it_computes_the_same(supernet):
    network = edo.rewrite(supernet, edo.select(supernet), init_from=supernet)
    with pytest.raises(ValueError, match="has no SupernetConv"):
        edo.supernet_convs(network)
    images = jax.random.normal(jax.random.key(0), (2, 11, 10, 3))
    supernet.eval()
    network.eval()
    np.testing.assert_allclose(network(images), supernet(images), atol=1e-4)


def test_a_supernet_without_initial_values_begins_anew(supernet):
    patterns = edo.select(supernet)
    network = edo.rewrite(supernet, patterns, rngs=nnx.Rngs(7))
    path = next(iter(patterns))
    sampled = edo.rewrite(supernet, patterns, init_from=supernet, rearrange=True)
    assert ic_convs(network)[path].pattern == ic_convs(sampled)[path].pattern
    assert not np.allclose(ic_convs(network)[path].kernel[...], ic_convs(sampled)[path].kernel[...])
    assert network(jnp.ones((1, 9, 9, 3))).shape == (1, 4)


def test_rearranged_filters_take_their_weights_along(supernet):
    patterns = edo.select(supernet)
    path = next(iter(patterns))
    sampled = ic_convs(edo.rewrite(supernet, patterns, init_from=supernet, rearrange=True))[path]
    in_place = ic_convs(edo.rewrite(supernet, patterns, init_from=supernet))[path]
    order = sorted(range(8), key=lambda number: tuple(patterns[path][number]))
    np.testing.assert_array_equal(sampled.kernel[...], in_place.kernel[...][..., np.array(order)])
    x = jax.random.normal(jax.random.key(0), (1, 7, 7, 8))
    np.testing.assert_allclose(sampled(x), in_place(x)[..., np.array(order)], atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_filters_move_within_their_groups_only(groups):
    model = nnx.Sequential(nnx.Conv(8, 16, (3, 3), feature_group_count=groups, rngs=nnx.Rngs(0)))
    pattern = [[3 - n % 3, 1 + n % 2] for n in range(16)]
    conv = edo.rewrite(model, {"layers.0": pattern}).layers[0]
    size = 16 // groups
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        assert list(conv.pattern[own]) == sorted(map(tuple, pattern[own]))
    # From a supernet the operator is the same function, whatever the groups.
    supernet = edo.supernet(model, d_max=3)
    planted(edo.supernet_convs(supernet)["layers.0"])
    network = edo.rewrite(supernet, edo.select(supernet), init_from=supernet)
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 8))
    np.testing.assert_allclose(network(x), supernet(x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ic_resnet50_k9_seg", "ic_resnet101_k13_pose"])
def test_published_patterns_make_the_published_network(name):
    assert name in list_ic_patterns()
    depth = name.split("_")[1]
    model = nnx.eval_shape(lambda: create_model(depth, rngs=nnx.Rngs(0)))
    convs = published_ic_convs(name)
    d_max = 4 if "k9" in name else 6
    by_filter = {
        path: [[d_h, d_w] for d_h, d_w, count in factory.keywords["pattern"] for _ in range(count)]
        for path, factory in convs.items()
    }
    published = json.loads(json.dumps(edo.published_patterns(by_filter, d_max)))
    assert {len(entry) for entry in published} == {d_max**2}
    network = edo.rewrite(model, published)
    expected = nnx.eval_shape(lambda: create_model(f"ic_{depth}", patterns=name, rngs=nnx.Rngs(0)))
    assert {path: conv.pattern for path, conv in ic_convs(network).items()} == {
        path: conv.pattern for path, conv in ic_convs(expected).items()
    }
    assert jax.tree.structure(nnx.to_pure_dict(nnx.state(network))) == jax.tree.structure(
        nnx.to_pure_dict(nnx.state(expected))
    )


@pytest.mark.parametrize(
    ("name", "where", "kwargs"),
    [
        ("resnext29_8x64d", None, {"layers": (1, 1, 1), "width": 8, "groups": 2}),
        ("mobilenetv2", Where(feature_group_count="depthwise"), {"width_mult": 0.25}),
    ],
)
@pytest.mark.slow
def test_grouped_and_depthwise_networks_are_searched_and_rewritten(name, where, kwargs):
    model = create_model(name, num_classes=4, rngs=nnx.Rngs(0), **kwargs)
    supernet = edo.supernet(model, 2, where)
    patterns = edo.select(supernet)
    network = edo.rewrite(model, patterns)
    assert list(ic_convs(network)) == list(patterns)
    network.eval()
    assert network(jnp.ones((1, 32, 32, 3))).shape == (1, 4)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"stages.7": [[1, 1]]}, "a pattern for 'stages.7'"),
        ({"stages.0.blocks.0.body.layers.0": [[1, 1]]}, r"layers\.0: pattern=.*is for 1 filters"),
        ([[[1, 1]] * 8], "a list of 1 patterns for 6 convolutions"),
        ({"stages.0.blocks.0.body.layers.0": [[0, 1]] * 8}, "at least 1"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(patterns, message):
    with pytest.raises(ValueError, match=message):
        edo.rewrite(nnx.eval_shape(lambda: ForeignResNet(rngs=nnx.Rngs(0))), patterns)


def test_a_supernet_that_lacks_a_convolution_is_refused(supernet):
    model = filled(lambda: ForeignResNet(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="init_from has no searched convolution at 'stem'"):
        edo.rewrite(model, {"stem": [[1, 1, 8]]}, init_from=supernet)
