# SPDX-License-Identifier: BSD-3-Clause
"""What every registered likelihood has to satisfy."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch

import sksvae.likelihoods
from sksvae.likelihoods import LIKELIHOODS, Likelihood, get_likelihood

from .cases import CASES, N_FEATURES, N_ROWS

N_DRAWS = 20_000
N_SIGMA = 4.5  # about 30 comparisons per case: a false alarm once in 5000 new seeds

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
each_class = pytest.mark.parametrize("kind", LIKELIHOODS.values(), ids=list(LIKELIHOODS))


# ---- the registry ----


def test_every_registered_likelihood_has_a_case():
    assert {case.likelihood.name for case in CASES} == set(LIKELIHOODS)


def test_get_likelihood_returns_defaults_by_name_and_instances_unchanged():
    for name, kind in LIKELIHOODS.items():
        assert get_likelihood(name) == kind()
    for case in CASES:
        assert get_likelihood(case.likelihood) is case.likelihood


@pytest.mark.parametrize(
    ("argument", "error"),
    [("normal", ValueError), (3, TypeError), (None, TypeError), (LIKELIHOODS["gamma"], TypeError)],
)
def test_get_likelihood_error_names_argument_received_and_valid(argument, error):
    with pytest.raises(error, match="likelihood must be") as info:
        get_likelihood(argument)
    assert repr(argument) in str(info.value)
    assert all(repr(name) in str(info.value) for name in LIKELIHOODS)


@each_class
def test_class_attributes(kind):
    assert kind.n_outputs in (1, 2)
    assert isinstance(kind.standardizes, bool)
    assert kind.domain
    assert kind.__name__ in sksvae.likelihoods.__all__


# ---- instances as parameters ----


@each_case
def test_instances_copy_pickle_compare_and_print(case):
    likelihood = case.likelihood
    twins = [
        copy.deepcopy(likelihood),
        pickle.loads(pickle.dumps(likelihood)),
        eval(repr(likelihood), vars(sksvae.likelihoods)),
    ]
    for twin in twins:
        assert twin == likelihood
        assert hash(twin) == hash(likelihood)
        assert repr(twin) == repr(likelihood)
    others = [other.likelihood for other in CASES if other is not case]
    assert likelihood not in others


@each_class
def test_fields_are_frozen_plain_floats(kind):
    for field in dataclasses.fields(kind):
        instance = kind(**{field.name: np.float32(2.5)})
        assert type(getattr(instance, field.name)) is float
        assert instance == kind(**{field.name: 2.5})
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(instance, field.name, 3.0)


@each_class
@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf, "1", True, [1.0]], ids=repr)
def test_constructor_rejects_bad_numbers(kind, value):
    for field in dataclasses.fields(kind):
        with pytest.raises(ValueError, match=f"{field.name} of {kind.__name__} must be") as info:
            kind(**{field.name: value})
        assert repr(value) in str(info.value)


# ---- the data ----


@each_case
@each_dtype
def test_validate_accepts_its_own_samples(case, dtype):
    X = case.x((500,), dtype).numpy()
    case.likelihood.validate(X)
    X[3, 1] = np.nan
    case.likelihood.validate(X)


@each_case
def test_validate_accepts_the_inside_and_rejects_the_outside(case):
    X = np.ones((4, N_FEATURES))
    X[0, 0] = np.nan
    for value in case.inside:
        X[2, 1] = value
        case.likelihood.validate(X)
    for value in case.outside:
        X[2, 1] = value
        with pytest.raises(ValueError, match=r"X has 1 value") as info:
            case.likelihood.validate(X)
        message = str(info.value)
        assert f"likelihood={case.likelihood.name!r}" in message
        assert f"such as {value} in row 2, column 1" in message
        assert case.likelihood.domain in message
        if np.isinf(value):
            assert "No likelihood accepts infinite values" in message
        else:
            advice = message.split("accepted by")[1]
            named = {name for name in LIKELIHOODS if repr(name) in advice}
            assert "gaussian" in named
            for name in named:
                get_likelihood(name).validate(X)


@each_class
def test_validate_takes_integers_and_booleans(kind):
    kind().validate(np.ones((2, 3), dtype=np.int64))
    kind().validate(np.ones((2, 3), dtype=bool))


@each_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_working_features_are_finite_rowwise_and_keep_dtype(case, dtype):
    X = np.array([case.inside, case.inside[::-1]], dtype=dtype)
    working = case.likelihood.working_features(X)
    assert working.dtype == dtype
    assert working.shape == X.shape
    assert np.isfinite(working).all()
    np.testing.assert_array_equal(working[1:], case.likelihood.working_features(X[1:]))
    # `inside` is sorted. The map is increasing, but 1e-30 disappears in the offset of "gamma".
    assert (np.diff(working[0]) >= 0).all()
    assert working[0, -1] > working[0, 0]
    X[0, 0] = np.nan
    np.testing.assert_array_equal(np.isnan(case.likelihood.working_features(X)), np.isnan(X))


@each_class
def test_working_features_of_integers_are_float64(kind):
    assert kind().working_features(np.ones((2, 3), dtype=np.int32)).dtype == np.float64


# ---- starting values ----


@each_case
@each_dtype
@pytest.mark.parametrize("kind", ["none", "normal", "constant", "missing"])
def test_starting_values_have_shape_and_dtype_and_are_finite(case, dtype, kind):
    working = {
        "none": None,
        "normal": torch.randn(50, N_FEATURES, generator=torch.Generator().manual_seed(0)),
        "constant": torch.full((50, N_FEATURES), 2.0),
        "missing": torch.full((50, N_FEATURES), torch.nan),
    }[kind]
    params = case.likelihood.init_params(working, N_FEATURES, dtype)
    bias = case.likelihood.init_outputs(N_FEATURES, working, dtype)
    assert bias.shape == (case.likelihood.n_outputs - 1, N_FEATURES)
    for value in [*params.values(), bias]:
        assert value.dtype == dtype
        assert torch.isfinite(value).all()
    assert all(value.shape == (N_FEATURES,) for value in params.values())


# ---- the density ----


@each_case
@each_dtype
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_log_prob_equals_scipy(case, dtype, batch):
    x, params = case.x(dtype=dtype), case.params(dtype)
    outputs = case.outputs((*batch, N_ROWS), dtype)
    log_prob = case.likelihood.log_prob(x, outputs, params)
    assert log_prob.shape == (*batch, N_ROWS, N_FEATURES)
    assert log_prob.dtype == dtype
    frozen = case.frozen(outputs, params)
    expected = getattr(frozen, "logpdf" if hasattr(frozen.dist, "pdf") else "logpmf")
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(log_prob, expected(x.double().numpy()), tolerance, tolerance)


@each_case
def test_total_probability_is_one(case):
    outputs, params = case.outputs((1,)), case.params()
    u = torch.linspace(-100.0, 100.0, 20_001, dtype=torch.float64)[:, None]
    if case.is_real_valued:  # x = location + sinh(u / 4)
        x, log_jacobian = outputs[:, 0] + torch.sinh(u / 4), torch.log(torch.cosh(u / 4) / 4)
    elif 0.5 in case.outside:  # a count, or a binary digit, of which there are only two
        x = torch.arange(2.0 if 2.0 in case.outside else 200.0, dtype=torch.float64)[:, None]
        log_jacobian = torch.zeros_like(x)
    else:  # x = exp(u), as far as that matters
        x = u.clamp(max=50.0).exp()
        log_jacobian = u
    log_prob = case.likelihood.log_prob(x.expand(-1, N_FEATURES), outputs, params)
    step = 1.0 if len(x) <= 200 else 0.01
    total = step * (log_prob + log_jacobian).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-9)


@each_case
def test_log_prob_gradients(case):
    x, params = case.x(), case.params()
    names = list(params)

    def function(outputs, *values):
        named = dict(zip(names, values, strict=True))
        return case.likelihood.log_prob(x, outputs, named)

    inputs = [case.outputs().requires_grad_(), *(v.requires_grad_() for v in params.values())]
    assert torch.autograd.gradcheck(function, inputs)


@each_case
@each_dtype
def test_missing_entries_contribute_nothing(case, dtype):
    x = case.x(dtype=dtype)
    missing = torch.zeros_like(x, dtype=torch.bool)
    missing[0, 1] = True
    missing[2] = True
    outputs = case.outputs(dtype=dtype).requires_grad_()
    params = {name: value.requires_grad_() for name, value in case.params(dtype).items()}
    inputs = [outputs, *params.values()]

    with_nan = case.likelihood.log_prob(x.masked_fill(missing, torch.nan), outputs, params)
    assert (with_nan[missing] == 0).all()
    complete = case.likelihood.log_prob(x, outputs, params)
    assert torch.equal(with_nan[~missing], complete[~missing])

    gradients = torch.autograd.grad(with_nan.sum(), inputs)
    assert (gradients[0].movedim(-2, 0)[:, missing] == 0).all()
    expected = torch.autograd.grad(complete[~missing].sum(), inputs)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


@each_class
def test_outputs_without_their_axis_are_refused(kind):
    n_outputs = kind.n_outputs
    for shape in [(N_FEATURES,), (N_ROWS, n_outputs + 1, N_FEATURES)]:
        with pytest.raises(ValueError, match="outputs must have shape"):
            kind().log_prob(torch.ones(N_ROWS, N_FEATURES), torch.zeros(shape), {})


@each_case
@each_dtype
@pytest.mark.parametrize("magnitude", [50.0, 1e4, 1e30])
def test_extreme_outputs_and_params_stay_finite(case, dtype, magnitude):
    likelihood = case.likelihood
    x = torch.tensor(case.inside, dtype=dtype)[:, None].expand(-1, N_FEATURES).clone()
    x[0, 0] = torch.nan
    # A location is not a logarithm: it stays linear, and only has to survive being squared.
    first = min(magnitude, 1e12) if case.is_real_valued else magnitude
    for sign in (-1, 1):
        outputs = case.outputs((len(x),), dtype)
        outputs[..., 0, :] = sign * first
        outputs[..., 1:, :] = -sign * magnitude
        outputs.requires_grad_()
        params = {
            name: torch.full_like(value, sign * magnitude).requires_grad_()
            for name, value in case.params(dtype).items()
        }
        log_prob = likelihood.log_prob(x, outputs, params)
        gradients = torch.autograd.grad(log_prob.sum(), [outputs, *params.values()])
        draw = likelihood.sample(outputs, params, torch.Generator().manual_seed(0))
        likelihood.validate(draw.numpy())
        results = [
            log_prob,
            *gradients,
            likelihood.mean(outputs, params),
            likelihood.variance(outputs, params),
            likelihood.noise_precision(params, outputs),
        ]
        for result in results:
            assert result.dtype == dtype
            assert torch.isfinite(result).all()
        assert all((result >= 0).all() for result in results[-2:])


# ---- moments and draws ----


@each_case
@each_dtype
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_moments_equal_scipy(case, dtype, batch):
    outputs, params = case.outputs((*batch, N_ROWS), dtype), case.params(dtype)
    frozen = case.frozen(outputs, params)
    shape = (*batch, N_ROWS, N_FEATURES)
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    for method, expected in [("mean", frozen.mean()), ("variance", frozen.var())]:
        moment = getattr(case.likelihood, method)(outputs, params)
        assert moment.shape == shape
        assert moment.dtype == dtype
        np.testing.assert_allclose(moment, np.broadcast_to(expected, shape), rtol, rtol)
    assert case.likelihood.noise_precision(params, outputs).shape == shape
    draw = case.likelihood.sample(outputs, params, torch.Generator().manual_seed(0))
    assert draw.shape == shape
    assert draw.dtype == dtype


@each_case
@each_dtype
def test_moments_equal_those_of_draws(case, dtype):
    outputs, params = case.outputs((1,), dtype), case.params(dtype)
    many = outputs.expand(N_DRAWS, *outputs.shape)
    draws = case.likelihood.sample(many, params, torch.Generator().manual_seed(4)).double()
    variance = case.likelihood.variance(outputs, params).double()
    error = (draws.mean(0) - case.likelihood.mean(outputs, params)).abs()
    assert (error < N_SIGMA * (variance / N_DRAWS).sqrt()).all()

    kurtosis = torch.as_tensor(case.frozen(outputs, params).stats("k"))  # normal: 0
    if torch.isfinite(kurtosis).all():
        standard_error = variance * ((kurtosis + 2) / N_DRAWS).sqrt()
        assert ((draws.var(0) - variance).abs() < N_SIGMA * standard_error).all()
    else:
        assert case.likelihood.dof <= 4


@each_case
def test_monte_carlo_defaults_agree_with_the_formulas(case):
    likelihood, outputs, params = case.likelihood, case.outputs((2,)), case.params()
    mean, variance = likelihood.mean(outputs, params), likelihood.variance(outputs, params)
    n = likelihood.n_monte_carlo
    error = (Likelihood.mean(likelihood, outputs, params) - mean).abs()
    assert (error < N_SIGMA * (variance / n).sqrt()).all()
    kurtosis = torch.as_tensor(case.frozen(outputs, params).stats("k"))
    if torch.isfinite(kurtosis).all():
        error = (Likelihood.variance(likelihood, outputs, params) - variance).abs()
        # The error of a variance is itself skewed; 6 sigma leaves room at a thousand draws.
        assert (error < 6 * variance * ((kurtosis + 2) / n).sqrt()).all()


def test_monte_carlo_defaults_are_the_moments_of_the_draws():
    likelihood = LIKELIHOODS["bernoulli"]()
    outputs, generator = torch.zeros(2, 1, N_FEATURES), torch.Generator().manual_seed(0)
    draws = [likelihood.sample(outputs, {}, generator) for _ in range(likelihood.n_monte_carlo)]
    variance, mean = torch.var_mean(torch.stack(draws), dim=0)
    torch.testing.assert_close(Likelihood.mean(likelihood, outputs, {}), mean)
    torch.testing.assert_close(Likelihood.variance(likelihood, outputs, {}), variance)


@each_case
def test_sample_uses_only_its_generator(case):
    outputs, params = case.outputs((200,)).requires_grad_(), case.params()
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (
        case.likelihood.sample(outputs, params, torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first.requires_grad
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


@each_case
def test_noise_precision_is_the_fisher_information_of_the_first_output(case):
    outputs, params = case.outputs((1,)), case.params()
    many = outputs.repeat(N_DRAWS, 1, 1, 1)
    x = case.likelihood.sample(many, params, torch.Generator().manual_seed(5))
    many.requires_grad_()
    log_prob = case.likelihood.log_prob(x[:, 0], many[:, 0], params)
    (score,) = torch.autograd.grad(log_prob.sum(), many)
    squared = score[:, 0, 0].square()
    standard_error = squared.std(0) / N_DRAWS**0.5
    precision = case.likelihood.noise_precision(params, outputs)[0]
    assert ((squared.mean(0) - precision).abs() < N_SIGMA * standard_error).all()
    assert (score[:, 0, 0].mean(0).abs() < N_SIGMA * (precision / N_DRAWS).sqrt()).all()
