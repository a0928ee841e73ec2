# SPDX-License-Identifier: BSD-3-Clause
"""Gaussian chains, against dense linear algebra, autograd through it and a Kalman smoother."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sksvae.expfam.numerics import symmetrize
from sksvae.inference import ChainMoments, chain_moments

METHODS = ["sequential", "parallel"]
every_method = pytest.mark.parametrize("method", METHODS)
# Cyclic reduction treats odd and even numbers differently at each of its levels.
every_length = pytest.mark.parametrize("n_steps", range(1, 14))
NAMES = ChainMoments._fields


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def random_chain(batch_shape=(), n_steps=5, dim=2, n_draws=2, seed=0):
    """``h``, blocks of a well-conditioned ``J``, and noise."""
    root = normal(*batch_shape, n_steps - 1, 2 * dim, 2 * dim, seed=seed)
    pair = root @ root.mT / (2 * dim)
    diagonal = 0.5 * torch.eye(dim, dtype=root.dtype).repeat(*batch_shape, n_steps, 1, 1)
    diagonal[..., :-1, :, :] += pair[..., :dim, :dim]
    diagonal[..., 1:, :, :] += pair[..., dim:, dim:]
    h = normal(*batch_shape, n_steps, dim, seed=seed + 1)
    noise = normal(n_draws, *batch_shape, n_steps, dim, seed=seed + 2)
    return h, diagonal, pair[..., dim:, :dim].clone(), noise


def dense_precision(diagonal, lower):
    n_steps, dim = diagonal.shape[-3:-1]
    J = diagonal.new_zeros(*diagonal.shape[:-3], n_steps, n_steps, dim, dim)
    for t in range(n_steps):
        J[..., t, t, :, :] = symmetrize(diagonal[..., t, :, :])
    for t in range(n_steps - 1):
        J[..., t + 1, t, :, :] = lower[..., t, :, :]
        J[..., t, t + 1, :, :] = lower[..., t, :, :].mT
    return J.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)


def elimination(steps, method):
    """Steps in the order in which they are eliminated, which the draws depend on."""
    if method == "sequential" or not steps:
        return steps
    return steps[::2] + elimination(steps[1::2], method)


def dense_moments(h, diagonal, lower, noise, method):
    """Everything from one dense matrix, for autograd to differentiate."""
    n_steps, dim = h.shape[-2:]
    J, vector = dense_precision(diagonal, lower), h.flatten(-2)
    V = torch.linalg.inv(J)
    mean = torch.linalg.solve(J, vector)
    log_normalizer = 0.5 * ((vector * mean).sum(-1) - torch.linalg.slogdet(J).logabsdet)
    log_normalizer = log_normalizer + 0.5 * n_steps * dim * math.log(2 * math.pi)
    blocks = V.unflatten(-1, (n_steps, dim)).unflatten(-3, (n_steps, dim)).transpose(-3, -2)
    order = torch.tensor(elimination(list(range(n_steps)), method))
    index = (order[:, None] * dim + torch.arange(dim)).flatten()
    factor = torch.linalg.cholesky(J[..., index, :][..., index])
    permuted = torch.linalg.solve_triangular(
        factor.mT, noise.flatten(-2)[..., index].unsqueeze(-1), upper=True
    )
    draws = mean + permuted.squeeze(-1)[..., index.argsort()]
    steps = torch.arange(n_steps)
    return ChainMoments(
        log_normalizer,
        mean.reshape(h.shape),
        blocks[..., steps, steps, :, :],
        blocks[..., steps[1:], steps[:-1], :, :],
        draws.reshape(noise.shape),
    )


def combine(outputs):
    """Take a random linear combination of all outputs."""
    return sum((normal(*out.shape, seed=i) * out).sum() for i, out in enumerate(outputs))


def gradients(outputs, inputs):
    zeros = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    return torch.autograd.grad(combine(outputs), inputs, **zeros)


def leaves(tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def assert_close(got, wanted, tolerance=1e-11, names=NAMES):
    for name, a, b in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@every_length
@every_method
def test_everything_agrees_with_dense_linear_algebra(method, n_steps):
    *chain, noise = random_chain((2,), n_steps, dim=3)
    got = chain_moments(*chain, noise=noise, method=method)
    assert_close(got, dense_moments(*chain, noise, method))


@every_length
@every_method
def test_gradients_agree_with_autograd_through_dense_algebra(method, n_steps):
    inputs = leaves(random_chain((2,), n_steps))
    *chain, noise = inputs
    got = chain_moments(*chain, noise=noise, method=method)
    wanted = dense_moments(*chain, noise, method)
    selections = {name: [i] for i, name in enumerate(NAMES)}
    for name, selected in {**selections, "all": range(len(NAMES))}.items():
        names = [f"gradient of {name} with respect to {x}" for x in ("h", "J_tt", "J_t+1,t", "e")]
        assert_close(
            gradients([got[i] for i in selected], inputs),
            gradients([wanted[i] for i in selected], inputs),
            tolerance=1e-10,
            names=names,
        )


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
@every_method
def test_gradcheck(method, n_steps):
    def function(h, diagonal, lower, noise):
        return chain_moments(h, symmetrize(diagonal), lower, noise=noise, method=method)

    inputs = leaves(random_chain((), n_steps, n_draws=1))
    assert torch.autograd.gradcheck(function, inputs)


@every_length
@every_method
def test_draws_have_exactly_the_joint_covariance(method, n_steps):
    h, diagonal, lower, _ = random_chain((), n_steps)
    size = h.numel()
    units = torch.eye(size, dtype=h.dtype).reshape(size, *h.shape)
    chain = chain_moments(h, diagonal, lower, noise=units, method=method)
    # A draw is the mean plus a linear map of the noise, whose columns are the images of the units.
    columns = (chain.draws - chain.mean).reshape(size, size).mT
    wanted = torch.linalg.inv(dense_precision(diagonal, lower))
    torch.testing.assert_close(columns @ columns.mT, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3), (2, 1, 2)])
@pytest.mark.parametrize("n_steps", [1, 2, 5])
@every_method
def test_batches_are_computed_chain_by_chain(method, n_steps, batch_shape):
    h, diagonal, lower, noise = random_chain(batch_shape, n_steps)
    got = chain_moments(h, diagonal, lower, noise=noise, method=method)
    assert got.log_normalizer.shape == batch_shape
    assert got.lag_covariance.shape == lower.shape
    for at in itertools.product(*map(range, batch_shape)):
        single = chain_moments(
            h[at], diagonal[at], lower[at], noise=noise[(slice(None), *at)], method=method
        )
        assert_close([x[at] for x in got[:4]] + [got.draws[(slice(None), *at)]], single)


@every_method
def test_no_chains_at_all(method):
    h, diagonal, lower, noise = random_chain((0,))
    chain = chain_moments(h, diagonal, lower, noise=noise, method=method)
    assert [x.shape for x in chain] == [(0,), h.shape, diagonal.shape, lower.shape, noise.shape]


@pytest.mark.parametrize("n_steps", [1, 2, 5])
@every_method
def test_without_noise_there_are_no_draws_and_the_rest_is_the_same(method, n_steps):
    *inputs, noise = random_chain((2,), n_steps)
    chain = leaves(inputs)
    wanted = chain_moments(*chain, noise=noise, method=method)
    for absent in (None, noise[:0]):
        got = chain_moments(*chain, noise=absent, method=method)
        assert got.draws.shape == (0, 2, n_steps, 2)
        assert_close(got[:4], wanted[:4], names=NAMES[:4])
        names = ["h", "diagonal", "lower"]
        wanted_gradients = gradients(wanted[:4], chain)
        assert_close(gradients(got, chain), wanted_gradients, names=names)


@every_method
def test_inputs_are_left_alone(method):
    *chain, noise = inputs = random_chain((2,))
    before = [x.clone() for x in inputs]
    chain_moments(*chain, noise=noise, method=method)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@every_method
def test_a_second_derivative_is_refused(method):
    inputs = leaves(random_chain((), 3)[:3])
    chain = chain_moments(*inputs, method=method)
    (gradient,) = torch.autograd.grad(chain.covariance.sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        torch.autograd.grad(gradient.square().sum(), inputs[1])


MASKS = {
    "full, padded, a single step, none": ["111111", "111000", "100000", "000000"],
    "gaps": ["110011", "010101", "001110", "101111"],
}


def present_runs(mask):
    """Slices of consecutive steps that exist."""
    text = "".join("1" if x else "0" for x in mask)
    edges = [t for t in range(len(text) + 1) if (text + "0")[t] != ("0" + text)[t]]
    return [slice(*pair) for pair in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("rows", MASKS.values(), ids=MASKS)
@every_method
def test_absent_steps_are_as_if_cut_out(method, rows):
    mask = torch.tensor([[x == "1" for x in row] for row in rows])
    pair = mask[:, 1:] & mask[:, :-1]
    h, diagonal, lower, noise = random_chain(mask.shape[:1], mask.shape[1])
    h[~mask], diagonal[~mask], lower[~pair], noise[:, ~mask] = (math.nan,) * 4
    *chain, e = inputs = leaves((h, diagonal, lower, noise))
    got = chain_moments(*chain, mask=mask, noise=e, method=method)

    wanted = [torch.zeros_like(x) for x in got]
    for i, row in enumerate(mask):
        for run in present_runs(row):
            links = slice(run.start, run.stop - 1)
            # The draws depend on the order of elimination, which cutting changes for 'parallel'.
            parts = h[i, run], diagonal[i, run], lower[i, links]
            single = chain_moments(*parts, noise=noise[:, i, run], method="sequential")
            wanted[0][i] += single.log_normalizer
            wanted[1][i, run], wanted[2][i, run] = single.mean, single.covariance
            wanted[3][i, links], wanted[4][:, i, run] = single.lag_covariance, single.draws
    compared = 5 if method == "sequential" else 4
    assert_close(got[:compared], wanted[:compared], names=NAMES[:compared])
    assert not got.draws[:, ~mask].any()

    got_gradients = gradients(got, inputs)
    assert all(x.isfinite().all() for x in got_gradients)
    for gradient, absent in zip(got_gradients[:3], (~mask, ~mask, ~pair), strict=True):
        assert not gradient[absent].any()
    assert not got_gradients[3][:, ~mask].any()
    # The same with harmless numbers where NaN stood, and the couplings cut, without a mask.
    eye = torch.eye(h.shape[-1], dtype=h.dtype)
    diagonal = torch.where(mask[..., None, None], diagonal, eye)
    plain = leaves((h.nan_to_num(), diagonal, lower.nan_to_num(), noise.nan_to_num()))
    reference = chain_moments(*plain[:3], noise=plain[3], method=method)
    wanted_gradients = gradients(reference, plain)
    wanted_gradients[0][~mask], wanted_gradients[1][~mask] = 0.0, 0.0
    wanted_gradients[2][~pair], wanted_gradients[3][:, ~mask] = 0.0, 0.0
    assert_close(got_gradients, wanted_gradients, names=["h", "diagonal", "lower", "noise"])


@every_method
def test_float32_is_kept_and_close_to_float64(method):
    *inputs, noise = random_chain((2,), 100, dim=4)
    mask = torch.arange(100) < torch.tensor([[100], [70]])
    results = {}
    for dtype in (torch.float64, torch.float32):
        chain = leaves(x.to(dtype) for x in inputs)
        outputs = chain_moments(*chain, mask=mask, noise=noise.to(dtype), method=method)
        results[dtype] = *outputs, *gradients(outputs[:4], chain)
        assert all(x.dtype == dtype for x in results[dtype])
    for single, double in zip(results[torch.float32], results[torch.float64], strict=True):
        error = (single.double() - double).abs().max() / double.abs().max()
        assert error < 1e-5


def test_the_orders_agree_on_long_chains():
    *inputs, _ = random_chain((2,), 200, dim=3)
    chain = leaves(inputs)
    sequential, parallel, auto = (
        chain_moments(*chain, method=method) for method in ("sequential", "parallel", "auto")
    )
    names = ["h", "diagonal", "lower"]
    for other in (parallel, auto):
        assert_close(other, sequential, tolerance=1e-10)
        pairs = gradients(other, chain), gradients(sequential, chain)
        assert_close(*pairs, tolerance=1e-10, names=names)


@pytest.mark.parametrize(
    ("n_chains", "n_steps", "chosen"),
    [(1, 20, "sequential"), (1, 250, "sequential"), (1, 2500, "parallel"), (9, 2500, "sequential")],
)
def test_the_automatic_choice_goes_by_size(n_chains, n_steps, chosen):
    *chain, noise = random_chain((n_chains,), n_steps, n_draws=1)
    wanted = chain_moments(*chain, noise=noise, method=chosen)
    # The draws tell the orders apart.
    assert torch.equal(chain_moments(*chain, noise=noise).draws, wanted.draws)


def kalman_smoother(A, Q, H, R, m0, P0, observations, observed):
    """Kalman filter and Rauch-Tung-Striebel smoother, textbook formulas in moment form."""
    filtered, predicted, log_evidence = [], [], torch.zeros((), dtype=A.dtype)
    mean, cov = m0, P0
    for y, is_observed in zip(observations, observed, strict=True):
        predicted.append((mean, cov))
        if is_observed:
            S = H @ cov @ H.T + R
            log_evidence = log_evidence + MultivariateNormal(H @ mean, S).log_prob(y)
            K = cov @ H.T @ torch.linalg.inv(S)
            mean, cov = mean + K @ (y - H @ mean), cov - K @ S @ K.T
        filtered.append((mean, cov))
        mean, cov = A @ mean, A @ cov @ A.T + Q
    mean, cov = filtered[-1]
    means, covs, lags = [mean], [cov], []
    for t in reversed(range(len(observations) - 1)):
        G = filtered[t][1] @ A.T @ torch.linalg.inv(predicted[t + 1][1])
        lags.append(cov @ G.T)
        mean = filtered[t][0] + G @ (mean - predicted[t + 1][0])
        cov = filtered[t][1] + G @ (cov - predicted[t + 1][1]) @ G.T
        means.append(mean)
        covs.append(cov)
    return log_evidence, *(torch.stack(x[::-1]) for x in (means, covs, lags))


@every_method
def test_linear_gaussian_model_agrees_with_a_kalman_smoother(method):
    dim, n_observed, n_steps = 3, 2, 9
    A, H = 0.9 * torch.linalg.qr(normal(dim, dim)).Q, normal(n_observed, dim, seed=1)
    Q, R, P0 = (
        torch.diag(normal(n, seed=seed).exp()) for n, seed in ((dim, 2), (n_observed, 3), (dim, 4))
    )
    m0, y = normal(dim, seed=5), normal(n_steps, n_observed, seed=6)
    observed = torch.ones(n_steps, dtype=torch.bool)
    observed[[3, 4]] = False  # these steps exist, with a zero potential
    Q_inv, R_inv, P0_inv = (torch.linalg.inv(x) for x in (Q, R, P0))
    weight = observed.to(y.dtype)
    diagonal = weight[:, None, None] * (H.T @ R_inv @ H)
    diagonal[0] += P0_inv
    diagonal[1:] += Q_inv
    diagonal[:-1] += A.T @ Q_inv @ A
    h = weight[:, None] * (y @ R_inv @ H)
    h[0] += P0_inv @ m0
    lower = (-Q_inv @ A).expand(n_steps - 1, dim, dim)
    got = chain_moments(h, diagonal, lower, method=method)
    # The potential of the chain lacks what does not depend on z: log p(y, z) at z = 0.
    zero = torch.zeros(dim, dtype=y.dtype)
    constant = MultivariateNormal(m0, P0).log_prob(zero)
    constant += (n_steps - 1) * MultivariateNormal(zero, Q).log_prob(zero)
    constant += MultivariateNormal(torch.zeros_like(y[0]), R).log_prob(y[observed]).sum()
    wanted = kalman_smoother(A, Q, H, R, m0, P0, y, observed)
    assert_close((got.log_normalizer + constant, *got[1:4]), wanted, names=NAMES[:4])


@pytest.mark.parametrize("name", ["precision_mean", "diagonal", "lower"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@every_method
def test_non_finite_input_raises(method, value, name):
    inputs = dict(zip(("precision_mean", "diagonal", "lower"), random_chain((2, 3)), strict=False))
    inputs[name][1, 0, 2, 0] = value
    with pytest.raises(torch.linalg.LinAlgError, match=r"1 of 6 chains .* batch index 3.*finite"):
        chain_moments(**inputs, method=method)


@pytest.mark.parametrize("step", [0, 2, 4])
@every_method
def test_not_positive_definite_raises(method, step):
    h, diagonal, lower, _ = random_chain((4,))
    diagonal[1:3, step] -= 10.0 * torch.eye(2, dtype=h.dtype)
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"2 of 4 chains .* definite.* batch index 1"
    ):
        chain_moments(h, diagonal, lower, method=method)


def test_only_the_joint_precision_has_to_be_positive_definite():
    # Each diagonal block is, and their couplings are too strong.
    diagonal, lower = torch.ones(2, 1, 1), torch.full((1, 1, 1), 1.5)
    for method in METHODS:
        with pytest.raises(torch.linalg.LinAlgError, match="not positive definite"):
            chain_moments(torch.zeros(2, 1), diagonal, lower, method=method)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("precision_mean", (3,)),
        ("precision_mean", (0, 2)),
        ("precision_mean", (5, 0)),
        ("diagonal", (5, 2)),
        ("diagonal", (4, 2, 2)),
        ("lower", (5, 2, 2)),
        ("lower", (1, 4, 2, 2)),
        ("mask", (4,)),
        ("noise", ()),
        ("noise", (5, 2)),
        ("noise", (3, 4, 2)),
    ],
)
def test_wrong_shapes_raise(name, shape):
    h, diagonal, lower, noise = random_chain()
    inputs = {"precision_mean": h, "diagonal": diagonal, "lower": lower, "noise": noise}
    inputs[name] = torch.ones(shape, dtype=torch.bool if name == "mask" else h.dtype)
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
        chain_moments(**inputs)


def test_unknown_method_raises():
    *chain, _ = random_chain()
    with pytest.raises(ValueError, match="method must be 'auto', 'sequential' or 'parallel'"):
        chain_moments(*chain, method="scan")
