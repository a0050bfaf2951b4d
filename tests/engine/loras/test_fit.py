"""Shapes fit axis by axis or not at all."""

import pytest
from wan22_master.engine.loras.fit import core_problem, kron_problem, pair_problem, trim, vector_axis, whose

CONV = (16, 6, 1, 2, 2)


@pytest.mark.parametrize(
    ("up", "down", "target"),
    [
        ((24, 4), (4, 12), (24, 12)),
        ((16, 4), (4, 6, 1, 2, 2), CONV),
        ((16, 4, 1, 1, 1), (4, 6, 1, 2, 2), CONV),
        ((16, 4), (4, 24), CONV),
        ((24, 4, 1, 1), (4, 12, 1, 1), (24, 12)),
        ((1, 4), (4, 6, 12), (1, 6, 12)),
        ((8, 4, 1, 1), (4, 6, 3, 3), (8, 6, 3, 3)),
        ((8, 30), (30, 6), (8, 6)),
        ((8, 1), (1, 6), (8, 6)),
    ],
)
def test_factors_fit_whose_axes_all_agree(up, down, target):
    assert pair_problem(up, down, target) is None


@pytest.mark.parametrize(
    ("up", "down", "target", "words"),
    [
        ((24, 4), (4, 11), (24, 12), "shape (24, 11) does not fit (24, 12)"),
        ((12, 4), (4, 24), (24, 12), "shape (12, 24) does not fit (24, 12)"),
        ((4, 24), (12, 4), (24, 12), "factors are transposed: expected up (24, rank) and down (rank, 12)"),
        ((24, 4), (3, 12), (24, 12), "up has rank 4, down has rank 3"),
        ((24, 0), (0, 12), (24, 12), "the factors have rank 0"),
        ((24, 4), (4, 1), (24,), "factors (24, 4) and (4, 1) do not make a delta of shape (24,)"),
        ((16, 4), (4, 6, 2, 2, 1), CONV, "shape (16, 6, 2, 2, 1) does not fit"),
        ((16, 4, 1, 2, 1), (4, 6, 1, 2, 2), CONV, "does not fit"),
        ((3072, 4), (4, 3072), (5120, 5120), "made for the 5B model"),
    ],
)
def test_factors_that_do_not_fit_say_why(up, down, target, words):
    assert words in pair_problem(up, down, target)


def test_trailing_ones_are_no_axes():
    assert trim((4, 12, 1, 1), 2) == (4, 12)
    assert trim((4, 1, 2, 1), 2) == (4, 1, 2)
    assert trim((4, 12), 5) == (4, 12)


@pytest.mark.parametrize(
    ("up", "core", "down", "target", "words"),
    [
        ((16, 3), (3, 4, 1, 2, 2), (4, 6), CONV, None),
        ((24, 3), (3, 4), (4, 12), (24, 12), None),
        ((16, 3), (3, 4, 1, 2, 2), (4, 6, 1, 1, 1), CONV, None),
        ((16, 3), (3, 5, 1, 2, 2), (4, 6), CONV, "the core has inner rank 5, its factor has rank 4"),
        ((16, 2), (3, 4, 1, 2, 2), (4, 6), CONV, "up has rank 2, down has rank 3"),
        ((16, 3), (3, 4, 2, 2, 1), (4, 6), CONV, "does not fit"),
        ((16, 3), (3, 4), (4, 6, 1, 2, 2), CONV, "do not make a delta"),
    ],
)
def test_a_core_joins_two_ranks_and_brings_the_kernel(up, core, down, target, words):
    problem = core_problem(up, core, down, target)
    assert problem is None if words is None else words in problem


@pytest.mark.parametrize(
    ("left", "right", "target", "words"),
    [
        ((4, 2), (6, 6), (24, 12), None),
        ((4, 2), (4, 3, 1, 2, 2), CONV, None),
        ((4, 2), (4, 12), CONV, None),
        ((1, 1), (24, 12), (24, 12), None),
        ((4, 2, 1, 1), (6, 6, 1, 1), (24, 12), None),
        ((2, 4), (6, 6), (24, 12), "factors are transposed: their kron has shape (12, 24)"),
        ((4, 4), (4, 6), CONV, "does not fit"),
        ((4, 2), (4, 3, 2, 2, 1), CONV, "does not fit"),
        ((4, 2), (6,), (24, 12), "is no delta"),
        ((4, 0), (6, 6), (24, 12), "is no delta"),
    ],
)
def test_a_kron_has_the_products_of_the_axes(left, right, target, words):
    problem = kron_problem(left, right, target)
    assert problem is None if words is None else words in problem


@pytest.mark.parametrize(
    ("shape", "target", "axis"),
    [
        ((24, 1), (24, 12), 0),
        ((1, 12), (24, 12), 1),
        ((24,), (24, 12), 0),
        ((12,), (24, 12), 1),
        ((12,), (12, 12), 0),
        ((1, 12), (12, 12), 1),
        ((16, 1, 1, 1, 1), CONV, 0),
        ((1, 6, 1, 1, 1), CONV, 1),
        ((16, 1), CONV, 0),
        ((7, 1), (24, 12), None),
        ((12, 1), (24, 12), None),
        ((1, 24), (24, 12), None),
        ((24,), (24,), None),
        ((), (24, 12), None),
        ((24, 1, 1), (24, 12), None),
        ((1, 6, 2, 1, 1), CONV, None),
    ],
)
def test_a_vector_lies_along_outputs_or_inputs(shape, target, axis):
    assert vector_axis(shape, target) == axis


def test_widths_tell_whose_a_lora_is():
    assert whose((3072, 3072), (5120, 5120)) == "; made for the 5B model"
    assert whose((5120, 5120), (5120, 13824)) == ""
