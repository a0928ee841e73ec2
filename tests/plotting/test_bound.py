# SPDX-License-Identifier: BSD-3-Clause
"""The bound and its terms."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.mixture import BayesianGaussianMixture

from sksvae.plotting import BoundDisplay

from .cases import dynamics

BOUNDS = np.array([-50.0, -3.0, -2.0, -1.5])
TERMS = {
    "reconstruction": BOUNDS + 1.0,
    "local_kl": np.array([0.5, 0.6, 0.7, 0.8]),
    "global_kl": np.array([0.5, 0.4, 0.3, 0.2]),
}


def test_the_history_of_an_estimator(fitted):
    vae = fitted["vae"]
    display = BoundDisplay.from_estimator(vae)
    assert_array_equal(display.line_.get_ydata(), vae.lower_bounds_)
    assert_array_equal(display.line_.get_xdata(), np.arange(1, vae.n_iter_ + 1))
    assert set(display.term_lines_) == {"reconstruction", "local_kl", "global_kl"}
    for name, line in display.term_lines_.items():
        assert_array_equal(line.get_ydata(), vae.history_[name])
    assert display.validation_line_ is None  # there were no validation rows
    total = display.terms["reconstruction"] - display.terms["local_kl"]
    np.testing.assert_allclose(display.bounds, total - display.terms["global_kl"])


def test_bounds_alone():
    """Of a fake, and of scikit-learn."""
    display = BoundDisplay.from_estimator(dynamics())
    assert_array_equal(display.line_.get_ydata(), [-3.0, -2.0, -1.5])
    assert display.axes_.shape == (1,)
    assert display.ax_.get_legend() is None
    rows = np.random.default_rng(0).normal(size=(50, 2))
    mixture = BayesianGaussianMixture(n_components=2).fit(rows)
    assert_array_equal(BoundDisplay.from_estimator(mixture).bounds, mixture.lower_bounds_)


def test_labels_and_places():
    validation = np.array([np.nan, -4.0, -3.0, -2.0])
    display = BoundDisplay(BOUNDS, terms=TERMS, validation_bounds=validation).plot(burn_in=1)
    above, below = display.axes_
    assert above.get_ylabel() == below.get_ylabel() == "nats per row"
    assert below.get_xlabel() == "epoch"
    names = [text.get_text() for text in above.get_legend().get_texts()]
    assert names == ["bound", "bound, validation", "reconstruction"]
    assert [t.get_text() for t in below.get_legend().get_texts()] == ["local KL", "global KL"]
    assert_array_equal(display.validation_line_.get_ydata(), validation)
    assert display.term_lines_["local_kl"].axes is below
    low, high = above.get_ylim()
    assert -5 < low < -4 < -0.5 < high < 0  # of all but the first epoch
    assert BoundDisplay(BOUNDS).plot(burn_in=0).ax_.get_ylim()[0] < -50


def test_several_in_the_same_axes():
    first = BoundDisplay(BOUNDS).plot(name="first")
    second = BoundDisplay(BOUNDS + 10.0).plot(first.ax_, name="second", burn_in=0)
    assert second.ax_ is first.ax_
    assert first.line_.get_color() != second.line_.get_color()
    names = [text.get_text() for text in second.ax_.get_legend().get_texts()]
    assert names == ["first", "second"]
    low, high = second.ax_.get_ylim()
    assert low < -50
    assert high > 8.5


def test_a_constant_bound_and_a_style():
    display = BoundDisplay([1.0, 1.0]).plot(line_kw={"color": "black", "linewidth": 3})
    assert display.line_.get_color() == "black"
    assert display.ax_.get_ylim() == (0.5, 1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "bounds is empty"),
        (([[1.0]],), r"bounds must have shape \(any\)"),
        (([1.0, np.nan],), "bounds contains NaN"),
    ],
)
def test_bounds_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoundDisplay(*arguments)


def test_other_errors():
    with pytest.raises(ValueError, match=r"terms\['local_kl'\] must have shape \(4\), got \(1,\)"):
        BoundDisplay(BOUNDS, terms={"local_kl": [1.0]})
    with pytest.raises(ValueError, match="validation_bounds must have shape"):
        BoundDisplay(BOUNDS, validation_bounds=[1.0])
    with pytest.raises(ValueError, match="burn_in must be from 0 to 3, got 4"):
        BoundDisplay(BOUNDS).plot(burn_in=4)
