"""Gated factors of LoRA files against the dense formulas in float64, the limiter included."""
import itertools

import pytest
import torch
from wan22_master.engine.merging.adaptive.apply import gated_factors
from wan22_master.engine.merging.adaptive.constants import AdaptiveConstants

from . import oracle
from .fixtures import FFN_0, PATCH, SHAPES, Q, V, asked, base, delta64, expert, measured, save, write_lora

CPU = torch.device("cpu")
ROUNDING = 1e-6  # float32 factors, and W V in float32: 2^-24 a product, summed over at most 640


def apply(found, layer, order=None) -> tuple[list[torch.Tensor], list[dict]]:
    """Dense deltas and the report."""
    whats = asked(found, layer)
    whats = whats if order is None else [whats[place] for place in order]
    factors, told = gated_factors(f"{layer}.weight", SHAPES[f"{layer}.weight"], whats, CPU)
    assert all(each.up.dtype == each.down.dtype == torch.float32 for each in factors)
    return [each.up.double() @ each.down.double() for each in factors], told


def tiers(tensors, layer):
    return oracle.split_and_gate(delta64(tensors, layer), base()[f"{layer}.weight"].double().flatten(1))


def close(found, want):
    return (found - want).norm() <= ROUNDING * want.norm() * 10


@pytest.mark.parametrize("layer", [Q, FFN_0, PATCH])
@pytest.mark.parametrize("strength", [1.0, 0.3, -0.7])
def test_one_lora_is_gated_as_the_formulas_say(tmp_path, layer, strength):
    tensors = write_lora(tmp_path / "a.safetensors", 1, alpha=4.0)
    [found], [told] = apply(measured(tmp_path, [(tmp_path / "a.safetensors", strength)]), layer)
    want = tiers(tensors, layer)
    assert close(found, strength * (want["gated N"] + want["gated R"]))
    assert told["energy_refine"] == pytest.approx(want["R"].square().sum().item(), rel=1e-5)
    assert told["energy_refine"] > 0 and told["limit_hit"] is False and told["alpha_over_rank"] == [0.5]
    kept = (want["gated N"] + want["gated R"]).square().sum() / delta64(tensors, layer).square().sum()
    assert told["kept"] == pytest.approx(kept.item(), rel=0.1)     # tiers are added as if at right angles


def limited(parts: list[tuple[float, dict]], norm: float) -> torch.Tensor:
    """The sum of gated tiers at their strengths, each tier cut to its limit."""
    total = 0
    for tier, share in (("gated N", 0.08), ("gated R", 0.05)):
        part = sum(strength * found[tier] for strength, found in parts)
        total = total + part * min(1.0, share * norm / part.norm().item())
    return total


@pytest.mark.parametrize("sizes", [(0.02, 0.02, 0.02), (0.2, 0.01, 0.1), (0.3, 0.3, 0.3)])
def test_the_limiter_cuts_each_tier_of_the_sum(tmp_path, sizes):
    strengths, tensors = (1.0, -0.5, 0.8), []
    for number, size in enumerate(sizes):
        tensors.append(write_lora(tmp_path / f"{number}.safetensors", number + 1, size=size))
    found = measured(tmp_path, [(tmp_path / f"{number}.safetensors", strength) for number, strength in enumerate(strengths)])
    for layer in (Q, FFN_0, PATCH):
        deltas, told = apply(found, layer)
        norm = base()[f"{layer}.weight"].double().norm().item()
        parts = [(strength, tiers(each, layer)) for strength, each in zip(strengths, tensors, strict=True)]
        assert close(sum(deltas), limited(parts, norm))
        assert told[0]["limit_hit"] is (max(sizes) > 0.1)
        for tier, name in (("new", "gated N"), ("refine", "gated R")):
            said, size = told[0]["limits"][tier], sum(strength * part[name] for strength, part in parts).norm().item()
            assert said["norm"] == pytest.approx(size, rel=1e-5) if said["exact"] else said["norm"] >= size


def test_a_cut_sum_has_exactly_the_norm_of_the_limit(tmp_path):
    for number in range(3):
        write_lora(tmp_path / f"{number}.safetensors", number + 1, layers=[Q], size=0.5)
    found = measured(tmp_path, [(tmp_path / f"{number}.safetensors", 1.0, {"constants": AdaptiveConstants(share_floor=1e-9)})
                                for number in range(3)])
    _, told = apply(found, Q)
    assert {tier: said["factor"] < 1 for tier, said in told[0]["limits"].items()}["new"]
    said = told[0]["limits"]["new"]
    assert said["norm"] * said["factor"] == pytest.approx(0.08 * base()[f"{Q}.weight"].double().norm().item())


def test_the_order_of_loras_changes_no_bit(tmp_path):
    for number in range(3):
        write_lora(tmp_path / f"{number}.safetensors", number + 1, size=0.3)
    found = measured(tmp_path, [(tmp_path / f"{number}.safetensors", 0.9 - 0.3 * number) for number in range(3)])
    first, told = apply(found, FFN_0)
    assert told[0]["limits"]["new"]["factor"] < 1 and told[0]["limits"]["refine"]["factor"] < 1
    for order in itertools.permutations(range(3)):
        again, _ = apply(found, FFN_0, order)
        assert all(torch.equal(first[place], each) for place, each in zip(order, again, strict=True))


def test_a_protected_lora_is_not_limited_and_does_not_count(tmp_path):
    for number in range(2):
        write_lora(tmp_path / f"{number}.safetensors", number + 1, layers=[Q], size=0.3)
    alone, _ = apply(measured(tmp_path, [(tmp_path / "0.safetensors", 1.0)]), Q)
    free, _ = apply(measured(tmp_path, [(tmp_path / "1.safetensors", 0.01)]), Q)
    both, told = apply(measured(tmp_path, [(tmp_path / "0.safetensors", 1.0),
                                           (tmp_path / "1.safetensors", 1.0, {"protected": True})]), Q)
    assert torch.equal(both[0], alone[0]) and told[0]["limit_hit"] and not told[1]["limit_hit"]
    assert close(both[1], free[0] * 100)


def test_the_smaller_limit_of_two_passes_holds(tmp_path):
    for number in range(2):
        write_lora(tmp_path / f"{number}.safetensors", number + 1, layers=[Q], size=0.3)
    small = {"constants": AdaptiveConstants(limit_new=0.01)}
    _, told = apply(measured(tmp_path, [(tmp_path / "0.safetensors", 1.0), (tmp_path / "1.safetensors", 1.0, small)]), Q)
    assert told[0]["limits"]["new"]["limit"] == pytest.approx(0.01 * base()[f"{Q}.weight"].double().norm().item())
    assert told[0]["limits"] == told[1]["limits"]


def test_two_spellings_of_one_module_are_one_delta(tmp_path):
    tensors = write_lora(tmp_path / "whole.safetensors", 1, layers=[Q])
    up, down = (tensors[f"diffusion_model.{Q}.{part}.weight"] for part in ("lora_B", "lora_A"))
    stems = (f"diffusion_model.{Q}", "lora_unet_blocks_0_self_attn_q")
    save(tmp_path / "split.safetensors", {
        f"{stems[0]}.lora_B.weight": up[:, :3], f"{stems[0]}.lora_A.weight": down[:3],
        f"{stems[1]}.lora_up.weight": up[:, 3:], f"{stems[1]}.lora_down.weight": down[3:]})
    [found], [told] = apply(measured(tmp_path, [(tmp_path / "split.safetensors", 1.0)]), Q)
    want = tiers(tensors, Q)
    assert close(found, want["gated N"] + want["gated R"]) and told["rank"] == 8


@pytest.mark.parametrize("case", ["equal columns", "zero column", "badly conditioned"])
def test_poor_factors_lose_no_accuracy(tmp_path, case):
    tensors = write_lora(tmp_path / "a.safetensors", 1, layers=[Q])
    up = tensors[f"diffusion_model.{Q}.lora_B.weight"]
    if case == "equal columns":
        up[:, 1] = up[:, 5]
    elif case == "zero column":
        up[:, 2] = 0
    else:
        u, _, vt = torch.linalg.svd(up, full_matrices=False)
        up.copy_(u * torch.logspace(0, -8, 8) @ vt)
    save(tmp_path / "a.safetensors", tensors)
    [found], _ = apply(measured(tmp_path, [(tmp_path / "a.safetensors", 1.0)]), Q)
    want = limited([(1.0, tiers(tensors, Q))], base()[f"{Q}.weight"].double().norm().item())
    assert close(found, want)


def test_a_zero_delta_passes_as_it_is(tmp_path):
    tensors = write_lora(tmp_path / "a.safetensors", 1, layers=[Q, V])
    tensors[f"diffusion_model.{Q}.lora_B.weight"].zero_()
    save(tmp_path / "a.safetensors", tensors)
    write_lora(tmp_path / "b.safetensors", 2, layers=[Q], size=0.3)
    loras = [(tmp_path / "a.safetensors", 0.5), (tmp_path / "b.safetensors", 1.0)]
    found = measured(tmp_path, loras)
    deltas, told = apply(found, Q)
    assert deltas[0].shape == (256, 256) and not deltas[0].any() and told[0]["rank"] == 8 and told[0]["rank_used"] == 0
    alone, _ = apply(measured(tmp_path, loras[1:]), Q)
    assert torch.equal(deltas[1], alone[0])
    [same, _], _ = gated_factors(f"{Q}.weight", (256, 256), asked(found, Q), CPU)
    assert torch.equal(same.down, tensors[f"diffusion_model.{Q}.lora_A.weight"]) and not same.up.any()


def test_what_was_not_measured_is_an_error(tmp_path):
    write_lora(tmp_path / "a.safetensors", 1)
    with pytest.raises(RuntimeError, match=r"a\.safetensors is to be gated and was not measured"):
        apply(expert(tmp_path, [(tmp_path / "a.safetensors", 1.0)]), Q)


def test_threads_change_no_bit(tmp_path):
    for number in range(2):
        write_lora(tmp_path / f"{number}.safetensors", number + 1, size=0.3)
    found, threads = measured(tmp_path, [(tmp_path / f"{number}.safetensors", 1.0) for number in range(2)]), torch.get_num_threads()
    try:
        several = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            several.append(apply(found, FFN_0)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for again in several[1:] for one, other in zip(several[0], again, strict=True))


def test_the_largest_singular_value_is_reported_over_the_bases(tmp_path):
    write_lora(tmp_path / "a.safetensors", 1)
    [found], [told] = apply(measured(tmp_path, [(tmp_path / "a.safetensors", 1.0)]), FFN_0)
    want = torch.linalg.svdvals(found)[0] / torch.linalg.svdvals(base()[f"{FFN_0}.weight"].double())[0]
    assert told["sigma_over_base"] == pytest.approx(want.item(), rel=0.1)      # estimates, from below, of a flat spectrum
