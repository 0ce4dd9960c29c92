"""Networks whose convolution is chosen by their family's own keywords: SIS, IC-Conv; and what their entries check."""

import dataclasses

import pytest
from flax import nnx

from msconv_jax.counting import count_parameters
from msconv_jax.models import OctResNet, ResNet, create_model, list_ic_patterns, model_entry
from msconv_jax.models.families.icconv import ic_convs
from msconv_jax.operators import ICConv, SISConv

KINDS = ("basic", "interactive1", "interactive2", "recurrent1", "recurrent2")
SMALL = {"layers": (1,), "width": 8}


def build(name, **arguments):
    return nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), **arguments))


# --- SIS ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sis_resnet50", "sis_res2net50"])
def test_each_kind(name, kind):
    block = build(name, sis=kind, layers=(1,)).layer1[0]
    convs = block.conv2.convs if "res2" in name else [block.conv2]
    assert {(type(conv), conv.kind, conv.out_features) for conv in convs} == {
        (SISConv, kind, 28 if "res2" in name else 64)
    }
    assert len(convs) == (3 if "res2" in name else 1)


# Of ResNeXt-29, 8 groups of 64: what the specification has for (keywords, classes).
TABLE_1 = [
    ({}, 10, 28_620_618),
    ({}, 100, 28_712_868),
    ({"sis": "interactive1"}, 10, 27_459_402),
    ({"sis": "interactive2"}, 100, 27_551_652),
    ({"sis": "recurrent1"}, 10, 27_459_402),
    ({"sis": "interactive2", "share_paths": True}, 10, 26_298_186),
    ({"sis": "recurrent2", "share_paths": True, "steps": 3}, 100, 26_390_436),
]


@pytest.mark.parametrize(
    ("keywords", "classes", "parameters"), TABLE_1, ids=lambda value: None if isinstance(value, dict) else str(value)
)
def test_sizes_of_resnext29(keywords, classes, parameters):
    assert count_parameters(build("sis_resnext29", num_classes=classes, **keywords)) == parameters


def test_sizes_of_the_plain_resnext29():
    assert count_parameters(build("resnext29_8x64d", num_classes=10)) == 34_426_698
    assert count_parameters(build("resnext29_8x64d")) == 34_518_948


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keywords", "millions"),
    [({}, 28.80), ({"sis": "recurrent1"}, 28.31), ({"sis": "recurrent1", "share_paths": True}, 27.82)],
)
def test_sizes_of_res2next29(keywords, millions):
    assert round(count_parameters(build("sis_res2next29", num_classes=10, **keywords)) / 1e6, 2) == millions


def test_the_keywords_reach_the_operator():
    conv = build("sis_resnet50", sis="recurrent2", steps=3, share_paths=True, inner="bnrelu", **SMALL).layer1[0].conv2
    assert (conv.kind, conv.steps, conv.share_paths, conv.k3) == ("recurrent2", 3, True, None)
    assert conv.bn1 is not None


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"sis": "interactive3"}, ValueError, "^sis='interactive3': must be one of basic, interactive1"),
        ({"steps": 3}, ValueError, r"^layer1\.0\.conv2: steps=3 with kind='basic'"),
        ({"width": 6}, ValueError, r"^layer1\.0\.conv2: out_features=6"),
        ({"siss": "basic"}, TypeError, "has no argument 'siss': did you mean sis"),
        ({"conv": nnx.Conv}, TypeError, "has no argument 'conv'"),
    ],
)
def test_bad_sis_arguments_are_refused(keywords, error, message):
    with pytest.raises(error, match=message):
        build("sis_resnet50", **{**SMALL, **keywords})


# --- IC-Conv ---


def test_published_patterns_by_name():
    assert set(list_ic_patterns()) == {
        f"ic_resnet{depth}_{task}" for depth in (50, 101) for task in ("k9_det", "k9_seg", "k13_pose")
    }
    default, other = (build("ic_resnet50", **o) for o in ({}, {"patterns": "ic_resnet50_k9_seg"}))
    for model, name in ((default, "ic_resnet50_k9_det"), (other, "ic_resnet50_k9_seg")):
        own = ic_convs(name)["layer2.1.conv2"].keywords["pattern"]
        dilations = tuple((h, w) for h, w, count in own for _ in range(count))
        assert model.layer2[1].conv2.pattern == dilations
    assert default.layer2[1].conv2.pattern != other.layer2[1].conv2.pattern


def test_own_patterns_in_any_form():
    forms = [[[1, 1, 5], [2, 1, 3]], {"(0, 0)": 5, "(1, 0)": 3}, ((1, 1),) * 5 + ((2, 1),) * 3]
    for pattern in forms:
        patterns = {"layer1.0.conv1": pattern, "layer1.0.conv2": pattern}
        model = build("ic_resnet18", patterns=patterns, **SMALL)
        for conv in (model.layer1[0].conv1, model.layer1[0].conv2):
            assert type(conv) is ICConv
            assert conv.pattern == forms[-1]


def test_patterns_within_groups():
    patterns = {"layer1.0.conv2": ((1, 1, 40), (3, 2, 88))}
    conv = build("ic_resnext101_32x4d", layers=(1,), patterns=patterns).layer1[0].conv2
    assert (conv.feature_group_count, conv.kernel.shape, conv.pattern[39:41]) == (32, (3, 3, 4, 128), ((1, 1), (3, 2)))


@pytest.mark.parametrize(
    ("name", "patterns", "message"),
    [
        ("ic_resnet50", "ic_resnet50", "no published pattern 'ic_resnet50': the names are"),
        ("ic_resnet50", (1, 1), r"patterns=\(1, 1\): must be 'even', a published one, .* or a mapping"),
        (
            "ic_resnet50",
            "ic_resnet101_k9_det",
            r"factories for layer3\.6\.conv2, .*leave them out, or build the network",
        ),
        ("ic_resnet101", "ic_resnet50_k9_det", r"^conv has no factory for layer3\.6\.conv2"),
        ("ic_resnet50", {"layer1.0.conv2": ((1, 1, 3),)}, r"^layer1\.0\.conv2: pattern=.* is for 3 filters"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(name, patterns, message):
    with pytest.raises(ValueError, match=message):
        build(name, patterns=patterns)


# --- entries ---


def test_the_keywords_of_make_conv_replace_conv():
    plain = model_entry("resnet50").keywords
    place = plain.index("conv")
    own = ("sis", "steps", "share_paths", "inner")
    assert model_entry("sis_resnet50").keywords == (*plain[:place], *own, *plain[place + 1 :])


@pytest.mark.parametrize(("builder", "make_conv"), [(ResNet, lambda width: nnx.Conv), (OctResNet, lambda: nnx.Conv)])
def test_a_make_conv_that_does_not_fit_is_refused(builder, make_conv):
    with pytest.raises(ValueError, match=r"must have 'conv' and none of these"):
        dataclasses.replace(model_entry("sis_resnet50"), name="x", builder=builder, make_conv=make_conv)
