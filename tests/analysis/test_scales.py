"""Scale allocation against the paper's words, spelled out kernel by kernel."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import DynamicPSConv, HetConv, ICConv, PSConv, PyConv, create_model
from msconv_jax.analysis import plot_scale_allocation, scale_allocation

RNGS = nnx.Rngs(0)


@pytest.mark.parametrize(("statistic", "reduce"), [("max", max), ("mean", np.mean), ("sum", sum)])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_statistic_is_of_each_kernels_mean_absolute_weight(statistic, reduce, groups):
    conv = PSConv(16, 8, (3, 3), layout="lattice", feature_group_count=groups, rngs=RNGS)
    kernel = np.asarray(conv.kernel[...], np.float64)
    inputs, outputs = 16 // groups, 8 // groups
    means = {(1, 1): [], (2, 2): [], (4, 4): []}
    for output in range(8):
        for place in range(inputs):
            dilation = (1, 2, 1, 4)[(place - output % outputs + 1) % 4]
            means[dilation, dilation].append(np.abs(kernel[:, :, place, output]).mean())
    amounts = {scale: reduce(values) for scale, values in means.items()}
    expected = {scale: amount / sum(amounts.values()) for scale, amount in amounts.items()}
    assert scale_allocation(conv, statistic=statistic)[""] == pytest.approx(expected)


def test_layers_of_several_kernel_sizes_divide_by_extent():
    conv = PyConv(8, 8, (3, 5), groups=(1, 4), rngs=RNGS)
    largest = [np.abs(np.asarray(kernel[...])).mean(axis=(0, 1)).max() for kernel in conv.kernels]
    found = scale_allocation(conv, by="extent")[""]
    assert found == pytest.approx({(3, 3): largest[0] / sum(largest), (5, 5): largest[1] / sum(largest)})
    assert scale_allocation(conv)[""] == {(1, 1): 1.0}


@pytest.mark.parametrize("masked", [True, False])
def test_the_kernels_of_hetconv_are_those_it_computes_with(masked):
    conv = HetConv(8, 4, (3, 3), parts=2, masked=masked, rngs=RNGS)
    dense = np.asarray(conv.lattice.expand(conv.lattice_kernels))
    large = np.abs(dense).sum(axis=(0, 1)) != np.abs(dense[1, 1])
    means = np.where(large, np.abs(dense).mean(axis=(0, 1)), np.abs(dense[1, 1]))
    amounts = {(1, 1): means[~large].max(), (3, 3): means[large].max()}
    expected = {scale: amount / sum(amounts.values()) for scale, amount in amounts.items()}
    assert scale_allocation(conv, by="extent")[""] == pytest.approx(expected)


def test_a_planted_filter_takes_its_share():
    conv = ICConv(4, 4, (3, 3), pattern=((1, 1, 2), (1, 4, 2)), rngs=RNGS)
    conv.kernel[...] = jnp.ones((3, 3, 4, 4)).at[..., 3].set(-3.0)
    assert scale_allocation(conv)[""] == {(1, 1): 0.25, (1, 4): 0.75}


def test_every_layer_of_a_network_comes_in_order_and_in_half_precision():
    model = create_model("ps_resnet8", width=4, param_dtype=jnp.bfloat16, rngs=RNGS)
    shares = scale_allocation(model)
    assert list(shares) == [f"layer{stage}.0.conv{number}" for stage in (1, 2, 3) for number in (1, 2)]
    assert all(sum(own.values()) == pytest.approx(1) for own in shares.values())
    deep = nnx.Sequential(*(DynamicPSConv(4, 4, (3, 3), rngs=RNGS) for _ in range(11)))
    assert list(scale_allocation(deep)) == [f"layers.{number}" for number in range(11)]


def test_what_has_no_proportions_is_refused():
    with pytest.raises(ValueError, match="no layer with a kernel lattice"):
        scale_allocation(nnx.Conv(4, 4, (3, 3), rngs=RNGS))
    conv = PSConv(4, 4, (3, 3), rngs=RNGS)
    for name in ("by", "statistic"):
        with pytest.raises(ValueError, match=f"{name}='size': expected one of"):
            scale_allocation(conv, **{name: "size"})
    conv.kernel[...] = jnp.zeros((3, 3, 4, 4))
    with pytest.raises(ValueError, match="only zero weights"):
        scale_allocation(conv)
    conv.kernel[...] = jnp.full((3, 3, 4, 4), jnp.nan)
    with pytest.raises(ValueError, match="not finite"):
        scale_allocation(conv)
    with pytest.raises(ValueError, match="allocation is empty"):
        plot_scale_allocation({})


def test_the_bars_are_the_proportions():
    shares = {"a": {(1, 1): 0.25, (2, 2): 0.75}, "b": {(1, 1): 0.5, (1, 4): 0.5}}
    axes = plot_scale_allocation(shares).axes[0]
    bars = {container.get_label(): [bar.get_height() for bar in container] for container in axes.containers}
    assert bars == {"1": [0.25, 0.5], "2": [0.75, 0.0], "1x4": [0.0, 0.5]}
    tops = [[bar.get_y() + bar.get_height() for bar in container] for container in axes.containers]
    assert np.max(tops, axis=0).tolist() == [1.0, 1.0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
