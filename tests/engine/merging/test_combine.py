"""Each method of combining whole deltas against its paper's formula in plain float64 torch, whole tensors, torch.topk."""

import math

import pytest
import torch
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.merging.combine import check
from wan22_master.engine.merging.combine.breadcrumbs import breadcrumbs
from wan22_master.engine.merging.combine.dare import coin_key, coins, dare, drop
from wan22_master.engine.merging.combine.linear import orthogonal, orthogonal_coefficients, slerp
from wan22_master.engine.merging.combine.ties import dare_ties, ties
from wan22_master.engine.merging.contribution import PassRule

CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # a few float32 roundings of numbers of about 1


def draw(count: int, shape=(40, 30)) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=torch.manual_seed(seed)) * (1 + seed) for seed in range(count)]


def top64(delta: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` largest magnitudes, the others 0."""
    flat = delta.double().flatten()
    kept = torch.zeros_like(flat)
    places = flat.abs().topk(count).indices
    kept[places] = flat[places]
    return kept.view(delta.shape)


def elect64(deltas: list[torch.Tensor]) -> torch.Tensor:
    """TIES, steps 2 and 3: mean over those whose sign is that of the sum."""
    stack = torch.stack(deltas)
    agrees = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    return (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("density", [0.0, 0.2, 0.7, 1.0])
def test_ties_is_the_papers(count, density):
    deltas = draw(count)
    want = elect64([top64(delta, int(density * delta.numel())) for delta in deltas])
    assert torch.allclose(ties(deltas, density).double(), want, **CLOSE)
    assert torch.allclose(ties(deltas[::-1], density), ties(deltas, density), **CLOSE)


def test_opposite_deltas_elect_nobody():
    [delta] = draw(1)
    assert not ties([delta, -delta], 1.0).any()


def test_the_mean_is_over_those_that_agree_and_the_sum_decides_who():
    deltas = [torch.tensor([3.0, 3.0, 1.0]), torch.tensor([-1.0, 1.0, 0.0]), torch.tensor([-1.0, 2.0, -4.0])]
    assert ties(deltas, 1.0).tolist() == [3.0, 2.0, -4.0]  # sums 1, 6, -3; two lose, none, one


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.01), (1.0, 0.0), (0.95, 0.2), (0.0, 0.5)])
def test_breadcrumbs_drop_outliers_and_the_small(density, gamma):
    deltas, want = draw(3), 0.0
    for delta in deltas:
        kept = int(density * delta.numel())
        outliers = min(int(gamma * delta.numel()), delta.numel() - kept)
        want = want + top64(delta, outliers + kept) - top64(delta, outliers)
    assert torch.allclose(breadcrumbs(deltas, density, gamma).double(), want, **CLOSE)


def test_dare_keeps_its_share_and_its_mean():
    ones = torch.ones(400, 250)
    for density in (0.1, 0.5, 0.9):
        found = drop(ones, density, coin_key(7, "blocks.0.ffn.0.weight", "sha"))
        spread = math.sqrt(density * (1 - density) / ones.numel())  # of a mean of that many coins
        assert abs((found != 0).double().mean().item() - density) < 5 * spread
        assert found.unique().tolist() == pytest.approx([0.0, 1 / density])
    assert torch.equal(drop(ones, 1.0, 5), ones) and not drop(ones, 0.0, 5).any()


def test_coins_are_fair_in_rows_and_columns_and_between_loras():
    keys = [coin_key(0, "k", "a"), coin_key(0, "k", "b"), coin_key(1, "k", "a"), coin_key(0, "j", "a")]
    masks = [coins(key, 0.5, ((0, 500), slice(0, 500), 500), torch.device("cpu")).double() for key in keys]
    for n, mask in enumerate(masks):
        for axis in (0, 1):
            assert (mask.mean(axis) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(500)  # five sigma of 500 coins
        for other in masks[:n]:
            assert abs((mask - 0.5).mul(other - 0.5).mean().item()) < 5 * 0.25 / 500


def test_a_coin_is_splitmix64_of_its_index():
    def splitmix(state: int) -> int:  # Steele, Lea, Flood 2014, figure 16, in Python's own integers
        full = (1 << 64) - 1
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & full
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & full
        return state ^ (state >> 31)

    key = coin_key(3, "blocks.1.ffn.2.weight", "ab" * 32)
    mask = coins(key, 0.3, ((5, 9), slice(2, 13), 17), torch.device("cpu"))
    for row in range(4):
        for column in range(11):
            index = (row + 5) * 17 + column + 2
            drawn = splitmix(((index + 1) * 0x9E3779B97F4A7C15 + key) & ((1 << 64) - 1))
            assert bool(mask[row, column]) == (drawn / 2**64 < 0.3)


def test_dare_and_dare_ties_combine_the_thinned():
    deltas, keys = draw(3), [11, 22, 33]
    thinned = [drop(delta, 0.6, key).double() for delta, key in zip(deltas, keys, strict=True)]
    assert torch.allclose(dare(deltas, 0.6, keys).double(), sum(thinned), **CLOSE)
    assert torch.allclose(dare_ties(deltas, 0.6, keys).double(), elect64(thinned), **CLOSE)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_goes_along_the_arc(t):
    a, b = (delta.double() for delta in draw(2))
    angle = math.acos((a * b).sum() / a.norm() / b.norm())
    want = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
    assert torch.allclose(slerp(a, b, t), want, **CLOSE)


@pytest.mark.parametrize("other", [1.0, 1.001, -1.0, 0.0])
def test_slerp_of_parallel_deltas_is_the_straight_line(other):
    [a] = draw(1)
    assert torch.allclose(slerp(a, other * a, 0.25), (0.75 + 0.25 * other) * a, **CLOSE)


def test_orthogonal_is_gram_schmidt_in_descending_norm_with_norms_restored():
    deltas = [delta + 2 * draw(1)[0] for delta in draw(4)]
    flat, basis = sorted((delta.double().flatten() for delta in deltas), key=lambda each: -each.norm()), []
    for delta in flat:
        rest = delta.clone()
        for other in basis:
            rest -= (rest @ other) / (other @ other) * other
        basis.append(rest * delta.norm() / rest.norm())
    want = sum(basis).view(deltas[0].shape)
    for order in (deltas, deltas[::-1]):
        assert torch.allclose(orthogonal(order).double(), want, rtol=1e-5, atol=1e-5)


def test_what_a_stronger_one_contains_adds_nothing():
    delta, other = draw(2)
    assert torch.allclose(orthogonal([delta, 0.5 * delta]), delta, **CLOSE)
    assert torch.allclose(orthogonal([delta, 0.5 * delta + 1e-4 * other]), delta, **CLOSE)  # its rest must not get the norm of all
    assert orthogonal_coefficients(torch.zeros(2, 2, dtype=torch.float64)) == [0.0, 0.0]


@pytest.mark.parametrize("count", [1, 3])
def test_slerp_takes_two_and_says_so(count):
    with pytest.raises(RecipeError, match=rf"^style: slerp takes exactly two LoRAs, found {count}; use"):
        check(PassRule("slerp"), "style", count)
    check(PassRule("slerp"), "style", 2)
    with pytest.raises(RecipeError, match=r"expected one of sum, ties, .* found 'sce'"):
        check(PassRule("sce"), "style", 2)
