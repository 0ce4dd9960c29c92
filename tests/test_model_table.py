"""The registry's numbers: stored counts are right and agree with published ones; a document shows both."""

import re

import pytest

from msconv_jax.models import list_models, model_entry
from msconv_jax.models.registry import known_counts
from tests.model_table import DOCUMENT, count, with_table

PUBLISHED = {name: model_entry(name).published for name in list_models()}
QUICK = ("ps_resnet8", "oct_resnet26", "mobilenetv1")


def test_every_network_is_counted_and_no_other():
    assert list(known_counts()) == list_models()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_the_kept_counts_are_the_networks(name):
    entry = model_entry(name)
    assert count(name) == {"parameters": entry.parameters, "macs": entry.macs}


def printed(value, text, unit):
    """A number in the text's unit, with the text's number of decimals."""
    return f"{value / unit:.{len(text.partition('.')[2])}f}"


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.parameters])
def test_parameters_are_the_published_ones_to_the_printed_precision(name):
    entry = model_entry(name)
    assert printed(entry.parameters, entry.published.parameters, 1e6) == entry.published.parameters


# The paper includes the auxiliary head, a 3x3 and the classifier: at 473 x 473 and output stride 8.
AUXILIARY = (9 * 1024 * 256 + 256 * 150) * 60 * 60


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.macs])
def test_multiply_accumulates_are_the_published_ones_within_two_percent(name):
    entry = model_entry(name)
    macs = entry.macs + (AUXILIARY if entry.task == "segmentation" else 0)
    assert macs / 1e9 == pytest.approx(float(entry.published.macs), rel=0.02)


def test_accuracies_are_per_cent():
    for name, published in PUBLISHED.items():
        assert published.top1 is None or 60 < published.top1 < 97, name
        assert published.top5 is None or published.top1 < published.top5 < 97, name
        assert published.miou is None or 30 < published.miou < published.pixel_accuracy < 85, name
        assert (published.table is None) == (published.top1 is None and published.miou is None), name


def test_ps_networks_beat_their_plain_counterparts_in_the_papers_tables():
    """A typing error in a row would probably reverse one of these comparisons."""
    for name in list_models("ps_*"):
        ours, plain = PUBLISHED[name], PUBLISHED[name.removeprefix("ps_")]
        assert ours.top1 is None or 0.8 < ours.top1 - plain.top1 < 1.8, name


def test_images():
    for name in list_models():
        entry = model_entry(name)
        assert len(entry.mean) == len(entry.std) == entry.input_size[2]
        assert all(0 <= mean < 1 and 0 < std <= 1 for mean, std in zip(entry.mean, entry.std, strict=True))
        assert entry.crop_fraction == (0.875 if entry.input_size[0] == 224 else 1.0)
        assert (entry.channel_order == "BGR") == name.startswith("ac_")
    assert model_entry("ac_resnet50").mean == model_entry("resnet50").mean[::-1]


def test_the_document_shows_the_present_table():
    text = DOCUMENT.read_text()
    assert with_table(text) == text
    for name in list_models():
        assert re.search(rf"^\| {name} +\|", text, re.MULTILINE)


def test_a_document_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no place for the table"):
        with_table("# msconv_jax")
