import math

import pytest
import torch
from given import contributions, dense64, full, pair
from wan22_master.engine.analysis.compare import compare
from wan22_master.engine.analysis.estimate import excess
from wan22_master.engine.analysis.layer import open_layer, stack
from wan22_master.engine.analysis.sampled import ROWS, SUMS, conflicts, has_rows, rows_of, sample
from wan22_master.engine.analysis.scratch import Scratch
from wan22_master.engine.specs import TensorSpec

KEY, SHAPE = "blocks.7.self_attn.q.weight", (300, 256)
SPEC = TensorSpec(SHAPE, torch.bfloat16)


def test_rows_are_different_within_the_tensor_and_the_same_everywhere():
    rows = rows_of(KEY, 5120)
    assert len(set(rows)) == ROWS and rows == sorted(rows) and set(rows) < set(range(5120))
    assert rows[:3] == [85, 447, 493]                                   # written down once: another choice is another method
    assert rows != rows_of("blocks.8.self_attn.q.weight", 5120)
    assert rows_of(KEY, 40) == list(range(40))


def test_every_row_is_chosen_equally_often():
    counts = torch.zeros(200)
    for number in range(500):
        counts[rows_of(f"blocks.{number}.ffn.0.weight", 200)] += 1
    assert (counts / 500 - ROWS / 200).abs().max() < 5 * math.sqrt(0.32 * 0.68 / 500)     # five standard deviations of 500 tosses


def test_the_sampled_rows_are_rows_of_the_full_deltas():
    draw = torch.Generator().manual_seed(0)
    members = [(0.5, [pair(draw, SHAPE, 4)]), (-1.0, [pair(draw, SHAPE, 2), pair(draw, SHAPE, 3)])]
    wanted = torch.stack([dense64(*member) for member in members])
    rows = rows_of(KEY, SHAPE[0])
    for more in ([], [(1.0, [full(torch.randn(SHAPE, generator=draw))])]):
        layer = open_layer(KEY, SPEC, contributions(*members, *more))
        found = sample(layer, stack(layer, Scratch()) if layer.is_low_rank else None, rows, Scratch())
        assert torch.allclose(found[:2].double(), wanted[:, rows], atol=1e-5)


def plain(deltas: torch.Tensor, j: int, k: int, chance: float) -> list[float]:
    """The six sums of one pair, row by row and column by column."""
    found = []
    for one, other in zip(deltas[j], deltas[k], strict=True):
        both = [(a, b) for a, b in zip(one.tolist(), other.tolist(), strict=True) if a and b]
        share = sum(a * b < 0 for a, b in both) / len(both) if both else 0.5
        weight = one.norm().item() * other.norm().item() if both else 0.0
        beyond = weight * (share - chance)
        found.append([weight, weight * share, beyond, weight**2, weight * beyond, beyond**2])
    return torch.tensor(found, dtype=torch.float64).sum(0).tolist()


def test_the_sums_are_those_of_plain_counting_also_where_elements_are_zero():
    deltas = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    deltas[0, 1, :20], deltas[1, 1, 20:], deltas[2, :, ::3] = 0, 0, 0          # in row 1 the first two never meet
    flat = deltas.reshape(3, -1)
    gram = flat @ flat.t()
    found = conflicts(deltas.float(), gram)
    for place, (j, k) in enumerate([(0, 1), (0, 2), (1, 2)]):
        cosine = gram[j, k] / (gram[j, j] * gram[k, k]).sqrt()
        wanted = plain(deltas, j, k, math.acos(cosine) / math.pi)
        assert found[place].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-9)      # float32 norms
    assert found[3, SUMS.index("w")].item() == pytest.approx(found[:3, 0].sum().item())
    assert found[3, SUMS.index("ww")].item() > found[:3, 3].sum().item()       # the sum is squared row by row


@pytest.mark.parametrize("cosine", [-0.9, -0.5, 0.0, 0.3, 0.8])
def test_gaussian_deltas_of_any_cosine_show_no_conflict_beyond_it(cosine):
    draw = torch.Generator().manual_seed(5)
    one, noise = torch.randn(2, 400, 512, generator=draw)
    one *= torch.rand(400, 1, generator=draw) * 4                    # rows of different size
    other = cosine * one + math.sqrt(1 - cosine**2) * noise * one.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    found = compare(KEY, TensorSpec((400, 512), torch.float32), contributions((1.0, [full(one)]), (1.0, [full(other)])), Scratch())
    judged = excess(found.strata[:1])
    assert judged.chance == pytest.approx(math.acos(cosine) / math.pi, abs=0.01)
    assert abs(judged.conflict - judged.chance) < 4 * judged.se      # one fixed draw


def test_columns_weighted_by_their_size_would_see_conflict_where_there_is_none():
    """Why the columns of a row count once: figures for docs/log.md."""
    draw = torch.Generator().manual_seed(6)
    one, noise = torch.randn(2, 1_000_000, generator=draw, dtype=torch.float64)
    other = -0.5 * one + math.sqrt(0.75) * noise
    weight = (one * other).abs()
    by_size = (weight * (one * other < 0)).sum() / weight.sum() - math.acos(-0.5) / math.pi
    assert by_size.item() == pytest.approx(0.181, abs=0.002)
    assert ((one * other < 0).double().mean() - math.acos(-0.5) / math.pi).abs() < 0.002


def test_a_planted_conflict_is_found_though_the_cosine_hides_it():
    """Nine columns in ten disagree, one large one agrees: the cosine is above zero."""
    draw = torch.Generator().manual_seed(7)
    one = torch.randn(SHAPE, generator=draw)
    sign = torch.where(torch.arange(SHAPE[1]) % 10 == 0, 1.0, -1.0)
    one[:, ::10] *= 6
    found = compare(KEY, SPEC, contributions((1.0, [full(one)]), (1.0, [full(one * sign)])), Scratch())
    judged = excess(found.strata[:1])
    assert found.exact.gram[0, 1] > 0
    assert judged.conflict == pytest.approx(0.9, abs=0.01) and judged.excess > 0.4 and judged.excess > 3 * judged.se


def test_biases_and_modulation_are_compared_but_not_sampled():
    assert not has_rows((5120, 1)) and not has_rows((1, 30720)) and has_rows((64, 2))
    bias = [full(torch.randn(300, generator=torch.Generator().manual_seed(n))) for n in range(2)]
    members = contributions((1.0, bias[:1]), (1.0, bias[1:]))
    found = compare("blocks.7.norm3.bias", TensorSpec((300,), torch.float32), members, Scratch())
    assert found.strata == [] and found.exact.gram[0, 0] > 0
