"""Sampled rows are told once for a tensor, the same whichever band was through first; plain float64 on the whole is the oracle."""
import itertools

import pytest
import torch
from wan22_master.engine.jobs.gathered import Gathered, Piece, tell
from wan22_master.engine.jobs.survival import Space
from wan22_master.quant.formats import form_of

NUMBERS = [3, 40, 41, 130, 250]
BANDS = [slice(0, 3), slice(3, 4), slice(4, 5)]


def rows(name: str = "float8_e4m3fn", *, merged_into: bool = True):
    """All sampled rows of a tensor of 256, and the format with its statistics."""
    draw = torch.Generator().manual_seed(3)
    base = torch.randn(256, 64, generator=draw) * 0.03
    whole = base + torch.randn(256, 64, generator=draw) * 1e-3
    form = form_of(name)
    stats = form.combine([form.measure(whole)]) if form.measure else None
    parts = form.quantize(whole, stats)
    decoded = form.dequantize(parts | form.constants(stats), NUMBERS)
    return Piece(NUMBERS, base[NUMBERS] if merged_into else None, whole[NUMBERS], decoded, parts[""][NUMBERS]), form, stats


def pieces(whole: Piece) -> list[Piece]:
    return [Piece(whole.numbers[band], None if whole.base is None else whole.base[band], whole.merged[band], whole.decoded[band],
                  whole.codes[band]) for band in BANDS]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("merged_into", [True, False])
def test_whoever_brings_the_last_rows_gets_all_in_order(order, merged_into):
    whole, form, stats = rows(merged_into=merged_into)
    gathered, parts = Gathered(), pieces(whole)
    for _ in range(2):                             # the next tensor begins anew
        told = [gathered.add(parts[place], len(NUMBERS)) for place in order]
        assert told[:2] == [None, None] and told[2].numbers == NUMBERS
        assert tell(told[2], form, stats, None, Space(None)) == tell(whole, form, stats, None, Space(None))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "mxfp8"])
def test_the_figures_are_those_of_float64(name):
    whole, form, stats = rows(name)
    sample, survival = tell(whole, form, stats, None, Space(None))
    base, merged, decoded = (each.double() for each in (whole.base, whole.merged, whole.decoded))
    assert sample.error == pytest.approx(((decoded - merged).norm() / merged.norm()).item(), rel=1e-6)   # float32 differences
    assert survival.kept == pytest.approx(((decoded - base) * (merged - base)).sum().item(), rel=1e-5)
    bases = form.quantize(whole.base, stats)[""][:len(NUMBERS)].float()
    assert (survival.codes, survival.same) == (5 * 64, int((whole.codes.float() == bases).sum())) and 0 < survival.same < 5 * 64


def test_nothing_survives_where_nothing_was_merged_and_blocks_compare_no_codes():
    whole, form, stats = rows(merged_into=False)
    assert not tell(whole, form, stats, None, None)[1].delta
    whole, form, stats = rows("Q8_0")
    survival = tell(whole, form, stats, None, Space(None))[1]
    assert survival.delta and not survival.codes
    whole, form, stats = rows("bf16")
    assert not tell(whole, form, stats, None, Space(None))[1].delta
