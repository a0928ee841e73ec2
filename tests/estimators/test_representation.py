# SPDX-License-Identifier: BSD-3-Clause
"""What estimators show of themselves: parameters that were changed, and what a fit left."""

import copy
import functools
import html
import re
import warnings

import pytest
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

from sksvae import VAE, SVAEGaussianMixture, SVAELinearDynamics, SVAESwitchingLDS
from sksvae.likelihoods import StudentTLikelihood

from . import cases, linear_dynamics_cases, switching_cases

NAMES = {
    VAE: {"latent_dim_", "scale_"},
    SVAEGaussianMixture: {"n_components_", "weights_", "means_", "covariances_"},
    SVAELinearDynamics: {"transition_matrix_", "rows_"},
    SVAESwitchingLDS: {"n_states_", "state_transition_probabilities_", "rows_"},
}
COMMON = {"lower_bound_", "n_iter_", "converged_", "history_", "model_state_", "optimizer_state_"}
SUMMARIES = {"history_", "model_state_", "optimizer_state_"}
each_fitted = pytest.mark.parametrize("Estimator", NAMES, ids=lambda Estimator: Estimator.__name__)


@functools.cache
def fitted(Estimator):
    """Return an estimator that was fitted to very little, for tests that only read it."""
    if Estimator in cases.ESTIMATORS:
        return cases.fitted(Estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        kind = linear_dynamics_cases if Estimator is SVAELinearDynamics else switching_cases
        estimator = kind.quick(noise_covariance_prior=0.1)
        return estimator.fit(linear_dynamics_cases.rotation(n_steps=10))


def shown(estimator):
    """Return the type and the value that HTML shows, for each fitted attribute."""
    row = (
        r'<td class="param">\s*<a[^>]*>\s*(\w+).*?'
        r'<td class="fitted-att-type">(.*?)</td>\s*<td>(.*?)</td>'
    )
    found = re.findall(row, estimator._repr_html_(), re.DOTALL)
    return {name: (kind, html.unescape(value).strip()) for name, kind, value in found}


@each_fitted
def test_html_has_the_fitted_attributes(Estimator):
    assert shown(Estimator()) == {}
    estimator = fitted(Estimator)
    attributes = shown(estimator)
    assert COMMON | NAMES[Estimator] <= attributes.keys()
    assert attributes.keys() == {name for name in vars(estimator) if name.endswith("_")}
    assert attributes["n_iter_"] == ("int", str(estimator.n_iter_))


@each_fitted
def test_html_sums_dictionaries_of_arrays_up(Estimator):
    estimator = fitted(Estimator)
    for name, (_, value) in shown(estimator).items():
        if name in SUMMARIES:
            arrays = getattr(estimator, name).values()
            assert value == f"{len(arrays)} arrays, {sum(a.size for a in arrays):,} numbers"


def test_html_does_not_grow_with_the_model():
    estimator = copy.copy(fitted(VAE))
    small = len(estimator._repr_html_())
    estimator.model_state_ = {
        f"{copy_}.{name}": array.repeat(1000, axis=-1)
        for copy_ in range(20)
        for name, array in estimator.model_state_.items()
    }
    estimator.lower_bounds_ = estimator.lower_bounds_.repeat(10_000)
    assert "numbers" in shown(estimator)["model_state_"][1]
    assert len(estimator._repr_html_()) < small + 200
    assert all(len(value) < 250 for _, value in shown(estimator).values())


def test_html_leaves_the_estimator_as_it_is():
    estimator = fitted(VAE)
    before = estimator.model_state_
    estimator._repr_html_()
    assert estimator.model_state_ is before
    assert isinstance(before, dict)


def test_html_of_a_pipeline_has_the_attributes_too():
    pipeline = make_pipeline(cases.quick(VAE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(cases.blobs()[0])
    assert "numbers" in shown(pipeline)["model_state_"][1]


@each_fitted
def test_text_is_what_was_changed_fitted_or_not(Estimator):
    assert repr(Estimator()) == f"{Estimator.__name__}()"
    estimator = fitted(Estimator)
    assert eval(repr(estimator)).get_params() == estimator.get_params()
    assert "model_state_" not in repr(estimator)
    assert estimator._repr_mimebundle_()["text/plain"] == repr(estimator)


def test_text_of_a_likelihood_says_what_to_write():
    text = repr(VAE(likelihood=StudentTLikelihood(dof=5)))
    assert text == "VAE(likelihood=StudentTLikelihood(dof=5.0, min_scale=0.01))"


def test_text_can_have_all_parameters():
    with config_context(print_changed_only=False):
        assert "learning_rate_init=0.005" in repr(VAE())
