"""Stochastic rounding to a grid, on E2M1's sixteen values: float64 is the oracle."""
import pytest
import torch
from wan22_master.quant.grid import TILE, round_stochastic

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])      # OCP MX 1.0, table 5: one mantissa bit, smallest normal 1
SPREAD = 1 << 12                                                   # noise values, evenly over [0, 1)


@pytest.mark.parametrize("value", [0.1, 0.49, 0.75, 1.26, 2.1, 2.99, 3.5, 5.999, -0.2, -1.75, -5.5])
def test_the_mean_over_all_noise_is_the_value(value):
    noise = (torch.arange(SPREAD) / SPREAD).contiguous()
    found = round_stochastic(torch.full((SPREAD,), value), noise, 1, 0).double()
    grid = torch.cat([-E2M1, E2M1]).double().unique()
    low, high = grid[grid <= value].max(), grid[grid >= value].min()
    assert ((found == low) | (found == high)).all()
    assert abs(found.mean() - value) <= (high - low) / SPREAD      # the noise's own step


@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2.0**-24])
def test_values_of_the_grid_stay_in_every_tile(noise):
    grid = torch.cat([-E2M1, E2M1]).repeat(TILE // 16 + 3)
    assert torch.equal(round_stochastic(grid.clone(), torch.full_like(grid, noise), 1, 0), grid)


def test_values_are_rounded_in_place_and_the_noise_stays():
    values, noise = torch.tensor([[0.3, 5.0]]), torch.tensor([[0.5, 0.5]])
    assert round_stochastic(values, noise, 1, 0) is values
    assert values.tolist() == [[0.5, 6.0]] and noise.tolist() == [[0.5, 0.5]]
