"""Every registered model: counts, maps, equal builds; and the errors for unknown names and keywords."""

import dataclasses
import re
from functools import partial

import pytest
from flax import nnx

from msconv_jax.models import (
    ModelEntry,
    ResNet,
    create_model,
    list_models,
    model_entry,
    register_model,
    registry,
)
from msconv_jax.operators import PSConv

PLAIN_AND_PS = {
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "se_resnet50",
    "se_resnet101",
    "resnext29_8x64d",
    "resnext29_16x64d",
    "resnet8",
    "resnet20",
}


def sis_res2net_by_formula(layers):
    """Counts parameters: three of four slices of 28 channels are convolved, with 11/16 of the kernels."""
    total, inputs = 7 * 7 * 3 * 64 + 2 * 64, 64
    for stage, depth in enumerate(layers):
        width, outputs = 28 * 2**stage, 256 * 2**stage
        total += inputs * outputs + 2 * outputs
        for _ in range(depth):
            total += 4 * width * (inputs + outputs) + 3 * 9 * width * width * 11 // 16
            total += 2 * (4 * width + 3 * width + outputs)
            inputs = outputs
    return total + (inputs + 1) * 1000


# Parameters of the other families, from the specifications.
OTHERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "pyconv_resnet18": 5_911_976,
    "pyconv_resnet34": 11_091_048,
    "pyconv_resnet50": 24_847_720,
    "pyconv_resnet101": 42_307_944,
    "pyconv_resnet152": 56_640_872,
    "pyconvhg_resnet50": 25_234_728,
    "pyconvhg_resnet101": 44_627_240,
    "pyconvhg_resnet152": 60_657_960,
    "ic_resnet50": 25_557_032,
    "ic_resnet101": 44_549_160,
    "oct_resnet8": 78_042 + 16 * 16 + 2 * 16,  # the first block's shortcut is a 1x1, which makes the frequencies
    "oct_resnet20": 272_474 + 16 * 16 + 2 * 16,
    "oct_resnet26": 15_995_176,
    "oct_resnet50": 25_557_032,
    "oct_resnet101": 44_549_160,
    "oct_resnet152": 60_192_808,
    "oct_resnet200": 64_673_832,
    "oct_resnext50_32x4d": 25_028_904,
    "oct_resnext101_32x4d": 44_177_704,
    "res2net50_48w_2s": 25_287_304,
    "res2net50_26w_4s": 25_699_120,
    "res2net50_14w_8s": 25_059_816,
    "res2net50_26w_6s": 37_051_448,
    "res2net50_26w_8s": 48_403_776,
    "res2net101_26w_4s": 45_206_688,
    "res2next50": 24_671_464,
    # The plain network's, and a gate for each block: of 256 to 2048 channels, a sixteenth hidden, with biases.
    "se_res2net50": 25_699_120
    + sum(n * (c * c // 8 + c // 16 + c) for n, c in ((3, 256), (4, 512), (6, 1024), (3, 2048))),
    "res2net50_v1b": 25_718_352,
    "res2net101_v1b": 45_225_920,
    "res2net152_v1b": 61_294_480,
    "res2net_dla60": 21_145_544,
    "res2next_dla60": 17_330_456,
    "res2next29_8cx25wx4s": 32_957_436,  # 32.96 M in the specification
    "vgg16_bn": 138_365_992,
    "vgg16_cifar": 14_987_786,
    "het_resnet50": 18_012_200,
    "het_vgg16": 138_365_992 - (128 + 3 * 256 + 6 * 512 + 64 + 128) - 14_708_736 * 2 // 3,  # 12 biases, kernels
    "het_vgg16_cifar": 5_181_962,
    "sis_resnet50": 25_557_032 - 11_317_248 * 5 // 16,  # of the 3x3 kernels 11 sixteenths remain
    "sis_resnet101": 44_549_160 - 21_344_256 * 5 // 16,
    "sis_res2net50": sis_res2net_by_formula((3, 4, 6, 3)),
    "sis_res2net101": sis_res2net_by_formula((3, 4, 23, 3)),
    "sis_resnext29": 28_712_868,
    "sis_res2next29": 28_894_724,  # 28.80 M in the specification, with 10 classes
    "mobilenetv1": 4_231_976,
    "mobilenetv2": 3_504_872,
    "ic_mobilenetv2": 3_504_872,
    "oct_mobilenetv1": 4_231_976,
    "oct_mobilenetv2": 3_504_872 + 32 * 32 + 2 * 32,  # and the first block's 1x1, which makes the frequencies
    "ac_resnet50": 29_378_601,
    "ac_pixel_resnet50": 31_851_944,
    "ic_resnet18": 11_689_512,
    "ic_resnext101_32x4d": 44_177_704,
}
NAMES = PLAIN_AND_PS | {f"ps_{name}" for name in PLAIN_AND_PS} | set(OTHERS)
# Of segmentation, from its specification, at 150 classes with the auxiliary head.
SEGMENTATION = {
    "pyconv_segnet_resnet50": 34_397_548,
    "pyconv_segnet_resnet101": 53_389_676,
    "pyconv_segnet_resnet152": 69_033_324,
    "pyconv_segnet_pyconv_resnet50": 33_688_236,
    "pyconv_segnet_pyconv_resnet101": 51_148_460,
    "pyconv_segnet_pyconv_resnet152": 65_481_388,
    "seg_baseline_resnet50": 35_421_548,
    # The backbones' difference, which is that of the networks with the other head.
    "seg_baseline_resnet101": 35_421_548 + 53_389_676 - 34_397_548,
    "seg_baseline_resnet152": 35_421_548 + 69_033_324 - 34_397_548,
    # The backbone without its classifier, the head's 3x3 and 1x1, the auxiliary head's.
    "seg_baseline_ps_resnet8": 78_042 - 650 + (9 * 64 * 64 + 2 * 64 + 65 * 11) + (9 * 32 * 32 + 2 * 32 + 33 * 11),
}
# The layers of the mobile networks whose maps come out, of V2 and V1: the last of each resolution.
MOBILE_MAPS = ((1, 3, 6, 13, 18), (1, 3, 5, 11, 13))


def each_of(names):
    """Marks the names of deep networks as slow, because tracing them takes long."""
    return [
        pytest.param(n, marks=pytest.mark.slow) if re.search("101|152|200|sis_res2", n) else n for n in sorted(names)
    ]


EACH = each_of(NAMES)
# The deep networks have the same blocks, more often, and PSConv's those of their plain counterparts.
SHALLOW = [name for name in EACH if isinstance(name, str) and not name.startswith("ps_res")]


def param_sizes(model):
    """Dotted path -> shape of every parameter."""
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): leaf.get_value().shape for path, leaf in leaves}


def size(shape):
    total = 1
    for axis in shape:
        total *= axis
    return total


def count(model):
    return sum(map(size, param_sizes(model).values()))


def total_by_formula(layers, classes, *, groups=1, group_width=64, stem=7 * 7 * 3 * 64, se=False):
    """Counts the parameters of a bottleneck network, from the stage table of the specification alone."""
    total, inputs = stem + 2 * 64, 64
    for stage, depth in enumerate(layers):
        planes = 64 * 2**stage
        width, outputs = groups * (group_width * planes // 64), 4 * planes
        total += inputs * outputs + 2 * outputs  # projection and its normalisation
        for _ in range(depth):
            total += inputs * width + 9 * width * width // groups + width * outputs
            total += 2 * (width + width + outputs)
            if se:
                total += 2 * outputs * outputs // 16 + outputs // 16 + outputs
            inputs = outputs
    return total + (inputs + 1) * classes


FIFTY, HUNDRED = (3, 4, 6, 3), (3, 4, 23, 3)
CIFAR = {"stem": 3 * 3 * 3 * 64}
TOTALS = {
    # Full integers from the specifications; the formula, written from the table, must agree.
    "resnet50": (25_557_032, total_by_formula(FIFTY, 1000)),
    "resnet101": (44_549_160, total_by_formula(HUNDRED, 1000)),
    "resnet152": (60_192_808, total_by_formula((3, 8, 36, 3), 1000)),
    "resnext50_32x4d": (25_028_904, total_by_formula(FIFTY, 1000, groups=32, group_width=4)),
    # Not the better known 32x8d (88,791,336).
    "resnext101_32x4d": (44_177_704, total_by_formula(HUNDRED, 1000, groups=32, group_width=4)),
    "se_resnet50": (28_088_024, total_by_formula(FIFTY, 1000, se=True)),
    "se_resnet101": (49_326_872, total_by_formula(HUNDRED, 1000, se=True)),
    "resnext29_8x64d": (34_518_948, total_by_formula((3, 3, 3), 100, groups=8, **CIFAR)),
    "resnext29_16x64d": (68_247_460, total_by_formula((3, 3, 3), 100, groups=16, **CIFAR)),
}


def test_the_names():
    assert list_models(task="classification") == sorted(NAMES)
    assert list_models(task="segmentation") == sorted(SEGMENTATION)
    assert list_models() == sorted([*NAMES, *SEGMENTATION])


@pytest.mark.parametrize("name", each_of(SEGMENTATION))
def test_parameter_totals_of_segmentation(name, abstract_model):
    assert count(abstract_model(name)) == SEGMENTATION[name]


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task='segmentatoin': must be one of classification, segmentation"):
        list_models(task="segmentatoin")


def test_a_segmentation_network_is_no_backbone():
    with pytest.raises(ValueError, match="'seg_baseline_resnet50' is a network for segmentation"):
        create_model("seg_baseline_resnet50", features_only=True, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", sorted(TOTALS))
@pytest.mark.parametrize("prefix", ["", "ps_"])
def test_parameter_totals(name, prefix, abstract_model):
    expected, by_formula = TOTALS[name]
    assert by_formula == expected
    assert count(abstract_model(prefix + name)) == expected


@pytest.mark.parametrize("name", each_of(OTHERS))
def test_parameter_totals_of_the_other_families(name, abstract_model):
    assert count(abstract_model(name)) == OTHERS[name]


@pytest.mark.parametrize("name", sorted(PLAIN_AND_PS))
def test_ps_has_the_parameters_of_its_plain_counterpart(name, abstract_model):
    assert param_sizes(abstract_model(f"ps_{name}")) == param_sizes(abstract_model(name))


@pytest.mark.parametrize(("name", "weights"), [("resnext50_32x4d", 1_414_656), ("resnext101_32x4d", 2_668_032)])
def test_grouped_3x3_weights(name, weights, abstract_model):
    sizes = param_sizes(abstract_model(name))
    assert sum(size(shape) for path, shape in sizes.items() if path.endswith("conv2.kernel")) == weights


@pytest.mark.parametrize("name", EACH)
def test_feature_info_tells_the_truth(name, abstract_model, abstract_shapes):
    info = abstract_model(name).feature_info
    # A size that no stride divides, so that every rounding shows; weights for each position allow one size only.
    more = (0, 0) if getattr(abstract_model(name), "input_size", None) else (1, 9)
    height, width = (side + by for side, by in zip(model_entry(name).input_size, more, strict=False))
    shapes, logits = abstract_shapes(name, height, width)
    described = [(2, -(-height // f["reduction"]), -(-width // f["reduction"]), f["num_chs"]) for f in info]
    assert described == list(shapes)
    assert logits == (2, model_entry(name).num_classes)
    if "mobilenet" in name:  # a list of layers
        assert all(f["module"] == f"features.{n}" for f, n in zip(info, MOBILE_MAPS["v1" in name], strict=True))
        return
    stages = "level{}" if "dla" in name else "layer{}"
    # Each network has one map that is no stage's: the stem's, or VGG's after the last pooling.
    of_stages = info[:-1] if "vgg" in name else info[1:]
    assert [f["module"] for f in of_stages] == [stages.format(s) for s in range(1, len(info))]
    assert all(hasattr(abstract_model(name), f["module"]) for f in of_stages)


@pytest.mark.parametrize("name", SHALLOW)
def test_two_builds_have_equal_graph_definitions(name, abstract_model, build_abstract):
    first, second = nnx.graphdef(abstract_model(name)), nnx.graphdef(build_abstract(name))
    assert first == second
    assert hash(first) == hash(second)


def test_equal_graph_definitions_with_overrides():
    """Partials and drop path must not make the graph definitions of two builds differ."""

    def build():
        conv = partial(PSConv, pattern=(1, 2))
        norm = partial(nnx.BatchNorm, momentum=0.5)
        return create_model("resnet8", conv=conv, norm=norm, drop_path_rate=0.1, rngs=nnx.Rngs(0))

    assert nnx.graphdef(nnx.eval_shape(build)) == nnx.graphdef(nnx.eval_shape(build))


@pytest.mark.parametrize("name", [n for n in sorted(NAMES) if n.startswith("ps_")])
def test_ps_replaces_the_spatial_convolutions_only(name, abstract_model):
    kinds = {path: type(module) for path, module in nnx.iter_modules(abstract_model(name)) if path[-1:] != ()}
    spatial = {"conv1", "conv2"} if name in ("ps_resnet8", "ps_resnet20") else {"conv2"}
    for path, kind in kinds.items():
        if path[0].startswith("layer") and path[-1] in spatial:
            assert kind is PSConv, path
        else:
            assert kind is not PSConv, path


def test_wildcards():
    assert list_models("ps_*") == sorted(f"ps_{name}" for name in PLAIN_AND_PS)
    assert list_models("resnet?") == ["resnet8"]
    assert list_models("PS_*") == []
    assert list_models("*_ps_*", task="segmentation") == ["seg_baseline_ps_resnet8"]


def test_unknown_name_lists_near_matches():
    with pytest.raises(ValueError, match=r"'ps_resnet_50': did you mean ps_resnet50.*list_models\(\)"):
        create_model("ps_resnet_50", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"unknown model 'zzz'\. list_models\(\)"):
        model_entry("zzz")


def test_unknown_keyword_lists_near_matches_and_the_valid_ones():
    with pytest.raises(
        TypeError, match=r"'resnet8' has no argument 'drop_path': did you mean drop_path_rate.*width.*conv"
    ):
        create_model("resnet8", drop_path=0.1, rngs=nnx.Rngs(0))


def test_the_keywords_of_a_typed_dictionary_are_the_models():
    entry = model_entry("seg_baseline_resnet50")
    assert {"backbone_options", "conv", "num_classes", "features", "zoom", "dtype"} <= set(entry.keywords)
    with pytest.raises(TypeError, match=r"no argument 'zom': did you mean zoom"):
        entry.check_keywords(["zom"])


def test_conv_overrides_any_models_convolution():
    def build(name, conv):
        return nnx.eval_shape(lambda: create_model(name, conv=conv, rngs=nnx.Rngs(0)))

    patterned = build("resnet8", partial(PSConv, pattern=(1, 2)))
    assert type(patterned.layer3[0].conv2) is PSConv
    default = build("resnet8", PSConv)
    assert nnx.graphdef(patterned) != nnx.graphdef(default)
    assert type(build("ps_resnet8", nnx.Conv).layer1[0].conv1) is nnx.Conv
    assert type(build("ps_resnet8", None).layer1[0].conv1) is nnx.Conv


def test_arguments_reach_the_builder():
    model = nnx.eval_shape(lambda: create_model("resnet8", num_classes=7, in_channels=2, width=4, rngs=nnx.Rngs(0)))
    assert model.fc.kernel.shape == (16, 7)
    assert model.conv1.kernel.shape == (3, 3, 2, 4)
    assert model.layer3[0].conv1.kernel.shape == (3, 3, 8, 16)


class TestRegisterModel:
    @pytest.fixture(autouse=True)
    def _own_registry(self, monkeypatch):
        monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))

    def test_a_new_family(self):
        entry = dataclasses.replace(model_entry("resnet8"), name="resnet8_wide")
        assert register_model(entry) is entry
        assert "resnet8_wide" in list_models()
        model = nnx.eval_shape(lambda: create_model("resnet8_wide", width=8, rngs=nnx.Rngs(0)))
        assert model.fc.in_features == 32
        assert (entry.parameters, entry.macs, entry.published.table) == (None, None, None)

    def test_a_taken_name_is_refused(self):
        with pytest.raises(ValueError, match="'resnet8' is registered already; choose another"):
            register_model(model_entry("resnet8"))

    def test_a_misspelt_config_is_refused(self):
        with pytest.raises(ValueError, match=r"config of 'x' has \['layer'\]: ResNet takes only layers"):
            ModelEntry("x", ResNet, {"layer": (1,)}, 10, (32, 32, 3), "paper")

    def test_a_builder_that_swallows_arguments_is_refused(self):
        def builder(rngs, **kwargs):
            return ResNet((1,), rngs=rngs, **kwargs)

        with pytest.raises(ValueError, match=re.escape("takes *args or **kwargs")):
            ModelEntry("x", builder, {}, 10, (32, 32, 3), "paper")

    def test_an_unknown_task_is_refused(self):
        with pytest.raises(ValueError, match="task='x': must be one of"):
            dataclasses.replace(model_entry("resnet8"), name="x", task="x")

    def test_entries_cannot_be_changed(self):
        with pytest.raises(TypeError):
            model_entry("resnet8").config["width"] = 1
