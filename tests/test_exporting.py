"""Exported networks give the same logits in a process without the library."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax
from msconv_jax import PSConv, PyConv, create_model, export_stablehlo

SIZE = (17, 23, 3)
RUN = """
import sys, numpy as np, jax
sys.modules["msconv_jax"] = sys.modules["flax"] = None  # an import of them is an error
with open(sys.argv[1], "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
np.save(sys.argv[3], exported.call(np.load(sys.argv[2])))
"""


def rngs():
    return nnx.Rngs(jax.random.key(0, impl="rbg"))


def in_a_fresh_process(folder, file, images):
    np.save(folder / "images.npy", images)
    command = [sys.executable, "-c", RUN, file, folder / "images.npy", folder / "logits.npy"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "logits.npy")


def check_file(folder, name, **options):
    model = create_model(name, rngs=rngs(), **options)
    file = folder / "model.stablehlo"
    exported = export_stablehlo(model, file, input_size=SIZE)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    model.eval()
    for count in (1, 3):
        images = jax.random.normal(jax.random.key(count), (count, *SIZE))
        expected = model(images)
        np.testing.assert_allclose(in_a_fresh_process(folder, file, images), expected, rtol=1e-4, atol=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == ["images.npy", "logits.npy", "model.stablehlo"]


def test_a_file_runs_without_the_library(tmp_path):
    check_file(tmp_path, "ps_resnet8", num_classes=5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("oct_resnet26", {"layers": (1, 1), "width": 16}),
        ("pyconv_resnet18", {"layers": (1, 1), "strides": (2, 2), "conv": PSConv}),
        ("res2net50_26w_4s", {"layers": (1, 1), "width": 16}),
        ("oct_mobilenetv1", {"width_mult": 0.25}),
        ("sis_resnet50", {"layers": (1, 1), "width": 16}),
    ],
)
def test_files_of_other_families(tmp_path, name, options):
    check_file(tmp_path, name, num_classes=5, **options)


def test_the_model_stays_in_training_and_the_program_is_of_evaluation():
    model = create_model("resnet8", num_classes=5, rngs=rngs())
    before = nnx.state(model)
    exported = export_stablehlo(model, input_size=SIZE, batch_size=2, platforms=("cpu",))
    assert exported.out_avals[0].shape == (2, 5)
    assert not model.bn1.use_running_average
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    images = jax.random.normal(jax.random.key(0), (2, *SIZE))
    model.eval()
    np.testing.assert_allclose(exported.call(images), model(images), rtol=1e-5, atol=1e-5)
    model.train()
    assert np.abs(exported.call(images) - model(images)).max() > 0.01


def test_the_first_platform_decides_how_convolutions_are_computed():
    conv = PyConv(64, 64, (3, 5), groups=(1, 4), rngs=rngs())
    sizes = {}
    for platform in ("cpu", "cuda"):
        exported = export_stablehlo(conv, input_size=(28, 28, 64), batch_size=8, platforms=(platform, "tpu"))
        sizes[platform] = exported.mlir_module().count("stablehlo.convolution")
    assert sizes["cpu"] != sizes["cuda"]


def test_half_precision_images():
    conv = PSConv(8, 8, (3, 3), rngs=rngs())
    exported = export_stablehlo(conv, input_size=(9, 9, 8), dtype=jnp.bfloat16)
    assert exported.out_avals[0].dtype == jnp.bfloat16


def test_bad_arguments_are_refused(tmp_path):
    conv = PSConv(8, 8, (3, 3), rngs=rngs())
    for options, message in (
        ({"input_size": (9, 9)}, r"input_size=\(9, 9\): must be height, width and channels"),
        ({"input_size": (9, 0, 8)}, r"input_size=\(9, 0, 8\)"),
        ({"batch_size": 0}, "batch_size=0: must be a number of images, or None"),
        ({"platforms": ("gpu",)}, r"platforms=\('gpu',\): must be some of cpu, cuda, rocm, tpu"),
        ({"platforms": ()}, r"platforms=\(\)"),
        ({"platforms": "cpu"}, "platforms='cpu'"),
    ):
        with pytest.raises(ValueError, match=message):
            export_stablehlo(conv, tmp_path / "x", **{"input_size": (9, 9, 8), **options})
    abstract = nnx.eval_shape(lambda: PSConv(8, 8, (3, 3), rngs=rngs()))
    with pytest.raises(ValueError, match="PSConv has shapes without values: build it"):
        export_stablehlo(abstract, input_size=(9, 9, 8))
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "model.stablehlo"
    file.write_text("old")
    conv = PSConv(8, 8, (3, 3), rngs=rngs())

    def fail(self):
        raise OSError("disk full")

    monkeypatch.setattr(jax.export.Exported, "serialize", fail)
    with pytest.raises(OSError, match="disk full"):
        export_stablehlo(conv, file, input_size=(9, 9, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["model.stablehlo"]
    assert file.read_text() == "old"


def test_the_names_are_public():
    assert {"export_stablehlo", "export_onnx"} <= set(msconv_jax.__all__)
