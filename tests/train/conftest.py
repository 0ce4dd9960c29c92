from pathlib import Path

import pytest

from msconv_jax.models import registry
from tests.train.helpers import TINY_ENTRY, TINY_SEGMENTER, tiny
from tests.train.small_models import ENTRIES
from train.engine.loop import train
from train.tasks import Classification


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The folder of a tiny run that nothing interrupted; tests must not change it."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._ENTRIES, TINY_ENTRY.name, TINY_ENTRY)
        assert train(tiny(), Classification, workdir, command="again") == 0
    return workdir


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch) -> None:
    """Makes the tiny models known to these tests, and to these alone."""
    monkeypatch.setitem(registry._ENTRIES, TINY_ENTRY.name, TINY_ENTRY)
    monkeypatch.setitem(registry._ENTRIES, TINY_SEGMENTER.name, TINY_SEGMENTER)


@pytest.fixture
def small_models(monkeypatch) -> None:
    """Makes the networks of `small_models` known, by the names of their classes."""
    for entry in ENTRIES:
        monkeypatch.setitem(registry._ENTRIES, entry.name, entry)


@pytest.fixture(autouse=True)
def _quick_compilation():
    """Nothing: runs are compared bit by bit with one that a fixture made, and are compiled as users compile them."""
