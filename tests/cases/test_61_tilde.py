"""A shell leaves ``~`` alone behind ``=``: programs expand it, or a folder of that name would be made."""

import pytest

from tests.train.helpers import ROOT
from train import __main__ as program
from train import evaluate, predict, prepare
from train.config import parse_command_line, validate_config, write_config
from train.errors import UserError, expand_user

CONFIG = f"--config={ROOT}/configs/ps_resnet_digits.py"
VALUES = {"model": {"name": "resnet8"}, "optimizer": {"learning_rate": 0.1}, "epochs": 1, "batch_size": 1}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder, beside the present folder; at the end no folder is called ``~``."""
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert not list((tmp_path / "here").iterdir())


def test_a_run_is_in_the_home_folder(home):
    config, workdir = parse_command_line(["train", CONFIG, "--workdir=~/runs/digits"], "")
    write_config(workdir, config)
    assert (home / "runs" / "digits" / "config.json").is_file()


def test_the_folder_of_the_data_is_in_the_home_folder(home):
    config, _ = parse_command_line(["train", CONFIG, "--workdir=w", "--config.data.dir=~/photos"], "")
    assert config.data.dir == f"{home}/photos"
    assert validate_config({**VALUES, "data": {"source": "folder", "dir": "~"}}).data.dir == str(home)


def test_configs_weights_and_pictures_are_in_the_home_folder(home):
    for main, arguments in (
        (program.main, ["--config=~/c.py", "--workdir=w"]),
        (evaluate.main, [CONFIG, "--weights=~/c.pth"]),
        (evaluate.main, ["--workdir=~/c"]),
        (predict.main, ["--workdir=~/c", "x.png"]),
    ):
        with pytest.raises(UserError, match=f"{home}/c"):
            main(["program", *arguments])


def test_a_home_folder_that_is_not_there_is_refused(home):
    for main, arguments in (
        (program.main, [CONFIG, "--workdir=~nobody-here/x"]),
        (program.main, [CONFIG, "--workdir=w", "--config.data.dir=~nobody-here/x"]),
        (evaluate.main, [CONFIG, "--weights=~nobody-here/x"]),
        (predict.main, ["--workdir=w", "~nobody-here/x"]),
        (predict.main, ["--workdir=w", "--out=~nobody-here/x", "x.png"]),
        (prepare.main, ["--dataset=cifar10", "--data_dir=~nobody-here/x"]),
        (prepare.main, ["--dataset=cifar10", "--manual_dir=~nobody-here/x"]),
    ):
        with pytest.raises(UserError, match="~nobody-here/x: there is no home folder for '~nobody-here'"):
            main(["program", *arguments])
    assert expand_user("./~nobody-here") == "./~nobody-here"
