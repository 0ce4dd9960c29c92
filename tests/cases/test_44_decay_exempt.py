"""Weight decay applies to kernels and to nothing else, in a network of every family."""

import jax
import pytest
from flax import nnx

import msconv_jax
from train.engine.optim import decay_mask

NETWORKS = ["ps_resnet8", "oct_resnet20", "res2net50_26w_4s", "ac_pixel_resnet50", "sis_res2next29", "se_res2net50"]


@pytest.mark.parametrize("name", [*NETWORKS, "het_vgg16_cifar"])
def test_kernels_alone_decay(name):
    if name not in msconv_jax.list_models():
        pytest.skip(f"there is no network {name}")
    shapes = nnx.eval_shape(lambda: msconv_jax.create_model(name, rngs=nnx.Rngs(0)))
    mask = decay_mask(nnx.to_pure_dict(nnx.state(shapes, nnx.Param)))
    wrong = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, decays in jax.tree.leaves_with_path(mask)
        if decays != str(path[-1].key).endswith("kernel")
    ]
    assert not wrong
