from pathlib import Path

import pytest

from msconv_jax.models import registry
from tests.train.helpers import TINY_ENTRY, tiny
from train.loop import train


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """The folder of a tiny run that nothing interrupted; tests must not change it."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._ENTRIES, TINY_ENTRY.name, TINY_ENTRY)
        assert train(tiny(), workdir, command="again") == 0
    return workdir


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch) -> None:
    """Makes the tiny model known to these tests, and to these alone."""
    monkeypatch.setitem(registry._ENTRIES, TINY_ENTRY.name, TINY_ENTRY)


@pytest.fixture(autouse=True)
def _quick_compilation():
    """Nothing: runs are compared bit by bit with one that a fixture made, and are compiled as users compile them."""
