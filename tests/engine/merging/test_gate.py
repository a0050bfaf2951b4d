"""Classic injection against the formula in plain float64 torch over whole tensors."""
import math

import pytest
import torch
from wan22_master.engine.merging.gate import ClassicConstants, Moments, decide, moments


def classic(delta, base):
    """The oracle: action-master's formula over whole float64 tensors. Returns (gated, threshold, is_new, limit_hit)."""
    delta, base = delta.double(), base.double()
    is_new = bool(delta.var() > 1.5 * base.var())
    threshold = (0.4 if is_new else 1.8) * delta.abs().mean()
    gated = torch.where(delta.abs() > threshold, delta, 0.0)
    limit, peak = 0.08 if is_new else 0.05, gated.abs().max()
    return gated * (limit / peak if peak > limit else 1.0), threshold.item(), is_new, bool(peak > limit)


def normal(*shape, scale=1.0, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed)) * scale


def test_moments_of_bands_add_up_to_those_of_the_tensor():
    weight = normal(300, 70, scale=0.03) + 0.2
    total = sum((moments(weight[row:row + 128]) for row in range(0, 300, 128)), Moments())
    wide = weight.double()
    assert total.n == weight.numel()
    # float64 sums in another order: a few times 2^-53 a step
    assert total.variance == pytest.approx(wide.var().item(), rel=1e-12)
    assert total.mean_abs == pytest.approx(wide.abs().mean().item(), rel=1e-13)
    assert total.amax == wide.abs().max().item()


@pytest.mark.parametrize("values", [torch.empty(0), torch.ones(1)])
def test_fewer_than_two_elements_have_no_variance(values):
    assert moments(values).variance == 0.0


# Relative sizes of delta: far below the base, then on both sides of var(X) = 1.5 var(W), where the tier changes.
@pytest.mark.parametrize("size", [0.003, 0.03, 0.3, 1.20, 1.25, 4.0])
@pytest.mark.parametrize("base_scale", [0.01, 0.03])
def test_tier_threshold_and_limit_are_those_of_the_formula(size, base_scale):
    base = normal(256, 200, scale=base_scale, seed=1)
    delta = normal(256, 200, scale=base_scale * size, seed=2)
    expected, threshold, is_new, limit_hit = classic(delta, base)
    gate = decide(moments(delta), moments(base), ClassicConstants())
    assert (gate.is_new, gate.limit_hit) == (is_new, limit_hit)
    assert is_new == (size > 1.5 ** 0.5)
    assert gate.threshold == pytest.approx(threshold, rel=1e-12)
    gated = gate.apply(delta.clone(), 0.7).double()
    near = (delta.double().abs() - threshold).abs() <= 1e-6 * threshold
    assert torch.equal((gated != 0)[~near], (expected != 0)[~near])
    # two float32 roundings: the factor and the product
    assert torch.allclose(gated[~near], 0.7 * expected[~near], rtol=2 ** -22, atol=0)


def test_the_shares_let_through_are_those_measured_on_the_original():
    # action_master: 15.1 % of an iid Gaussian when refining, 75.0 % when new; 2e-3 is 4 sigma of the count
    base = normal(400, 400, scale=0.03, seed=1)
    for size, share in ((0.1, 0.151), (4.0, 0.750)):
        delta = normal(400, 400, scale=0.03 * size, seed=2)
        gated = decide(moments(delta), moments(base), ClassicConstants()).apply(delta, 1.0)
        assert (gated != 0).double().mean().item() == pytest.approx(share, abs=4e-3)


def test_a_delta_of_constant_size_is_gated_away_when_refining():
    delta = torch.full((8, 8), 0.01) * torch.tensor([1.0, -1.0]).repeat(4)
    gate = decide(moments(delta), moments(normal(8, 8)), ClassicConstants())
    assert (gate.is_new, gate.limit_hit, gate.factor) == (False, False, 1.0)
    assert not gate.apply(delta, 1.0).any()


def test_a_constant_tensor_far_above_the_limit_is_not_limited_when_nothing_passes():
    gate = decide(moments(torch.full((8, 8), 3.0)), moments(normal(8, 8)), ClassicConstants())
    assert (gate.limit_hit, gate.factor) == (False, 1.0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_delta_that_is_not_finite_is_refused_and_its_lora_named(value):
    delta = normal(8, 8)
    delta[3, 4] = value
    with pytest.raises(ValueError, match=r"^the delta overflows float32; lower the strength, or replace the LoRA a\.safetensors$"):
        decide(moments(delta), moments(normal(8, 8)), ClassicConstants(), "a.safetensors")
    delta[3, 4] = 3e38                                                     # finite, and so are its float64 moments
    assert decide(moments(delta), moments(normal(8, 8)), ClassicConstants()).limit_hit


def test_the_strength_comes_after_the_limiter():
    delta = normal(64, 64, scale=0.05, seed=3)
    gated = decide(moments(delta), moments(normal(64, 64)), ClassicConstants()).apply(delta, 2.0)
    assert gated.abs().max().item() == pytest.approx(2.0 * 0.05, rel=2 ** -22)


def test_other_constants_are_used():
    delta, base = normal(64, 64, scale=0.02, seed=3), normal(64, 64, scale=0.03)
    gate = decide(moments(delta), moments(base), ClassicConstants(novelty=0.1, sensitivity_new=1.0, limit_new=0.01))
    assert (gate.is_new, gate.limit_hit) == (True, True)
    assert gate.threshold == pytest.approx(delta.double().abs().mean().item(), rel=1e-12)
    assert gate.factor == pytest.approx(0.01 / delta.abs().max().item(), rel=1e-12)
