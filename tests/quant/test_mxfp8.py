"""MXFP8: comfy-kitchen's layout is the oracle, fed the same weight; for stochastic rounding, float64."""
import pytest
import torch
from comfy_kitchen.backends import eager
from comfy_kitchen.float_utils import from_blocked
from comfy_kitchen.tensor import TensorCoreMXFP8Layout
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant import backend as quant_backend
from wan22_master.quant import mxfp8

SHAPES = [(128, 64), (1, 1), (5, 3), (32, 32), (160, 96), (257, 130), (384, 2560)]


def of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of a distribution, float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    normal = torch.randn(shape, generator=generator)
    wide = normal * 10.0 ** torch.randint(-30, 30, shape, generator=generator)
    return {"gaussian": 0.03 * normal, "heavy": normal ** 5, "tiny": 1e-30 * normal, "large": 1e38 * normal.clamp(-3, 3),
            "wide": wide, "bfloat16": normal.bfloat16().float()}[kind]


def same_bytes(ours: dict[str, torch.Tensor], codes: torch.Tensor, scale: torch.Tensor) -> bool:
    pairs = ((ours[""], codes), (ours["_scale"], scale))
    return all(one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in pairs)


def exponents(ours: dict[str, torch.Tensor]) -> torch.Tensor:
    rows, columns = ours[""].shape
    return from_blocked(ours["_scale"].view(torch.uint8), rows, columns // 32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "tiny", "large", "wide", "bfloat16"])
def test_bytes_equal_comfy_kitchens(backend, kind, shape):
    weight = of(kind, shape)
    codes, params = TensorCoreMXFP8Layout.quantize(weight)
    ours = mxfp8.quantize(weight)
    assert same_bytes(ours, codes, params.scale)
    back = TensorCoreMXFP8Layout.dequantize(codes, params)
    assert torch.equal(mxfp8.dequantize(ours), back)
    assert torch.equal(mxfp8.dequantize(ours, [shape[0] - 1, 0]), back[[shape[0] - 1, 0]])


def test_every_exponent_is_comfy_kitchens_at_every_place_where_it_may_turn(backend):
    turn = 0x600000                                          # the fraction .75, where amax / 448 is a power of two
    near = torch.cat([torch.arange(64), torch.arange(turn - 64, turn + 192), torch.arange((1 << 23) - 64, 1 << 23)])
    fields = torch.arange(9, 255)[:, None]                   # from 2**-118, above what comfy-kitchen cannot divide by
    amax = (fields << 23 | near).int().view(torch.float32).view(-1, 8)
    weight = torch.zeros(len(amax), 8, 32)
    weight[:, :, 5], weight[:, :, 7] = amax, -amax / 3
    weight = weight.view(len(amax), 256)
    assert same_bytes(mxfp8.quantize(weight), *eager.quantize_mxfp8(weight, pad_32x=True))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(width=32, min_value=-2.0**127, max_value=2.0**127), min_size=1, max_size=70))   # above, one rounds to inf
def test_any_finite_row_equals_comfy_kitchens_or_is_tiny(values):
    weight = torch.tensor([values], dtype=torch.float32)
    ours = mxfp8.quantize(weight)
    assert torch.isfinite(mxfp8.dequantize(ours)).all()
    blocks = torch.nn.functional.pad(weight, (0, -len(values) % 32)).view(-1, 32).abs().amax(1)
    if ((blocks == 0) | (blocks >= 448 * 2.0**-126)).all():
        codes, params = TensorCoreMXFP8Layout.quantize(weight)
        assert same_bytes(ours, codes, params.scale)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 140), st.integers(1, 9), st.integers(-140, 120), st.booleans())
def test_compiled_bytes_of_any_shape_and_size_are_torchs(rows, blocks, power, apart):
    pytest.importorskip("numba", reason="the compiled passes need the optional package numba")
    draw = torch.Generator().manual_seed(rows * blocks)
    band = torch.randn(rows, 32 * blocks, generator=draw) * 2.0 ** torch.randint(-8, 8, (rows, 32 * blocks), generator=draw)
    band = (band.double() * 2.0**power).float().clamp_(-2.0**127, 2.0**127)  # subnormals and zeros among them
    band = torch.stack([band, band], 2)[..., 0] if apart else band           # also one whose weights do not lie side by side
    ours = mxfp8.quantize(band)
    assert quant_backend.compiled_for(band) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quant_backend, "compiled", lambda: None)
        theirs = mxfp8.quantize(band.contiguous())
    assert same_bytes(ours, theirs[""], theirs["_scale"])


def test_blocks_too_small_for_comfy_kitchen_stay_finite_and_close(backend):
    weight = torch.zeros(1, 64)
    weight[0, :3] = torch.tensor([2e-36, -1e-36, 0.0])       # at most 448 * 2**-127 = 2.6e-36
    weight[0, 32] = 1e-45
    ours = mxfp8.quantize(weight)
    assert exponents(ours)[0].tolist() == [1, 1]
    back = mxfp8.dequantize(ours)[:1]
    assert torch.equal(back, eager.dequantize_mxfp8(ours[""], ours["_scale"], torch.float32)[:1])
    # 3 mantissa bits, and half of E4M3's smallest step, 2**-10, at the smallest scale, 2**-126.
    assert torch.allclose(back, weight, rtol=2.0**-4, atol=2.0**-136)


def test_zero_blocks_are_zero_bytes_also_of_negative_zeros(backend):
    weight = of("gaussian", (64, 96))
    weight[:, 32:64] = -0.0
    weight[3] = 0.0
    codes, params = TensorCoreMXFP8Layout.quantize(weight)
    ours = mxfp8.quantize(weight)
    assert same_bytes(ours, codes, params.scale)
    assert not ours[""].view(torch.uint8)[:, 32:64].any() and not exponents(ours)[:, 1].any()
    noise = torch.full(weight.shape, 1 - 2.0**-24)
    assert not mxfp8.quantize(weight, noise=noise)[""].view(torch.uint8)[:, 32:64].any()


def test_bands_and_tiles_of_a_tensor_make_the_bytes_of_the_whole(backend, monkeypatch):
    weight = of("gaussian", (300, 70))
    weight[130, :32] = 0.0
    codes, params = TensorCoreMXFP8Layout.quantize(weight)
    monkeypatch.setattr(mxfp8, "TILE", 700)
    bands = [mxfp8.quantize(weight[start:start + 128]) for start in (0, 128, 256)]
    whole = {suffix: torch.cat([band[suffix].view(torch.uint8) for band in bands]) for suffix in bands[0]}
    assert same_bytes({suffix: part.view(bands[0][suffix].dtype) for suffix, part in whole.items()}, codes, params.scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [(33, 64), (33, 63)], ids=str)
def test_nan_and_inf_are_refused(backend, bad, shape):
    weight = torch.ones(shape)
    weight[32, 62] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        mxfp8.quantize(weight)


@pytest.mark.parametrize("shape", [(8, 64), (9, 50)], ids=str)
def test_scratch_is_used_and_the_weight_is_not_changed(backend, shape):
    weight, noise = of("gaussian", shape), torch.rand(shape)
    before, drawn = weight.clone(), noise.clone()
    for options in ({}, {"noise": noise}):
        plain = mxfp8.quantize(weight, **options)
        assert same_bytes(mxfp8.quantize(weight, None, torch.empty(shape), **options), plain[""], plain["_scale"])
        assert torch.equal(weight, before) and torch.equal(noise, drawn)


def test_planned_outputs_are_what_quantize_returns(backend):
    for shape in SHAPES:
        ours = mxfp8.quantize(torch.ones(shape))
        assert {suffix: (tuple(t.shape), t.dtype) for suffix, t in ours.items()} == mxfp8.outputs(shape)
        assert ours[""].shape == TensorCoreMXFP8Layout.get_padded_shape(shape)
    assert ours["_scale"].dtype == torch.float8_e8m0fnu and not mxfp8.constants(None)
    with pytest.raises(ValueError, match="matrices only"):
        mxfp8.outputs((4, 4, 4))


def test_the_entry_asks_for_16_bit_only_when_told():
    assert mxfp8.comfy_quant(full_precision=False) == {"format": "mxfp8"}
    assert mxfp8.comfy_quant(full_precision=True) == {"format": "mxfp8", "full_precision_matrix_mult": True}


def test_nothing_above_the_largest_code_is_rounded_by_noise(monkeypatch):
    seen = []
    monkeypatch.setattr(mxfp8, "round_stochastic", lambda values, *grid: seen.append(values.abs().amax().item()))
    weight = torch.zeros(1, 32)
    # Nine steps over 448 times a power of two: the exponent is still the lower one, and the quotient is over 448. Up from
    # there lies 480, which E4M3 does not have: NaN or 448, by the version of torch.
    weight[0, 0] = 448.0 * 2.0**-100 * (1 + 9 * 2.0**-23)
    mxfp8.quantize(weight, noise=torch.zeros_like(weight))
    assert seen == [448.0]


def test_noise_picks_one_of_both_neighbours_as_often_as_the_value_is_near():
    drawn = 4000
    values = torch.zeros(32)
    values[:8] = torch.tensor([448.0, -447.0, 1.3, -100.1, 1.0, 0.3 * 2.0**-6, -0.05 * 2.0**-6, 1.001 * 2.0**-6])
    noise = torch.rand(drawn, 32, generator=torch.Generator().manual_seed(4))
    found = mxfp8.quantize(values.expand(drawn, -1).contiguous(), noise=noise)[""].double()      # amax 448: the scale is one
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    grid = grid[grid.isfinite()].unique()
    low, high = grid[torch.searchsorted(grid, values.double(), right=True) - 1], grid[torch.searchsorted(grid, values.double())]
    assert ((found == low) | (found == high)).all()
    wide = (high - low).where(high > low, torch.ones(()).double())
    chance = (values.double() - low) / wide
    # Six standard deviations of a share of `drawn`; 2**-20: what grid.py grants.
    assert ((found.mean(0) - values).abs() / wide <= 6 * (chance * (1 - chance) / drawn).sqrt() + 2.0**-20).all()
