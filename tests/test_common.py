# SPDX-License-Identifier: BSD-3-Clause
"""scikit-learn's own checks, on every public estimator."""

import warnings

import pytest
from sklearn.utils import estimator_checks as checks
from sklearn.utils.estimator_checks import parametrize_with_checks

import sksvae

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

PUBLIC = [getattr(sksvae, name) for name in sksvae.__all__]
ESTIMATORS = [public for public in PUBLIC if isinstance(public, type)]
QUICK = {"hidden_layer_sizes": (6,), "max_iter": 2, "pretraining_iter": 1, "n_starts": 1}
# What an estimator does not have of these is left out.
VARIANTS = [
    {"n_components": 3, "hidden_layer_sizes": (), "standardize": False, "batch_size": 16},
    {"likelihood": "gamma", "early_stopping": True, "latent_dim": 2, "beta": 2.0, "capacity": 1.0},
]


# Switching dynamics are tried with several numbers of states, which takes its time.
SWITCHING = sksvae.SVAESwitchingLDS
TINY = {
    "n_states": 2,
    "latent_dim": 1,
    "hidden_layer_sizes": (),
    "max_iter": 1,
    "transition_precision_prior": 1.0,
    "noise_covariance_prior": 0.1,
}
UNUSUAL = {
    "n_states": 3,
    "latent_dim": 3,
    "likelihood": "student_t",
    "sequence_length": 5,
    "stickiness_prior": 1.0,
    "implicit_gradient": "richardson",
    "max_updates": 3,
    "natural_gradient": "biased",
    "transition_precision_prior": 1.0,
}


def made(Estimator, **params):
    names = Estimator._get_param_names()
    return Estimator(**{name: value for name, value in params.items() if name in names})


def quick(Estimator, **params):
    tiny = TINY if Estimator is SWITCHING else {}
    return made(Estimator, **(QUICK | params | tiny))


def marked(estimators):
    """Parameters of a test, of which those that take long are marked."""
    slow = pytest.mark.slow
    return [pytest.param(e, marks=slow) if isinstance(e, SWITCHING) else e for e in estimators]


DEFAULTS = [Estimator() for Estimator in ESTIMATORS]
SMALL = [quick(Estimator) for Estimator in ESTIMATORS]
VARIED = [quick(Estimator, **params) for Estimator in ESTIMATORS for params in VARIANTS]
# Rows that are one sequence depend on their order and on each other.
TIME = {
    "rows": "consecutive",
    "latent_dim": 2,
    "transition_precision_prior": 1.0,
    "noise_covariance_prior": [[0.1, 0.0], [0.0, 0.1]],
}
IN_TIME = [
    quick(Estimator, **TIME) for Estimator in ESTIMATORS if "rows" in Estimator._get_param_names()
]
LONGER = [e for e in VARIED if isinstance(e, SWITCHING)] + [made(SWITCHING, **QUICK | UNUSUAL)]


def check_id(value):
    return checks._get_check_estimator_ids(value)


def expected_failures(estimator):
    """Checks that have to fail: pytest is strict about it."""
    if getattr(estimator, "rows", None) == "consecutive":
        return dict.fromkeys(
            ["check_methods_subset_invariance", "check_methods_sample_order_invariance"],
            "contradicts time; see the tests of sequences for what holds instead",
        )
    if getattr(estimator, "likelihood", None) == "gamma":
        return {
            "check_positive_only_tag_during_fit": "our message names the value and what takes it"
        }
    return {}


@pytest.mark.slow
@parametrize_with_checks(DEFAULTS)
def test_default_estimator(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(LONGER, expected_failed_checks=expected_failures)
def test_estimator_that_takes_long(estimator, check):
    check(estimator)


@parametrize_with_checks(
    [e for e in VARIED if not isinstance(e, SWITCHING)] + IN_TIME,
    expected_failed_checks=expected_failures,
)
def test_estimator(estimator, check):
    check(estimator)


# ---- checks that `check_estimator` leaves out ----

MORE_CHECKS = [
    checks.check_param_validation,
    checks.check_set_output_transform,
    checks.check_set_output_transform_pandas,
    checks.check_global_output_transform_pandas,
    checks.check_transformer_get_feature_names_out,
    checks.check_transformer_get_feature_names_out_pandas,
    checks.check_get_feature_names_out_error,
    checks.check_inplace_ensure_writeable,
]


@pytest.mark.filterwarnings("ignore:X (has|does not have valid) feature names:UserWarning")
@pytest.mark.parametrize("check", MORE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("estimator", marked(SMALL), ids=check_id)
def test_further_checks(estimator, check):
    check(type(estimator).__name__, estimator)


@pytest.mark.parametrize(
    "estimator",
    marked(SMALL + [quick(Estimator, early_stopping=True) for Estimator in ESTIMATORS]),
    ids=check_id,
)
def test_column_names(estimator):
    with warnings.catch_warnings(record=True) as caught:
        checks.check_dataframe_column_names_consistency(type(estimator).__name__, estimator)
    assert not any("feature names" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("Estimator", ESTIMATORS)
def test_defaults_are_in_the_signature_only(Estimator):
    """The constructor stores, and nothing else: what `clone` and `set_params` rely on."""
    estimator = Estimator()
    assert vars(estimator) == estimator.get_params(deep=False)
