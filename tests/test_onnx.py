"""ONNX files: onnxruntime's outputs equal those of the modules."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax as ms

SIZE = (13, 14, 16)


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


class After(nnx.Module):
    """A function after a convolution, whose output is not constant."""

    def __init__(self, function):
        self.conv, self.function = nnx.Conv(16, 16, (1, 1), rngs=rngs()), function

    def __call__(self, x):
        return self.function(self.conv(x))


class Chain(nnx.Module):
    def __init__(self, *layers):
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def mean_pooling(x):
    with jax.numpy_dtype_promotion("standard"):  # Flax divides by counts, which are ints
        return nnx.avg_pool(x, (3, 3), (2, 2), "SAME")


OPERATORS = {
    "plain": lambda: nnx.Conv(16, 8, (4, 3), strides=(2, 1), kernel_dilation=(1, 2), rngs=rngs()),
    "circular": lambda: nnx.Conv(16, 8, (3, 3), padding="CIRCULAR", rngs=rngs()),
    "input dilation": lambda: nnx.Conv(16, 8, (3, 3), padding=1, input_dilation=2, rngs=rngs()),
    "transposed": lambda: nnx.ConvTranspose(16, 8, (3, 3), strides=(2, 2), rngs=rngs()),
    "PSConv": lambda: ms.PSConv(16, 16, (3, 3), strides=2, padding=1, rngs=rngs()),
    "PSConv, lattice": lambda: ms.PSConv(16, 16, (3, 3), layout="lattice", rngs=rngs()),
    "PSConv, grouped": lambda: ms.PSConv(16, 16, (3, 3), feature_group_count=2, rngs=rngs()),
    "PSConv, depthwise": lambda: ms.PSConv(16, 16, (3, 3), feature_group_count=16, rngs=rngs()),
    "DynamicPSConv": lambda: ms.DynamicPSConv(16, 16, (3, 3), rngs=rngs()),
    "PyConv": lambda: ms.PyConv(16, 16, (3, 5, 7), groups=(1, 4, 4), rngs=rngs()),
    "ICConv": lambda: ms.ICConv(16, 16, (3, 3), pattern=((1, 1, 10), (1, 2, 2), (4, 1, 4)), rngs=rngs()),
    "HetConv": lambda: ms.HetConv(16, 16, (3, 3), parts=4, rngs=rngs()),
    "Res2Conv": lambda: ms.Res2Conv(16, 16, (3, 3), strides=2, padding=1, kind="stage", rngs=rngs()),
    "SISConv": lambda: ms.SISConv(16, 16, (3, 3), kind="interactive1", rngs=rngs()),
    "ACConv": lambda: ms.ACConv(16, 16, (3, 3), kind="dataset", rngs=rngs()),
    "OctConv, a pair": lambda: ms.OctConv(16, 16, (3, 3), alpha_in=0, alpha_out=0.25, rngs=rngs()),
    "OctConv": lambda: Chain(
        ms.OctConv(16, 16, (3, 3), alpha_in=0, alpha_out=0.25, rngs=rngs()),
        ms.OctConv(16, 16, (3, 3), strides=2, alpha_in=0.25, alpha_out=0.25, rngs=rngs()),
        ms.OctConv(16, 16, (3, 3), alpha_in=0.25, alpha_out=0, rngs=rngs()),
    ),
    "GroupedConv": lambda: ms.GroupedConv(16, 16, (3, 3), feature_group_count=16, rngs=rngs()),
    "LayerNorm": lambda: nnx.LayerNorm(16, rngs=rngs()),
    "GroupNorm": lambda: nnx.GroupNorm(16, 4, rngs=rngs()),
    "Linear": lambda: nnx.Linear(16, 8, rngs=rngs()),
}
FUNCTIONS = {
    "softmax": jax.nn.softmax,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "mish": jax.nn.mish,
    "elu": jax.nn.elu,
    "hard swish": jax.nn.hard_swish,
    "mean pooling": mean_pooling,
    "maximum pooling": lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME"),
    "bilinear": lambda x: jax.image.resize(x, (x.shape[0], 20, 9, 16), "bilinear"),
    "nearest": lambda x: jax.image.resize(x, (x.shape[0], 26, 28, 16), "nearest"),
    "repeated": lambda x: jnp.repeat(jnp.tile(x, (1, 1, 2, 1)), 2, 1),
    "shuffled": lambda x: x[..., jnp.array([3, 1, 0])],
    "two axes": lambda x: x[:, jnp.array([1, 2]), :, jnp.array([3, 0])],
    "one place": lambda x: x[:, 3, 2],
    "flipped": lambda x: x[:, ::-1, ::2],
    "rolled": lambda x: jnp.roll(x, (3, -1), (-1, 1)),
    "flat": lambda x: x.reshape(x.shape[0], -1),
    "largest": lambda x: x.argmax(-1),
    "statistics": lambda x: (x.std((1, 2)), x / jnp.linalg.norm(x, axis=-1, keepdims=True), x.mean()),
    "ones": lambda x: jnp.concatenate([x, jnp.ones_like(x[..., :2])], -1),
    "cumulative": lambda x: jnp.cumsum(jnp.where(x > 0, x, 2), 1),
    "attention": lambda x: jnp.einsum("nhwc,nijc->nhwij", x, x),
}
NETWORKS = [
    ("ps_resnet8", {}),
    ("resnet18", {"layers": (1, 1)}),
    ("resnext50_32x4d", {"layers": (1,)}),
    ("res2net50_v1b", {"layers": (1, 1)}),
    ("oct_resnet26", {"layers": (1, 1), "width": 16}),
    ("sis_resnet50", {"layers": (1, 1), "width": 16}),
    ("mobilenetv1", {"width_mult": 0.25}),
    ("het_resnet50", {"layers": (1,)}),
]


def check(folder, module, size):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: make test-onnx")
    pytest.importorskip("onnx", reason="onnx is not installed: make test-onnx")
    file = folder / "model.onnx"
    ms.export_onnx(module, file, input_size=size)
    session = runtime.InferenceSession(file)
    module.eval()
    for count in (1, 3):
        images = np.asarray(jax.random.normal(jax.random.key(count), (count, *size)))
        expected = jax.tree.leaves(module(images))
        for got, wanted in zip(session.run(None, {"images": images}), expected, strict=True):
            assert got.dtype == wanted.dtype
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(tmp_path, name):
    check(tmp_path, OPERATORS[name](), SIZE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(tmp_path, name):
    check(tmp_path, After(FUNCTIONS[name]), SIZE)


@pytest.mark.parametrize(("name", "options"), NETWORKS, ids=lambda value: value if isinstance(value, str) else "")
def test_networks(tmp_path, name, options):
    check(tmp_path, ms.create_model(name, num_classes=5, rngs=rngs(), **options), (33, 39, 3))


def test_a_fixed_number_of_images(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: make test-onnx")
    ms.export_onnx(nnx.Conv(3, 2, (3, 3), rngs=rngs()), tmp_path / "x.onnx", input_size=(5, 6, 3), batch_size=2)
    session = runtime.InferenceSession(tmp_path / "x.onnx")
    assert session.get_inputs()[0].shape == [2, 5, 6, 3]
    assert session.get_outputs()[0].shape == [2, 5, 6, 2]


def test_what_cannot_be_written_is_named_and_leaves_the_old_file(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed: make test-onnx")
    file = tmp_path / "x.onnx"
    file.write_text("old")
    for function, message in (
        (lambda x: jnp.sort(x, -1), "the network uses 'sort', which export_onnx does not support.*export_stablehlo"),
        (lambda x: x[0], "a slice"),
    ):
        with pytest.raises(ValueError, match=message):
            ms.export_onnx(After(function), file, input_size=SIZE)
    assert file.read_text() == "old"


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="onnx is installed")
def test_the_missing_package_is_named(tmp_path):
    conv = ms.PSConv(8, 8, (3, 3), rngs=rngs())
    with pytest.raises(ImportError, match=r"pip install 'msconv_jax\[onnx\]'"):
        ms.export_onnx(conv, tmp_path / "x.onnx", input_size=(9, 9, 8))
    assert not list(tmp_path.iterdir())
