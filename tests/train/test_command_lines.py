"""Wrong command lines of every program fail fast with one sentence; no argument is ignored."""

import json

import pytest

from studies import compare, cost, edo
from tests.train.helpers import ROOT, run_python
from train import __main__ as program
from train import evaluate, predict, prepare
from train.errors import UserError

DIGITS = f"--config={ROOT}/configs/ps_resnet_digits.py"
COMPARE = f"--config={ROOT}/configs/compare_scaled_digits.py"
# Packages that are slow to import, and those that compute.
HEAVY = ("orbax", "grain", "matplotlib", "tensorboardX", "cv2", "sklearn", "tensorflow_datasets", "simplejpeg", "scipy")
NETWORKS = ("flax", "optax", "msconv_jax")


@pytest.mark.parametrize(
    ("module", "arguments", "also_without"),
    [
        ("train.__main__", ["--config=nowhere.py", "--workdir=w"], NETWORKS),
        ("train.__main__", [DIGITS], NETWORKS),
        ("train.__main__", [DIGITS, "--workdir=w", "--config.optimizer.learning_rate=fast"], NETWORKS),
        ("train.__main__", [DIGITS, "--workdir=w", "--config.model.name=resnet9"], ()),
        ("train.__main__", [DIGITS, f"--workdir={ROOT}"], NETWORKS),
        ("train.evaluate", ["--workdir=nowhere"], (*NETWORKS, "jax")),
        ("train.evaluate", ["--workdir=nowhere", "--split=tset"], (*NETWORKS, "jax")),
        ("train.evaluate", [DIGITS, "--weights=nowhere.pth"], (*NETWORKS, "jax")),
        ("train.predict", ["--workdir=nowhere", "x.png"], (*NETWORKS, "jax")),
        ("train.cost", ["--config=nowhere.py"], (*NETWORKS, "jax")),
        ("train.prepare", [], (*NETWORKS, "jax")),
        ("train.edo", ["--config=nowhere.py", "--workdir=w"], ()),
        ("train.compare", [COMPARE, "--workdir=w", "--minutes=soon"], ()),
        ("msconv_jax", ["summary", "resnet9"], ()),
    ],
)
@pytest.mark.slow
def test_errors_come_before_heavy_imports(module, arguments, also_without):
    code = (
        "import json, runpy, sys\n"
        f"sys.argv = ['program', *{arguments!r}]\n"
        f"try:\n    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as ending:\n    status = ending.code\n"
        "print(json.dumps([status, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    done = run_python("-c", code)
    status, imported = json.loads(done.stdout.splitlines()[-1])
    assert status in (1, 2), done.stderr
    assert not {*HEAVY, *also_without} & set(imported)
    assert "error: " in done.stderr.splitlines()[-1]


@pytest.fixture
def broken_config(tmp_path):
    """Writes bytes to a config file, and returns its flag."""

    def write(content, name="broken.py"):
        (tmp_path / name).write_bytes(content)
        return f"--config={tmp_path / name}"

    return write


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"def get_config(:\n", r"broken.py cannot be run, line 1: SyntaxError: "),
        (b"def get_config():\n    return 1 / 0\n", r"broken.py cannot be run, line 2: ZeroDivisionError: division by"),
        (b"\nimport no_such_package\n", r"broken.py cannot be run, line 2: ModuleNotFoundError: No module named"),
        (b"raise SystemExit(0)\n", r"broken.py cannot be run, line 1: SystemExit: 0"),
        (bytes(range(256)), r"broken.py cannot be run: SyntaxError: "),
        (b"", r"broken.py must define get_config\(\) returning an ml_collections.ConfigDict, as configs/"),
        (b"def get_config():\n    return {}\n", r"broken.py must define get_config\(\) returning an ml_collections"),
    ],
)
def test_a_config_file_that_cannot_be_run(content, message, broken_config):
    with pytest.raises(UserError, match=message):
        program.main(["train", broken_config(content), "--workdir=w"])


def test_what_is_no_config_file(broken_config, tmp_path):
    with pytest.raises(UserError, match=r"README.md is not a Python file; name one that ends in .py, such as configs/"):
        program.main(["train", broken_config(b"# Title", "README.md"), "--workdir=w"])
    for path in (tmp_path, "."):
        with pytest.raises(UserError, match=r"there is no config file '.*'; "):
            program.main(["train", f"--config={path}", "--workdir=w"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.name=ps_resnt8", "unknown model 'ps_resnt8': did you mean ps_resnet8, "),
        ("model.conv=PSCon", "config.model.conv is 'PSCon', no such operator; did you mean 'PSConv'"),
        ("model.conv_kwargs={'patern': (1, 2)}", "config.model.conv_kwargs sets 'patern', but PSConv has no such "),
        (
            "model.convs={'layer1.0.conv2': {'patern': 3}}",
            r"convs\['layer1.0.conv2'\] sets 'patern', but PSConv has no",
        ),
        ("model.convs={'layer1.0.conv2': 3}", r"config.model.convs\['layer1.0.conv2'\] is 3 but must be a dictionary"),
        ("model.kwargs.wdith=3", "has no argument 'wdith': did you mean width"),
        ("model.kwargs.num_classes=3", "config.model.kwargs sets num_classes, which the data determine; leave it out"),
        ("model.kwargs.conv=PSConv", "config.model.kwargs sets conv, but config.model.conv names the operator"),
        ("task.name=segmentation", "unknown key 'task.label_smoothing'|a network for classification"),
        ("optimizer.learning_rate=fast", "config.optimizer.learning_rate is 'fast' but must be a number above 0"),
        ("epochs=99999999999999", r"config.epochs is 99999999999999 but must be a whole number from 1 to 2\*\*31 - 1"),
        ("data.batch=3", "unknown key 'data.batch'; did you mean 'batch_size'|unknown key 'data.batch'; "),
    ],
)
def test_names_and_values_of_settings(override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        program.main(["train", DIGITS, f"--workdir={tmp_path / 'run'}", f"--config.{override}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.kwargs.stem=deep", "cannot be built: stem is 'deep' but must be of the type Stem"),
        ("data.dir=photos", "images and splits come with scikit-learn, but config.data.dir is 'photos'"),
        ("data.splits={'train': 'x'}", r"config.data.splits is \{'train': 'x'\}; set them to '' and \{\}"),
    ],
)
def test_what_is_found_with_the_data(override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        program.main(["train", DIGITS, f"--workdir={tmp_path / 'run'}", f"--config.{override}"])


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (evaluate.main, ["--workdir=RUN", "--weights=x.pth"], "--weights goes with --config"),
        (evaluate.main, [DIGITS, "--weights=RUN", "--workdir=RUN"], "--workdir and --config exclude one another"),
        (evaluate.main, ["--workdir=RUN", "--config.seed=1"], "Unknown command line flag 'config.seed'"),
        (predict.main, ["--workdir=RUN", "--out=x", "x.png"], "--out is for the pictures of a segmentation"),
        (predict.main, ["--workdir=RUN", "--top=abc", "x.png"], "--top=abc"),
        (predict.main, ["--workdir=", "x.png"], "the flag --workdir is missing"),
        (cost.main, [DIGITS, "--workdir=x"], "--workdir is given, but nothing is trained or written"),
        (compare.main, [COMPARE, "--workdir=x", "--minutes=nan"], "--minutes=nan is not a time"),
        (edo.main, [COMPARE, "--workdir=x"], "unknown key"),
        (prepare.main, ["--dataset=cifar10", "x"], "unexpected argument 'x'"),
    ],
)
def test_arguments_that_would_be_ignored(main, arguments, message, finished_run):
    with pytest.raises(UserError, match=message):
        main(["program", *(argument.replace("RUN", str(finished_run)) for argument in arguments)])
    assert "x" not in {path.name for path in finished_run.parent.iterdir()}


def test_paths_of_convolutions_are_given_on_the_command_line(tmp_path):
    from train.config import parse_command_line

    override = "--config.model.convs={'layer1.0.conv2': {'pattern': (1, 2)}}"
    config, _ = parse_command_line(["train", DIGITS, f"--workdir={tmp_path}", override], "")
    assert config.model.convs == {"layer1.0.conv2": {"pattern": [1, 2]}}
