"""The split and the gate on small matrices, against their definition written out densely."""
import math

import pytest
import torch
from wan22_master.engine.merging.adaptive.constants import AdaptiveConstants
from wan22_master.engine.merging.adaptive.spaces import decompose
from wan22_master.engine.merging.adaptive.split import shrink, split, threshold

from . import oracle
from .planted import known_part, new_part, power_law, randn, side_by_side

CONSTANTS = AdaptiveConstants()
N = 256
SPECTRA = {"flat": [1.0] * 16, "one": [3.0], "1/sqrt": [i**-0.5 for i in range(1, 17)], "1/i": [1 / i for i in range(1, 65)],
           "exponential": [math.exp(-i / 3) for i in range(64)], "one giant": [1e5] + [1.0] * 7,
           "equal pairs": [2.0, 2.0, 1.0, 1.0]}


def bases() -> dict[str, torch.Tensor]:
    return {"gaussian": randn(5, N, N) * 0.03, "power law": power_law(N), "wide": randn(6, 128, 384) * 0.03}


def gated(up: torch.Tensor, down: torch.Tensor, weight: torch.Tensor):
    """What the engine makes of it, dense: the Gated, gated N, gated R."""
    spaces = decompose(up, down, CONSTANTS.negligible)
    u, v = up.double() @ spaces.left, (spaces.right @ down.double()).t()
    found = split(spaces.sigma, u.t() @ weight @ v, (weight.norm() / math.sqrt(weight.numel())).item(), CONSTANTS)
    new = torch.diag(found.new) if found.new.dim() == 1 else found.new
    known = torch.zeros_like(weight) if found.known is None else u @ found.known @ v.t()
    return found, u @ new @ v.t(), known


def deltas(weight: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    known = known_part(weight, [0, 2, 5, 9], 0.05)
    new = new_part(20, tuple(weight.shape), 6, known[0].norm().item())
    mixed = side_by_side(known, new)
    twist = randn(30, 10, 10)
    return {"known": known, "new": new, "mixed": mixed, "mixed, turned": (mixed[0] @ twist, torch.linalg.solve(twist, mixed[1])),
            "too strong": (known[0] * 100, known[1]), "rank one": (known[0][:, :1], known[1][:1])}


@pytest.mark.parametrize("base", ["gaussian", "power law", "wide"])
def test_split_and_gate_are_the_formulas(base):
    weight = bases()[base]
    for name, (up, down) in deltas(weight).items():
        want = oracle.split_and_gate(up @ down, weight)
        found, new, known = gated(up, down, weight)
        size = 1e-9 * (up @ down).norm()
        assert (new - want["gated N"]).norm() < size, name
        assert (known - want["gated R"]).norm() < size, name
        for figure, part in (("energy_refine", "R"), ("energy_new", "N"), ("passed_refine", "gated R"), ("passed_new", "gated N")):
            assert found.figures[figure] == pytest.approx(want[part].square().sum().item(), rel=1e-8, abs=size.item() ** 2), name


def test_the_split_finds_what_was_planted():
    weight = bases()["gaussian"]
    known = known_part(weight, [0, 2, 5, 9], 0.05)
    new = new_part(20, (N, N), 6, known[0].norm().item())
    found, _, _ = gated(*side_by_side(known, new), weight)
    # new is random: 6 of 256 directions of the known part lie in it, and the other way round
    assert found.figures["energy_refine"] == pytest.approx(known[0].square().sum().item(), rel=6 / 256)
    assert found.figures["energy_new"] == pytest.approx(new[0].square().sum().item(), rel=6 / 256)
    assert found.figures["pairs_known"] == 4


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_scaling_the_delta_leaves_the_split(scale):
    weight = bases()["power law"]
    up, down = deltas(weight)["mixed"]
    one, other = gated(up, down, weight)[0].figures, gated(up * scale, down, weight)[0].figures
    for name in ("energy_refine", "energy_new", "passed_refine", "passed_new"):
        assert other[name] == pytest.approx(one[name] * scale**2, rel=1e-9)
    assert other["share"] == pytest.approx(one["share"]) and other["tau"] == pytest.approx(one["tau"] * scale)


@pytest.mark.parametrize("strength", [1e-4, 1.0, 100.0])
def test_a_random_lora_has_nothing_known(strength):
    weight = bases()["gaussian"]
    up, down = randn(40, N, 16) * strength, randn(41, 16, N)
    assert gated(up, down, weight)[0].figures["energy_refine"] < 0.01 * (up @ down).square().sum()


def test_a_change_stronger_than_the_base_is_new():
    weight = bases()["gaussian"]
    up, down = known_part(weight, [0, 2], 1.2)     # ‖R‖² = 1.44 Σγ²
    assert gated(up, down, weight)[0].known is not None
    found = gated(up * 1.3 / 1.2, down, weight)[0]  # 1.69 Σγ²
    assert found.known is None and found.figures["pairs_too_strong"] == 2 and found.figures["share"] is None


def test_a_pair_is_known_above_one_and_a_half_times_chance():
    sigma = torch.tensor([0.5, 0.4, 0.3, 0.2], dtype=torch.float64)      # rank 4: chance shows 2 √4 = 4 times the rms
    found = split(sigma, torch.diag(torch.tensor([12.1, 5.9, 11.9, 6.1], dtype=torch.float64)), 1.0, CONSTANTS)
    assert found.figures["pairs_known"] == 3
    assert found.figures["energy_refine"] == pytest.approx(0.5**2 + 0.3**2 + 0.2**2)


def test_a_zero_base_knows_nothing():
    assert gated(randn(1, N, 4), randn(2, 4, N), torch.zeros(N, N, dtype=torch.float64))[0].known is None


@pytest.mark.parametrize("name", SPECTRA)
def test_shrinking_is_the_nearest_of_its_share(name):
    sigma = torch.tensor(SPECTRA[name], dtype=torch.float64)
    kept, share, tau = shrink(sigma, CONSTANTS)
    want = torch.linalg.svdvals(oracle.gate_refinement(torch.diag(sigma)))
    torch.testing.assert_close(kept, want, rtol=1e-10, atol=1e-10 * sigma[0].item())
    assert 0.2 <= share <= 0.4
    assert kept.sum().item() == pytest.approx(share * sigma.sum().item(), rel=1e-12)
    torch.testing.assert_close(kept, (sigma - tau).clamp(min=0), rtol=0, atol=0)


@pytest.mark.parametrize("share", [1e-6, 0.2, 0.999999, 1.0])
def test_threshold_exists_for_every_share(share):
    for spectrum in SPECTRA.values():
        sigma = torch.tensor(spectrum, dtype=torch.float64)
        kept = (sigma - threshold(sigma, share)).clamp(min=0).sum().item()
        assert kept == pytest.approx(share * sigma.sum().item(), rel=1e-9)


def test_new_knowledge_passes_above_four_tenths_of_the_mean():
    weight = randn(5, N, N) * 1e-9
    up, down = new_part(20, (N, N), 4, 2.0)        # σ = 1, 1, 1, 1
    sigma = torch.tensor([1.0, 1.0, 0.25, 0.22])   # mean 0.6175: the threshold is 0.247
    _, new, _ = gated(up * sigma, down, weight)
    torch.testing.assert_close(torch.linalg.svdvals(new)[:4], torch.tensor([1, 1, 0.25, 0], dtype=torch.float64), rtol=0, atol=1e-8)
