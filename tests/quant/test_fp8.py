"""FP8: comfy-kitchen's eager code is the oracle, fed the same weight, never our scale; for stochastic rounding, float64."""
import pytest
import torch
from comfy_kitchen.backends import eager
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant import fp8
from wan22_master.quant.fp8 import E4M3, E5M2, SMALLEST_NORMAL

SHAPES = [(128, 64), (1, 1), (5, 3), (257, 130), (1024, 640)]
both = pytest.mark.parametrize("form", [E4M3, E5M2], ids=lambda form: form.NAME)


def of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of a distribution, float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    normal = torch.randn(shape, generator=generator)
    return {"gaussian": 0.03 * normal, "heavy": normal ** 5, "tiny": 1e-20 * normal, "large": 1e20 * normal,
            "bfloat16": normal.bfloat16().float()}[kind]


def stored(weight: torch.Tensor, form: fp8.Fp8, **options) -> dict[str, torch.Tensor]:
    """The whole weight as one band."""
    amax = form.combine([form.measure(weight)])
    return form.quantize(weight, amax, **options) | form.constants(amax)


def kitchens(weight: torch.Tensor, form: fp8.Fp8) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scale of comfy-kitchen, as its TensorCoreFP8Layout.quantize calls it; that one takes no e5m2 in every version."""
    scale = torch.amax(weight.abs()) / torch.finfo(form.STORED).max
    return eager.quantize_per_tensor_fp8(weight.clone(), scale, form.STORED), scale


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "tiny", "large", "bfloat16"])
def test_codes_and_scale_equal_comfy_kitchens(backend, form, kind, shape):
    weight = of(kind, shape)
    codes, scale = kitchens(weight, form)
    ours = stored(weight, form)
    assert torch.equal(ours["_scale"], scale) and same_bytes(ours[""], codes)
    back = eager.dequantize_per_tensor_fp8(codes, scale, torch.float32)
    assert torch.equal(form.dequantize(ours), back)
    assert torch.equal(form.dequantize(ours, [shape[0] - 1, 0]), back[[shape[0] - 1, 0]])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(width=32, min_value=-2.0**100, max_value=2.0**100), min_size=1, max_size=64),
       st.sampled_from([E4M3, E5M2]))
def test_any_finite_row_equals_comfy_kitchens_or_is_tiny(values, form):
    weight = torch.tensor([values], dtype=torch.float32)
    ours = stored(weight, form)
    assert torch.isfinite(ours[""].float()).all()
    if weight.abs().max() >= form.INPUT_AMAX * SMALLEST_NORMAL:
        codes, scale = kitchens(weight, form)
        assert torch.equal(ours["_scale"], scale) and same_bytes(ours[""], codes)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_compiled_codes_are_those_of_torchs_cast_at_every_exponent_tie_and_neighbour(stored):
    compiled = pytest.importorskip("wan22_master.quant.fp8_compiled", reason="needs the optional package numba")
    drop = {torch.float8_e4m3fn: 20, torch.float8_e5m2: 21}[stored]          # OCP OFP8, table 1: 3 and 2 mantissa bits of 23
    kept = torch.arange(1 << 31 - drop, dtype=torch.int64) << drop           # every exponent and every mantissa that is kept, ...
    tie = 1 << drop - 1
    near = torch.tensor([0, 1, tie - 1, tie, tie + 1, (1 << drop) - 1])      # ... and what decides its rounding
    bits = (kept[:, None] | near).view(-1)
    bits = bits[bits <= 0x7F800000].int()                                    # up to inf, subnormals too
    values = torch.cat([bits.view(torch.float32), -bits.view(torch.float32)])
    assert same_bytes(compiled.encode(values, 1.0, stored), values.to(stored))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.integers(1, 70), st.floats(width=32, min_value=2.0**-120, max_value=2.0**120),
       st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2]), st.booleans())
def test_compiled_codes_of_any_shape_and_factor_are_torchs(rows, columns, factor, stored, apart):
    compiled = pytest.importorskip("wan22_master.quant.fp8_compiled", reason="needs the optional package numba")
    band = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns)) * (300 / factor)
    band = torch.stack([band, band], 2)[..., 0] if apart else band           # also one whose weights do not lie side by side
    assert same_bytes(compiled.encode(band, factor, stored), (band * factor).to(stored))


@both
def test_the_largest_weight_gets_the_largest_code_whatever_the_rounding_of_the_scale(backend, form):
    generator = torch.Generator().manual_seed(0)
    for amax in torch.rand(2000, generator=generator).add(0.5).tolist():
        for noise in (None, torch.tensor([[1 - 2.0**-24, 0.0]])):                # what rounds most upwards, and downwards
            codes = stored(torch.tensor([[amax, -amax]]), form, noise=noise)[""]
            assert codes.double().tolist() == [[form.INPUT_AMAX, -form.INPUT_AMAX]]     # never E5M2's inf


@both
def test_bands_of_a_tensor_make_the_codes_of_the_whole(backend, form):
    weight = of("gaussian", (300, 48))
    bands = [weight[start:start + 128] for start in (0, 128, 256)]
    amax = form.combine([form.measure(band) for band in bands])
    assert same_bytes(torch.cat([form.quantize(band, amax)[""].view(torch.uint8) for band in bands]).view(form.STORED),
                      kitchens(weight, form)[0])


@both
def test_zeros_get_scale_one_and_zero_codes(backend, form):
    for noise in (None, torch.full((4, 4), 1 - 2.0**-24)):
        ours = stored(torch.zeros(4, 4), form, noise=noise)
        assert ours["_scale"].item() == 1.0
        assert not ours[""].view(torch.uint8).any()


@both
def test_subnormal_amax_stays_finite_and_close(backend, form):
    weight = torch.tensor([[1e-38, -5e-39, 0.0]])
    back = form.dequantize(stored(weight, form))
    assert torch.allclose(back, weight, rtol=2.0 ** -(form.MANTISSA + 1), atol=0)   # half a step of the mantissa
    least = torch.tensor([[1.4 * form.INPUT_AMAX]]) * 2.0**-149              # its scale, 1.4 * 2**-149, is stored as 2**-149
    assert stored(least, form)[""].float().item() == form.INPUT_AMAX


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused(bad, form):
    weight = torch.ones(3, 3)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        stored(weight, form)


@both
def test_scratch_is_used_and_the_weight_is_not_changed(backend, form):
    weight, noise = of("gaussian", (8, 8)), torch.rand(8, 8)
    before, drawn = weight.clone(), noise.clone()
    for options in ({}, {"noise": noise}):
        scratch = torch.empty(8, 8)
        assert same_bytes(stored(weight, form, scratch=scratch, **options)[""], stored(weight, form, **options)[""])
        assert torch.equal(weight, before) and torch.equal(noise, drawn)


@both
def test_planned_outputs_are_what_quantize_returns(backend, form):
    for shape in SHAPES:
        ours = stored(torch.ones(shape), form)
        assert {suffix: (tuple(t.shape), t.dtype) for suffix, t in ours.items()} == form.outputs(shape)
        assert set(form.CONSTANTS) == {"_scale"} and ours[""].dtype == form.STORED


def neighbours(values: torch.Tensor, form: fp8.Fp8) -> tuple[torch.Tensor, torch.Tensor]:
    """The grid values below and above float64 values; equal where a value is one itself."""
    grid = torch.arange(256, dtype=torch.uint8).view(form.STORED).double()
    grid = grid[grid.isfinite()].unique()
    return grid[torch.searchsorted(grid, values, right=True) - 1], grid[torch.searchsorted(grid, values)]


@both
def test_noise_picks_one_of_both_neighbours_as_often_as_the_value_is_near(form):
    drawn = 4000
    top = form.INPUT_AMAX                                    # the weight's amax, so the scale is one and codes are the weight's
    tiny = torch.finfo(form.STORED).smallest_normal
    values = torch.tensor([top, -top, 0.97 * top, -0.55 * top, 1.3, -3.7, 1.0, 0.0, 0.3 * tiny, -0.05 * tiny, 1.001 * tiny])
    noise = torch.rand(drawn, len(values), generator=torch.Generator().manual_seed(4))
    codes = stored(values.expand(drawn, -1).contiguous(), form, noise=noise)[""].double()
    low, high = neighbours(values.double(), form)
    assert ((codes == low) | (codes == high)).all()
    wide = (high - low).where(high > low, torch.ones(()).double())
    chance = (values.double() - low) / wide
    # Six standard deviations of a share of `drawn`; 2**-20: what the module grants.
    assert ((codes.mean(0) - values).abs() / wide <= 6 * (chance * (1 - chance) / drawn).sqrt() + 2.0**-20).all()


@both
@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2.0**-24])
def test_no_noise_moves_a_value_of_the_grid(form, noise):
    grid = torch.arange(256, dtype=torch.uint8).view(form.STORED).float()
    grid = grid[grid.isfinite()][None]                       # amax is the largest value: scale one
    assert torch.equal(stored(grid, form, noise=torch.full_like(grid, noise))[""].float(), grid)


def test_a_change_below_half_a_step_survives_on_average_with_noise_only():
    weight = of("gaussian", (64, 640)).clamp_(-0.1, 0.1)
    weight[0, 0] = 0.1                                       # the same scale before and after
    base = E4M3.dequantize(stored(weight, E4M3))
    change = torch.full_like(weight, 1e-5)
    change[0, 0] = 0.0
    noise = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2))
    kept = (E4M3.dequantize(stored(base + change, E4M3, noise=noise)) - base).double().mean() / 1e-5
    lost = (E4M3.dequantize(stored(base + change, E4M3)) - base).double().mean() / 1e-5
    # A step is at most 2**-4 of 0.1: the deviation of the mean is under sqrt(step * change / count), 0.4 of the change.
    assert abs(kept - 1) < 0.4 and abs(lost) < 0.1
