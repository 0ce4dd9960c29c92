"""Shares of dilations against counts by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from msconv_jax.analysis import dilation_shares, plot_dilation_shares


def test_shares_are_of_all_seeds():
    shares = dilation_shares([{"a": [[1, 1], [2, 1]]}, {"a": [[1, 1], [1, 2]]}], 2)
    np.testing.assert_array_equal(shares["a"], [[0.5, 0.25], [0.25, 0]])


def test_one_search_and_other_numbers_of_axes():
    shares = dilation_shares({"a": [(3, 1), (1, 2), (1, 2), (2, 2)], "b": [(3,), (1,)]}, 3)
    np.testing.assert_array_equal(shares["a"], [[0, 0.5, 0], [0, 0.25, 0], [0.25, 0, 0]])
    np.testing.assert_array_equal(shares["b"], [0.5, 0, 0.5])
    with pytest.raises(ValueError, match="b has shares of 1 axes"):
        plot_dilation_shares(shares)


def test_patterns_that_do_not_fit_are_refused():
    for wrong in ((0, 1), (1, 3), (1, 1.5), (True, 1)):
        with pytest.raises(ValueError, match="expected whole numbers from 1 to d_max=2"):
            dilation_shares({"a": [wrong]}, 2)
    for patterns in ({"a": []}, [{"a": [(1, 1)]}, {"a": [(1,)]}]):
        with pytest.raises(ValueError, match="expected one number for all"):
            dilation_shares(patterns, 2)
    for function in (lambda: dilation_shares({}, 2), lambda: plot_dilation_shares({})):
        with pytest.raises(ValueError, match="is empty"):
            function()


def test_every_share_is_written_where_it_belongs():
    shares = dilation_shares({"a": [(2, 1), (2, 1), (1, 2), (1, 1)], "b": [(2, 2)]}, 2)
    figure = plot_dilation_shares(shares, title="of two layers")
    assert figure.get_suptitle() == "of two layers"
    for axes, share in zip(figure.axes, shares.values(), strict=False):
        written = {text.get_position(): text.get_text() for text in axes.texts}
        expected = {(w + 1, h + 1): f"{100 * value:.0f}" for (h, w), value in np.ndenumerate(share)}
        assert written == expected
    given = Figure().subplots(1, 2)
    assert plot_dilation_shares(shares, given) is given
    assert [axes.get_title() for axes in given] == ["a", "b"]
