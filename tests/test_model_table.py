"""The registry's figures: counted ones are the networks', published ones agree with them, docs/models.md shows both."""

import re

import pytest

from msconv_jax.models import list_models, model_entry
from msconv_jax.models.published import PUBLISHED, Published
from msconv_jax.models.registry import known_counts
from tests.model_table import PAGE, count, with_table

QUICK = ("ps_resnet8", "oct_resnet26", "mobilenetv1")


def test_every_network_is_counted_and_no_other():
    assert list(known_counts()) == list_models()
    assert set(PUBLISHED) <= set(list_models())


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_the_kept_counts_are_the_networks(name):
    entry = model_entry(name)
    assert count(name) == {"parameters": entry.parameters, "macs": entry.macs}


def printed(value, text, unit):
    """A number in the text's unit, with as many digits behind the point as the text has."""
    return f"{value / unit:.{len(text.partition('.')[2])}f}"


@pytest.mark.parametrize("name", [name for name, told in PUBLISHED.items() if told.parameters])
def test_parameters_are_the_published_ones_to_the_printed_precision(name):
    entry = model_entry(name)
    assert printed(entry.parameters, entry.published.parameters, 1e6) == entry.published.parameters


# The auxiliary head's at 473 x 473 and output stride 8, which the paper counts in: a 3x3 and the classifier.
AUXILIARY = (9 * 1024 * 256 + 256 * 150) * 60 * 60


@pytest.mark.parametrize("name", [name for name, told in PUBLISHED.items() if told.macs])
def test_multiply_accumulates_are_the_published_ones_within_two_percent(name):
    entry = model_entry(name)
    macs = entry.macs + (AUXILIARY if entry.task == "segmentation" else 0)
    assert macs / 1e9 == pytest.approx(float(entry.published.macs), rel=0.02)


def test_accuracies_are_per_cent():
    for name, told in PUBLISHED.items():
        assert told.top1 is None or 60 < told.top1 < 97, name
        assert told.top5 is None or told.top1 < told.top5 < 97, name
        assert told.miou is None or 30 < told.miou < told.pixel_accuracy < 85, name
        assert (told.table is None) == (told.top1 is None and told.miou is None), name


def test_ps_networks_beat_their_plain_counterparts_in_the_papers_tables():
    """A slip of the pen in a row would most likely turn one of these around."""
    for name in list_models("ps_*"):
        ours, plain = (PUBLISHED.get(n, Published()) for n in (name, name.removeprefix("ps_")))
        assert ours.top1 is None or 0.8 < ours.top1 - plain.top1 < 1.8, name


def test_images():
    for name in list_models():
        entry = model_entry(name)
        assert len(entry.mean) == len(entry.std) == entry.input_size[2]
        assert all(0 <= mean < 1 and 0 < std <= 1 for mean, std in zip(entry.mean, entry.std, strict=True))
        assert entry.crop_fraction == (0.875 if entry.input_size[0] == 224 else 1.0)
        assert (entry.channel_order == "BGR") == name.startswith("ac_")
    assert model_entry("ac_resnet50").mean == model_entry("resnet50").mean[::-1]


def test_the_page_shows_the_present_table():
    text = PAGE.read_text()
    assert with_table(text) == text
    for name in list_models():
        assert re.search(rf"^\| {name} +\|", text, re.MULTILINE)


def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no place for the table"):
        with_table("# msconv_jax")
