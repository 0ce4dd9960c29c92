"""The parity program: its output and its failures."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import parity

DATA = pathlib.Path(__file__).parent / "data"
SHARED = pathlib.Path(__file__).parent.parent.parent / "shared" / "golden"


RELEASED, WHOLE = parity.fixtures(DATA, "ops/*"), parity.fixtures(SHARED, "ops/*")
DENSE = parity.fixtures(DATA / "dense")
WHOLE_DENSE = [path for path in parity.fixtures(SHARED / "dense") if parity.is_built(path)]
no_golden = pytest.mark.skipif(not SHARED.is_dir(), reason="all recorded numbers stand in ../shared/golden only")


@pytest.mark.optimised
@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.stem)
def test_the_operators_agree_with_the_papers_code(path):
    result = parity.check(path)
    assert result.passed, str(result)


def test_every_paper_has_a_recorded_number_here():
    found = {path.stem.split("_")[0] for path in RELEASED}
    assert found == {
        *("acnet", "edo", "hetconv", "ic", "octconv", "pacconv2d", "pacconvtranspose2d", "pacpool2d", "psconv2d"),
        *("psgconv2d", "pyconv2", "res2net", "sis"),
    }
    assert sum(path.stat().st_size for path in RELEASED) < 1_000_000


@pytest.mark.slow
@no_golden
@pytest.mark.parametrize(
    "path", [path for path in WHOLE if not (DATA / "ops" / path.name).exists()], ids=lambda p: p.stem
)
def test_the_operators_agree_with_all_recorded_numbers(path):
    result = parity.check(path)
    assert result.passed, str(result)


@pytest.mark.parametrize("path", DENSE, ids=lambda path: path.stem)
def test_dense_tasks_agree_on_the_host(path):
    result = parity.check(path)
    assert result.passed, str(result)


@pytest.mark.slow
@no_golden
@pytest.mark.parametrize(
    "path", [path for path in WHOLE_DENSE if not (DATA / "dense" / path.name).exists()], ids=lambda path: path.stem
)
def test_dense_tasks_agree_with_all_recorded_numbers(path):
    result = parity.check(path)
    assert result.passed, str(result)


@pytest.mark.parametrize("key", ["iou", "confusion", "mIoU_nanmean"])
def test_a_small_deviation_of_a_dense_task_is_found(tmp_path, capsys, key):
    shutil.copy(DATA / "dense" / "seg_metrics.npz", tmp_path)

    def change(arrays):
        arrays[key] = arrays[key] + np.asarray(2e-5 * arrays[key].max() + (key == "confusion"), arrays[key].dtype)

    rewrite(tmp_path / "seg_metrics.npz", change)
    assert parity.main([str(tmp_path), "--only", "seg_*"]) == 1
    assert f"in {key} " in capsys.readouterr().out


def test_a_family_that_is_not_built_fails(tmp_path, capsys):
    meta = {"family": "FooNet", "ctor": {}}
    np.savez(tmp_path / "foo.npz", meta=np.array(json.dumps(meta)))
    assert parity.main([str(tmp_path)]) == 1
    assert "'FooNet' is not built yet" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ops").mkdir()
    shutil.copy(DATA / "ops" / "psconv2d_s1.npz", tmp_path / "ops")
    return tmp_path


def rewrite(path, change):
    """Edits the arrays of a fixture with `change`."""
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)


def test_a_line_for_each_fixture_and_a_zero_exit_status(folder, capsys):
    assert parity.main([str(folder)]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("ok      ops/psconv2d_s1: ")
    assert last == "1 of 1 fixtures agree"


@pytest.mark.parametrize("key", ["y", "grad_x", "grad:gwconv.weight", "grad:conv.weight"])
def test_a_small_deviation_anywhere_is_found(folder, capsys, key):
    def change(arrays):
        arrays[key].flat[7] += 2e-5 * np.abs(arrays[key]).max()

    rewrite(folder / "ops" / "psconv2d_s1.npz", change)
    assert parity.main([str(folder)]) == 1
    assert f"in {key} " in capsys.readouterr().out


def test_a_nan_is_a_deviation(folder):
    rewrite(folder / "ops" / "psconv2d_s1.npz", lambda arrays: arrays["y"].fill(np.nan))
    assert parity.main([str(folder)]) == 1


def test_an_unknown_kind_fails(folder, capsys):
    def change(arrays):
        arrays["meta"] = np.array(json.dumps({**json.loads(str(arrays["meta"])), "family": "FooConv"}))

    rewrite(folder / "ops" / "psconv2d_s1.npz", change)
    assert parity.main([str(folder)]) == 1
    assert "unknown kind 'FooConv'" in capsys.readouterr().out


def test_an_unknown_model_fails(folder, capsys):
    (folder / "models").mkdir()
    np.savez(folder / "models" / "foonet.npz", logits_64=np.zeros(3))
    assert parity.main([str(folder), "--only", "models/*"]) == 1
    assert "unknown kind 'foonet'" in capsys.readouterr().out


def test_a_broken_file_fails_and_the_others_are_still_checked(folder, capsys):
    (folder / "ops" / "broken.npz").write_bytes(b"no archive")
    assert parity.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert "ops/broken: cannot be built" in out
    assert "ok      ops/psconv2d_s1" in out


def test_arrays_of_objects_are_not_unpickled(folder, capsys):
    rewrite(folder / "ops" / "psconv2d_s1.npz", lambda arrays: arrays.update(y=np.array([{}], dtype=object)))
    assert parity.main([str(folder)]) == 1
    assert "allow_pickle=False" in capsys.readouterr().out


def test_only_narrows_the_selection(folder, capsys):
    assert parity.main([str(folder), "--only", "ops/psconv2d_s[12]"]) == 0
    assert parity.main([str(folder), "--only", "models/*"]) == 1
    assert "no fixture matches 'models/*'" in capsys.readouterr().out


def test_a_missing_folder_fails(tmp_path):
    assert parity.main([str(tmp_path / "nowhere")]) == 1


@pytest.mark.slow
@no_golden
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in (*parity.MODELS, *parity.SEGMENTATION)
        if not name.startswith("ic_") or name == "ic_resnet50_k9_det"
    ],
)
def test_networks_agree_with_the_public_ones(name):
    result = parity.check(SHARED / "models" / f"{name}.npz")
    assert result.passed, str(result)


# --- grouped PSConv, whose three convolutions may all be undilated ---


def grouped_fixture(path, groups, dilation, *, paper, hooked):
    """Writes a fixture of the public PSGConv2d; `hooked` masks the gradient as well."""
    rng, parts, features = np.random.default_rng(0), 4, 4 * groups

    def conv(x, weight, d, groups):
        numbers = ("NCHW", "OIHW", "NCHW")
        pads = ((d, d), (d, d))
        return lax.conv_general_dilated(
            x, weight, (2, 2), pads, rhs_dilation=(d, d), dimension_numbers=numbers, feature_group_count=groups,
            precision="highest",
        )  # fmt: skip

    mask = np.zeros((features, parts, 3, 3), np.float32)
    for group, part in np.ndindex(groups, parts):
        row = part + group * (parts if paper else groups)
        mask[row : row + 1, [part, (part + 2) % parts]] = 1  # a slice: the public code ignores rows beyond the last
    weights = {name: rng.normal(size=(features, 1, 3, 3)) for name in ("gwconv.weight", "gwconv_shift.weight")}
    weights["conv.weight"] = rng.normal(size=mask.shape) * (1 - mask)
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    x = rng.normal(size=(2, features, 7, 6)).astype(np.float32)

    def forward(weights, x):
        swapped = x.reshape(2, groups, 2, 2, 7, 6)[:, :, ::-1].reshape(x.shape)
        return (
            conv(x, weights["gwconv.weight"], dilation, features)
            + conv(swapped, weights["gwconv_shift.weight"], 2 * dilation, features)
            + conv(x, weights["conv.weight"], 1, groups)
        )

    y, pullback = jax.vjp(forward, weights, jnp.asarray(x))
    ct = rng.normal(size=y.shape).astype(np.float32)
    grads, grad_x = pullback(jnp.asarray(ct))
    if hooked:
        grads["conv.weight"] *= 1 - mask
    ctor = {"in_channels": features, "out_channels": features, "stride": 2, "dilation": dilation, "groups": groups}
    meta = {"family": "PSGConv2d", "mode": "eval", "ctor": ctor | ({"paper_mask": True} if paper else {})}
    arrays = {f"param:{name}": value for name, value in weights.items()}
    arrays |= {f"grad:{name}": value for name, value in grads.items()}
    np.savez(path, meta=np.array(json.dumps(meta)), x=x, y=y, ct=ct, grad_x=grad_x, **arrays)


@pytest.mark.parametrize(("groups", "dilation"), [(3, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_gradients_of_grouped_psconv(tmp_path, groups, dilation):
    (tmp_path / "ops").mkdir()
    for paper in (False, True):
        file = tmp_path / "ops" / f"psgconv2d_{paper}.npz"
        grouped_fixture(file, groups, dilation, paper=paper, hooked=paper)
        assert parity.check(file).passed, str(parity.check(file))
    used = np.argwhere(np.load(file)["grad:conv.weight"])[0]
    rewrite(file, lambda arrays: arrays["grad:conv.weight"].__setitem__(tuple(used), 10 * arrays["ct"].max()))
    assert not parity.check(file).passed
