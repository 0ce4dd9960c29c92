"""Folded networks give the same outputs, without normalisation layers."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from msconv_jax import HetConv, PSConv, SISConv
from msconv_jax.folding import Folded, fold_batch_norm
from msconv_jax.models import DLA, OctResNet, create_model


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def scrambled(model, seed=0):
    """The model in evaluation mode, with random statistics, scales and biases as after training."""
    random = np.random.default_rng(seed)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] in ("scale", "var"):
            variable[...] = random.uniform(0.5, 1.5, variable.shape).astype(np.float32)
        elif path[-1] in ("bias", "mean"):
            variable[...] = random.normal(0, 0.3, variable.shape).astype(np.float32)
    model.eval()
    return model


def small(name, **options):
    return create_model(name, rngs=rngs(), num_classes=5, **options)


def vgg(name, **options):
    return small(name, layers=(1, 2), width=4, hidden_features=(6,), dropout_rate=0.0, **options)


NETWORKS = {
    "ps_resnet8": lambda: small("ps_resnet8", width=8),
    "official PSConv": lambda: small("resnet8", width=8, conv=partial(PSConv, official_compat=True)),
    "se_resnext": lambda: small("se_resnet50", layers=(1,), groups=2, width=8, se_reduction=4),
    "pyconv": lambda: small("pyconv_resnet50", layers=(1, 1, 1, 1)),
    "pyconv basic": lambda: small("pyconv_resnet18", layers=(1, 1, 1, 1)),
    "res2net v1b": lambda: small("res2net50_v1b", layers=(2,), width=16),
    "oct_resnet": lambda: OctResNet((1, 1), width=8, num_classes=5, rngs=rngs()),
    "het_vgg16": lambda: vgg("het_vgg16", conv=partial(HetConv, parts=2)),
    "het_vgg16_cifar": lambda: vgg("het_vgg16_cifar", conv=partial(HetConv, parts=2, masked=False)),
    "het_resnet": lambda: small("het_resnet50", layers=(1,), width=8),
    "dla": lambda: DLA((1, 1), (4, 8, 16, 32), num_classes=5, rngs=rngs()),
}


@pytest.mark.parametrize(
    "name", [n if n in ("ps_resnet8", "het_vgg16_cifar") else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS]
)
def test_a_folded_network_is_the_network(name):
    model = scrambled(NETWORKS[name]())
    x = jax.random.normal(jax.random.key(1), (2, 33, 47, 3))
    before = nnx.state(model)
    copy = jax.tree.map(np.asarray, before)
    folded = fold_batch_norm(model)
    expected, got = (nnx.jit(lambda model, x: model(x))(m, x) for m in (model, folded))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))
    jax.tree.map(np.testing.assert_array_equal, copy, jax.tree.map(np.asarray, nnx.state(model)))
    left = [path for path, module in nnx.iter_modules(folded) if isinstance(module, nnx.BatchNorm)]
    assert not left
    with pytest.raises(ValueError, match="no batch normalisation that can be folded"):
        fold_batch_norm(folded)


def test_what_follows_another_operator_stays():
    model = scrambled(small("resnet8", width=8, layers=(1,), conv=SISConv))
    folded = fold_batch_norm(model)
    assert type(folded.bn1) is Folded
    assert isinstance(folded.layer1[0].bn1, nnx.BatchNorm)
    x = jax.random.normal(jax.random.key(1), (2, 9, 9, 3))
    np.testing.assert_allclose(folded(x), model(x), rtol=1e-4, atol=1e-5)


def test_other_modules_are_refused():
    with pytest.raises(ValueError, match="Linear has no batch normalisation"):
        fold_batch_norm(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
