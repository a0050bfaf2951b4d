"""IQ4_NL and IQ4_XS beside gguf-py and a float64 search of all scales, and the two paths beside each other. ggml's bytes:
test_golden.py."""
import gguf
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant.gguf import iq4, iq4_grid
from wan22_master.tests.quant.gguf.drawn import decoded, error, weights

try:
    from wan22_master.quant.gguf import iq4_compiled
except (ImportError, RuntimeError):                # as families.has_numba
    iq4_compiled = None

NBYTES, SIZES = {"IQ4_NL": 18, "IQ4_XS": 136}, {"IQ4_NL": 32, "IQ4_XS": 256}   # ggml-common.h
TYPES = tuple(NBYTES)
PATHS = [iq4.ENCODERS] + ([iq4_compiled.ENCODERS] if iq4_compiled else [])
SEARCHES = ("best", "max", "reference")
DISTRIBUTIONS = ("gauss", "laplace", "t5", "columns")
VALUES = torch.tensor(gguf.quants.IQ4_NL.kvalues, dtype=torch.float64)


def whole_codes(name: str, stored: torch.Tensor) -> torch.Tensor:
    """(codes, rows, columns): what a row would be read back as if all its weights had one code; by gguf-py."""
    rows = []
    for code in range(16):
        filled = stored.reshape(-1, NBYTES[name]).clone()
        filled[:, -SIZES[name] // 2:] = code * 17
        rows.append(decoded(name, filled.reshape(stored.shape)))
    return torch.stack(rows)


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_are_decoded_as_gguf_py_does(name):
    stored = torch.from_numpy(numpy.random.default_rng(3).integers(0, 256, (64, 3 * NBYTES[name]), dtype=numpy.uint8))
    top = stored.view(64, 3, -1)[:, :, 1]
    top[(top & 0x7C) == 0x7C] ^= 0x40                                          # no inf or NaN as d
    ours = iq4.DECODERS[name](stored)
    assert ours.shape == (64, 3 * SIZES[name]) and torch.equal(ours.view(torch.int32), decoded(name, stored).view(torch.int32))


def test_the_table_finds_the_nearest_value_and_the_upper_one_of_two():
    scaled = torch.cat([torch.linspace(-200, 200, 3201), torch.tensor([-5e5, 5e5, -115.50001, -4.5000005, 100.99999])])
    away = (scaled.double().unsqueeze(1) - VALUES).abs()
    upper = 15 - away.flip(1).argmin(1)                                        # the first of the reversed: the last of equals
    assert torch.equal(iq4_grid.nearest_code(scaled.clone()), upper.to(torch.uint8))
    assert torch.equal(iq4_grid.nearest_value(scaled.clone()), VALUES[upper].float())


def test_the_search_finds_nearly_the_best_of_all_scales():
    x = weights("gauss", 16).view(-1, 32)
    lowest = torch.full((len(x),), torch.inf)
    for sign in (-1, 1):
        for level in range(80, 150, 2):
            scale = sign * x.abs().amax(1, keepdim=True) / level
            lowest = lowest.minimum((scale * iq4_grid.nearest_value(x / scale) - x).square().sum(1))
    least = (lowest.double().sum() / x.double().square().sum()).sqrt().item()
    for setting, more in (("best", 1.005), ("max", 1.0)):                      # 8 of 56 tries leave 0.2 % more
        assert error("IQ4_NL", PATHS[-1]["IQ4_NL"](x.view(16, -1), None, setting), x.view(16, -1)) < more * least


# Reference and imatrix results of ggml d99724f2 on 1.3 million; 2 % for what so few weights lie off, 12288 of 1.3 million.
GOALS = {"IQ4_NL": {"gauss": (0.07612, 0.07489), "laplace": (0.08783, 0.08632), "t5": (0.08844, 0.08688)},
         "IQ4_XS": {"gauss": (0.07672, 0.07558), "laplace": (0.08855, 0.08718), "t5": (0.08926, 0.08789)}}


@pytest.mark.parametrize("kind", ["gauss", "laplace", "t5"])
@pytest.mark.parametrize("name", TYPES)
def test_best_and_max_reach_their_goals(name, kind):
    x, encode, (best, longest) = weights(kind), PATHS[-1][name], GOALS[name][kind]
    assert error(name, encode(x, None, "best"), x) <= best * 1.02
    assert error(name, encode(x, None, "max"), x) <= longest * 1.02


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("name", TYPES)
def test_a_longer_search_errs_less(name, kind):
    x = weights(kind)
    errors = [error(name, PATHS[-1][name](x, None, setting), x) for setting in ("max", "best", "reference")]
    assert errors == sorted(errors)


@pytest.mark.parametrize("setting", ["best", "max"])
def test_scales_of_six_bits_cost_less_than_a_hundredth_of_the_error(setting):
    x = weights("t5", 64, 1024)                    # sent to -32 alone, the largest scale makes it 1.1 %
    free, six_bits = (error(name, PATHS[-1][name](x, None, setting), x) for name in TYPES)
    assert free < six_bits < 1.009 * free


@pytest.mark.parametrize("setting", ["best", "max"])
@pytest.mark.parametrize("name", TYPES)
def test_column_weights_move_the_error_to_columns_that_count_less(name, setting):
    x, columns = weights("gauss"), torch.from_numpy(numpy.random.default_rng(9).lognormal(0, 1, 512).astype(numpy.float32))
    weighted = PATHS[-1][name](x, columns / columns.max(), setting)
    assert error(name, weighted, x, columns.double()) < 0.98 * error(name, PATHS[-1][name](x, None, setting), x, columns.double())


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("name", TYPES)
def test_blocks_of_weight_zero_are_kept_and_leave_the_others_alone(name, encoders):
    x, columns, half = weights("gauss"), torch.ones(512), 256 // SIZES[name] * NBYTES[name]
    columns[256:] = 0
    stored = encoders[name](x, columns, "max")
    assert torch.equal(stored[:, :half], encoders[name](x, None, "max")[:, :half])
    # Only the peak is sent to the end of the grid then: ggml's rule before it searches, some 1.2 times the error (4.4).
    assert error(name, stored[:, half:], x[:, 256:]) < 1.3 * GOALS[name]["gauss"][0]


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", ["best", "max"])
@pytest.mark.parametrize("name", TYPES)
def test_codes_are_the_nearest_for_the_stored_scales(name, setting, encoders):
    x = weights("t5", 4)
    stored = encoders[name](x, None, setting)
    nearest = (whole_codes(name, stored) - x).abs().amin(0)
    # The quotient is rounded to float32 before the code is.
    assert ((decoded(name, stored) - x).abs() <= nearest + 2.0 ** -22 * x.abs().amax()).all()


@pytest.mark.skipif(iq4_compiled is None, reason="numba is not here")
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_both_paths_write_the_same_bytes_whatever_the_band(name, setting):
    x = torch.cat([weights(kind, 5, 768) * 2.0 ** power for power, kind in enumerate(DISTRIBUTIONS)])
    kept = x.clone()
    for weight in (None,) if setting == "reference" else (None, torch.linspace(0, 1, 768).square()):
        eager = iq4.ENCODERS[name](x, weight, setting)
        for rows in (1, 7, 20):                                                # 24, 168 and 480 blocks: groups of 64, not full
            bands = [iq4_compiled.ENCODERS[name](x[first:first + rows], weight, setting) for first in range(0, 20, rows)]
            assert torch.equal(torch.cat(bands), eager)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_zeros_and_constants_and_lone_weights_are_kept(name, setting, encoders):
    x = torch.zeros(3, 256)
    x[0, 1::2], x[1], x[2, 77] = -0.0, -0.02, 1.75
    stored = encoders[name](x, None, setting)
    back = decoded(name, stored)
    assert torch.equal(back[0], torch.zeros(256))
    assert setting == "reference" or not stored[0, :2].any()                   # ggml's d of a zero super-block is -0
    coarse = 2.0 ** -11 + (name == "IQ4_XS") / 60                              # float16; half of 1 in 30 for a block's scale
    assert (back[1] / x[1] - 1).abs().max() <= coarse
    assert (back[2] - x[2]).abs().max() <= 1.75 / 80                           # the grid has no zero, but a 1 beside 113


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("size", [1e9, 1e14, 1e20, 1e30, 3e38])
@pytest.mark.parametrize("name", TYPES)
def test_scales_beyond_float16_are_refused(name, size, setting, encoders):
    x = weights("gauss", 2)
    x[1, 3] = size
    with pytest.raises(ValueError, match="float16"):
        encoders[name](x, None, setting)


values = st.one_of(st.just(0.0), st.just(-0.0), st.floats(-1e5, 1e5, width=32), st.floats(-2.0 ** -120, 2.0 ** -120, width=32))


@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=25, deadline=None)
@given(few=st.lists(values, min_size=1, max_size=32), seed=st.integers(0, 99), power=st.integers(-60, 12),
       offset=st.sampled_from([0, 9]))
def test_any_block_has_a_bounded_error_and_the_same_bytes_on_both_paths(name, setting, few, seed, power, offset):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(1, 256, generator=generator) + offset) * 2.0 ** power
    x[0, :len(few)] = torch.tensor(few)
    weight = None if setting == "reference" or seed % 2 else torch.rand(256, generator=generator).sub(0.3).clamp(min=0)
    stored = [encoders[name](x, weight, setting) for encoders in PATHS]
    back = decoded(name, stored[0])
    assert torch.isfinite(back).all() and all(torch.equal(stored[0], other) for other in stored)
    # A tenth of the peak is the grid's widest gap (24 of 240); float16's smallest step times the largest value and code.
    bound = x.abs().amax() * (0.1 + 1 / 32) + 2.0 ** -24 * 127 * (32 if name == "IQ4_XS" else 1)
    assert weight is not None or (back - x).square().mean().sqrt() <= bound
