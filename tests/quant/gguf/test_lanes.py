"""Layout and sums that all encoders share: numpy's float16 and rint, and Python's fractions, are the oracles."""
from fractions import Fraction

import numpy
import pytest
import torch
from wan22_master.quant.gguf import lanes

HALVES = numpy.arange(0x7C00, dtype=numpy.uint16).view(numpy.float16).astype(numpy.float32)          # all that are not negative


def hard_to_round() -> numpy.ndarray:
    """All float16, the middles between two, and the float32 beside these, of both signs."""
    middles = (HALVES[1:] + HALVES[:-1]) / 2       # exact: 12 bits
    beside = [numpy.nextafter(middles, numpy.float32(way)) for way in (0, 1e9)]
    near = numpy.concatenate([HALVES, middles, *beside])
    return numpy.concatenate([near, -near, numpy.float32([1e-45, -1e-45, 1e-38, 65519.0, -65519.0])])


@pytest.fixture(scope="module")
def compiled_rounding():
    """compiled.rounded and compiled.whole, over arrays."""
    numba = pytest.importorskip("numba", reason="the compiled path needs the optional package numba")
    from wan22_master.quant.gguf.compiled import rounded, whole

    @numba.njit
    def run(values, halves, wholes):
        for i in range(len(values)):
            halves[i], wholes[i] = rounded(values[i]), whole(values[i])

    def call(values: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
        out = numpy.empty_like(values), numpy.empty_like(values)
        run(values, *out)
        return out

    return call


def test_element_i_of_every_block_lies_in_row_i():
    band = torch.arange(2 * 96.0).view(2, 96)
    turned = lanes.lanes(band, 32)
    assert turned.shape == (32, 6) and turned.is_contiguous()
    assert torch.equal(turned[5], torch.tensor([5.0, 37, 69, 101, 133, 165]))


@pytest.mark.parametrize("size", [1, 2, 8, 16, 32, 256])
def test_a_tree_sums_over_the_first_dimension_and_leaves_its_terms(size):
    terms = torch.randn(size, 3, 7, generator=torch.Generator().manual_seed(1))
    kept = terms.clone()
    exact = sum((Fraction(value) for value in terms[:, 1, 2].tolist()), Fraction(0))
    # log2(size) additions, each within 2**-24 of partial sums that the sum of sizes bounds.
    bound = 2.0 ** -24 * size.bit_length() * terms[:, 1, 2].abs().sum().item()
    assert abs(lanes.tree(terms)[1, 2].item() - float(exact)) <= bound and lanes.tree(terms).shape == (3, 7)
    assert torch.equal(terms, kept)


def test_a_tree_adds_halves():
    big = 2.0 ** 24                                # its ulp is 2: a lone 1 is lost beside it
    assert lanes.tree(torch.tensor([[big], [1.0], [1.0], [1.0]])).item() == big + 2          # (big + 1) + (1 + 1)
    assert lanes.tree(torch.tensor([[big], [1.0], [-big], [1.0]])).item() == 2               # (big - big) + (1 + 1)


def test_scales_round_as_numpy_s_float16():
    values = hard_to_round()
    wanted = values.astype(numpy.float16)
    assert numpy.array_equal(lanes.half(torch.from_numpy(values)).numpy().view(numpy.uint16), wanted.view(numpy.uint16))
    assert numpy.array_equal(lanes.rounded(torch.from_numpy(values)).numpy(), wanted.astype(numpy.float32))


@pytest.mark.parametrize("scale", [65520.0, -65520.0, 1e30, float("inf"), float("nan")])
def test_scales_that_float16_does_not_hold_are_refused(scale):
    with pytest.raises(ValueError, match="float16"):
        lanes.half(torch.tensor([1.0, scale]))


def test_compiled_scales_round_as_numpy_s_float16(compiled_rounding):
    values = hard_to_round()
    assert numpy.array_equal(compiled_rounding(values)[0], values.astype(numpy.float16).astype(numpy.float32))


def test_compiled_scales_beyond_float16_stay_beyond(compiled_rounding):
    assert (compiled_rounding(numpy.float32([65520, 65536, 1e30]))[0] > 65504).all()


def test_whole_numbers_round_as_numpy_s_rint(compiled_rounding):
    halves = numpy.arange(-4096, 4097, dtype=numpy.float32) / 2
    values = numpy.concatenate([halves, numpy.nextafter(halves, numpy.float32(-1e9)), numpy.nextafter(halves, numpy.float32(1e9)),
                                numpy.float32([4194302.5, 4194303.5, -4194303.5])])          # under 2**22
    assert numpy.array_equal(compiled_rounding(values)[1], numpy.rint(values))
    assert numpy.array_equal(lanes.nearest(torch.from_numpy(values)).numpy(), numpy.rint(values))
