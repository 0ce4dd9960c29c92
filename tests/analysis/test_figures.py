"""What the plot functions share: figures that notebooks show, places to draw, and the need for matplotlib."""

import sys

import pytest
from matplotlib.figure import Figure

from msconv_jax.analysis.figures import _figure_class, new_figure, panels, single


def test_a_figure_is_a_picture_and_none_of_pyplots():
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_what_is_given_is_drawn_into_and_comes_back():
    figure = Figure()
    given = figure.subplots(2, 3)
    assert single(given[0, 0], 1, 1) == (given[0, 0], given[0, 0])
    places, result = panels(given, 4, 2, 1, 1)
    assert result is given
    assert places == [*given[0], given[1, 0]]
    with pytest.raises(ValueError, match="axes holds 6 Axes: expected 7"):
        panels(given, 7, 2, 1, 1)


def test_panels_stand_in_rows_and_those_too_many_are_empty():
    places, figure = panels(None, 5, 3, 1.0, 2.0)
    assert len(places) == 5
    assert len(figure.axes) == 6
    assert [axes.axison for axes in figure.axes] == [True] * 5 + [False]
    assert figure.get_size_inches().tolist() == [3.0, 4.0]


def test_without_matplotlib_the_error_names_what_to_install(monkeypatch):
    _figure_class.cache_clear()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'msconv_jax\[analysis\]'"):
        new_figure(1, 1)
