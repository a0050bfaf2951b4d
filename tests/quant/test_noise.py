"""Noise: plain statistics of uniform values are the oracle, and that bands of it are its rows."""
import pytest
import torch
from wan22_master.quant.noise import uniform

SHAPE = (512, 640)
# The formula of the module's docstring, worked out apart in Python integers.
PINNED = [[2028869, 13442728, 15997690], [1125373, 8337381, 12202063]]


@pytest.mark.parametrize("seed", [0, 1, 2**63 + 5, -7])
def test_values_are_uniform(seed):
    noise = uniform(seed, 0, SHAPE).double()
    count = noise.numel()
    assert noise.min() >= 0.0 and noise.max() < 1.0
    # Six standard deviations of the mean of uniform values, 1 / sqrt(12 n), and of their variance, 1 / sqrt(180 n).
    assert abs(noise.mean() - 0.5) < 6 / (12 * count) ** 0.5
    assert abs(noise.var() - 1 / 12) < 6 / (180 * count) ** 0.5
    # Chi square of 256 bins: mean 255, variance 510.
    seen = torch.histc(noise, 256, 0, 1)
    assert abs(((seen - count / 256) ** 2).sum() / (count / 256) - 255) < 6 * 510 ** 0.5


def test_rows_columns_neighbours_and_seeds_are_independent():
    noise = uniform(11, 0, SHAPE).double() - 0.5
    other = uniform(12, 0, SHAPE).double() - 0.5
    below = noise[1:, :], noise[:-1, :]
    beside = noise[:, 1:], noise[:, :-1]
    corners = noise[1:, 1:] * noise[:-1, :-1], noise[1:, :-1] * noise[:-1, 1:]     # what a hash of row xor column would repeat
    for first, second in (below, beside, (noise, other), (noise[1:], other[:-1]), corners):
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(correlation) < 6 / first.numel() ** 0.5                       # six standard deviations


@pytest.mark.parametrize("bit", range(24))
def test_every_bit_is_set_half_of_the_time(bit):
    bits = (uniform(3, 0, SHAPE).double() * 2**24).long() >> bit & 1
    assert abs(bits.double().mean() - 0.5) < 6 * 0.5 / bits.numel() ** 0.5


def test_rows_do_not_depend_on_the_band_they_are_made_in():
    whole = uniform(5, 0, (300, 70))
    for first, stop in ((0, 128), (128, 256), (256, 300), (77, 78)):
        assert torch.equal(uniform(5, first, (stop - first, 70)), whole[first:stop])


def test_columns_do_not_depend_on_the_width_and_wide_rows_are_cut_alike():
    assert torch.equal(uniform(5, 4, (2, 1 << 17))[:, :99], uniform(5, 4, (2, 99)))


def test_the_same_seed_makes_the_same_noise_and_another_shares_no_value_by_place():
    assert torch.equal(uniform(9, 0, SHAPE), uniform(9, 0, SHAPE))
    same = uniform(9, 0, SHAPE) == uniform(10, 0, SHAPE)
    assert same.sum() <= 5                                                       # 327680 places, each equal once in 2**24


def test_values_are_pinned():
    """A job that was stopped goes on with the noise it began with, also after an update."""
    assert (uniform(1234, 7, (2, 3)).double() * 2**24).long().tolist() == PINNED


@pytest.mark.gpu
def test_every_device_makes_the_same_noise():
    device = "cuda" if torch.cuda.is_available() else "xpu"
    assert torch.equal(uniform(5, 3, SHAPE, device).cpu(), uniform(5, 3, SHAPE))
