import io
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.train.helpers import TINY_CONFIG
from train import __main__ as program
from train import predict
from train.data.opencv import cv2
from train.errors import UserError, run_program
from train.predict import picture_name
from train.untrusted import escaped, file_name, finite, list_names, load_json, quoted, shortened

NAMES = ["C#", "C++", "a b", "a_b", "A b", "", "..", "/etc/passwd", "\u732b" * 85, "x" * 255, "x" * 256, "$x$", "\\"]
NAMES += ["e\u0301", "\u00e9", "\ufb01n", "fin", "stra\u00dfe", "STRASSE", "\udcff", "\u202e", "a\0b\nc", "_2", "_"]


def test_files_are_named_by_any_texts_and_each_differs(tmp_path):
    used = set()
    names = [file_name(name, used) for name in NAMES * 2]
    for name in names:
        (tmp_path / f".{name}.png.tmp").touch()
        assert len(name.encode()) <= 100
        assert "/" not in name
    assert len({name.casefold() for name in names}) == len(names)
    assert (names[0], names[1], names[2], names[3], names[4]) == ("C_", "C__2", "a_b", "a_b_2", "A_b_3")
    assert [file_name(name, set()) for name in ("cat", "Stra\u00dfe 1")] == ["cat", "Stra\u00dfe_1"]


def test_pictures_of_images_with_long_names_can_be_written(tmp_path):
    for name in ("\u732b" * 85, "\U0001f600" * 63, "e\u0301" * 85, "x" * 255):
        (tmp_path / picture_name(tmp_path / name, set())).touch()


def test_texts_in_messages_are_escaped_and_shortened():
    wild = "\x1b]0;x\x07\u202e\udcff" + "y" * 10**6
    for text in (str(UserError(wild)), quoted(wild), list_names([wild] * 100), shortened(escaped(wild))):
        assert text.isprintable()
        assert len(text) <= 4000
    assert list_names([wild] * 100).endswith(" and 95 more")
    assert str(UserError(f"{wild} must be shorter")).endswith("must be shorter")
    assert str(UserError("two\nlines of \u043a\u043e\u0442")) == "two\nlines of \u043a\u043e\u0442"
    deep = []
    for _ in range(10**5):
        deep = [deep]
    assert quoted(deep) == "a value that is too large to print"
    assert quoted(10**5000) == "a value that is too large to print"
    while deep:  # Python's recursive deallocation might go too deep
        deep = deep[0]


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"{", b"[" * 10**6, b"[" * 101 + b"]" * 101, b"1" * 5000, b'{"a":' * 500]
)
def test_what_is_no_json_is_a_value_error(data):
    with pytest.raises(ValueError, match=r"Exceeds|JSON|nested|decode|Expecting"):
        load_json(data)


def test_json_and_numbers():
    assert load_json(b"[" * 100 + b"]" * 100) is not None
    assert load_json(b'{"a": [1, "\\udcff"]}') == {"a": [1, "\udcff"]}
    assert [finite(value) for value in (1, -2.5, 10**300)] == [1.0, -2.5, 1e300]
    for value in (True, None, "1", [1], float("nan"), float("inf"), 10**400):
        with pytest.raises((TypeError, ValueError)):
            finite(value)


def test_a_stream_without_cyrillic_escapes_it(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="latin-1") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def main(argv):
        print("\u043a\u043e\u0442 caf\u00e9 \udcff")
        raise UserError("\u043a\u043e\u0442")

    with pytest.raises(SystemExit):
        run_program(main)
    out, err = (stream.buffer for stream in streams if stream.flush() is None)
    assert out.getvalue() == b"\\u043a\\u043e\\u0442 caf\xe9 \\udcff\n"
    assert err.getvalue() == b"error: \\u043a\\u043e\\u0442\n"


@pytest.mark.slow
def test_the_models_are_listed_on_an_ascii_stream():
    run = subprocess.run(
        [sys.executable, "-m", "msconv_jax", "list", "\u043a\u043e\u0442"],
        env={"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 2
    assert json.dumps("\u043a\u043e\u0442").strip('"').encode() in run.stderr


@pytest.mark.slow
def test_classes_of_any_names_are_trained_on_and_predicted(tmp_path, capfd):
    """Dollar signs, names of 252 bytes, combining marks only, bidirectional controls, and a path in Cyrillic."""
    classes = [
        "$x_$",
        "a$",
        "\u732b" * 84,
        "C#",
        "C++",
        "a b",
        "a_b",
        "\u202eevil\x1b[31m",
        "\\frac{",
        "x" * 252,
        "\udcff",
    ]
    pictures, workdir = tmp_path / "\u043a\u0430\u0440\u0442\u0438\u043d\u043a\u0438", tmp_path / "\u043a\u043e\u0442"
    rng = np.random.default_rng(0)
    for name in classes:
        (pictures / name).mkdir(parents=True)
        for number in range(30):
            _, png = cv2.imencode(".png", rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            (pictures / name / f"{number}.png").write_bytes(png.tobytes())
    settings = {"source": "folder", "dir": pictures, "image_size": 8, "augment": {"random_resized_crop": {}}}
    flags = [f"--config.data.{name}={value}" for name, value in settings.items()]
    more = ["--config.epochs=1", "--config.batch_size=32", f"--workdir={workdir}"]
    assert program.main(["train", f"--config={TINY_CONFIG}", *flags, *more]) == 0
    assert "note:" not in capfd.readouterr().err
    samples = sorted((workdir / "samples").iterdir())
    assert len(samples) == len(classes)
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert page.replace("\n", "").isprintable()
    assert "In the picture number " in page
    assert predict.main(["predict", f"--workdir={workdir}", "--top=11", str(samples[0])]) == 0
    line = capfd.readouterr().out.removesuffix("\n")
    assert line.isprintable()
    for name in ("$x_$", "a$", "\u732b" * 84, "C#", "C++", "\\u202eevil\\x1b[31m", "x" * 252, "\\udcff"):
        assert f"{name} " in line
