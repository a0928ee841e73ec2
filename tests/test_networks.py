# SPDX-License-Identifier: BSD-3-Clause
"""Encoder and decoder: linear limit, start, bounds, randomness."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from sksvae.networks import ACTIVATIONS, MLP, Decoder, Encoder

BATCH_SHAPES = [(), (3,), (2, 3)]
N_FEATURES, LATENT_DIM = 5, 2

every_batch = pytest.mark.parametrize("batch_shape", BATCH_SHAPES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def isometry(n_rows=N_FEATURES, n_columns=LATENT_DIM, dtype=torch.float64):
    return torch.linalg.qr(normal(n_rows, n_columns, seed=11)).Q.to(dtype)


def make_encoder(hidden=(), activation="relu", dtype=torch.float64, precision=4.0, seed=0):
    encoder = Encoder(N_FEATURES, hidden, LATENT_DIM, activation, dtype)
    encoder.reset(isometry(dtype=dtype), precision, generator(seed))
    return encoder


def make_decoder(hidden=(), n_outputs=1, activation="relu", dtype=torch.float64, seed=0):
    decoder = Decoder(LATENT_DIM, hidden, N_FEATURES, n_outputs, activation, dtype)
    further = normal(n_outputs - 1, N_FEATURES, seed=12).to(dtype)
    decoder.reset(isometry(dtype=dtype), further, generator(seed))
    return decoder


# Perceptron --------------------------------------------------------------------------------------


@each_activation
def test_perceptron_by_hand(activation):
    functions = {
        "identity": lambda x: x,
        "logistic": expit,
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
    }
    net = MLP(3, (4, 6), 2, activation, torch.float64)
    net.reset(generator())
    x = normal(7, 3)
    h = x.numpy()
    for layer in net.hidden:
        h = functions[activation](h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    np.testing.assert_allclose(net(x).detach(), h @ net.output.weight.detach().numpy().T)


@every_batch
@each_dtype
def test_without_hidden_layers_the_perceptron_is_zero_and_has_no_weights(batch_shape, dtype):
    net = MLP(3, (), 2, "relu", dtype)
    net.reset(generator())
    out = net(normal(*batch_shape, 3, dtype=dtype))
    assert torch.equal(out, torch.zeros(*batch_shape, 2, dtype=dtype))
    assert list(net.parameters()) == []


@pytest.mark.parametrize(("activation", "gain"), [("relu", 6.0), ("tanh", 6.0), ("logistic", 2.0)])
def test_weights_start_uniform_as_in_scikit_learn_the_last_near_zero(activation, gain):
    net = MLP(300, (200,), 100, activation, torch.float64)
    net.reset(generator())
    (hidden,) = net.hidden
    # Of a uniform on [-b, b], the largest of many is b, and the standard deviation b / sqrt(3).
    for weight, bound in (
        (hidden.weight, math.sqrt(gain / 500)),
        (net.output.weight, 1e-2 * math.sqrt(gain / 300)),
    ):
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=2e-2)
    assert 0.9 * math.sqrt(gain / 500) < hidden.bias.abs().max() <= math.sqrt(gain / 500)
    assert net.output.bias is None


# Shapes ------------------------------------------------------------------------------------------


@every_batch
@each_dtype
@pytest.mark.parametrize("hidden", [(), (4,), (6, 3)])
def test_shapes_and_dtype(batch_shape, dtype, hidden):
    r, R = make_encoder(hidden, dtype=dtype)(normal(*batch_shape, N_FEATURES, dtype=dtype))
    assert r.shape == R.shape == (*batch_shape, LATENT_DIM)
    assert r.dtype == R.dtype == dtype
    for n_outputs in (1, 2):
        decoder = make_decoder(hidden, n_outputs, dtype=dtype)
        outputs = decoder(normal(*batch_shape, LATENT_DIM, dtype=dtype))
        assert outputs.shape == (*batch_shape, n_outputs, N_FEATURES)
        assert outputs.dtype == dtype


@pytest.mark.parametrize("hidden", [(), (4,), (6, 3)])
def test_every_parameter_gets_a_gradient(hidden):
    encoder, decoder = make_encoder(hidden, "tanh"), make_decoder(hidden, 2, "tanh")
    r, R = encoder(normal(20, N_FEATURES))
    (decoder(r).square().sum() + R.sum()).backward()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        assert parameter.grad.abs().sum() > 0


def test_rows_do_not_interact():
    encoder, decoder = make_encoder((7,)), make_decoder((7,), 2)
    x, z = normal(6, N_FEATURES), normal(6, LATENT_DIM)
    for network, rows in ((lambda v: encoder(v)[0], x), (decoder, z)):
        torch.testing.assert_close(network(rows)[4], network(rows[4]))


# Linear limit ------------------------------------------------------------------------------------


def test_without_hidden_layers_the_encoder_is_linear():
    """``r = R (x W + b)`` with a constant R: the posterior of factor analysis."""
    encoder = make_encoder(precision=3.0)
    with torch.no_grad():
        encoder.bias.copy_(torch.tensor([0.5, -2.0]))
    x = normal(8, N_FEATURES)
    r, R = encoder(x)
    torch.testing.assert_close(R, torch.full_like(R, 3.0), rtol=1e-13, atol=0.0)
    want = 3.0 * (x @ isometry() + torch.tensor([0.5, -2.0], dtype=torch.float64))
    torch.testing.assert_close(r, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_without_hidden_layers_the_decoder_is_linear(n_outputs):
    decoder = make_decoder(n_outputs=n_outputs)
    bias = normal(N_FEATURES, seed=3)
    with torch.no_grad():
        decoder.bias[0].copy_(bias)
    z = normal(8, LATENT_DIM)
    outputs = decoder(z)
    torch.testing.assert_close(outputs[:, 0], z @ isometry().T + bias)
    if n_outputs == 2:  # the second output is a constant
        further = normal(1, N_FEATURES, seed=12)
        torch.testing.assert_close(outputs[:, 1], further.expand(8, N_FEATURES))


def test_decoding_what_the_encoder_centres_on_projects_on_the_axes():
    x, axes = normal(8, N_FEATURES), isometry()
    r, R = make_encoder()(x)
    back = make_decoder()(r / R)[:, 0]
    torch.testing.assert_close(back, x @ axes @ axes.T)
    # An isometry on its range: projecting again changes nothing, and lengths are kept.
    r, R = make_encoder()(back)
    torch.testing.assert_close((r / R).norm(dim=1), back.norm(dim=1))


# Start -------------------------------------------------------------------------------------------


@each_activation
def test_networks_start_close_to_the_linear_ones(activation):
    x, z = normal(200, N_FEATURES), normal(200, LATENT_DIM)
    hidden = (100, 50)
    (r, R), (linear_r, linear_R) = make_encoder(hidden, activation)(x), make_encoder()(x)
    assert ((r / R - linear_r / linear_R).abs() < 0.1).all()
    assert ((R / linear_R).log().abs() < 0.1).all()
    assert not torch.equal(r, linear_r)
    difference = make_decoder(hidden, 2, activation)(z) - make_decoder((), 2)(z)
    assert 0 < difference.abs().max() < 0.1


@pytest.mark.parametrize("precision", [1e-8, 1e-3, 1.0, 50.0, 1e8])
@each_dtype
def test_precision_starts_as_asked(precision, dtype):
    _, R = make_encoder(precision=precision, dtype=dtype)(normal(3, N_FEATURES, dtype=dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(R, torch.full_like(R, precision), rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("precision", [1e-300, 1e300])
def test_a_precision_out_of_bounds_starts_within_them(precision):
    encoder = make_encoder(precision=precision, dtype=torch.float32)
    _, R = encoder(normal(3, N_FEATURES, dtype=torch.float32))
    assert ((R.log().abs() > 29) & (R.log().abs() < 30)).all()
    R.sum().backward()
    assert (encoder.log_precision.grad.abs() > 0).all()


@pytest.mark.parametrize("value", [-1e6, 1e6])
@each_dtype
def test_log_precision_is_bounded_whatever_the_weights(value, dtype):
    encoder = make_encoder(dtype=dtype)
    with torch.no_grad():
        encoder.log_precision.fill_(value)
    r, R = encoder(normal(3, N_FEATURES, dtype=dtype))
    want = torch.full_like(R, math.copysign(30.0, value))
    torch.testing.assert_close(R.log(), want, rtol=1e-6, atol=0.0)
    assert (R.square() > 0).all()
    for tensor in (r, R.square(), *torch.autograd.grad(r.sum(), encoder.parameters())):
        assert tensor.isfinite().all()


def test_log_precision_in_the_usual_range_is_nearly_the_weight_itself():
    encoder = make_encoder()
    values = torch.linspace(-3, 3, 7, dtype=torch.float64)
    for value in values:
        with torch.no_grad():
            encoder.log_precision.fill_(value)
        _, R = encoder(normal(1, N_FEATURES))
        torch.testing.assert_close(R.log(), value.expand(1, LATENT_DIM), rtol=1e-2, atol=1e-12)


# Randomness --------------------------------------------------------------------------------------


def weights_of(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("make", [make_encoder, make_decoder])
def test_equal_generators_give_equal_weights(make):
    assert torch.equal(weights_of(make((8, 4), seed=3)), weights_of(make((8, 4), seed=3)))
    assert not torch.equal(weights_of(make((8, 4), seed=3)), weights_of(make((8, 4), seed=4)))


def test_a_second_reset_forgets_the_first():
    encoder, decoder = make_encoder((8,), seed=5), make_decoder((8,), 2, seed=5)
    with torch.no_grad():
        for parameter in (*encoder.parameters(), *decoder.parameters()):
            parameter.fill_(7.0)
    encoder.reset(isometry(), 4.0, generator(5))
    decoder.reset(isometry(), normal(1, N_FEATURES, seed=12), generator(5))
    assert torch.equal(weights_of(encoder), weights_of(make_encoder((8,), seed=5)))
    assert torch.equal(weights_of(decoder), weights_of(make_decoder((8,), 2, seed=5)))


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    encoder, decoder = make_encoder((8, 4)), make_decoder((8, 4), 2)
    decoder(encoder(normal(3, N_FEATURES))[0])
    assert torch.equal(before, torch.random.get_rng_state())


# ---- leading axes ----


def nodes(node):
    """Names of all that a result was computed by."""
    later = [nodes(following) for following, _ in node.next_functions if following is not None]
    return {node.name()}.union(*later)


@each_activation
@pytest.mark.parametrize("shape", [*BATCH_SHAPES, (2, 1, 3), (0, 3)])
def test_leading_axes_change_neither_values_nor_the_graph(shape, activation):
    network = MLP(4, (5, 3), 2, activation, torch.float64)
    network.reset(generator())
    x = normal(*shape, 4)
    found = network(x)
    assert found.shape == (*shape, 2)
    rows = network(x.reshape(-1, 4))
    torch.testing.assert_close(found.reshape(-1, 2), rows, rtol=0.0, atol=1e-15)
    # Changed in place behind a view, gradients of whole layers would be copied.
    assert not any("CopySlices" in name for name in nodes(found.grad_fn))
