"""The benchmark programs run, print complete tables, and time the right functions."""

import dataclasses
import math
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import msconv_jax
from benchmarks import __main__ as everything
from benchmarks import (
    data_wait,
    hard_places,
    input_pipeline,
    models,
    operator_costs,
    operators,
    pytorch_operators,
    receptive_fields,
)
from benchmarks.convolution_costs import fit
from benchmarks.tables import BACKWARD, FORWARD, Comparison, Row, summary
from benchmarks.timing import Timed, run_interleaved, time_interleaved
from msconv_jax.models import registry
from tests.train.helpers import TINY_ENTRY
from train.data.images import decode

COLUMNS = "ratio | quartiles | compile, s | temporary, MiB |"
TINY = ["--sizes", "4", "--batch", "1", "--rounds", "1"]


def comparison(name="PSConv", targets=None):
    """Two shapes with forward ratios 1 (0.5, 1, 3 in the rounds) and 4, and twice these with gradients."""

    def rows(factor):
        slow = Timed((factor * 1.0, factor * 4.0, factor * 6.0), 3.0, 7.0)
        slower = Timed((factor * 4.0, factor * 8.0, factor * 12.0), 3.0, 7.0)
        first, second = Timed((2.0, 4.0, 2.0), 1.5, 1.0), Timed((1.0, 2.0, 3.0), 1.5, 1.0)
        return [Row("8x8x16", first, slow), Row("4x4x32", second, slower)]

    return Comparison(name, "nnx.Conv", "A setting.", {FORWARD: rows(1), BACKWARD: rows(2)}, targets or {})


def test_ratios_are_of_the_same_round():
    row = comparison().rows[FORWARD][0]
    assert row.timed.ratios_to(row.base) == [0.5, 1.0, 3.0]
    assert row.timed.ratio_to(row.base) == 1.0
    assert row.timed.quartiles_to(row.base) == (0.75, 2.0)


def test_the_summary_names_the_targets_that_are_missed():
    def missed(*comparisons):
        return [line.count("missed") for line in summary(list(comparisons)).splitlines()[2:]]

    within = comparison(targets={FORWARD: 2.0})  # the means are 2 forward and 4 with gradients
    assert missed(within, comparison(targets={FORWARD: 1.9, BACKWARD: 3.9}), comparison()) == [0, 2, 0]
    worst = dataclasses.replace(within, limits={FORWARD: 3.9})  # its worst shape has 4
    assert missed(worst, dataclasses.replace(within, limits={FORWARD: 4.0})) == [1, 0]


def test_the_fit_finds_the_constants_again():
    shapes = [(p, t, i, o) for p in (100, 3000) for t in (1, 9) for i in (8, 64) for o in (4, 32, 128)]
    times = [(5e6 + p * (700 + t * i * (o + 3))) / 8e7 for p, t, i, o in shapes]
    assert fit(shapes, times) == pytest.approx(
        {"overhead": 5e6, "pixel": 700, "extra_outputs": 3, "rate per ms": 8e7}, rel=1e-3
    )


def test_functions_are_run_in_turn():
    called = []
    times = run_interleaved({name: lambda n, name=name: called.append((name, n)) for name in "ab"}, 3)
    assert [name for name, _ in called] == [*"aabb", *"ababab"]
    assert all(n > 1 for _, n in called[4:])  # too fast for one run a round
    assert {len(values) for values in times.values()} == {3}


def test_compile_time_and_memory_are_measured():
    def chain(x):
        return jnp.sin(x @ x) @ x

    timed = time_interleaved({"f": chain}, {"f": (jnp.ones((64, 64)),)}, 2)["f"]
    assert timed.compile_s > 0
    assert timed.median_ms > 0
    assert timed.temporary_mib >= 64 * 64 * 4 / 2**20


def test_every_subject_has_the_plain_convolutions_shape_at_every_stage():
    for subject in operators.SUBJECTS:
        for stage, channels in enumerate(operators.WIDTHS):
            width, size = channels * subject.widen, operators.SIZES[stage]
            options = subject.options(stage, width)

            def apply(subject=subject, width=width, options=options, size=size):
                return operators.conv(subject.operator, width, **options)(operators.signal(subject, 2, size, width))

            first, *rest = jax.tree.leaves(jax.eval_shape(apply))
            if subject.operator is msconv_jax.OctConv:
                half = math.ceil(size / 2)
                assert (first.shape, rest[0].shape) == ((2, size, size, width // 2), (2, half, half, width // 2))
            else:
                assert first.shape == (2, size, size, width), (subject.name, stage)
            if subject.native:
                assert subject.base != "nnx.Conv"
                assert options["feature_group_count"] > 1


@pytest.mark.slow
def test_operators_program(capsys, monkeypatch):
    chosen = [s for s in operators.SUBJECTS if s.base == "depthwise nnx.Conv" or s.name == "OctConv"]
    monkeypatch.setattr(operators, "SUBJECTS", chosen)
    operators.main([*TINY, "--native"])
    text = capsys.readouterr().out
    for name, base in (("OctConv", "nnx.Conv"), ("depthwise GroupedConv", "depthwise nnx.Conv")):
        assert f"### {name} over {base}\n" in text
        for work in (FORWARD, BACKWARD):
            assert f"| {work} | {base}, ms | {name}, ms | {COLUMNS}" in text
        assert f"| {name} | {base} |" in text  # in the summary
    assert "| 4x4x64 |" in text


def test_only_what_is_asked_for_is_timed(monkeypatch):
    monkeypatch.setattr(operators, "compare", lambda subject, sizes, batch, rounds: f"{subject.name}/{subject.base}")
    grouped = ["GroupedConv/nnx.Conv", "depthwise GroupedConv/nnx.Conv"]
    all_but_grouped = [f"{name}/nnx.Conv" for name in ("PSConv", "PyConv", "ICConv", "HetConv", "OctConv")]
    assert list(operators.compare_all()) == [*all_but_grouped, *grouped]
    assert list(operators.compare_all(only=["PyConv"], native=True)) == ["PyConv/nnx.Conv"]
    assert sorted(operators.compare_all(only=["GroupedConv"], native=True)) == sorted(
        [*grouped, "GroupedConv/nnx.Conv in groups", "depthwise GroupedConv/depthwise nnx.Conv"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "8", "4", "2", "1", "1"], "--sizes has 5 numbers: there are 4 stages"),
        (["--rounds", "0"], "must be at least 1"),
        (["--only", "PSConvolution"], "invalid choice"),
    ],
)
def test_bad_arguments_end_the_program(arguments, message, capsys):
    with pytest.raises(SystemExit):
        operators.main(arguments)
    assert message in capsys.readouterr().err


class Network(nnx.Module):
    """A minimal network with parameters, statistics and a mode."""

    def __init__(self, name="resnet8"):
        rngs = nnx.Rngs(0)
        self.conv, self.bn = nnx.Conv(3, 8, (3, 3), rngs=rngs), nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.conv(x)).mean((1, 2))


def test_models_program(capsys, monkeypatch):
    monkeypatch.setattr(models, "build", Network)
    models.main(["ps_resnet8", "resnet8", "--size", "8", "--batch", "2", "--rounds", "1"])
    text = capsys.readouterr().out
    assert "### ps_resnet8 over resnet8\n" in text
    assert f"| forward + backward | resnet8, ms | ps_resnet8, ms | {COLUMNS}" in text
    with pytest.raises(SystemExit):
        models.main(["ps_resnet8", "resnet9"])
    assert "unknown classifier 'resnet9'" in capsys.readouterr().err


@pytest.mark.slow
def test_folded_networks_are_timed_over_themselves(capsys, monkeypatch):
    small = msconv_jax.create_model("resnet8", layers=(1,), width=8, rngs=nnx.Rngs(0))
    monkeypatch.setattr(models, "build", lambda name: small)
    models.main(["--folded", "resnet8", "--size", "8", "--batch", "2", "--rounds", "1"])
    text = capsys.readouterr().out
    assert "### resnet8, folded over resnet8\n" in text
    assert "| forward | resnet8, ms | resnet8, folded, ms |" in text
    with pytest.raises(SystemExit):
        models.main(["--folded", "resnet9"])
    assert "unknown classifier 'resnet9'" in capsys.readouterr().err


def test_a_training_step_gives_loss_new_statistics_and_a_gradient_for_each_parameter():
    images, labels = jnp.ones((2, 8, 8, 3)), jnp.zeros((2,), jnp.int32)
    network = Network()
    before = np.asarray(network.bn.mean[...])
    step, state = models.training_step(network)
    (loss, statistics), gradients = jax.jit(step)(state, images, labels)
    assert float(loss) > 0
    assert jax.tree.structure(gradients) == jax.tree.structure(state[0])
    assert np.any(np.asarray(statistics["bn"]["mean"][...]) != before)
    apply, state = models.forward(network)
    assert jax.eval_shape(apply, state, images, labels).shape == (2, 8)

    registered = msconv_jax.create_model("ps_resnet8", layers=(1,), width=8, rngs=nnx.Rngs(0))
    step, state = models.training_step(registered)
    _, gradients = jax.eval_shape(step, state, images, labels)
    assert jax.tree.structure(gradients) == jax.tree.structure(state[0])


def test_the_document_is_printed_or_written_wholly(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(everything, "RESULTS", tmp_path)
    monkeypatch.setattr(models, "compare", lambda: comparison("network"))
    monkeypatch.setattr(models, "compare_folded", lambda: comparison("network, folded"))
    monkeypatch.setattr(hard_places, "compare_all", lambda *_: [comparison("hard")])
    monkeypatch.setattr(pytorch_operators, "installed", lambda: False)
    (tmp_path / "here.md").write_text("what stood here")
    everything.main([*TINY, "--only", "HetConv", "--full", "--write", "here"])
    text = (tmp_path / "here.md").read_text()
    assert "python -m benchmarks --sizes 4 --batch 1 --rounds 1 --only HetConv --full --write here" in text
    assert "jax " + jax.__version__ in text
    assert "PyTorch is not installed here and was left out." in text
    titles = re.findall(r"^#+ .*", text, re.MULTILINE)
    assert titles[1:] == [
        "## Summary",
        "## Operators",
        "### HetConv over nnx.Conv",
        "## Networks",
        "### network over nnx.Conv",
        "### network, folded over nnx.Conv",
        "## Hard places",
        "### hard over nnx.Conv",
    ]
    assert "stood here" not in text
    capsys.readouterr()

    monkeypatch.setattr(operators, "compare_all", lambda *_, **__: [comparison()])
    everything.main([])
    text = capsys.readouterr().out
    assert "5 interleaved rounds" in text
    assert "### PSConv over nnx.Conv" in text
    assert "## Networks" not in text
    with pytest.raises(SystemExit):
        everything.main(["--write", "../elsewhere"])


def test_the_summary_is_copied_into_the_documents(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(everything, "RESULTS", tmp_path)
    monkeypatch.setattr(everything, "PERFORMANCE", tmp_path / "performance.md")
    document = everything.document("a command", "cpu, 3 interleaved rounds", {"Operators": [comparison()]}, [])
    (tmp_path / "here.md").write_text(document)
    (tmp_path / "performance.md").write_text(f"before\n{everything.OPENING}\nold\n{everything.CLOSING}\nafter\n")
    monkeypatch.setattr(everything, "OPERATORS", tmp_path / "operators.md")
    (tmp_path / "operators.md").write_text(f"costs\n{operator_costs.OPENING}\nold\n{operator_costs.CLOSING}\nend\n")
    monkeypatch.setattr(operator_costs, "ROWS", operator_costs.ROWS[:2])
    everything.main(["--docs", "here"])
    text = (tmp_path / "performance.md").read_text()
    assert text.startswith(f"before\n{everything.OPENING}\nCpu, 3 interleaved rounds. Geometric means")
    assert text.endswith(f"|\n{everything.CLOSING}\nafter\n")
    assert "| PSConv | nnx.Conv | 2.00 |" in text
    assert "stood here" not in text
    assert "###" not in text
    assert everything.with_summary(text, document) == text
    lines = (tmp_path / "operators.md").read_text().splitlines()
    assert [*lines[:2], *lines[-2:]] == ["costs", operator_costs.OPENING, operator_costs.CLOSING, "end"]
    assert lines[4:6] == [
        "| `PSConv` | pattern (1, 2, 1, 4) | 1.00 | 1.00 | 1.00 | 1.00 | 2.00 | 4.00 |",
        "| `DynamicPSConv` | dilations 1 and 2, as in training | 1.01 | 2.00 | 1.01 | 2.00 |  |  |",
    ]
    with pytest.raises(SystemExit):
        everything.main(["--docs", "there"])
    assert "there is no" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no place for the summary"):
        everything.with_summary("A page.", document)
    with pytest.raises(ValueError, match="no place for the costs"):
        operator_costs.with_costs("A document.", document)


@pytest.mark.slow
def test_hard_places_program(capsys, monkeypatch):
    monkeypatch.setattr(hard_places, "LARGE_KERNEL", ((3, 8),))
    monkeypatch.setattr(hard_places, "IN_A_LOOP", ((4, 8),))
    monkeypatch.setattr(hard_places, "LAYERS", 2)
    monkeypatch.setattr("sys.argv", ["hard_places", "--batch", "1", "--rounds", "1"])
    hard_places.main()
    text = capsys.readouterr().out
    for title in (
        "large kernel over nnx.Conv",
        "GroupedConv in a loop over nnx.Conv",
        "PSConv in a loop over PSConv one",
    ):
        assert title in text
    graphdef, states = hard_places.layers_of(msconv_jax.PSConv, 8)
    x = hard_places.images(1, 4, 8)
    one_by_one, in_a_loop = (how(graphdef, states, x) for how in (hard_places.unrolled, hard_places.looped))
    np.testing.assert_allclose(one_by_one, in_a_loop, atol=1e-5)


def test_without_pytorch_its_program_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(pytorch_operators, "installed", lambda: False)
    with pytest.raises(SystemExit, match="pip install torch"):
        pytorch_operators.main([])


def test_pytorchs_operators_are_the_librarys():
    torch = pytest.importorskip("torch")
    stage = 1  # PyConv has three levels of different widths here
    width = operators.WIDTHS[stage]
    subjects = {subject.name: subject for subject in operators.SUBJECTS}
    x = np.random.default_rng(0).standard_normal((1, 7, 7, width)).astype(np.float32)
    torch.manual_seed(0)
    for name, build in pytorch_operators.operators(stage).items():
        module = build()
        signal = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
        theirs = module(signal)
        gradient, *_ = torch.autograd.grad(theirs.square().sum(), [signal, *module.parameters()])
        ours = operators.conv(subjects[name].operator, width, **subjects[name].options(stage, width))
        msconv_jax.load_state_dict(ours, {key: value.numpy() for key, value in module.state_dict().items()})
        work, state = operators.functions_of(ours)
        _, (_, own_gradient) = jax.jit(work[BACKWARD])(state, jnp.asarray(x))
        np.testing.assert_allclose(ours(x), theirs.detach().numpy().transpose(0, 2, 3, 1), atol=1e-5)
        np.testing.assert_allclose(own_gradient, gradient.numpy().transpose(0, 2, 3, 1), atol=1e-4)


def test_the_masked_weights_of_pytorchs_psconv_stay_zero():
    torch = pytest.importorskip("torch")
    module = pytorch_operators.operators(0)["PSConv"]()
    module(torch.ones(1, 64, 5, 5)).sum().backward()
    weight = module.conv.weight
    assert (weight == 0).sum() == weight.numel() // 2  # the blocks (p, p) and (p, p + 2)
    assert not weight.grad[weight == 0].any()


def test_pytorch_program(capsys):
    pytest.importorskip("torch")
    pytorch_operators.main(TINY)
    text = capsys.readouterr().out
    for name in ("PSConv", "PyConv", "ICConv"):
        assert f"### {name}, PyTorch eager over torch.nn.Conv2d\n" in text
        assert f"| {FORWARD} | torch.nn.Conv2d, ms | {name}, PyTorch eager, ms | {COLUMNS}" in text


def test_the_files_of_the_input_benchmark_are_different_pictures_of_imagenets_size():
    files = input_pipeline.make_files(8)
    assert len(set(files)) == 8
    assert {decode(data, 3, strict=True).shape for data in files} == {(375, 500, 3)}
    assert 90e3 < sum(map(len, files)) / 8 < 125e3


def test_the_input_benchmark_prints_speeds_by_the_clock_and_of_the_processor(monkeypatch):
    monkeypatch.setattr(input_pipeline, "IMAGES", 32)
    monkeypatch.setattr(input_pipeline, "BATCH", 8)
    monkeypatch.setattr(input_pipeline.importlib.util, "find_spec", lambda name: None)
    rows = [line.split(" | ") for line in input_pipeline.table(rounds=2).splitlines() if re.match(r"\| [dw]", line)]
    assert [row[1] for row in rows] == ["1", "1", "2"]
    for row in rows:
        whole, own = (float(cell.split()[0].replace(",", "")) for cell in row[2:4])
        assert own == pytest.approx(whole / int(row[1]), abs=1)


def test_speeds_are_per_second():
    runs = {"slow": input_pipeline.Run(1, lambda: time.sleep(0.1))}
    clock, processor = input_pipeline.speeds(runs, 3)["slow"]
    assert clock.shape == (3,)
    assert (clock <= input_pipeline.IMAGES / 0.1).all()
    assert np.median(processor) > 2 * np.median(clock)  # sleeping takes no processor time


@pytest.mark.slow
def test_waiting_for_data_is_timed(monkeypatch):
    monkeypatch.setitem(registry._ENTRIES, "tiny", dataclasses.replace(TINY_ENTRY, name="tiny", config={"width": 8}))
    found = data_wait.waits(4, 2, 1, model="tiny", side=8)
    assert len(found) == 2
    assert all(wait >= 0 and step > 0 for wait, step in found)


@pytest.mark.slow
def test_receptive_fields_of_a_small_network():
    rows = receptive_fields.measure("resnet8", 65, 2, width=4)
    assert [row.stage for row in rows] == ["layer1", "layer2", "layer3"]
    assert all(max(row.sides) <= row.theoretical.size[0] and len(row.radii) == 2 for row in rows)
    assert rows[0].sides[0] < rows[2].sides[0]


def test_the_kept_table_shows_that_multi_scale_networks_see_further():
    text = receptive_fields.RESULTS.read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| layer" in line]
    for name in ("ps_resnet50", "pyconv_resnet50"):
        ratios = [float(row[4]) for row in rows if row[0] == name]
        assert len(ratios) == 4
        assert min(ratios) > 1
