# SPDX-License-Identifier: BSD-3-Clause
"""Networks of rows with several leading axes."""

import pytest
import torch

from sksvae.networks import MLP


def nodes(node):
    """Names of all that a result was computed by."""
    later = [nodes(following) for following, _ in node.next_functions if following is not None]
    return {node.name()}.union(*later)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0, 3)])
@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
def test_leading_axes_change_neither_values_nor_the_graph(shape, activation):
    generator = torch.Generator().manual_seed(0)
    network = MLP(4, (5, 3), 2, activation, torch.float64)
    network.reset(generator)
    x = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    found = network(x)
    assert found.shape == (*shape, 2)
    rows = network(x.reshape(-1, 4))
    torch.testing.assert_close(found.reshape(-1, 2), rows, rtol=0.0, atol=1e-15)
    # Changed in place behind a view, gradients of whole layers would be copied.
    assert not any("CopySlices" in name for name in nodes(found.grad_fn))
