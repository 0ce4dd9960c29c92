import pytest

from tests.train.helpers import ROOT, TINY_CONFIG
from train import __main__ as program
from train import cost as cost_program
from train.config import parse_command_line
from train.cost import cost, cost_line
from train.edo import SEARCH
from train.errors import UserError
from train.optim import create_optimiser

RECIPES = sorted(path for path in (ROOT / "configs").glob("*.py") if not path.name.startswith(("edo_", "compare_")))
by_name = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def read(path, *overrides):
    return parse_command_line(["train", f"--config={path}", *overrides], None, needs_workdir=False)[0]


def test_there_is_a_recipe_for_every_paper():
    names = " ".join(path.stem for path in RECIPES)
    for part in ("ps_", "pyconv_", "icconv_", "octconv_", "res2net_", "hetconv_", "acnet_", "sis_", "modern_"):
        assert part in names


@pytest.mark.slow
@by_name
def test_the_cost_in_the_header_is_the_one_counted(path):
    if path.stem not in (
        "ps_resnet_digits",
        "scaled_digits",
        "pictures",
    ):  # a time on a CPU; what it costs depends on the pictures
        assert f"Cost: {cost_line(cost(read(path)))}\n" in path.read_text()


def test_cost_counts_what_the_paper_counts(capsys):
    found = cost(read(ROOT / "configs/ps_imagenet.py"))
    assert found.parameters == 25_557_032
    assert found.macs == pytest.approx(4.089e9, rel=1e-3)
    assert found.images == 120 * 1_281_167
    # Three times two operations at a fifth of 312e12 a second.
    assert found.hours == pytest.approx(6 * found.macs * found.images / 62.4e12 / 3600)
    assert cost_program.main(["cost", f"--config={ROOT / 'configs/ps_resnet_digits.py'}"]) == 0
    assert "0.1 M parameters, 0.00 G multiply-accumulates an image" in capsys.readouterr().out


@by_name
def test_optimiser_of_a_recipe_can_be_built(path):
    config = read(path)
    _, learning_rate = create_optimiser(config, steps_per_epoch=10)
    assert 0 < float(learning_rate(10 * round(config.warmup_epochs))) <= config.learning_rate * 1.001


@by_name
def test_smoke_keeps_what_a_recipe_is_about(path):
    whole, small = read(path), read(f"{path}:smoke")
    assert small.epochs == 2
    assert small.batch_size <= 32
    for name in ("model", "conv", "optimizer", "schedule", "augment", "mixup_alpha", "cutmix_alpha", "compute_dtype"):
        assert getattr(small, name) == getattr(whole, name)
    assert [epoch / small.epochs for epoch in small.schedule_epochs] == pytest.approx(
        [epoch / whole.epochs for epoch in whole.schedule_epochs]
    )
    assert small.source in ("digits", "miniature", "miniature32")


def test_smoke_can_be_overridden_and_searches_have_it_too():
    assert read(f"{ROOT / 'configs/ps_imagenet.py'}:smoke", "--config.epochs=1", "--config.model=resnet18").epochs == 1
    argv = ["train.edo", f"--config={ROOT / 'configs/edo_digits.py'}:smoke"]
    small, _ = parse_command_line(argv, None, SEARCH, needs_workdir=False)
    assert small.seeds == [0]
    assert small.plain(0).epochs == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/ps_imagenet.py:smok", "the variant 'smok'; did you mean 'smoke'"),
        ("configs/ps_imagenets.py:smoke", "no config file 'configs/ps_imagenets.py'"),
        (f"{TINY_CONFIG}:", "the variant ''"),
    ],
)
def test_variants_that_do_not_exist(name, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        read(name)


@pytest.mark.slow
@by_name
def test_every_recipe_trains_when_shrunken(path, tmp_path, capsys, quick_compilation):
    """In one process, which is started once and finds the compiled parts that recipes share."""
    status = program.main(["train", f"--config={path}:smoke", f"--workdir={tmp_path / 'run'}"])
    assert status == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy ")
    assert (tmp_path / "run" / "report.html").is_file()
