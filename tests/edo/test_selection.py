import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import create_model, edo
from tests.foreign_resnet import ForeignResNet, filled


def planted(conv, seed=0):
    """Fills a searched kernel with filters whose taps lie on the grids of random dilations, which it returns."""
    rng = np.random.default_rng(seed)
    kernel = np.zeros(conv.kernel.shape, np.float32)
    truth = rng.integers(1, conv.d_max + 1, (conv.out_features, len(conv.kernel_size)))
    for number, dilations in enumerate(truth):
        taps = np.ix_(
            *(
                n // 2 + d * (np.arange(k) - k // 2)
                for n, d, k in zip(conv.kernel_size, dilations, conv.base_kernel_size, strict=True)
            )
        )
        kernel[(*taps, slice(None), number)] = rng.standard_normal((*conv.base_kernel_size, kernel.shape[-2]))
    conv.kernel[...] = kernel
    return truth.tolist()


@pytest.fixture(scope="module")
def supernet():
    return filled(lambda: edo.supernet(ForeignResNet(rngs=nnx.Rngs(0)), d_max=3))


@pytest.mark.parametrize(
    "arguments",
    [
        {"feature_group_count": 1},
        {"feature_group_count": 4},
        {"feature_group_count": 8, "strides": 2, "padding": 1},
        {"kernel_dilation": 2, "padding": 2, "strides": 2},
    ],
)
@pytest.mark.parametrize("size", [(3, 3), (5, 3), (3,)])
def test_the_dilations_of_filters_on_one_grid_are_found(arguments, size):
    arguments = {**arguments, "padding": "SAME"} if size != (3, 3) else arguments
    conv = edo.SupernetConv(8, 16, size, d_max=3, rngs=nnx.Rngs(0), **arguments)
    truth = planted(conv)
    model = nnx.Sequential(conv)
    shape = (25, 26)[: len(size)]
    expected = edo.expected_inputs(model, [np.random.default_rng(1).random((2, *shape, 8), np.float32)])
    assert edo.select(model) == {"layers.0": truth}
    assert edo.select(model, "abs") == {"layers.0": truth}
    assert edo.select(model, "same", input_shape=(*shape, 8)) == {"layers.0": truth}
    assert edo.select(model, "same", expected=expected) == {"layers.0": truth}


def test_patterns_are_plain_data_in_order_of_construction(supernet):
    patterns = edo.select(supernet)
    assert list(patterns) == list(edo.supernet_convs(supernet))
    assert json.loads(json.dumps(patterns)) == patterns
    assert [len(pattern) for pattern in patterns.values()] == [8, 8, 16, 16, 16, 16]


def test_the_ablations_restrict_the_choice(supernet):
    """The less freedom, the larger the error; and no choice as narrow has a smaller one."""
    errors, free = edo.errors(supernet), edo.select(supernet)
    tied, layer = edo.select(supernet, axes="tied"), edo.select(supernet, per="layer")
    both = edo.select(supernet, per="layer", axes="tied")
    for path, of_filters in errors.items():

        def total(pattern, of_filters=of_filters):
            return sum(of_filters[number, d - 1, e - 1] for number, (d, e) in enumerate(pattern))

        assert all(d == e for d, e in [*tied[path], *both[path]])
        assert all(pattern[path] == [pattern[path][0]] * len(of_filters) for pattern in (layer, both))
        assert total(free[path]) <= min(total(tied[path]), total(layer[path]))
        assert max(total(tied[path]), total(layer[path])) <= total(both[path])
        for d in (1, 2, 3):
            assert total(both[path]) <= total([[d, d]] * len(of_filters))


def test_expected_inputs_are_the_means_of_what_convolutions_see(supernet):
    batches = [jax.random.normal(jax.random.key(n), (size, 9, 10, 3)) for n, size in enumerate((4, 2))]
    means = edo.expected_inputs(supernet, batches)
    supernet.eval()
    images = jnp.concatenate(batches)
    seen = nnx.relu(supernet.norm(supernet.stem(images)))
    np.testing.assert_allclose(means["stages.0.blocks.0.body.layers.0"], seen.mean(axis=0), atol=1e-5)
    assert means["stages.1.blocks.0.body.layers.3"].shape == (5, 5, 16)
    assert type(supernet.stages[0].blocks[0].body.layers[0]) is edo.SupernetConv


def test_a_constant_expectation_is_the_map_of_ones(supernet):
    ones = {path: np.ones_like(mean) for path, mean in edo.expected_inputs(supernet, [np.ones((1, 9, 9, 3))]).items()}
    measured = edo.errors(supernet, "same", expected=ones)
    for path, error in edo.errors(supernet, "same", input_shape=(9, 9, 3)).items():
        np.testing.assert_allclose(measured[path], error, rtol=2e-4, atol=1e-3)


class Twice(nnx.Module):
    """Uses one convolution on two maps."""

    def __init__(self, strides):
        self.conv = edo.SupernetConv(3, 3, (3, 3), strides=strides, d_max=2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.conv(self.conv(x))


def test_a_convolution_that_is_called_twice_has_the_mean_of_both():
    model = Twice(strides=1)
    images = np.random.default_rng(0).random((2, 5, 5, 3), np.float32)
    expected = (images + np.asarray(model.conv(images))).mean(axis=0) / 2
    np.testing.assert_allclose(edo.expected_inputs(model, [images])["conv"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="conv is called with inputs of 2 sizes"):
        edo.expected_inputs(Twice(strides=2), [images])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "l1"}, "objective='l1'"),
        ({"objective": "same"}, "needs input_shape"),
        ({"objective": "sum", "expected": {}}, "use 'same', whose map of ones they replace"),
        ({"objective": "same", "expected": {}}, "has no input for 'stages"),
        ({"per": "channel"}, "per='channel': expected one of filter, layer"),
        ({"axes": "one"}, "axes='one': expected one of both, tied"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, supernet):
    with pytest.raises(ValueError, match=message):
        edo.select(supernet, **arguments)


def test_a_supernet_that_has_diverged_is_refused():
    conv = edo.SupernetConv(2, 2, (3, 3), d_max=2, rngs=nnx.Rngs(0))
    conv.kernel[...] = conv.kernel[...].at[0, 0, 0, 1].set(jnp.nan)
    with pytest.raises(ValueError, match=r"layers\.0 has weights or inputs that are not finite"):
        edo.select(nnx.Sequential(conv))


class Shared(nnx.Module):
    """One convolution under two names, the later one first by the alphabet."""

    def __init__(self):
        self.second = nnx.Conv(3, 3, (3, 3), rngs=nnx.Rngs(0))
        self.first = self.second

    def __call__(self, x):
        return self.first(self.second(x))


def test_a_shared_convolution_has_one_name_throughout():
    supernet = edo.supernet(Shared(), 2)
    assert supernet.first is supernet.second
    expected = edo.expected_inputs(supernet, [np.ones((1, 6, 6, 3))])
    patterns = edo.select(supernet, "same", expected=expected)
    assert list(patterns) == list(expected) == ["first"]
    network = edo.rewrite(Shared(), patterns)
    assert network.first is network.second
    assert list(network.second.pattern) == sorted(map(tuple, patterns["first"]))


def test_expectations_of_other_sizes_are_refused(supernet):
    with pytest.raises(ValueError, match="batches is empty"):
        edo.expected_inputs(supernet, [])
    with pytest.raises(ValueError, match="after others of another image shape"):
        edo.expected_inputs(supernet, [np.ones((1, 9, 9, 3)), np.ones((1, 8, 9, 3))])
    wrong = {path: np.ones((9, 9, 5)) for path in edo.supernet_convs(supernet)}
    with pytest.raises(ValueError, match="8 channels"):
        edo.select(supernet, "same", expected=wrong)


def test_published_patterns_keep_the_counts():
    patterns = {"a": [[1, 1], [3, 2], [1, 1]], "b": [[2, 3]]}
    published = edo.published_patterns(patterns, d_max=3)
    assert [sum(entry.values()) for entry in published] == [3, 1]
    assert list(published[0]) == [f"({p}, {q})" for p in range(3) for q in range(3)]
    assert (published[0]["(0, 0)"], published[0]["(2, 1)"], published[1]["(1, 2)"]) == (2, 1, 1)
    with pytest.raises(ValueError, match=r"'a' has the dilations \(3, 2\), beyond d_max=2"):
        edo.published_patterns(patterns, d_max=2)


@pytest.mark.slow
def test_a_resnet50_supernet_is_searched_in_seconds():
    make = partial(create_model, "resnet50", conv=partial(edo.SupernetConv, d_max=4))
    supernet = filled(lambda: make(rngs=nnx.Rngs(0)))
    started = time.monotonic()
    patterns = edo.select(supernet)
    assert time.monotonic() - started < 10  # about 1 second
    assert len(patterns) == 16
