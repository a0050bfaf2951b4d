"""Estimated norms against torch's."""
import pytest
import torch
from wan22_master.engine.merging.adaptive.spectral import norm_of_sum, spectral_norm

from .planted import power_law, randn


@pytest.mark.parametrize(("name", "least"), [("gaussian", 0.93), ("power law", 0.99), ("wide", 0.93), ("rank one", 0.999999)])
def test_the_estimate_is_close_and_from_below(name, least):
    weight = {"gaussian": randn(0, 400, 400), "power law": power_law(400), "wide": randn(1, 100, 500),
              "rank one": randn(2, 300, 1) @ randn(3, 1, 200)}[name].float()
    found = spectral_norm(lambda x: (weight.t() @ (weight @ x)).double(), weight.shape[1])
    want = torch.linalg.matrix_norm(weight.double(), 2).item()
    assert least * want <= found <= want * (1 + 1e-6)


def test_the_zero_matrix_has_norm_zero():
    assert spectral_norm(lambda x: torch.zeros(50, dtype=torch.float64), 50) == 0
    assert norm_of_sum([(torch.zeros(30, 2), torch.ones(2, 40))]) == 0
    assert norm_of_sum([(torch.zeros(30, 0), torch.ones(0, 40))]) == 0


def test_the_norm_of_a_sum_is_that_of_the_dense_sum():
    factors = [(randn(seed, 300, 4).float(), randn(seed + 9, 4, 200).float()) for seed in range(3)]
    factors[1] = (factors[1][0] * -5, factors[1][1])
    want = torch.linalg.matrix_norm(sum(up.double() @ down.double() for up, down in factors), 2).item()
    assert 0.95 * want <= norm_of_sum(factors) <= want * (1 + 1e-5)
