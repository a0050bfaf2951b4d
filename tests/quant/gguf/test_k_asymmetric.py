"""Q4_K, Q5_K and Q2_K beside gguf-py's decoder, and the two paths beside each other. ggml's bytes and errors: test_golden.py."""
import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant.gguf import k_asymmetric, k_asymmetric_reference
from wan22_master.quant.gguf.k_asymmetric_forms import FORMS
from wan22_master.tests.quant.gguf.drawn import decoded, error, weights

try:
    from wan22_master.quant.gguf import k_asymmetric_compiled
except (ImportError, RuntimeError):                # as families.has_numba
    k_asymmetric_compiled = None

TYPES = ("Q4_K", "Q5_K", "Q2_K")
PATHS = [k_asymmetric.ENCODERS] + ([k_asymmetric_compiled.ENCODERS] if k_asymmetric_compiled else [])
NBYTES = {"Q4_K": 144, "Q5_K": 176, "Q2_K": 84}    # ggml-common.h: sizeof(block_q4_K), sizeof(block_q5_K), sizeof(block_q2_K)
FLOATS = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q2_K": (80, 82)}                    # where d and dmin lie
SEARCHES = ("best", "max", "reference")
compiled_only = pytest.mark.skipif(k_asymmetric_compiled is None, reason="numba is not here")


def whole_codes(name: str, stored: torch.Tensor) -> torch.Tensor:
    """(codes, rows, columns): what a row would be read back as if all its weights had one code; by gguf-py."""
    rows = []
    for code in range(FORMS[name].top + 1):
        filled = stored.reshape(-1, NBYTES[name]).clone()
        if name == "Q2_K":
            filled[:, 16:80] = code * 0x55
        else:
            filled[:, 16:-128], filled[:, -128:] = (code >> 4) * 0xFF, (code & 15) * 0x11
        rows.append(decoded(name, filled.reshape(stored.shape)))
    return torch.stack(rows)


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_are_decoded_as_gguf_py_does(name):
    stored = torch.from_numpy(numpy.random.default_rng(3).integers(0, 256, (64, 3 * NBYTES[name]), dtype=numpy.uint8))
    for place in FLOATS[name]:
        top = stored.view(64, 3, -1)[:, :, place + 1]
        top[(top & 0x7C) == 0x7C] ^= 0x40                                      # no inf or NaN as d or dmin
    ours = k_asymmetric.DECODERS[name](stored)
    assert ours.shape == (64, 768) and torch.equal(ours.view(torch.int32), decoded(name, stored).view(torch.int32))


# A prototype in torch (best) and the imatrix results of ggml d99724f2 (max). What is reached lies 1 to 6 % below.
GOALS = {"Q4_K": {"gauss": (0.07106, 0.07072), "laplace": (0.08358, 0.08382), "t5": (0.08224, 0.08222)},
         "Q5_K": {"gauss": (0.03556, 0.03538), "laplace": (0.04200, 0.04207), "t5": (0.04140, 0.04134)},
         "Q2_K": {"gauss": (0.26499, 0.26802), "laplace": (0.29283, 0.30036), "t5": (0.28947, 0.29612)}}


@pytest.mark.parametrize("kind", ["gauss", "laplace", "t5"])
@pytest.mark.parametrize("name", TYPES)
def test_best_and_max_reach_their_goals(name, kind):
    x, encode, (best, longest) = weights(kind), PATHS[-1][name], GOALS[name][kind]
    assert error(name, encode(x, None, "best"), x) <= best
    assert error(name, encode(x, None, "max"), x) <= longest


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
    assert error(name, weighted, x, columns.double()) < 0.95 * error(name, PATHS[-1][name](x, None, setting), x, columns.double())


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("name", TYPES)
def test_columns_of_weight_zero_are_kept_where_no_other_suffers(name, encoders):
    x, columns = weights("gauss"), torch.ones(512)
    columns[256:] = 0                                                          # whole super-blocks
    assert torch.equal(encoders[name](x, columns, "best"), encoders[name](x, None, "best"))


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("name", TYPES)
def test_a_lone_column_that_counts_is_nearly_exact(name, encoders):
    x, columns = weights("gauss"), torch.zeros(512)
    columns[::64] = 1                              # one weight of every other sub-block of 32, of every fourth of 16
    weighted, plain = (error(name, encoders[name](x, weight, "best"), x, columns.double()) for weight in (columns, None))
    assert weighted < 0.5 * plain


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_codes_are_the_nearest_for_the_stored_scales(name, setting, encoders):
    x = weights("t5", 4)
    stored = encoders[name](x, None, setting)
    nearest = (whole_codes(name, stored) - x).abs().amin(0)
    # x + m and the quotient are rounded to float32 before the code is: 2**-23 of a code, where two are as near.
    assert ((decoded(name, stored) - x).abs() <= nearest + FORMS[name].top * 2.0 ** -23 * x.abs().amax()).all()


@compiled_only
@pytest.mark.parametrize(("setting", "weighted"), [*((setting, flag) for setting in ("best", "max") for flag in (False, True)),
                                                   ("reference", False)])
@pytest.mark.parametrize("name", TYPES)
def test_both_paths_write_the_same_bytes_whatever_the_band(name, setting, weighted):
    x = torch.cat([weights(kind, 3, 768) * 2.0 ** power for power, kind in enumerate(("gauss", "laplace", "t5", "columns"))])
    x[0].abs_()                                                                # where no minimum is wanted
    x[1].abs_().neg_()
    weight = torch.linspace(0, 1, 768).square() if weighted else None
    eager, kept = k_asymmetric.ENCODERS[name](x, weight, setting), x.clone()
    for rows in (1, 7, 12):                                                    # 3, 21 and 36 super-blocks: groups of 8, not full
        bands = [k_asymmetric_compiled.ENCODERS[name](x[first:first + rows], weight, setting) for first in range(0, 12, rows)]
        assert torch.equal(torch.cat(bands), eager)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_rows_do_not_know_of_each_other(name, setting):
    x = weights("laplace", 2)
    for encoders in PATHS:
        assert torch.equal(encoders[name](x, None, setting), torch.cat([encoders[name](row[None], None, setting) for row in x]))


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
def test_blocks_of_zeros_are_read_back_as_zeros(name, setting, encoders):
    x = weights("gauss", 2)
    x[0], x[1, 256:320] = -0.0, 0.0
    stored = encoders[name](x, None, setting)
    back = decoded(name, stored)
    assert not stored[0].any() and torch.equal(back[0], torch.zeros(512))
    # A zero between other sub-blocks is l dS - dmin M, both multiples of the two floats: the least of them that is nearest.
    assert back[1, 256:320].abs().max() <= x[1].abs().amax() / FORMS[name].code_top


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("value", [0.02, -0.02])
@pytest.mark.parametrize("name", TYPES)
def test_blocks_of_one_value_keep_it(name, value, setting, encoders):
    x = torch.full((1, 256), value)
    # float16 rounds d by 2**-11 of it or half its smallest step; code_top times d, and top times that, is the value.
    bound = max(2.0 ** -11 * abs(value), 2.0 ** -25 * FORMS[name].code_top * FORMS[name].top)
    assert (decoded(name, encoders[name](x, None, setting)) - x).abs().max() <= bound


@pytest.mark.parametrize("encoders", PATHS)
@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("size", [1e10, 1e14, 1e20, 1e30, 3e38, -1e10, -1e20, -3e38])
@pytest.mark.parametrize("name", TYPES)
def test_scales_beyond_float16_are_refused(name, size, setting, encoders):
    x = weights("gauss", 2)
    x[1, 3] = size
    with pytest.raises(ValueError, match="float16"):
        encoders[name](x, None, setting)


def test_the_roots_of_the_reference_are_the_nearest_float32():
    # ggml-quants.c calls sqrtf, which IEEE 754 has correctly rounded, as numpy's is; torch's of a tensor is not everywhere.
    x = torch.zeros(2, 4096)
    x[0] = torch.from_numpy(numpy.random.default_rng(5).standard_normal(4096).astype(numpy.float32))
    roots = k_asymmetric_reference.importance(x, k_asymmetric_reference.RULES["Q4_K"])[1]                 # of the mean square, + 0
    assert torch.equal(roots, torch.from_numpy(numpy.sqrt(x[0].numpy() * x[0].numpy() / 2)))


values = st.one_of(st.just(0.0), st.just(-0.0), st.floats(-1e5, 1e5, width=32), st.floats(-2.0 ** -120, 2.0 ** -120, width=32))


@pytest.mark.parametrize("setting", SEARCHES)
@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=25, deadline=None)
@given(few=st.lists(values, min_size=1, max_size=8), seed=st.integers(0, 99), power=st.integers(-60, 16), alone=st.booleans())
def test_any_block_has_a_bounded_error_and_the_same_bytes_on_both_paths(name, setting, few, seed, power, alone):
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, 256) if alone else torch.randn(1, 256, generator=generator) * 2.0 ** power
    x[0, torch.randperm(256, generator=generator)[:len(few)]] = torch.tensor(few)
    stored = [encoders[name](x, None, setting) for encoders in PATHS]
    back, form = decoded(name, stored[0]).double(), FORMS[name]
    assert torch.isfinite(back).all() and all(torch.equal(stored[0], other) for other in stored)
    # Half, because with two bits the error of Gaussian weights is 0.26. float16's smallest step (2**-24), times the largest codes,
    # is what rounding d and dmin costs each weight.
    # The reference errs as ggml does.
    assert setting == "reference" or (back - x).norm() <= 0.5 * x.double().norm() + 16 * 2.0 ** -24 * form.code_top * (form.top + 1)
