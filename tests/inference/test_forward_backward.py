# SPDX-License-Identifier: BSD-3-Clause
"""Discrete Markov chains, against enumeration of all paths and a plain forward-backward."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from sksvae.inference import (
    MarkovMoments,
    draw_paths,
    markov_fisher,
    markov_messages,
    markov_moments,
    most_probable_path,
)

NAMES = MarkovMoments._fields[:4]
INPUTS = ("initial", "transition", "likelihood")
every_length = pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
own_or_shared = pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])


@pytest.fixture(params=["sequential", "parallel", "logarithms"])
def method(request, monkeypatch):
    """Every way to compute the same numbers."""
    if request.param == "logarithms":
        refuse = classmethod(lambda cls, log_transition: None)
        monkeypatch.setattr(markov_messages.Transition, "build", refuse)
        return "sequential"
    return request.param


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def random_chain(batch_shape=(), n_steps=5, n_states=3, shared=True, seed=0):
    """Sub-normalised log weights."""
    own = () if shared else batch_shape
    initial = normal(*own, n_states, seed=seed) - 2.0
    transition = 1.5 * normal(*own, n_states, n_states, seed=seed + 1) - 2.0
    return initial, transition, 2.0 * normal(*batch_shape, n_steps, n_states, seed=seed + 2)


def path_scores(initial, transition, likelihood):
    """All paths of one chain, and their log weights."""
    n_steps, n_states = likelihood.shape
    paths = torch.tensor(list(itertools.product(range(n_states), repeat=n_steps)))
    scores = initial[paths[:, 0]] + likelihood[torch.arange(n_steps), paths].sum(-1)
    return paths, scores + transition[paths[:, :-1], paths[:, 1:]].sum(-1)


def enumerated(initial, transition, likelihood):
    """Moments of a batch of chains, differentiable, by summing over all paths."""
    *batch, n_steps, n_states = likelihood.shape
    initial = initial.expand(*batch, n_states).reshape(-1, n_states)
    transition = transition.expand(*batch, n_states, n_states).reshape(-1, n_states, n_states)
    results = []
    for chain in zip(initial, transition, likelihood.reshape(-1, n_steps, n_states), strict=True):
        paths, scores = path_scores(*chain)
        states = torch.nn.functional.one_hot(paths, n_states).to(scores.dtype)
        pairs = states[:, :-1, :, None] * states[:, 1:, None, :]
        p = scores.softmax(0)
        pair_marginals = (p[:, None, None, None] * pairs).sum(0)
        marginals = (p[:, None, None] * states).sum(0)
        results.append((scores.logsumexp(0), marginals, pair_marginals.sum(0), pair_marginals))
    stacked = [torch.stack(x) for x in zip(*results, strict=True)]
    return [x.reshape((*batch, *x.shape[1:])) for x in stacked]


def leaves(tensors):
    return [x.detach().clone().requires_grad_() for x in tensors]


def gradients(outputs, inputs):
    total = sum((normal(*out.shape, seed=i) * out).sum() for i, out in enumerate(outputs))
    zeros = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    return torch.autograd.grad(total, inputs, **zeros)


def assert_close(got, wanted, tolerance=1e-11, names=NAMES):
    for name, a, b in zip(names, got, wanted, strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@every_length
@own_or_shared
@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_everything_agrees_with_enumeration(method, n_steps, shared, batch_shape):
    inputs = leaves(random_chain(batch_shape, n_steps, shared=shared))
    got = markov_moments(*inputs, want_pairs=True, method=method)
    wanted = enumerated(*inputs)
    assert_close(got[:4], wanted)
    for selected in ([0], [1], [2], [3], [0, 1, 2, 3]):
        pair = ([x[i] for i in selected] for x in (got, wanted))
        assert_close(*(gradients(x, inputs) for x in pair), names=INPUTS)


def test_gradcheck(method):
    def function(*inputs):
        return markov_moments(*inputs, want_pairs=True, method=method)[:4]

    assert torch.autograd.gradcheck(function, leaves(random_chain((2,), 3, shared=False)))


def test_forbidden_states_and_transitions(method):
    initial, transition, likelihood = random_chain((2,), 5)
    initial[2], transition[1, 0], transition[2, 1] = (-math.inf,) * 3
    likelihood[0, 2, 0] = -math.inf
    inputs = leaves((initial, transition, likelihood))
    got, wanted = markov_moments(*inputs, want_pairs=True, method=method), enumerated(*inputs)
    assert_close(got[:4], wanted)
    got_gradients = gradients(got[:4], inputs)
    assert_close(got_gradients, gradients(wanted, inputs), names=INPUTS)
    assert all(x.isfinite().all() for x in got_gradients)


def test_evidence_that_only_a_lost_state_explains():
    # Nothing returns to the first state, and the evidence has the order the wrong way round: with
    # probabilities instead of logarithms both explanations underflow.
    transition = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64).log()
    likelihood = torch.tensor([[0.0, 1e4], [1e4, 0.0], [0.0, 0.0]], dtype=torch.float64)
    inputs = leaves((torch.zeros(2, dtype=torch.float64), transition, likelihood))
    got, wanted = markov_moments(*inputs, want_pairs=True), enumerated(*inputs)
    assert_close(got[:4], wanted)
    assert 0.1 < got.marginals[0, 0] < 0.9
    assert_close(gradients(got[:4], inputs), gradients(wanted, inputs), names=INPUTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("depth", [1.0, 60.0, 500.0])
def test_extreme_weights(method, dtype, depth):
    initial, transition, likelihood = (x.to(dtype) for x in random_chain((2,), 6))
    transition = depth * transition
    likelihood = 1e4 * likelihood
    got = markov_moments(initial, transition, likelihood, method=method)
    exact = [x.double() for x in (initial, transition, likelihood)]
    wanted = enumerated(*exact)
    tolerance = 1e-2 if dtype == torch.float32 else 1e-9  # the weights are rounded to that
    assert all(x.dtype == dtype for x in got[:3])
    assert_close([x.double() for x in got[1:3]], wanted[1:3], tolerance, NAMES[1:3])
    assert abs(got[0].double() / wanted[0] - 1).max() < torch.finfo(dtype).eps * 10


def plain_forward_backward(initial, transition, likelihood):
    """In logarithms, one chain, NumPy."""
    alpha, beta = [initial + likelihood[0]], [np.zeros_like(initial)]
    for row in likelihood[1:]:
        alpha.append(row + logsumexp(alpha[-1][:, None] + transition, axis=0))
    for row in likelihood[:0:-1]:
        beta.append(logsumexp(transition + row + beta[-1], axis=1))
    alpha, beta = np.array(alpha), np.array(beta[::-1])
    log_normalizer = logsumexp(alpha[-1])
    pairs = alpha[:-1, :, None] + transition + (likelihood[1:] + beta[1:])[:, None]
    counts = np.exp(pairs - log_normalizer).sum(0)
    return log_normalizer, np.exp(alpha + beta - log_normalizer), counts


@pytest.mark.parametrize("n_steps", [2, 3, 17, 300])
def test_long_chains_agree_with_a_plain_implementation(method, n_steps):
    chain = random_chain((), n_steps, n_states=4)
    got = markov_moments(*chain, method=method)
    wanted = plain_forward_backward(*(x.numpy() for x in chain))
    wanted = [torch.as_tensor(x) for x in wanted]
    assert_close(got[:3], wanted, tolerance=1e-9, names=NAMES[:3])


def scaled_forward_backward(initial, transition, likelihood):
    """Marginals with scaling at every step [2 of the module], one chain, NumPy."""
    initial, transition = np.exp(initial), np.exp(transition)
    likelihood = np.exp(likelihood - likelihood.max(1, keepdims=True))
    alpha, beta = [initial * likelihood[0]], [np.ones_like(initial)]
    for row in likelihood[1:]:
        alpha.append((alpha[-1] / alpha[-1].sum()) @ transition * row)
    for row in likelihood[:0:-1]:
        beta.append(transition @ (row * beta[-1] / beta[-1].sum()))
    joint = np.array(alpha) * np.array(beta[::-1])
    return joint / joint.sum(1, keepdims=True)


def test_hundred_thousand_steps():
    initial, transition, likelihood = (x.float() for x in random_chain((), 100_000, 3))
    transition, likelihood = transition + 5.0 * torch.eye(3), 30.0 * likelihood
    exact = [x.double() for x in (initial, transition, likelihood)]
    wanted = torch.as_tensor(scaled_forward_backward(*(x.numpy() for x in exact)))
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        inputs = (x.to(dtype) for x in exact)
        got = markov_moments(*inputs, want_messages=True)
        torch.testing.assert_close(got.marginals.double(), wanted, rtol=0.0, atol=tolerance)
        unary = normal(100_000, 3).to(dtype)
        change = markov_fisher(got.messages, unary)
        assert change.sum(-1).abs().max() < tolerance
        assert (change * unary).sum() > 0.0


@own_or_shared
@pytest.mark.parametrize("n_steps", [6, 30])
def test_absent_steps_are_as_if_cut_out(method, shared, n_steps):
    lengths = torch.tensor([n_steps, n_steps // 2, 1, 0])
    mask = torch.arange(n_steps) < lengths[:, None]
    initial, transition, likelihood = random_chain((4,), n_steps, shared=shared)
    likelihood[~mask] = math.nan
    inputs = leaves((initial, transition, likelihood))
    got = markov_moments(*inputs, mask=mask, want_pairs=True, method=method)
    plain = leaves((initial, transition, likelihood))
    wanted = [torch.zeros_like(x) for x in got[:4]]
    for i, length in enumerate(lengths.tolist()):
        if length:
            own = (x if shared else x[i] for x in plain[:2])
            single = markov_moments(*own, plain[2][i, :length], want_pairs=True)
            wanted[0][i], wanted[2][i] = single[0], single[2]
            wanted[1][i, :length], wanted[3][i, : length - 1] = single[1], single[3]
    assert_close(got[:4], wanted)
    got_gradients = gradients(got[:4], inputs)
    assert_close(got_gradients, gradients(wanted, plain), names=INPUTS)
    assert not got_gradients[2][~mask].any()
    unary = torch.where(mask[..., None], normal(*likelihood.shape), math.nan)
    messages = markov_moments(*inputs, mask=mask, want_messages=True, method=method).messages
    change = markov_fisher(messages, unary)
    assert change.isfinite().all() and not change[~mask].any()


@own_or_shared
@pytest.mark.parametrize("n_steps", [1, 4, 20])
def test_fisher_is_the_derivative_symmetric_and_positive(method, shared, n_steps):
    initial, transition, likelihood = random_chain((2,), n_steps, shared=shared)
    messages = markov_moments(
        initial, transition, likelihood, want_messages=True, method=method
    ).messages
    unary, pair = normal(*likelihood.shape, seed=7), normal(2, 3, 3, seed=8)
    step = 1e-5
    high, low = (
        markov_moments(initial, transition + s * pair, likelihood + s * unary).marginals
        for s in (step, -step)
    )
    got = markov_fisher(messages, unary, pair)
    torch.testing.assert_close(got, (high - low) / (2 * step), rtol=1e-7, atol=1e-8)
    shared_pair = markov_fisher(messages, unary, pair[0])
    assert_close([shared_pair[0]], [got[0]], names=["shared pair"])

    size = n_steps * 3
    units = torch.eye(size, dtype=torch.float64).view(size, n_steps, 3)
    first = [markov_fisher(messages, unit.expand(2, -1, -1)) for unit in units]
    matrix = torch.stack(first).reshape(size, 2, size).transpose(0, 1)
    torch.testing.assert_close(matrix, matrix.mT, rtol=1e-12, atol=1e-12)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12
    rows = torch.tensor([1])
    chosen = markov_fisher(messages, unary[rows], rows=rows)
    wanted = (matrix[1] @ unary[1].flatten()).view(1, n_steps, 3)
    torch.testing.assert_close(chosen, wanted, rtol=1e-11, atol=1e-12)


def test_a_second_derivative_is_refused(method):
    inputs = leaves(random_chain())
    chain = markov_moments(*inputs, method=method)
    for output in (chain.log_normalizer, chain.marginals.square().sum()):
        (gradient,) = torch.autograd.grad(output, inputs[2], create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable only once"):
            torch.autograd.grad(gradient.square().sum(), inputs[2], retain_graph=True)


def test_inputs_are_left_alone_and_extras_only_come_when_asked_for(method):
    inputs = random_chain((2,))
    before = [x.clone() for x in inputs]
    chain = markov_moments(*inputs, method=method)
    most_probable_path(*inputs)
    draw_paths(*inputs, 2, torch.Generator())
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    assert chain.pair_marginals is None and chain.messages is None


def test_no_chains_at_all(method):
    inputs = random_chain((0,), shared=True)
    chain = markov_moments(*inputs, want_pairs=True, method=method)
    shapes = [(0,), (0, 5, 3), (0, 3, 3), (0, 4, 3, 3)]
    assert [x.shape for x in chain[:4]] == shapes
    assert most_probable_path(*inputs)[0].shape == (0, 5)
    assert draw_paths(*inputs, 2, torch.Generator()).shape == (2, 0, 5)


@every_length
@own_or_shared
def test_most_probable_path_agrees_with_enumeration(n_steps, shared):
    chains = random_chain((6,), n_steps, shared=shared)
    # Few distinct weights, so that there are ties.
    initial, transition, likelihood = (x.round() for x in chains)
    path, log_prob = most_probable_path(initial, transition, likelihood)
    for i in range(6):
        own = (x if shared else x[i] for x in (initial, transition))
        paths, scores = path_scores(*own, likelihood[i])
        best = paths[scores == scores.max()].tolist()
        assert path[i].tolist() == min(best, key=lambda p: p[::-1])
        assert log_prob[i] == scores.max()


def test_most_probable_path_of_sequences_of_unequal_length():
    mask = torch.arange(5) < torch.tensor([[5], [3], [0]])
    initial, transition, likelihood = random_chain((3,))
    likelihood[~mask] = math.nan
    path, log_prob = most_probable_path(initial, transition, likelihood, mask)
    for i, length in enumerate([5, 3]):
        single, log_single = most_probable_path(initial, transition, likelihood[i, :length])
        assert torch.equal(path[i, :length], single)
        assert log_prob[i] == log_single
    assert (path[~mask] == -1).all() and log_prob[2] == 0.0


@own_or_shared
def test_draws_have_the_pair_marginals(method, shared):
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    inputs = random_chain((2,), shared=shared)
    n_draws = 20_000
    paths = draw_paths(*inputs, n_draws, torch.Generator().manual_seed(0), mask)
    assert paths.shape == (n_draws, 2, 5) and (paths[:, ~mask] == -1).all()
    wanted = markov_moments(*inputs, mask=mask, want_pairs=True)
    states = (paths.unsqueeze(-1) == torch.arange(3)).double()
    pairs = torch.einsum("nbti,nbtj->btij", states[:, :, :-1], states[:, :, 1:]) / n_draws
    for got, p in ((states.mean(0), wanted.marginals), (pairs, wanted.pair_marginals)):
        # Five standard errors of a frequency, plus one count.
        error = 5.0 * (p * (1.0 - p) / n_draws).sqrt() + 1.0 / n_draws
        assert ((got - p).abs() <= error).all()


def test_draws_repeat_with_the_generator_and_obey_structural_zeros():
    initial, transition, likelihood = random_chain((2,), 20)
    transition[2, 0] = transition[0, 2] = -math.inf
    draws = [
        draw_paths(initial, transition, likelihood, 50, torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*draws)
    steps = draws[0].diff(dim=-1).abs()
    assert steps.max() == 1
    none = draw_paths(initial, transition, likelihood, 0, torch.Generator())
    assert none.shape == (0, 2, 20)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_weights_raise(method, position, value):
    inputs = random_chain((2,), shared=False)
    inputs[position][1, 0] = value
    for function in (lambda *x: markov_moments(*x, method=method), most_probable_path):
        with pytest.raises(ValueError, match=r"1 of 2 chains .* batch index 1"):
            function(*inputs)


def test_impossible_evidence_raises(method):
    initial, transition, likelihood = random_chain((3,))
    likelihood[1, 2] = -math.inf
    for function in (lambda *x: markov_moments(*x, method=method), most_probable_path):
        with pytest.raises(ValueError, match=r"1 of 3 chains have no possible path"):
            function(initial, transition, likelihood)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("log_likelihood", (3,)),
        ("log_likelihood", (0, 3)),
        ("log_likelihood", (2, 5, 0)),
        ("log_initial", (2,)),
        ("log_initial", (3, 3)),
        ("log_transition", (3,)),
        ("log_transition", (1, 3, 3)),
        ("mask", (5,)),
    ],
)
def test_wrong_shapes_raise(name, shape):
    names = ("log_initial", "log_transition", "log_likelihood")
    inputs = dict(zip(names, random_chain((2,)), strict=True))
    inputs[name] = torch.ones(shape, dtype=torch.bool if name == "mask" else torch.float64)
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
        markov_moments(**inputs)


def test_a_mask_with_gaps_or_an_unknown_method_raises():
    chain = random_chain()
    with pytest.raises(ValueError, match="without gaps"):
        markov_moments(*chain, mask=torch.tensor([True, False, True, True, True]))
    with pytest.raises(ValueError, match="method must be 'auto', 'sequential' or 'parallel'"):
        markov_moments(*chain, method="scan")
