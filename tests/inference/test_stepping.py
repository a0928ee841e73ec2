# SPDX-License-Identifier: BSD-3-Clause
"""Products of thin matrices against sums over all indices."""

import pytest
import torch

from sksvae.inference.stepping import thin_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 16), (17, 16)])
def test_thin_products_are_sums_over_the_inner_axis(rows, columns, dtype):
    """Small ones and large ones are computed with different libraries."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(5, 3, rows, 2, generator=generator, dtype=dtype)
    right = torch.randn(5, 3, columns, 2, generator=generator, dtype=dtype).mT
    found = thin_products(left, right)
    expected = (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2)
    torch.testing.assert_close(found, expected)
