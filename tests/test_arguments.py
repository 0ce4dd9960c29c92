"""Calls of public functions with wrong types: the error names the argument."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import msconv_jax
from msconv_jax import surgery
from msconv_jax.counting import count_parameters, layer_macs
from msconv_jax.models import model_entry
from msconv_jax.signatures import check_arguments, explains_arguments


def build(name="resnet8", **arguments):
    return nnx.eval_shape(lambda: msconv_jax.create_model(name, **arguments, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "deep"}, "stem is 'deep' but must be of the type Stem; help(ResNet) describes it"),
        ({"norm": None}, "norm is None but must be a function or class to call"),
        ({"act": "relu"}, "act is 'relu' but must be a function or class to call"),
        ({"block": 3}, "block is 3 but must be a function or class to call"),
        ({"strides": 2}, "strides is 2 but must be a list of whole numbers or None"),
        ({"drop_path_rate": "0.1"}, "drop_path_rate is '0.1' but must be a number"),
        ({"zero_init_last": "no"}, "zero_init_last is 'no' but must be True or False"),
        ({"dtype": "float31"}, "dtype is 'float31' but must be a type of numbers"),
        ({"param_dtype": 32}, "param_dtype is 32 but must be a type of numbers"),
        ({"features_only": "yes"}, "features_only is 'yes' but must be True or False"),
        ({"name": "vgg16_cifar", "hidden_features": 64}, "hidden_features is 64 but must be a list of whole numbers"),
        ({"name": "ac_resnet50", "input_size": 32}, "input_size=32: must be the images' height and width"),
        ({"name": "seg_baseline_ps_resnet8", "backbone_options": 3}, "backbone_options is 3 but must be a dictionary"),
        ({"name": "seg_baseline_ps_resnet8", "auxiliary_features": -1}, "auxiliary_features=-1: must be an integer"),
        ({"name": "seg_baseline_ps_resnet8", "auxiliary": "no"}, "auxiliary is 'no' but must be True or False"),
        ({"name": ["resnet8"]}, "name is ['resnet8'] but must be a string"),
    ],
)
def test_arguments_of_a_network(arguments, message):
    with pytest.raises(ValueError) as caught:
        build(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("rngs", [None, 0, "x"])
def test_random_numbers_of_a_network(rngs):
    with pytest.raises(ValueError, match=r"^rngs is .* but must be of the type Rngs"):
        msconv_jax.create_model("resnet8", width=4, rngs=rngs)


def test_numbers_of_numpy_and_lists_are_accepted():
    model = build(width=4, strides=[1, 2, 2], drop_path_rate=np.float32(0.1), dtype="bfloat16")
    assert count_parameters(model) == count_parameters(build(width=4))


LINEN = linen.Dense(3)
CONV = functools.partial(nnx.eval_shape, lambda: nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: msconv_jax.list_models(["resnet8"]), "pattern is ['resnet8'] but must be a string"),
        (lambda: model_entry({}), "name is {} but must be a string"),
        (lambda: msconv_jax.write_safetensors("w.safetensors", CONV()), "tensors is a Conv but must be a dictionary"),
        (lambda: msconv_jax.write_safetensors({}, "w"), "must be a"),
        (lambda: msconv_jax.load_state_dict(LINEN, {}), "module is a Linen Dense but must be a flax.nnx.Module"),
        (lambda: msconv_jax.load_state_dict({}, CONV()), "module is {} but must be a flax.nnx.Module"),
        (lambda: msconv_jax.load_state_dict(CONV(), None), "state_dict is None but must be a dictionary from strings"),
        (lambda: msconv_jax.load_torch_checkpoint("w.pth", CONV()), "module is 'w.pth' but must be a flax.nnx.Module"),
        (lambda: msconv_jax.load_torch_checkpoint(CONV(), None), "path is None but must be a string or a path"),
        (lambda: msconv_jax.read_state_dict(3), "path is 3 but must be a string or a path"),
        (lambda: msconv_jax.replace_convs(LINEN, msconv_jax.PSConv), "model is a Linen Dense but must be"),
        (lambda: msconv_jax.replace_convs(CONV(), 3), "factory is 3 but must be a function or class to call or"),
        (lambda: msconv_jax.replace_convs(CONV(), nnx.Conv, rngs=3), "rngs is 3 but must be of the type Rngs or None"),
        (lambda: msconv_jax.replace_convs(CONV(), nnx.Conv, types=nnx.Conv), "types is <class"),
        (lambda: surgery.Where(path=3), "path is 3 but must be a string, a list of strings or None"),
        (lambda: surgery.Where(predicate="x"), "predicate is 'x' but must be a function or class to call or None"),
        (lambda: surgery.convolutions([]), "model is [] but must be a flax.nnx.Module"),
        (lambda: msconv_jax.fold_batch_norm(LINEN), "model is a Linen Dense but must be a flax.nnx.Module"),
        (lambda: layer_macs("resnet8"), "model is 'resnet8' but must be a flax.nnx.Module"),
        (lambda: layer_macs(CONV(), (-1, 8, 4)), "expected a size such as (224, 224, 3)"),
        (lambda: count_parameters(None), "module is None but must be a flax.nnx.Module"),
        (lambda: msconv_jax.export_stablehlo("x", CONV(), input_size=(8, 8, 4)), "model is 'x' but must be"),
        (lambda: msconv_jax.export_stablehlo(CONV(), input_size=8), "input_size is 8 but must be a list of whole"),
        (lambda: msconv_jax.export_onnx(CONV(), "x", input_size=None), "input_size is None but must be a list of"),
    ],
)
def test_arguments_of_functions(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_classifier_is_reset_with_random_numbers():
    model = msconv_jax.create_model("resnet8", width=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="rngs is 3 but must be of the type Rngs"):
        model.reset_classifier(5, rngs=3)


def test_errors_of_other_causes_are_unchanged():
    @explains_arguments
    def broken(numbers: list[int], names: tuple[str, ...] = (), table: dict[str, float] | None = None) -> int:
        return sum(numbers) + {}["missing"]

    with pytest.raises(KeyError, match="missing"):
        broken([1])
    for wrong, message in (
        ({"names": [1]}, r"names is \[1\] but must be a tuple of strings"),
        ({"table": {"a": "b"}}, "table is {'a': 'b'} but must be a dictionary from strings to numbers or None"),
    ):
        with pytest.raises(ValueError, match=message):
            broken([1], **wrong)
    with pytest.raises(TypeError, match="unexpected keyword argument 'number'"):
        broken(number=[1])


@pytest.mark.parametrize("operator", [msconv_jax.PSConv, msconv_jax.GroupedConv, msconv_jax.PACConv, msconv_jax.ACConv])
def test_arguments_of_operators(operator):
    with pytest.raises(TypeError, match=rf"^{operator.__name__} got an unexpected .* 'paddin'; did you mean 'padding'"):
        operator(8, 8, (3, 3), paddin=1, rngs=nnx.Rngs(0))
    for rngs in (None, 3):
        with pytest.raises(ValueError, match=rf"rngs is {rngs} but must be of the type Rngs"):
            operator(8, 8, (3, 3), rngs=rngs)


def test_long_values_are_shortened():
    with pytest.raises(ValueError) as caught:
        check_arguments(model_entry, {"name": list(range(10_000))})
    assert len(str(caught.value)) < 250


def test_an_array_is_not_a_network():
    with pytest.raises(ValueError, match=r"must be a flax\.nnx\.Module"):
        count_parameters(jnp.ones((2, 2)))


def test_arguments_of_a_lattice():
    with pytest.raises(ValueError, match=r"tiles=3: expected a list of tiles"):
        msconv_jax.KernelLattice(4, 4, 3)
    with pytest.raises(ValueError, match=r"lattice is None but must be of the type KernelLattice"):
        msconv_jax.lattice_convolve(np.ones((1, 4, 4, 4), np.float32), np.ones((3, 3, 4, 4), np.float32), None)
