import jax
import pytest
from flax import nnx

import msconv_jax
from tests.train.helpers import tiny
from tests.train.small_models import small
from train.data import load_source
from train.engine.network import check_paths, split_shapes
from train.errors import UserError
from train.tasks import Classification
from train.tasks.network import create_network


def built(config):
    """The abstract network of a config, for the 10 classes of grey digits."""
    return nnx.eval_shape(lambda: create_network(config, 10, 1))


def test_the_convolution_can_be_swapped():
    network = built(tiny({"model.name": "resnet8", "model.conv": "PSConv", "model.conv_kwargs": {"pattern": [1, 2]}}))
    kinds = {type(module) for _, module in nnx.iter_modules(network)}
    assert msconv_jax.PSConv in kinds


def test_a_stem_can_be_given_by_its_numbers():
    stem = {"kernel_size": 5, "strides": 2, "max_pool": False}
    network = built(tiny({"model.name": "resnet8", "model.kwargs": {"stem": stem, "width": 4}}))
    assert (network.conv1.kernel.shape, network.conv1.strides) == ((5, 5, 1, 4), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet9"}, "config.model.name='resnet9' cannot be built.*resnet8"),
        ({"name": "seg_baseline_resnet50"}, "a network for segmentation, but config.task.name is 'classification'"),
        ({"kwargs": {"widht": 4}}, "widht"),
        ({"kwargs": {"num_classes": 4}}, "num_classes"),
        ({"conv": "PSConf"}, "'PSConf', no such operator; did you mean 'PSConv'"),
        ({"conv": "PSConv", "conv_kwargs": {"patern": [1]}}, "patern"),
        ({"conv_kwargs": {"pattern": [1]}}, "config.model.conv is ''"),
        (
            {"conv": "PSConv", "conv_kwargs": {"kernel_dilation": 2}},
            "config.model.conv_kwargs sets kernel_dilation, which the",
        ),
        (
            {"conv": "PSConv", "convs": {"layer1.0.conv1": {"strides": 2}}},
            r"config.model.convs\['layer1.0.conv1'\] sets strides",
        ),
        ({"kwargs": {"stem": {"kernel": 3}}}, "config.model.kwargs has the stem {'kernel': 3} but a stem must be as"),
        ({"kwargs": {"stem": {"kernel_size": 4, "strides": 1, "max_pool": False}}}, "has the stem .* must be odd"),
    ],
)
def test_models_and_operators_that_do_not_exist(changes, message):
    with pytest.raises(UserError, match=message):
        create_network(tiny({"model": {"name": "resnet8", "kwargs": {}, **changes}}), 10, 1)


def test_a_model_that_takes_no_dtype_is_refused(small_models):
    with pytest.raises(UserError, match="'tiny_for_tests' has no argument dtype"):
        create_network(tiny({"compute.dtype": "bfloat16"}), 10, 1)
    with pytest.raises(UserError, match="leave one of them out"):
        create_network(small("Plain", {"compute.dtype": "bfloat16", "model.kwargs": {"dtype": "float16"}}), 10, 1)


@pytest.fixture(scope="module")
def params():
    config = tiny({"model.name": "resnet8", "model.kwargs": {"width": 4}})
    return split_shapes(Classification(config, load_source(config)).create)[1]


def test_paths_name_parts_of_the_network(params):
    check_paths("config.model.frozen", ["conv1", "layer1.0", "layer2", "layer1.0.conv1.kernel"], params)
    check_paths("config.model.frozen", [], params)
    assert len(jax.tree.leaves(params)) > 10


@pytest.mark.parametrize("path", ["layer11", "layer1.7", "layer1.0.conv", "layer", ""])
def test_paths_that_name_nothing_are_refused(params, path):
    message = f"config.model.frozen names '{path}', but no parameter's path begins so; the network has bn1, conv1,"
    with pytest.raises(UserError, match=message):
        check_paths("config.model.frozen", ["conv1", path], params)
