import dataclasses
import json
import runpy

import pytest

from tests.train.helpers import ROOT, TINY, TINY_CONFIG, tiny
from train import __main__ as program
from train.compare import COMPARISON
from train.config import (
    check_accumulation,
    check_batch_size,
    check_workdir,
    parse_command_line,
    read_config,
    write_config,
)
from train.edo import SEARCH
from train.errors import UserError, run_program, suggest
from train.settings import RULES, TRAINING, Config, checked


def parse(*arguments):
    return parse_command_line(["train", *arguments], "description")


def test_every_setting_has_a_rule():
    assert [field.name for field in dataclasses.fields(Config)] == list(RULES)


def test_overrides_reach_the_config_in_both_spellings():
    config, workdir = parse(
        "--config",
        str(TINY_CONFIG),
        "--config.seed=3",
        "--config.learning_rate",
        "0.25",
        "--noconfig.nesterov",
        "--config.model_kwargs.width=6",
        "--workdir=some/where",
    )
    assert (config.seed, config.learning_rate, config.nesterov) == (3, 0.25, False)
    assert config.model_kwargs == {"width": 6}
    assert str(workdir) == "some/where"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_shipped_configs_are_valid_and_documented(path):
    others = {"edo": ("train.edo", SEARCH), "compare": ("train.compare", COMPARISON)}
    program, schema = others.get(path.name.partition("_")[0], ("train", TRAINING))
    parse_command_line([program, f"--config={path}", "--workdir=w"], "description", schema)
    header = runpy.run_path(str(path))["__doc__"]
    for part in (f"python -m {program} --config=configs/{path.name}", "Cost:", "Expect:"):
        assert part in header


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--config is missing", "--config=configs/"]),
        (["--workdir=w"], ["--config is missing"]),
        (["--config"], ["names no file"]),
        ([f"--config={TINY_CONFIG}"], ["--workdir is missing", "--workdir=runs/digits"]),
        (["--config=configs/ps_resnet_digit.py", "--workdir=w"], ["digit.py", "ps_resnet_digits"]),
        (["--config=nowhere/x.py", "--workdir=w"], ["no config file", "nowhere/x.py"]),
        (["--config=train/errors.py", "--workdir=w"], ["must define get_config()"]),
        ([f"--config={TINY_CONFIG}", "--config.sede=1"], ["no key 'sede'", "'seed'"]),
        ([f"--config={TINY_CONFIG}", "--config.sede", "1"], ["no key 'sede'", "'seed'"]),
        ([f"--config={TINY_CONFIG}", "--config.augment.warp.shifd=1"], ["'augment.warp.shift'"]),
        ([f"--config={TINY_CONFIG}", "--config.seed=x"], ["--config.seed=x", "int"]),
        ([f"--config={TINY_CONFIG}", "--config.seed=1.5"], ["--config.seed=1.5"]),
        ([f"--config={TINY_CONFIG}", "--config.seed"], ["Missing value", "config.seed"]),
        ([f"--config={TINY_CONFIG}", "--worksdir=w"], ["worksdir", "workdir"]),
        ([f"--config={TINY_CONFIG}", "--workdir=w", "seed=1"], ["unexpected argument 'seed=1'"]),
    ],
)
def test_wrong_command_lines_end_in_one_sentence(arguments, parts, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    with pytest.raises(SystemExit) as ending:
        run_program(program.main)
    errors = capsys.readouterr().err
    assert ending.value.code == 1
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    for part in parts:
        assert part in errors


def test_help_describes_the_flags(capsys):
    with pytest.raises(SystemExit) as ending:
        parse("--help")
    assert ending.value.code == 0
    text = capsys.readouterr().out
    assert "description" in text
    assert "--workdir" in text
    assert "--config" in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("seed", True),
        ("seed", 2**31),
        ("source", ""),
        ("model", 3),
        ("model_kwargs", [1]),
        ("augment", None),
        ("conv", None),
        ("conv_kwargs", "x"),
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", 2.0),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("learning_rate", "0.1"),
        ("warmup_epochs", -1.0),
        ("warmup_epochs", 2.5),
        ("momentum", 1.0),
        ("nesterov", 1),
        ("weight_decay", -1e-4),
        ("label_smoothing", 1.0),
        ("checkpoint_every", -1),
        ("data_threads", 513),
    ],
)
def test_values_out_of_range_name_key_value_and_rule(key, value):
    with pytest.raises(UserError, match=f"config.{key}") as caught:
        checked({**TINY, key: value}, TRAINING)
    assert repr(value) in str(caught.value)
    assert "must" in str(caught.value)


def test_missing_unknown_and_unwritable_values():
    incomplete = {key: value for key, value in TINY.items() if key != "epochs"}
    with pytest.raises(UserError, match="lacks the key 'epochs'"):
        checked(incomplete)
    with pytest.raises(UserError, match="unknown key 'lerning_rate'; did you mean 'learning_rate'"):
        checked({**TINY, "lerning_rate": 1})
    with pytest.raises(UserError, match="plain numbers"):
        checked({**TINY, "model_kwargs": {"conv": object()}})


def test_tuples_are_what_json_makes_of_them():
    assert checked({**TINY, "model_kwargs": {"pattern": (1, 2)}}).model_kwargs["pattern"] == [1, 2]


def test_batch_size_must_suit_split_and_devices():
    check_batch_size(tiny(batch_size=8), train_images=8, devices=4)
    with pytest.raises(UserError, match="only 7 images"):
        check_batch_size(tiny(batch_size=8), train_images=7, devices=1)
    with pytest.raises(UserError, match=r"divisible by the 3 devices.*6 would do"):
        check_batch_size(tiny(batch_size=8), train_images=100, devices=3)


def test_accumulation_must_divide_the_rows_of_a_device():
    check_accumulation(tiny(batch_size=240, accumulation_steps=6), devices=4)
    with pytest.raises(UserError, match=r"is 7 but must divide the 60 images.*4 devices.*6 would do"):
        check_accumulation(tiny(batch_size=240, accumulation_steps=7), devices=4)


def test_a_config_comes_back_from_its_folder(tmp_path):
    write_config(tmp_path / "new", tiny())
    assert read_config(tmp_path / "new") == tiny()
    check_workdir(tmp_path / "new", tiny())


def test_a_folder_of_another_config_is_refused_with_the_differing_keys(tmp_path):
    write_config(tmp_path, tiny())
    with pytest.raises(UserError) as caught:
        check_workdir(tmp_path, tiny(seed=5, model_kwargs={"width": 4}))
    message = str(caught.value)
    assert "model_kwargs.width (8 there, 4 now), seed (0 there, 5 now);" in message
    assert "choose another --workdir, or remove" in message


def test_folders_that_are_no_runs(tmp_path):
    check_workdir(tmp_path / "new", tiny())
    check_workdir(tmp_path, tiny())  # empty
    (tmp_path / ".config.json.tmp").touch()  # a run killed while it began
    check_workdir(tmp_path, tiny())
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"not of a run \(thesis.tex\)"):
        check_workdir(tmp_path, tiny())
    with pytest.raises(UserError, match="is a file"):
        check_workdir(tmp_path / "thesis.tex", tiny())


@pytest.mark.parametrize("text", ["{", "[]", "\xff", json.dumps({**TINY, "epochs": 0})])
def test_damaged_config_files(tmp_path, text):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_folder_without_config():
    with pytest.raises(UserError, match="not the folder of a run"):
        read_config(ROOT / "configs")


def test_suggestions():
    assert suggest("sed", ["seed", "epochs"]) == "did you mean 'seed'?"
    assert suggest("zzz", ["seed", "epochs"]) == "known are: epochs, seed"


def test_system_errors_are_sentences_and_bugs_keep_their_traceback(capsys):
    def no_space(argv):
        raise OSError(28, "No space left on device", "somewhere/metrics.jsonl")

    with pytest.raises(SystemExit) as ending:
        run_program(no_space)
    assert ending.value.code == 1
    assert capsys.readouterr().err == (
        "error: No space left on device (somewhere/metrics.jsonl); make room on the disk and give "
        "the same command again\n"
    )
    with pytest.raises(ZeroDivisionError):
        run_program(lambda argv: 1 // 0)
