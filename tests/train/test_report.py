import html.parser
import re

import numpy as np
import pytest

from train.data.opencv import cv2
from train.page import Page, axis_labels, encode_png, enlarged, thumbnail, versions, write_page
from train.task import Picture, Section

PNG = encode_png(np.zeros((4, 4, 1), np.uint8))
MISTAKES = [Picture(PNG, "a <dog> & more\ntaken for cat\nloss 3.22", is_small=True)]
SECTIONS = [
    Section("Confusion", columns=("class", "images"), rows=[("a <dog> & more", 7), ("fish", 0.12345)],
            pictures=[Picture(PNG, "confusion matrix")]),
    Section("Worst mistakes", text="None & <nothing>.", pictures=MISTAKES),
]  # fmt: skip


def written(tmp_path, **changes):
    page = Page(
        title="ps_resnet8 on <pictures>",
        result="test accuracy 0.8824",
        curves=PNG,
        sections=SECTIONS,
        speeds=[{"epoch": 1, "images_per_second": 100.0, "waiting": 0.25}],
        notes="left out: <x>",
        config={"seed": 0, "data.augment.warp.shift": 0.75},
    )
    write_page(tmp_path / "report.html", page._replace(**changes))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


class Outline(html.parser.HTMLParser):
    """Checks that tags are nested correctly, and collects the headings and the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.headings, self.text, self.tables = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")
        if tag == "tr":
            self.tables.append([])
        if tag in ("td", "th"):
            self.tables[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.text.append(data)
        if "h2" in self.open:
            self.headings[-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1] += data


def test_the_page_stands_alone_and_shows_everything(tmp_path):
    page = written(tmp_path)
    assert not re.findall(r"https?://|<script|<link", page)
    assert page.count('src="data:image/png;base64,') == page.count("<img") == 3  # curves, matrix, mistake
    outline = Outline(page)
    assert outline.headings == ["Curves", "Confusion", "Worst mistakes", "Speed", "Data", "Settings", "Versions"]
    for row in (
        ["class", "images"],
        ["a <dog> & more", "7"],
        ["fish", "0.1235"],
        ["data.augment.warp.shift", "0.75"],
        *map(list, versions().items()),
    ):
        assert row in outline.tables
    text = "".join(outline.text)
    for part in ("test accuracy 0.8824", "100 images a second", "25.0% of the time", "left out: <x>", "loss 3.22"):
        assert part in text


def test_names_are_text_and_never_markup(tmp_path):
    page = written(tmp_path)
    for name in ("<dog>", "<pictures>", "<x>", "<nothing>"):
        assert name not in page
    assert page.count("a &lt;dog&gt; &amp; more") == 2
    quoted = written(tmp_path, sections=[Section("s", pictures=[Picture(PNG, '"><b>')])])
    assert "<b>" not in quoted
    assert Outline(quoted).headings[1] == "s"


def test_what_turns_or_breaks_a_page_is_escaped(tmp_path):
    wild = "\u202e\x1b[31m\0\udcff</td>"
    picture = Picture(PNG, wild)
    section = Section(
        wild, text=wild, columns=(wild,), rows=[(wild,)], pictures=[picture, picture._replace(is_small=True)]
    )
    page = written(tmp_path, title=wild, result=wild, sections=[section], notes=f"{wild}\nand", config={wild: wild})
    assert page.replace("\n", "").isprintable()
    assert page.count("\\u202e\\x1b[31m\\x00\\udcff&lt;/td&gt;") == 13
    assert "\nand" in page
    Outline(page)


def test_labels_of_figures(tmp_path):
    names = ["$x_$", "\u732b", "a" * 40, "a\u202eb", "\u043a\u043e\u0442", "\\frac{"]
    labels, text = axis_labels(names, [5, 0, 1, 2, 3, 4])
    assert labels == ["\\frac{", "$x_$", "number 1", "aaaaaaaaa ... aaaaaa", "number 3", "\u043a\u043e\u0442"]
    assert text == "In the picture number 1 is \u732b, number 3 is a\u202eb."
    assert axis_labels(["cat"], [0]) == (["cat"], "")


def test_nothing_measured_and_no_epoch(tmp_path):
    page = written(tmp_path, speeds=[], curves=None, notes="", sections=[])
    for part in ("too short to measure", "No epoch has ended"):
        assert part in page
    assert Outline(page).headings == ["Curves", "Speed", "Settings", "Versions"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 4, 3), (96, 48, 3)), ((1, 1, 1), (96, 96, 1)), ((1, 500, 3), (1, 96, 3)), ((300, 200, 1), (96, 64, 1))],
)
def test_thumbnails_keep_proportions_and_colours(shape, expected):
    colour = np.array((255, 0, 30)[: shape[2]], np.uint8)
    flags = cv2.IMREAD_COLOR_RGB if shape[2] == 3 else cv2.IMREAD_GRAYSCALE
    png = thumbnail(np.broadcast_to(colour, shape))
    image = cv2.imdecode(np.frombuffer(png, np.uint8), flags).reshape(expected)
    assert (image == colour).all()


def test_enlarged_images_have_squares_for_pixels():
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    large = enlarged(image, 5)
    assert large.shape == (6, 9, 1)
    np.testing.assert_array_equal(large[1::3, 1::3], image)


def test_the_report_of_a_run_is_sound(finished_run):
    outline = Outline((finished_run / "report.html").read_text(encoding="utf-8"))
    headings = ["Curves", "Confusion of the test images", "Worst mistakes", "Speed", "Settings", "Versions"]
    assert [heading for heading in outline.headings if heading != "Data"] == headings
    assert ["optimizer.learning_rate", "0.1"] in outline.tables
