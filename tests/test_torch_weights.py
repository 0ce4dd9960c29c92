"""Loading published weights: errors for mismatches, and the supported forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax
from msconv_jax import GroupedConv, HetConv, ICConv, PSConv, PyConv, load_state_dict
from msconv_jax.convolution import convolve
from msconv_jax.models import Bottleneck, Parts
from msconv_jax.torch_weights import conversion_of


def weights_for(module, seed=0):
    rng = np.random.default_rng(seed)
    shapes = conversion_of(module).shapes
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_all_mismatches_stand_in_one_error_and_nothing_is_loaded():
    block = Bottleneck(16, 4, parts=Parts(), name="block", rngs=nnx.Rngs(0))
    before = np.asarray(block.conv1.kernel[...])
    state = weights_for(block)
    state["conv1.weight"] = state["conv1.weight"] + 1
    del state["bn2.running_mean"]
    state["conv3.weight"] = np.zeros((16, 4, 3, 3))
    state["head.weight"] = np.zeros((2, 2))
    with pytest.raises(ValueError, match="3 problems") as caught:
        load_state_dict(block, state)
    message = str(caught.value)
    assert "missing: bn2.running_mean (4,)" in message
    assert "unexpected: head.weight (2, 2)" in message
    assert "wrong shape: conv3.weight is (16, 4, 3, 3), expected (16, 4, 1, 1)" in message
    np.testing.assert_array_equal(block.conv1.kernel[...], before)


def test_names_of_a_file_in_an_error_are_few_short_and_printable():
    conv = GroupedConv(4, 6, (3, 3), rngs=nnx.Rngs(0))
    names = [f"\x1b]0;{number}\x07\u202e{'x' * 2000}" for number in range(2000)]
    with pytest.raises(ValueError, match="2000 problems") as caught:
        load_state_dict(conv, weights_for(conv) | {name: np.zeros(1) for name in names})
    lines = str(caught.value).split("\n  ")
    assert len(lines) == 22
    assert lines[-1] == "... and 1980 more like this"
    assert all(line.isprintable() and len(line) < 200 for line in lines)


def test_unexpected_names_may_be_allowed_and_counters_are():
    conv = GroupedConv(4, 6, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
    state = weights_for(conv)
    extra = {"other": np.zeros(3), "bn.num_batches_tracked": np.array(7)}
    with pytest.raises(ValueError, match="unexpected: other"):
        load_state_dict(conv, state | extra)
    assert load_state_dict(conv, state | extra, strict=False) is conv
    np.testing.assert_array_equal(conv.kernel[...], state["weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(conv.bias[...], state["bias"])


def test_values_take_the_dtype_of_the_parameters():
    conv = GroupedConv(4, 6, (3, 3), param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    load_state_dict(conv, weights_for(conv))
    assert conv.kernel[...].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "make",
    [
        lambda: PSConv(8, 8, (3, 3), rngs=nnx.Rngs(0)),
        lambda: ICConv(8, 8, (3, 3), pattern=((1, 1, 5), (2, 1, 3)), rngs=nnx.Rngs(0)),
        lambda: PyConv(8, 8, (3,), groups=(1,), rngs=nnx.Rngs(0)),
    ],
)
def test_a_plain_kernel_is_carried_over_as_it_is(make):
    module = make()
    state = {"weight": np.random.default_rng(0).standard_normal((8, 8, 3, 3)), "bias": np.arange(8.0)}
    load_state_dict(module, state)
    kernel = module.kernels[0] if isinstance(module, PyConv) else module.kernel
    np.testing.assert_allclose(kernel[...], state["weight"].transpose(2, 3, 1, 0), rtol=1e-6)
    np.testing.assert_array_equal(module.bias[...], state["bias"])


def test_a_module_without_a_rule_is_named():
    class Own(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(3))

    with pytest.raises(ValueError, match=r"Own\.scale: no rule"):
        load_state_dict(Own(), {})


# --- the public grouped PSConv ---


def official_zero_mask(outputs, fan_in, groups, parts):
    """The mask of zeros in the public constructor's dense weight, from the specification."""
    mask = np.zeros((outputs, fan_in), bool)
    rows, columns = outputs // (groups * parts), fan_in // parts
    for j in range(groups):
        for i in range(parts):
            r = i + j * groups
            for part in (i, (i + parts // 2) % parts):
                mask[r * rows : (r + 1) * rows, part * columns : (part + 1) * columns] = True
    return mask


def official_psgconv(x, state, groups, parts, dilation):
    """The sum of the three convolutions, as in the public module."""
    hwio = {name.partition(".")[0]: np.asarray(value).transpose(2, 3, 1, 0) for name, value in state.items()}
    fan_in = x.shape[-1] // groups
    halves = np.concatenate([np.roll(np.arange(fan_in), fan_in // 2) + g * fan_in for g in range(groups)])
    total = convolve(x, hwio["conv"], padding=1, feature_group_count=groups)
    for name, inputs, d in (("gwconv", x, dilation), ("gwconv_shift", x[..., halves], 2 * dilation)):
        total += convolve(inputs, hwio[name], padding=d, kernel_dilation=d, feature_group_count=groups * parts)
    return total


@pytest.mark.parametrize(("groups", "parts", "features"), [(2, 4, 16), (8, 4, 64), (3, 4, 24), (4, 2, 16), (1, 8, 16)])
def test_the_public_overlap_is_kept_exactly(groups, parts, features):
    pattern = [{0: 3, parts // 2: 6}.get(n, 1) for n in range(parts)]
    make = {"pattern": pattern, "phase": 0, "feature_group_count": groups, "padding": 1, "use_bias": False}
    module = PSConv(features, features, (3, 3), official_compat=True, rngs=nnx.Rngs(0), **make)
    state = weights_for(module)
    zeros = official_zero_mask(features, features // groups, groups, parts)
    state["conv.weight"][zeros] = 0
    load_state_dict(module, state)
    x = np.random.default_rng(1).standard_normal((1, 15, 14, features)).astype(np.float32)
    np.testing.assert_allclose(module(x), official_psgconv(x, state, groups, parts, 3), rtol=1e-4, atol=1e-4)
    own = PSConv(features, features, (3, 3), rngs=nnx.Rngs(0), **make)
    if groups in (1, parts):
        load_state_dict(own, state)
        np.testing.assert_allclose(own(x), module(x), rtol=1e-5, atol=1e-5)
    else:
        with pytest.raises(ValueError, match="official_compat=True"):
            load_state_dict(own, state)


@pytest.mark.parametrize(
    "options", [{"layout": "lattice"}, {"vary": "in"}, {"pattern": (1, 2, 1)}, {"pattern": (1, 2, 1, 4, 1), "phase": 3}]
)
def test_there_is_no_overlap_in_forms_that_the_public_code_lacks(options):
    with pytest.raises(ValueError, match="official_compat=True"):
        PSConv(60, 60, (3, 3), official_compat=True, rngs=nnx.Rngs(0), **options)


# --- the public HetConv and IC-Conv ---


def test_unmasked_hetconv_weights_are_not_cut_silently():
    masked = HetConv(8, 8, (3, 3), parts=2, use_bias=False, rngs=nnx.Rngs(0))
    state = weights_for(masked)
    with pytest.raises(ValueError, match="masked=False"):
        load_state_dict(masked, state)
    whole = HetConv(8, 8, (3, 3), parts=2, masked=False, use_bias=False, padding=1, rngs=nnx.Rngs(0))
    load_state_dict(whole, state)
    x = np.random.default_rng(1).standard_normal((1, 6, 5, 8)).astype(np.float32)
    expected = convolve(x, state["gwc.weight"].transpose(2, 3, 1, 0), padding=1, feature_group_count=2)
    expected += convolve(x, state["pwc.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_allclose(whole(x), expected, rtol=1e-5, atol=1e-5)


def test_icconv_in_groups_takes_an_equal_share_of_every_dilation():
    module = ICConv(8, 8, (3, 3), pattern=((1, 1, 3), (2, 1, 1)) * 2, feature_group_count=2, rngs=nnx.Rngs(0))
    state = weights_for(module)
    assert {name: value.shape[0] for name, value in state.items() if name.endswith("weight")} == {
        "conv_list.0.weight": 6,
        "conv_list.1.weight": 2,
    }
    load_state_dict(module, state)
    kernel = np.asarray(module.kernel[...]).transpose(3, 2, 0, 1)
    np.testing.assert_array_equal(kernel[[0, 1, 2, 4, 5, 6]], state["conv_list.0.weight"])
    np.testing.assert_array_equal(kernel[[3, 7]], state["conv_list.1.weight"])
    uneven = ICConv(8, 8, (3, 3), pattern=((1, 1, 3), (2, 1, 5)), feature_group_count=2, rngs=nnx.Rngs(0))
    assert set(conversion_of(uneven).shapes) == {"weight", "bias"}


@pytest.mark.slow
def test_a_whole_plain_network_loads_by_pytorchs_names():
    make = {"layers": (1, 1), "width": 8, "num_classes": 3}
    model = msconv_jax.create_model("resnet50", rngs=nnx.Rngs(0), **make)
    state = weights_for(model)
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.0.weight", "fc.bias"} <= set(state)
    load_state_dict(model, state)
    np.testing.assert_array_equal(
        model.layer2[0].downsample.conv.kernel[...], state["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0)
    )
    transferred = msconv_jax.create_model("ps_resnet50", rngs=nnx.Rngs(0), **make)
    load_state_dict(transferred, state)
    np.testing.assert_array_equal(transferred.layer1[0].conv2.kernel[...], model.layer1[0].conv2.kernel[...])


# --- whole networks ---


def state_dict_of(name, seed=0, **options):
    """Random weights with PyTorch's names for a registered network."""
    model = nnx.eval_shape(lambda: msconv_jax.create_model(name, rngs=nnx.Rngs(0), **options))
    random = np.random.default_rng(seed)
    return {key: random.standard_normal(shape).astype(np.float32) for key, shape in conversion_of(model).shapes.items()}


def network(name, **options):
    model = msconv_jax.create_model(name, rngs=nnx.Rngs(jax.random.key(0, impl="rbg")), **options)
    model.eval()
    return model


def test_a_plain_network_becomes_a_poly_scale_one():
    weights = state_dict_of("resnet8")
    plain, scaled = (msconv_jax.load_state_dict(network(name), weights) for name in ("resnet8", "ps_resnet8"))
    for path, kernel in nnx.to_flat_state(nnx.state(plain, nnx.Param)):
        np.testing.assert_array_equal(kernel[...], dict(nnx.to_flat_state(nnx.state(scaled, nnx.Param)))[path][...])
    assert type(scaled.layer1[0].conv1) is msconv_jax.PSConv


def test_a_classifier_of_other_classes_is_kept_without_strict():
    weights = state_dict_of("resnet8", num_classes=7)
    model = network("resnet8", num_classes=3)
    before = np.asarray(model.fc.kernel[...])
    with pytest.raises(ValueError, match=r"(?s)2 problems.*wrong shape: fc\.weight is \(7, 64\), expected \(3, 64\)"):
        msconv_jax.load_state_dict(model, weights)
    msconv_jax.load_state_dict(model, weights, strict=False)
    np.testing.assert_array_equal(model.fc.kernel[...], before)
    np.testing.assert_array_equal(model.conv1.kernel[...], weights["conv1.weight"].transpose(2, 3, 1, 0))
    without = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    msconv_jax.load_state_dict(model, without, strict=False)
    np.testing.assert_array_equal(model.fc.kernel[...], before)
    msconv_jax.load_state_dict(network("resnet8", num_classes=7), weights, strict=False)

    del weights["bn1.bias"]
    with pytest.raises(ValueError, match=r"1 problems\):\n  missing: bn1\.bias"):
        msconv_jax.load_state_dict(model, weights, strict=False)


def test_a_fitting_classifier_is_loaded_without_strict():
    weights = state_dict_of("resnet8")
    model = msconv_jax.load_state_dict(network("resnet8"), weights, strict=False)
    np.testing.assert_array_equal(model.fc.kernel[...], weights["fc.weight"].T)


def test_backbones_and_networks_without_a_head_leave_it_out():
    weights = state_dict_of("resnet8")
    for options in ({"features_only": True}, {"num_classes": 0}):
        model = network("resnet8", **options)
        with pytest.raises(ValueError, match=r"unexpected: fc\.weight"):
            msconv_jax.load_state_dict(model, weights)
        msconv_jax.load_state_dict(model, weights, strict=False)
        inner = model.model if "features_only" in options else model
        np.testing.assert_array_equal(inner.conv1.kernel[...], weights["conv1.weight"].transpose(2, 3, 1, 0))
