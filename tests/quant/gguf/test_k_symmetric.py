"""Q6_K and Q3_K beside gguf-py's decoder, and the two paths beside each other. ggml's bytes and errors: test_golden.py."""
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant.gguf import k_symmetric
from wan22_master.quant.gguf.k_symmetric_layout import KINDS
from wan22_master.tests.quant.gguf.drawn import decoded, error, weights

try:
    from wan22_master.quant.gguf import k_symmetric_compiled
except (ImportError, RuntimeError):                # as families.has_numba
    k_symmetric_compiled = None

TYPES = ("Q6_K", "Q3_K")
PATHS = [k_symmetric.ENCODERS] + ([k_symmetric_compiled.ENCODERS] if k_symmetric_compiled else [])
NBYTES = {"Q6_K": 210, "Q3_K": 110}                # ggml-common.h: sizeof(block_q6_K), sizeof(block_q3_K)
SEARCHES = ("best", "max", "reference")
compiled_only = pytest.mark.skipif(k_symmetric_compiled is None, reason="numba is not here")


def whole_codes(name: str, stored: torch.Tensor) -> torch.Tensor:
    """(codes, rows, columns): what a row would be read back as if all its weights had one code; by gguf-py."""
    blocks = stored.reshape(-1, NBYTES[name])
    rows = []
    for code in range(2 * KINDS[name].levels):
        filled = blocks.clone()
        if name == "Q6_K":
            filled[:, :128], filled[:, 128:192] = (code & 15) * 17, (code >> 4) * 85
        else:
            filled[:, :32], filled[:, 32:96] = (code >> 2) * 255, (code & 3) * 85
        rows.append(decoded(name, filled.reshape(stored.shape)))
    return torch.stack(rows)


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_are_decoded_as_gguf_py_does(name):
    stored = torch.from_numpy(numpy.random.default_rng(3).integers(0, 256, (64, 3 * NBYTES[name]), dtype=numpy.uint8))
    top = stored.view(64, 3, -1)[:, :, -1]
    top[(top & 0x7C) == 0x7C] ^= 0x40                                          # no inf or NaN as d
    ours = k_symmetric.DECODERS[name](stored)
    assert ours.shape == (64, 768) and torch.equal(ours.view(torch.int32), decoded(name, stored).view(torch.int32))


# Reference and imatrix results of ggml d99724f2 on 1.3 million; 2 % for what so few weights lie off, 12288 of 1.3 million.
GOALS = {"Q6_K": {"gauss": (0.01775, 0.01733), "laplace": (0.02166, 0.02117), "t5": (0.02146, 0.02099)},
         "Q3_K": {"gauss": (0.15101, 0.14467), "laplace": (0.17613, 0.16971), "t5": (0.17633, 0.16989)}}


@pytest.mark.parametrize("kind", ["gauss", "laplace", "t5"])
@pytest.mark.parametrize("name", TYPES)
def test_best_and_max_reach_their_goals(name, kind):
    x, encode, (best, longest) = weights(kind), PATHS[-1][name], GOALS[name][kind]
    assert error(name, encode(x, None, "best"), x) <= best * 1.02
    assert error(name, encode(x, None, "max"), x) <= longest * 1.02


@pytest.mark.parametrize("kind", ["gauss", "laplace", "t5", "columns"])
@pytest.mark.parametrize("name", TYPES)
def test_a_longer_search_errs_less(name, kind):
    x = weights(kind)
    errors = [error(name, PATHS[-1][name](x, None, setting), x) for setting in ("max", "best", "reference")]
    assert errors == sorted(errors)


@pytest.mark.parametrize("setting", ["best", "max"])
@pytest.mark.parametrize("name", TYPES)
def test_column_weights_move_the_error_to_columns_that_count_less(name, setting):
    x, columns = weights("gauss"), torch.from_numpy(numpy.random.default_rng(9).lognormal(0, 1, 512).astype(numpy.float32))
    weighted = PATHS[-1][name](x, columns / columns.max(), setting)
    assert error(name, weighted, x, columns.double()) < 0.99 * error(name, PATHS[-1][name](x, None, setting), x, columns.double())


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("name", TYPES)
def test_columns_of_weight_zero_are_kept_where_no_other_suffers(name, encoders):
    x, columns = weights("gauss"), torch.ones(512)
    columns[256:] = 0                                                          # whole super-blocks
    got = encoders[name](x, columns, "best").view(-1, NBYTES[name])
    assert torch.equal(got, encoders[name](x, None, "best").view(-1, NBYTES[name]))


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_codes_are_the_nearest_for_the_stored_scales(name, setting, encoders):
    x = weights("t5", 4)
    stored = encoders[name](x, None, setting)
    nearest = (whole_codes(name, stored) - x).abs().amin(0)
    # The quotient is rounded to float32 before the code is: 2**-23 of a code of at most 32, where two are as near.
    assert ((decoded(name, stored) - x).abs() <= nearest + 32 * 2.0 ** -23 * x.abs().amax()).all()


@compiled_only
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_both_paths_write_the_same_bytes_whatever_the_band(name, setting):
    x = torch.cat([weights(kind, 5, 768) * 2.0 ** power for power, kind in enumerate(("gauss", "laplace", "t5", "columns"))])
    weight = None if setting == "reference" else torch.linspace(0, 1, 768).square()
    eager, kept = k_symmetric.ENCODERS[name](x, weight, setting), x.clone()
    for rows in (1, 7, 20):                                                    # 3, 21 and 60 super-blocks: groups of 16, not full
        bands = [k_symmetric_compiled.ENCODERS[name](x[first:first + rows], weight, setting) for first in range(0, 20, rows)]
        assert torch.equal(torch.cat(bands), eager)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_rows_do_not_know_of_each_other(name, setting):
    x = weights("laplace", 3, 768)
    for encoders in PATHS:
        assert torch.equal(encoders[name](x, None, setting), torch.cat([encoders[name](row[None], None, setting) for row in x]))


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_blocks_of_zeros_are_read_back_as_zeros(name, setting, encoders):
    x = weights("gauss", 2)
    x[0], x[1, 256:300] = -0.0, 0.0
    back = decoded(name, encoders[name](x, None, setting))
    assert torch.equal(back[0], torch.zeros(512)) and torch.equal(back[1, 256:288], torch.zeros(32))


@pytest.mark.parametrize("encoders", PATHS)
def test_the_reference_of_q3_k_passes_five_times_over_the_weights(encoders):
    # One sub-block in 20 thousand changes in the fifth pass. Bytes of ggml, commit d99724f2.
    x = torch.zeros(1, 256)
    x[0, :16] = torch.tensor([7, 4, -9, -2, -7, -3, 6, 0, 9, -8, 4, -6, 5, -5, 4, -1])
    high, low, scales = "01010000000001010100010001000101", "02010103020302000301010202020100", "0000000000000000a8aaaaaa"
    wanted = bytes.fromhex(high + "00" * 16 + low + "00" * 48 + scales + "f7ad")
    assert bytes(encoders["Q3_K"](x, None, "reference")[0].tolist()) == wanted


@pytest.mark.parametrize("encoders", PATHS)
def test_the_reference_of_q6_k_clears_blocks_whose_scales_are_under_its_least(encoders):
    x = weights("gauss", 2) * 1e-13                # scales of about 4e-16; ggml clears the block under 1e-15
    assert not encoders["Q6_K"](x, None, "reference").any()


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
@settings(max_examples=40, deadline=None)
@given(few=st.lists(values, min_size=1, max_size=8), seed=st.integers(0, 99), power=st.integers(-60, 16), alone=st.booleans())
def test_any_block_has_a_bounded_error_and_the_same_bytes_on_both_paths(name, setting, few, seed, power, alone):
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, 256) if alone else torch.randn(1, 256, generator=generator) * 2.0 ** power
    x[0, torch.randperm(256, generator=generator)[:len(few)]] = torch.tensor(few)
    stored = [encoders[name](x, None, setting) for encoders in PATHS]
    back, kind = decoded(name, stored[0]), KINDS[name]
    assert torch.isfinite(back).all() and all(torch.equal(stored[0], other) for other in stored)
    # A zero is always to be had: half the largest weight of the super-block bounds what one code off its place costs, and float16's
    # smallest step (2**-24), times the largest c and code, what rounding d costs.
    assert ((back - x).abs() <= 0.5 * x.abs().amax() + 2.0 ** -24 * kind.levels * kind.steps).all()
