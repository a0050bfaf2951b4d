"""The decomposition of a delta from its factors, against torch's SVD of the dense float64 product."""
import pytest
import torch
from wan22_master.engine.merging.adaptive.spaces import decompose

from .planted import orthonormal, randn


def conditioned(seed: int, rows: int, columns: int, kappa: float) -> torch.Tensor:
    sigma = torch.logspace(0, -torch.log10(torch.tensor(kappa)), columns, dtype=torch.float64)
    return orthonormal(seed, rows, columns) * sigma @ orthonormal(seed + 1, columns, columns).t()


def factors(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    up, down = randn(0, 300, 12), randn(1, 12, 200)
    if case == "up of condition 1e8":
        up = conditioned(2, 300, 12, 1e8)
    elif case == "both of condition 1e8":
        up, down = conditioned(2, 300, 12, 1e8), conditioned(3, 200, 12, 1e8).t()
    elif case == "equal columns":
        up[:, 3], down[7] = up[:, 8], down[2]
    elif case == "zero columns":
        up[:, 3], down[7] = 0, 0
    elif case == "columns of very different size":
        up, down = up * torch.logspace(-12, 12, 12), down * torch.logspace(12, -12, 12)[:, None]
    elif case == "rank above the width":
        up, down = randn(0, 300, 40), randn(1, 40, 16)
    elif case == "rank one":
        up, down = up[:, :1], down[:1]
    return up.float(), down.float()


CASES = ["plain", "up of condition 1e8", "both of condition 1e8", "equal columns", "zero columns", "columns of very different size",
         "rank above the width", "rank one"]


@pytest.mark.parametrize("case", CASES)
def test_spaces_are_those_of_the_dense_svd(case):
    up, down = factors(case)
    delta = up.double() @ down.double()
    sigma = torch.linalg.svdvals(delta)
    r = int((sigma > 1e-6 * sigma[0]).sum())
    found = decompose(up, down, 1e-6)
    u, v = up.double() @ found.left, (found.right @ down.double()).t()
    # 2^-53 times the sizes of the factors, divided by the smallest σ that counts, times a factor for the number of terms
    bound = 100 * 2.0**-53 * (up.double().norm(dim=0) * down.double().norm(dim=1)).sum() / sigma[r - 1]
    assert len(found.sigma) == r
    torch.testing.assert_close(found.sigma, sigma[:r], rtol=0, atol=1e-13 * len(up) * sigma[0].item())
    for basis in (u, v):
        assert (basis.t() @ basis - torch.eye(r, dtype=torch.float64)).norm() <= bound
    assert (u * found.sigma @ v.t() - delta).norm() <= (bound * sigma[r - 1] + 1.01e-6 * len(sigma) * sigma[0])


def test_equal_columns_lower_the_rank():
    up, down = factors("equal columns")
    assert len(decompose(up, down, 1e-6).sigma) == 12 - 2


@pytest.mark.parametrize("zero", ["up", "down", "both"])
def test_a_zero_delta_has_rank_zero(zero):
    up, down = factors("plain")
    up, down = up * (zero == "down"), down * (zero == "up")
    found = decompose(up, down, 1e-6)
    assert found.left.shape == (12, 0) and found.right.shape == (0, 12) and found.sigma.shape == (0,)


def test_orthogonal_products_of_nonzero_factors_have_rank_zero():
    # up is nonzero only where down is zero: δ = 0 exactly, although neither factor is
    up, down = factors("plain")
    up[:, :6], down[6:] = 0, 0
    assert len(decompose(up, down, 1e-6).sigma) == 0
