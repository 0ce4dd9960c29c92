import copy
import json
import runpy
from typing import ClassVar

import pytest

from studies.compare_config import CompareConfig
from studies.edo_config import SearchConfig
from tests.train.helpers import ROOT, TINY, TINY_CONFIG, tiny
from train import __main__ as program
from train.config import (
    Config,
    Settings,
    check_workdir,
    extends_run,
    flatten,
    merge_changes,
    parse_command_line,
    read_config,
    update_config,
    validate_config,
    write_config,
)
from train.config.checking import OLD_NAMES, fields
from train.engine.checks import check_accumulation, check_batch_size
from train.errors import UserError, run_program, suggest


class Study(Settings):
    """A kind of config that contains the settings of trainings."""

    file: ClassVar[str] = "study.json"
    seeds: list[int]
    training: Config


def parse(*arguments, kind=Config):
    return parse_command_line(["train", *arguments], "description", kind)


def parsed(*overrides):
    return parse(f"--config={TINY_CONFIG}", "--workdir=w", *overrides)[0]


@pytest.fixture
def config_file(tmp_path):
    """Writes values to a config file, and returns its flag."""

    def write(values):
        path = tmp_path / "written.py"
        path.write_text(
            f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({values!r})\n"
        )
        return f"--config={path}"

    return write


def test_every_setting_is_in_words():
    for name, field in fields(Config).items():
        assert name == "task.name" or len(field.description.split()) > 2, name


# The defaults before settings had sections; recorded runs depend on them.
DEFAULTS = {
    "seed": 0, "model_kwargs": {}, "conv": "", "conv_kwargs": {}, "convs": {}, "data_dir": "", "splits": {},
    "strict_images": False, "image_size": 0, "augment": {}, "pixel_mean": [], "pixel_std": [], "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0, "mix_probability": 1.0, "label_smoothing": 0.0, "eval_size": 0, "eval_resize": 0,
    "eval_crops": 1, "data_threads": 2, "optimizer": "sgd", "momentum": 0.9, "nesterov": False, "beta1": 0.9,
    "beta2": 0.999, "epsilon": 1e-8, "warmup_epochs": 0.0, "schedule": "cosine", "schedule_epochs": [],
    "schedule_factor": 0.1, "weight_decay": 0.0, "decay_all": False, "decay_growth": 1.0, "decay_growth_epochs": 0.0,
    "gradient_clip_norm": 0.0, "accumulation_steps": 1, "ema_decay": 0.0, "compute_dtype": "float32",
    "batch_norm": "global", "remat": False, "shards": 1, "checkpoint_every": 0, "profile": False,
}  # fmt: skip
REQUIRED = {
    "data": {"source": "digits"},
    "model": {"name": "resnet8"},
    "optimizer": {"learning_rate": 0.1},
    "epochs": 3,
    "batch_size": 8,
}


def test_defaults_are_those_recorded_runs_had():
    found = flatten(validate_config(REQUIRED).model_dump())
    old = {OLD_NAMES.get(name, name): value for name, value in DEFAULTS.items()}
    assert found | old | flatten(REQUIRED) == found
    added = {"model.frozen": [], "optimizer.multipliers": {}, "optimizer.schedule_power": 0.9}
    assert found == old | flatten(REQUIRED) | added | {"task.name": "classification"}


@pytest.mark.parametrize("name", sorted(flatten(REQUIRED)))
def test_what_has_no_default_may_come_from_the_command_line_alone(name, config_file):
    values = copy.deepcopy(REQUIRED)
    *section, key = name.split(".")
    value = (values[section[0]] if section else values).pop(key)
    flag = config_file(values)
    with pytest.raises(UserError, match=f"the config lacks the key '{name}': set it to "):
        parse(flag, "--workdir=w")
    with pytest.raises(UserError, match=f"the config lacks the key '{name}': set it to "):
        validate_config(values)
    assert parse(flag, "--workdir=w", f"--config.{name}={value}")[0] == validate_config(REQUIRED)


def test_overrides_reach_the_config_in_both_spellings():
    config, workdir = parse(
        "--config",
        str(TINY_CONFIG),
        "--config.seed=3",
        "--config.optimizer.learning_rate",
        "0.25",
        "--noconfig.optimizer.nesterov",
        "--config.model.kwargs.width=6",
        "--workdir=some/where",
    )
    assert (config.seed, config.optimizer.learning_rate, config.optimizer.nesterov) == (3, 0.25, False)
    assert config.model.kwargs == {"width": 6}
    assert str(workdir) == "some/where"


def test_lists_and_dictionaries_are_overridden_whole_or_in_part():
    config = parsed(
        "--config.optimizer.schedule=steps",
        "--config.optimizer.schedule_epochs=(0.5, 1)",
        "--config.data.pixel_mean=0.5",
        "--config.model.kwargs={'width': 4, 'layers': (1, 2)}",
        "--config.data.augment.warp.shift=2",
        "--config.data.splits={'train': 'train[:90%]'}",
        "--config.optimizer.multipliers={'head': 10}",
        "--config.model.frozen=('conv', 'norm')",
    )
    assert config.optimizer.schedule_epochs == [0.5, 1.0]
    assert config.data.pixel_mean == [0.5]
    assert config.model.kwargs == {"width": 4, "layers": [1, 2]}
    assert config.data.augment == {"warp": {"shift": 2.0, "rotation": 10.0, "scale": 0.1}}
    assert config.data.splits == {"train": "train[:90%]"}
    assert config.optimizer.multipliers == {"head": 10.0}
    assert config.model.frozen == ["conv", "norm"]


def test_a_list_of_a_file_can_be_overridden(config_file):
    optimizer = {"learning_rate": 0.1, "schedule": "steps", "schedule_epochs": [1.0, 2.0]}
    flag = config_file({**REQUIRED, "optimizer": optimizer})
    assert parse(flag, "--workdir=w")[0].optimizer.schedule_epochs == [1.0, 2.0]
    config, _ = parse(flag, "--workdir=w", "--config.optimizer.schedule_epochs=(2.5,)")
    assert config.optimizer.schedule_epochs == [2.5]


def test_the_task_is_chosen_on_the_command_line_or_in_the_file(config_file):
    flag = config_file(REQUIRED)
    assert parse(flag, "--workdir=w", "--config.task.label_smoothing=0.5")[0].task.label_smoothing == 0.5
    for spelling in (["--config.task.name=segmentation"], ["--config.task.name", "segmentation"]):
        config, _ = parse(flag, "--workdir=w", *spelling, "--config.task.base_size=512", "--config.task.crop=(8, 9)")
        assert (config.task.name, config.task.base_size, config.task.crop) == ("segmentation", 512, [8, 9])
    with pytest.raises(UserError, match=r"unknown key 'task.label_smoothing'; known are: task.name, task.crop"):
        parse(flag, "--workdir=w", "--config.task.name=segmentation", "--config.task.label_smoothing=0.5")
    with pytest.raises(UserError, match=r"config.task.name is 'x' but must be one of 'classification', 'segmentation'"):
        parse(flag, "--workdir=w", "--config.task.name=x")
    flag = config_file({**REQUIRED, "task": {"name": "segmentation"}})
    config, _ = parse(flag, "--workdir=w", "--config.task.scales=(0.5, 1)")
    assert config.task.scales == [0.5, 1.0]
    with pytest.raises(UserError, match=r"unknown key 'task.scales'"):  # a setting of the other task
        parse(flag, "--workdir=w", "--config.task.name=classification", "--config.task.scales=(1,)")


def test_a_training_within_a_study_has_the_same_names(config_file):
    flag = config_file({"seeds": (0,), "training": REQUIRED})
    config, _ = parse(flag, "--workdir=w", "--config.training.optimizer.learning_rate=2", kind=Study)
    assert config.training == update_config(validate_config(REQUIRED), {"optimizer.learning_rate": 2})
    config, _ = parse(flag, "--workdir=w", "--config.training.task.name=segmentation", kind=Study)
    assert config.training.task.name == "segmentation"
    for override, message in (
        ("learning_rate=2", "config.training.learning_rate is now config.training.optimizer.learning_rate"),
        ("optimizer=lamb", "config.training.optimizer is now config.training.optimizer.name"),
        ("epochs=0", "config.training.epochs is 0 but must be a whole number"),
        (
            "optimizer.warmup_epochs=9",
            "config.training.optimizer.warmup_epochs is 9.0 but must not exceed config.training.epochs, 3",
        ),
        (
            "optimizer.momentun=0",
            "unknown key 'training.optimizer.momentun'; did you mean 'training.optimizer.momentum'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            parse(flag, "--workdir=w", f"--config.training.{override}", kind=Study)


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_names_without_sections_are_refused_with_the_new_name(old, new, config_file):
    message = f"^config.{old} is now config.{new}$"
    with pytest.raises(UserError, match=message):
        parsed(f"--config.{old}=1")
    value = DEFAULTS.get(old, "x")
    values = {key: value for key, value in REQUIRED.items() if key != old}
    with pytest.raises(UserError, match=message):
        validate_config({**values, old: value})
    with pytest.raises(UserError, match=message):
        parse(config_file({**values, old: value}), "--workdir=w")
    assert new in fields(Config)


def test_names_within_old_ones_and_switches_are_refused_too():
    with pytest.raises(UserError, match=r"config.augment is now config.data.augment"):
        parsed("--config.augment.warp.shift=1")
    with pytest.raises(UserError, match=r"config.nesterov is now config.optimizer.nesterov"):
        parsed("--noconfig.nesterov")


def test_a_config_beside_the_programs_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse("--config=configs/ps_resnet_digits.py", "--workdir=w")[0].data.source == "digits"
    assert parse("--config=configs/ps_resnet_digits.py:smoke", "--workdir=w")[0].epochs == 2
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "ps_resnet_digits.py").write_text("")
    with pytest.raises(UserError, match=r"must define get_config\(\)"):  # the current folder comes first
        parse("--config=configs/ps_resnet_digits.py", "--workdir=w")


def test_the_config_of_a_file_stays_linked(tmp_path):
    path = tmp_path / "linked.py"
    path.write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    config = ConfigDict({REQUIRED!r})\n"
        "    config.optimizer.warmup_epochs = config.get_ref('epochs') * 0.5\n    return config.lock()\n"
    )
    assert parse(f"--config={path}", "--workdir=w", "--config.epochs=8")[0].optimizer.warmup_epochs == 4.0


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_shipped_configs_are_valid_and_documented(path):
    others = {"edo": ("train.edo", SearchConfig), "compare": ("train.compare", CompareConfig)}
    program, kind = others.get(path.name.partition("_")[0], ("train", Config))
    parse_command_line([program, f"--config={path}", "--workdir=w"], "description", kind)
    header = runpy.run_path(str(path))["__doc__"]
    for part in (f"python -m {program} --config=configs/{path.name}", "Cost:", "Expect:"):
        assert part in header


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--config is missing", "--config=configs/"]),
        (["--workdir=w"], ["--config is missing"]),
        (["--config"], ["Missing value", "--config"]),
        ([f"--config={TINY_CONFIG}"], ["--workdir is missing", "--workdir=runs/digits"]),
        (["--config=configs/ps_resnet_digit.py", "--workdir=w"], ["digit.py", "ps_resnet_digits"]),
        (["--config=nowhere/x.py", "--workdir=w"], ["no config file", "nowhere/x.py"]),
        (["--config=train/errors.py", "--workdir=w"], ["must define get_config()"]),
        ([f"--config={TINY_CONFIG}", "--config.sede=1"], ["unknown key 'sede'", "'seed'"]),
        ([f"--config={TINY_CONFIG}", "--config.sede", "1"], ["unknown key 'sede'", "'seed'"]),
        (
            [f"--config={TINY_CONFIG}", "--config.optimizer.lerning_rate=1"],
            ["unknown key 'optimizer.lerning_rate'; did you mean 'optimizer.learning_rate'?"],
        ),
        ([f"--config={TINY_CONFIG}", "--config.model.momentum=1"], ["did you mean 'optimizer.momentum'?"]),
        ([f"--config={TINY_CONFIG}", "--config.data.splits.tset=x"], ["config.data.splits is {'tset': 'x'} but must"]),
        ([f"--config={TINY_CONFIG}", "--config.model=resnet50"], ["config.model is now config.model.name"]),
        (
            [f"--config={TINY_CONFIG}", "--config.compute=x"],
            ["config.compute is 'x' but must be a dictionary of settings"],
        ),
        ([f"--config={TINY_CONFIG}", "--config.seed=x"], ["config.seed is 'x' but must be a whole number"]),
        ([f"--config={TINY_CONFIG}", "--config.seed=1.5"], ["config.seed is 1.5 but must be a whole number"]),
        ([f"--config={TINY_CONFIG}", "--config.seed"], ["--config.seed has no value"]),
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
        ("data.source", ""),
        ("model.name", 3),
        ("model.kwargs", [1]),
        ("model.frozen", [""]),
        ("data.augment", None),
        ("data.splits", {"tset": "test"}),
        ("data.splits", {"test": ""}),
        ("data.image_size", 1.5),
        ("data.pixel_mean", [0.5, True]),
        ("data.pixel_mean", [float("nan")]),
        ("data.pixel_std", [0.5, 0.0]),
        ("model.conv", None),
        ("model.conv_kwargs", "x"),
        ("epochs", 0),
        ("batch_size", 0),
        ("batch_size", 2.0),
        ("batch_size", "2"),
        ("batch_size", float("nan")),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", -1),
        ("optimizer.learning_rate", True),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.learning_rate", "0.1"),
        ("optimizer.warmup_epochs", -1.0),
        ("optimizer.warmup_epochs", 2.5),
        ("optimizer.momentum", 1.0),
        ("optimizer.nesterov", 1),
        ("optimizer.schedule", "linear"),
        ("optimizer.schedule_epochs", [1, -1]),
        ("optimizer.weight_decay", -1e-4),
        ("optimizer.multipliers", {"head": 0}),
        ("task.label_smoothing", 1.0),
        ("task.eval_crops", 2),
        ("task.eval_crops", True),
        ("task.eval_crops", 10.0),
        ("task.name", 3),
        ("compute.dtype", "float16"),
        ("data", 3),
        ("task", []),
        ("checkpoint_every", -1),
        ("data.threads", 513),
    ],
)
def test_values_out_of_range_name_key_value_and_rule(key, value):
    with pytest.raises(UserError, match=f"^config.{key} is ") as caught:
        tiny({key: value})
    assert f"{value!r} but must" in str(caught.value)
    assert len(str(caught.value).partition(" but must ")[2].split()) > 2


def test_the_words_of_a_setting_end_the_sentence():
    with pytest.raises(UserError) as caught:
        tiny({"optimizer.learning_rate": -1})
    assert (
        str(caught.value) == "config.optimizer.learning_rate is -1 but must be a number above 0: the rate at its peak"
    )


def test_the_first_of_several_errors_is_shown_and_unknown_keys_before_others():
    with pytest.raises(UserError, match=r"^config.model.name is ''"):
        tiny({"batch_size": 0, "task.eval_crops": 3, "model.name": ""})
    with pytest.raises(
        UserError, match=r"unknown key 'optimizer.lerning_rate'; did you mean 'optimizer.learning_rate'"
    ):
        validate_config({**TINY, "optimizer": {"lerning_rate": 1}})


def test_missing_unknown_and_unwritable_values():
    incomplete = {key: value for key, value in TINY.items() if key != "epochs"}
    with pytest.raises(UserError, match="lacks the key 'epochs'"):
        validate_config(incomplete)
    with pytest.raises(UserError, match=r"lacks the key 'data.source': set it to the name of a data source"):
        validate_config({})
    for key, suggested in (("data.augmnt", "data.augment"), ("epoch", "epochs"), ("task.mixup", "task.mixup_alpha")):
        with pytest.raises(UserError) as caught:
            tiny({key: 1})
        assert str(caught.value) == f"the config has an unknown key {key!r}; did you mean {suggested!r}?"
    with pytest.raises(UserError, match="plain numbers"):
        tiny({"model.kwargs": {"conv": object()}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"optimizer.schedule": "steps"},
            "config.optimizer.schedule is 'steps' and config.optimizer.schedule_epochs is",
        ),
        (
            {"optimizer.schedule_epochs": [1]},
            "config.optimizer.schedule is 'cosine' and",
        ),
        (
            {"optimizer.schedule": "steps", "optimizer.schedule_epochs": [1, 0.75]},
            r"config.optimizer.schedule_epochs is \[1.0, 0.75\] but must rise",
        ),
        ({"optimizer.decay_growth": 2}, "set all three, or leave the first two at 1 and 0"),
        ({"optimizer.name": "lamb"}, "config.optimizer.nesterov is True but config.optimizer.name is 'lamb'"),
        ({"task.mix_probability": 0.5}, "config.task.mix_probability is 0.5 but nothing is mixed"),
        ({"compute.batch_norm": "device", "compute.shards": 2}, "config.compute.batch_norm is 'device' but"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(changes)


def test_tuples_are_what_json_makes_of_them():
    assert tiny({"model.kwargs": {"pattern": (1, 2)}}).model.kwargs["pattern"] == [1, 2]
    assert tiny({"data.pixel_std": (1, 2)}).data.pixel_std == [1.0, 2.0]


def test_changes_go_into_sections_and_replace_settings():
    config = update_config(tiny(), {"model": {"conv": "PSConv", "kwargs": {"depth": 1}}, "optimizer.momentum": 0.5})
    assert (config.model.name, config.model.conv, config.model.kwargs) == ("tiny_for_tests", "PSConv", {"depth": 1})
    assert (config.optimizer.momentum, config.optimizer.learning_rate) == (0.5, 0.1)
    assert update_config(config, {"model.kwargs.width": 3}).model.kwargs == {"depth": 1, "width": 3}
    assert update_config(config, {"task": {"name": "segmentation", "base_size": 8}}).task.base_size == 8
    assert update_config(config, {"task.name": "classification"}).task.label_smoothing == 0.1
    with pytest.raises(UserError, match=r"config.conv is now config.model.conv"):
        update_config(config, {"conv": "PSConv"})
    with pytest.raises(UserError, match=r"config.epochs is {'x': 1} but must be a whole number"):
        update_config(config, {"epochs.x": 1})
    values = {"epochs": 3, "data": {"splits": {"train": "a"}}}
    assert merge_changes(values, {"data": {"splits": {"test": "b"}}}, Config)["data"] == {"splits": {"test": "b"}}
    assert values == {"epochs": 3, "data": {"splits": {"train": "a"}}}


def test_batch_size_must_suit_split_and_devices():
    check_batch_size(tiny(batch_size=8), train_images=8, devices=4)
    with pytest.raises(UserError, match="only 7 images"):
        check_batch_size(tiny(batch_size=8), train_images=7, devices=1)
    with pytest.raises(UserError, match=r"divisible by the 3 devices.*6 would do"):
        check_batch_size(tiny(batch_size=8), train_images=100, devices=3)


def test_accumulation_must_divide_the_rows_of_a_device():
    check_accumulation(tiny({"optimizer.accumulation_steps": 6}), devices=4)
    with pytest.raises(UserError, match=r"is 7 but must divide the 60 images.*4 devices.*6 would do"):
        check_accumulation(tiny({"optimizer.accumulation_steps": 7}), devices=4)


def test_a_config_comes_back_from_its_folder(tmp_path):
    write_config(tmp_path / "new", tiny())
    assert read_config(tmp_path / "new") == tiny()
    check_workdir(tmp_path / "new", tiny())


def claim(workdir, config):
    """Makes the folder look like that of a started run."""
    write_config(workdir, config)
    (workdir / "checkpoints" / "1").mkdir(parents=True)


def test_a_folder_of_another_config_is_refused_with_the_differing_keys(tmp_path):
    write_config(tmp_path, tiny(seed=5))
    check_workdir(tmp_path, tiny())  # without a training
    claim(tmp_path, tiny())
    with pytest.raises(UserError) as caught:
        check_workdir(tmp_path, tiny({"model.kwargs": {"width": 4}}, seed=5))
    message = str(caught.value)
    assert "model.kwargs.width (8 there, 4 now), seed (0 there, 5 now);" in message
    assert "choose another --workdir, or remove" in message


def test_whole_numbers_are_the_same_run_and_the_stored_text_is_too(tmp_path):
    write_config(tmp_path, tiny({"optimizer.weight_decay": 1.0}))
    check_workdir(tmp_path, tiny({"optimizer.weight_decay": 1}))
    before = (tmp_path / "config.json").read_bytes()
    write_config(tmp_path, tiny({"optimizer.weight_decay": 1}))
    assert (tmp_path / "config.json").read_bytes() == before
    assert json.loads(before)["optimizer"]["weight_decay"] == 1.0


def test_the_same_command_line_is_the_same_run(tmp_path):
    overrides = ("--config.model.conv_kwargs={'pattern': (1, 2)}", "--config.optimizer.momentum=0")
    overrides += ("--noconfig.optimizer.nesterov",)
    claim(tmp_path, parsed(*overrides))
    check_workdir(tmp_path, parsed(*overrides))
    assert read_config(tmp_path) == parsed(*overrides)
    with pytest.raises(UserError, match=r"optimizer.momentum \(0.0 there, 0.9 now\)"):
        check_workdir(tmp_path, parsed(*overrides[:1], *overrides[2:]))


def test_what_changes_no_result_may_change_and_a_run_may_become_longer(tmp_path):
    claim(tmp_path, tiny(epochs=4))
    harmless = {"data.threads": 7, "data.dir": "elsewhere", "data.strict_images": True}
    check_workdir(tmp_path, tiny(harmless, epochs=4, checkpoint_every=3, profile=True))
    check_workdir(tmp_path, tiny(epochs=5))
    assert extends_run(tmp_path, tiny(epochs=5))
    assert not extends_run(tmp_path, tiny(epochs=4))
    with pytest.raises(UserError, match=r"differs in epochs \(4 there, 3 now\)"):
        check_workdir(tmp_path, tiny(epochs=3))


def test_kinds_of_configs_have_files_of_their_own(tmp_path):
    study = validate_config({"seeds": [1], "training": REQUIRED}, Study)
    write_config(tmp_path, study)
    assert (tmp_path / "study.json").is_file()
    assert read_config(tmp_path, Study) == study
    check_workdir(tmp_path, study)
    with pytest.raises(UserError, match=r"it has no config\.json"):
        read_config(tmp_path)


def test_a_folder_from_before_there_were_sections_is_refused(tmp_path):
    flat = {**DEFAULTS, "source": "digits", "model": "resnet8", "epochs": 3, "batch_size": 8, "learning_rate": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(flat, sort_keys=True))
    with pytest.raises(UserError, match=r"config\.json does not fit this version: config.accumulation_steps is now "):
        check_workdir(tmp_path, validate_config(REQUIRED))
    with pytest.raises(UserError, match=r"config\.json does not fit this version: config.accumulation_steps is now "):
        read_config(tmp_path)


def test_folders_that_are_no_runs(tmp_path):
    check_workdir(tmp_path / "new", tiny())
    check_workdir(tmp_path, tiny())  # empty
    (tmp_path / ".config.json.tmp").touch()  # of a run killed at its start
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
