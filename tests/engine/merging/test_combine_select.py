"""The radix select against torch.topk and a stable sort, on tensors seen whole and in tiles, with and without equal values."""

import pytest
import torch
from wan22_master.engine.merging.combine.select import Search, find_cut, trim

SHAPE = (37, 53)
WHOLE = ((0, SHAPE[0]), slice(0, SHAPE[1]))


def draw(kind: str) -> torch.Tensor:
    normal = torch.randn(SHAPE, generator=torch.manual_seed(3))
    return {
        "normal": normal,
        "bf16": normal.bfloat16().float(),  # 8 significant bits: many equal magnitudes
        "steps": (normal * 2).round(),
        "constant": torch.full(SHAPE, -0.5),
        "zero": torch.zeros(SHAPE),
        "tiny": normal * 1e-42,  # denormal
        "wide": normal * 10.0 ** (normal * 12),
    }[kind]


def kept64(delta: torch.Tensor, count: int) -> torch.Tensor:
    """The largest magnitudes, the first ones where they are equal: a stable descending sort."""
    order = delta.double().abs().flatten().sort(descending=True, stable=True).indices
    kept = torch.zeros(delta.numel(), dtype=torch.bool)
    kept[order[:count]] = True
    return kept.view(delta.shape)


def tiles(height: int, width: int):
    for top in range(0, SHAPE[0], height):
        for left in range(0, SHAPE[1], width):
            yield (top, min(top + height, SHAPE[0])), slice(left, min(left + width, SHAPE[1]))


@pytest.mark.parametrize("count", [0, 1, 2, 53, 777, 1960, 1961])
@pytest.mark.parametrize("kind", ["normal", "bf16", "steps", "constant", "zero", "tiny", "wide"])
def test_exactly_the_largest_are_kept_and_of_equal_ones_the_first(kind, count):
    delta = draw(kind)
    kept = find_cut(delta, count).keeps(delta, *WHOLE)
    assert torch.equal(kept, kept64(delta, count)) and int(kept.sum()) == count
    top = torch.topk(delta.abs().flatten(), count).values
    assert torch.equal(delta.abs()[kept].sort(descending=True).values, top)


@pytest.mark.parametrize("kind", ["normal", "bf16", "constant"])
def test_tiles_and_their_order_do_not_matter(kind):
    delta, want = draw(kind), kept64(draw(kind), 700)
    for shape, backwards in (((5, 7), False), ((37, 1), True), ((1, 53), False)):
        cut = Search(700, SHAPE)
        spans = sorted(tiles(*shape), key=lambda span: (span[0], span[1].start), reverse=backwards)
        while cut.cut is None:
            for rows, columns in spans:
                cut.look(delta[rows[0]:rows[1], columns].contiguous(), rows, columns)
            cut.narrow()
        for rows, columns in spans:
            found = cut.cut.keeps(delta[rows[0]:rows[1], columns].contiguous(), rows, columns)
            assert torch.equal(found, want[rows[0]:rows[1], columns])


def test_trim_keeps_a_share_of_each_and_changes_nothing_else():
    deltas = [draw("normal"), draw("bf16").reshape(-1)]
    copies = [delta.clone() for delta in deltas]
    for delta, before, kept in zip(deltas, copies, trim(deltas, 0.3), strict=True):
        assert torch.equal(delta, before) and kept.shape == delta.shape
        assert torch.equal(kept, torch.where(kept64(delta, int(0.3 * delta.numel())), delta, 0.0))
