import math

import pytest
import torch
from given import contributions, pair
from wan22_master.engine.analysis.compare import compare
from wan22_master.engine.analysis.estimate import Stratum, excess
from wan22_master.engine.analysis.sampled import ROWS, conflicts, rows_of
from wan22_master.engine.analysis.scratch import Scratch
from wan22_master.engine.specs import TensorSpec


def layer(seed: int, rows: int, conflict: float, size: float) -> torch.Tensor:
    """Two deltas of very different rows, in which a share of the columns disagrees row by row."""
    draw = torch.Generator().manual_seed(seed)
    one = torch.randn(rows, 96, generator=draw) * torch.rand(rows, 1, generator=draw).pow(3) * size
    flips = torch.rand(rows, 96, generator=draw) < conflict + 0.3 * (torch.rand(rows, 1, generator=draw) - 0.5)
    return torch.stack([one, torch.where(flips, -1.0, 1.0) * torch.randn(rows, 96, generator=draw).abs() * one.sign()])


def truth(layers) -> float:
    """The excess before the max over all rows of all layers, float64."""
    weights, beyond = 0.0, 0.0
    for one, other in layers:
        one, other = one.double(), other.double()
        cosine = (one * other).sum() / one.norm() / other.norm()
        weight = one.norm(dim=1) * other.norm(dim=1)
        share = (one * other < 0).double().mean(1)
        weights += weight.sum()
        beyond += (weight * (share - torch.arccos(cosine) / math.pi)).sum()
    return (beyond / weights).item()


def judge(layers, grams, seed: int):
    """The estimate from one choice of rows."""
    strata = []
    for number, deltas in enumerate(layers):
        rows = rows_of(f"{seed}.{number}.weight", deltas.shape[1])
        sums = conflicts(deltas[:, rows], grams[number])
        strata.append(Stratum(deltas.shape[1] / len(rows), len(rows), sums[0].tolist()))
    return excess(strata)


def test_the_standard_error_is_honest_over_many_choices_of_rows():
    layers = [layer(1, 600, 0.75, 1.0), layer(2, 900, 0.6, 3.0), layer(3, 400, 0.7, 0.5)]
    grams = [each.double().flatten(1) @ each.double().flatten(1).t() for each in layers]
    found = [judge(layers, grams, seed) for seed in range(200)]
    errors = torch.tensor([each.conflict - each.chance for each in found], dtype=torch.float64) - truth(layers)
    sigmas = torch.tensor([each.se for each in found], dtype=torch.float64)
    assert (errors.abs() < 3 * sigmas).double().mean() >= 0.985       # 0.997 for a normal error; 200 choices
    assert 0.8 < (errors.std() / sigmas.mean()).item() < 1.15         # not too wide either
    assert abs(errors.mean().item()) < 0.3 * sigmas.mean().item()     # no bias worth the name


def test_independent_random_loras_show_no_conflict_beyond_three_errors():
    seen = 0
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        members = [(1.0, [pair(draw, (512, 384), 16)]) for _ in range(2)]
        spec = TensorSpec((512, 384), torch.float32)
        strata = [compare(f"{n}.weight", spec, contributions(*members), Scratch()).strata[0] for n in range(2)]
        judged = excess(strata)
        assert judged.conflict == pytest.approx(0.5, abs=0.02)
        seen += abs(judged.conflict - judged.chance) > 3 * judged.se
    assert seen <= 1


def stratum(rows: list[tuple[float, float]], factor: float = 1.0) -> Stratum:
    """rows: (weight, share - chance) with chance 0.5."""
    sums = [[w, w * (d + 0.5), w * d, w * w, w * w * d, w * w * d * d] for w, d in rows]
    return Stratum(factor, len(rows), [math.fsum(column) for column in zip(*sums, strict=True)])


def test_layers_count_by_what_is_at_stake_in_them_and_by_their_rows():
    judged = excess([stratum([(1.0, 0.1)] * 4, 10.0), stratum([(3.0, 0.3)] * 4, 5.0)])
    assert judged.excess == pytest.approx((4 * 10 * 0.1 + 12 * 5 * 0.3) / (40 + 60))
    assert judged.chance == pytest.approx(0.5) and judged.conflict == pytest.approx(0.5 + judged.excess)


def test_the_error_of_one_layer_is_that_of_a_ratio():
    rows = [(1.0, 0.1), (2.0, 0.3), (1.5, -0.2), (0.5, 0.0)]
    ratio = sum(w * d for w, d in rows) / 5.0
    residuals = torch.tensor([w * d - ratio * w for w, d in rows], dtype=torch.float64)
    assert excess([stratum(rows)]).se == pytest.approx((4 * residuals.var()).sqrt().item() / 5.0)


def test_noise_is_cut_off_once_at_the_end_and_not_layer_by_layer():
    judged = excess([stratum([(1.0, 0.2)] * 3), stratum([(1.0, -0.3)] * 3)])
    assert judged.excess == 0.0 and judged.conflict == pytest.approx(0.45)


def test_a_pair_that_never_meets_has_no_estimate():
    assert excess([]) is None and excess([stratum([(0.0, 0.0)] * ROWS)]) is None
