"""Explained plans of lattices, operators and networks equal the executed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from msconv_jax import PSConv, PyConv, SISConv, create_model, explain
from msconv_jax.__main__ import main
from msconv_jax.convolution import convolve, planning_for
from msconv_jax.operators.psconv import psconv_lattice

RNGS = nnx.Rngs(jax.random.key(0, impl="rbg"))


def program(module, shape, backend):
    """The text of a module's program, and its number of convolutions."""
    with planning_for(backend):
        text = str(jax.make_jaxpr(lambda x: module(x))(jnp.zeros(shape)))
    return text, text.count("= conv_general_dilated[")


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu", "onnx"])
@pytest.mark.parametrize(
    "operator",
    [
        lambda: PSConv(32, 32, (3, 3), strides=2, padding=1, rngs=RNGS),
        lambda: PSConv(8, 8, (3,), padding="CAUSAL", rngs=RNGS),
        lambda: PyConv(64, 64, [(3, 3), (5, 5)], groups=(1, 16), padding="REFLECT", rngs=RNGS),
        lambda: PSConv(16, 16, (3, 3), lowering="packs", rngs=RNGS),
    ],
    ids=["strided", "causal", "pyramid", "forced"],
)
def test_the_explained_plan_is_executed(operator, backend):
    conv = operator()
    shape = (4, *(20,) * len(conv.kernel_size), conv.in_features)
    (one,) = explain(conv, shape, backend).convolutions
    assert program(conv, shape, backend)[1] == len([step for step in one.plan if step.way == "convolve"]) > 0
    (of_lattice,) = explain(
        conv.lattice, shape, backend, strides=conv.strides, padding=conv.padding, lowering=conv.lowering
    ).convolutions
    assert (of_lattice.lattice, of_lattice.site, of_lattice.plan) == (one.lattice, one.site, one.plan)
    assert (one.paths, one.lowering, one.backend) == (("",), conv.lowering, backend)


@pytest.mark.parametrize(("lowering", "words"), [("scatter", "scatter of products"), ("shifts", "shifted inputs")])
def test_a_forced_lowering(lowering, words):
    conv = PSConv(16, 16, (3, 3), lowering=lowering, rngs=RNGS)
    explanation = explain(conv, (1, 9, 9, 16))
    assert f"forced by lowering={lowering!r}" in str(explanation)
    assert words in str(explanation)
    assert program(conv, (1, 9, 9, 16), "cpu")[1] == 0
    assert "auto" in explanation.convolutions[0].alternatives


def test_costs():
    """No forced lowering has a lower predicted cost than the chosen plan."""
    for backend in ("cpu", "gpu", "tpu", "onnx"):
        (one,) = explain(psconv_lattice(64, 64, (3, 3), feature_group_count=2), (8, 14, 14, 64), backend).convolutions
        costs = list(one.alternatives.values())
        assert one.cost <= costs[0]
        assert costs == sorted(costs)
        assert one.costs[backend] == one.cost
        assert one.plain_cost > 0
    plain = explain(psconv_lattice(64, 64, (3, 3), pattern=(1,)), (8, 14, 14, 64)).convolutions[0]
    assert plain.plain_cost == plain.cost


def test_a_network():
    model = nnx.eval_shape(lambda: create_model("ps_resnet8", rngs=nnx.Rngs(0)))
    explanation = explain(model, (2, 32, 32, 3), "tpu")
    layers = {".".join(map(str, path)): part for path, part in nnx.iter_modules(model)}
    planned = {path for path, part in layers.items() if isinstance(part, PSConv)}
    assert {path for one in explanation.convolutions for path in one.paths} == planned
    convs = sum(type(part) is nnx.Conv for part in layers.values())
    assert explanation.unplanned == {"Conv": convs, "Linear": 1}
    assert all(one.backend == "tpu" and one.site.batch == 2 for one in explanation.convolutions)


def test_convolutions_inside_and_outside_of_layers():
    class Network(nnx.Module):
        def __init__(self):
            self.sis = SISConv(8, 8, (3, 3), rngs=RNGS)
            self.mapped = PSConv(8, 8, (3, 3), rngs=RNGS)

        def __call__(self, x):
            x = jax.vmap(self.mapped)(self.sis(x))
            return jax.jit(convolve)(x, np.ones((3, 3, 8, 8), np.float32))

    explanation = explain(Network(), (2, 3, 9, 9, 8))
    found = {(one.operator, one.paths) for one in explanation.convolutions}
    assert ("PSConv", ("mapped",)) in found
    assert ("Network", ("",)) in found
    assert any(operator == "SISConv" for operator, _ in found)
    assert not explanation.unplanned


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "cuda"}, r"backend='cuda': expected one of cpu, gpu, tpu, onnx, or None"),
        ({"input_shape": 9}, "input_shape=9"),
        ({"input_shape": (1, 9, 9, 0)}, "input_shape"),
        ({"input_shape": (1, 9, 9, 5)}, r"expected \(\*batch, 2 spatial axes, 8 channels\)"),
        ({"input_shape": (1, 2, 9, 8), "padding": "VALID"}, "there is no output"),
        ({"strides": 0}, "strides=0"),
        ({"padding": "same-ish"}, "expected 'SAME'"),
        ({"lowering": "fast"}, "auto, tiles, packs"),
        ({"module_or_lattice": PSConv(8, 8, (3, 3), rngs=RNGS), "strides": 2}, "strides=2: a module has"),
        ({"module_or_lattice": 3}, r"is a int but must be a flax\.nnx\.Module or a KernelLattice"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"module_or_lattice": psconv_lattice(8, 8, (3, 3)), "input_shape": (1, 9, 9, 8)}
    with pytest.raises(ValueError, match=message):
        explain(**{**arguments, **changes})


def test_the_command(capsys):
    main(["explain", "ps_resnet8", "--size", "32", "--batch", "4", "--backend", "gpu"])
    text = capsys.readouterr().out
    assert "layer1.0.conv1" in text
    assert "plan for gpu, chosen" in text
    assert "batch 4, output 32x32" in text
    for wrong, message in (
        (["ps_resnet5"], "unknown model 'ps_resnet5': did you mean ps_resnet50"),
        (["ps_resnet8", "--batch", "0"], "--batch 0: must be at least 1"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["explain", *wrong])
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
