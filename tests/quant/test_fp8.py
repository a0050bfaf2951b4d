"""FP8: comfy-kitchen's eager code is the oracle, fed the same weight, never our scale."""
import pytest
import torch
from comfy_kitchen.tensor import TensorCoreFP8Layout
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant import fp8
from wan22_master.quant.formats import dequantize, quantize

SHAPES = [(128, 64), (1, 1), (5, 3), (257, 130), (1024, 640)]


def of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of a distribution, float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    normal = torch.randn(shape, generator=generator)
    return {"gaussian": 0.03 * normal, "heavy": normal ** 5, "tiny": 1e-20 * normal, "large": 1e20 * normal,
            "bfloat16": normal.bfloat16().float()}[kind]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "tiny", "large", "bfloat16"])
def test_codes_and_scale_equal_comfy_kitchens(kind, shape):
    weight = of(kind, shape)
    codes, params = TensorCoreFP8Layout.quantize(weight.clone())
    ours = quantize(weight, "float8_e4m3fn")
    assert torch.equal(ours["_scale"], params.scale)
    assert torch.equal(ours[""].view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(dequantize(ours, "float8_e4m3fn"), TensorCoreFP8Layout.dequantize(codes, params))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(width=32, min_value=-2.0**100, max_value=2.0**100), min_size=1, max_size=64))
def test_any_finite_row_equals_comfy_kitchens_or_is_tiny(values):
    weight = torch.tensor([values], dtype=torch.float32)
    ours = quantize(weight, "float8_e4m3fn")
    assert torch.isfinite(ours[""].float()).all()
    if weight.abs().max() >= 448 * fp8.SMALLEST_NORMAL:
        codes, params = TensorCoreFP8Layout.quantize(weight.clone())
        assert torch.equal(ours["_scale"], params.scale)
        assert torch.equal(ours[""].view(torch.uint8), codes.view(torch.uint8))


def test_bands_of_a_tensor_make_the_codes_of_the_whole():
    weight = of("gaussian", (300, 48))
    amax = fp8.combine([fp8.measure(weight[start:start + 128]) for start in (0, 128, 256)])
    bands = [fp8.quantize(weight[start:start + 128], amax)[""].view(torch.uint8) for start in (0, 128, 256)]
    assert torch.equal(torch.cat(bands), TensorCoreFP8Layout.quantize(weight.clone())[0].view(torch.uint8))


def test_zeros_get_scale_one_and_zero_codes():
    ours = quantize(torch.zeros(4, 4), "float8_e4m3fn")
    assert ours["_scale"].item() == 1.0
    assert not ours[""].view(torch.uint8).any()


def test_subnormal_amax_stays_finite_and_close():
    weight = torch.tensor([[1e-38, -5e-39, 0.0]])
    back = dequantize(quantize(weight, "float8_e4m3fn"), "float8_e4m3fn")
    assert torch.allclose(back, weight, rtol=2 ** -4, atol=0)   # 3 mantissa bits


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused(bad):
    weight = torch.ones(3, 3)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        quantize(weight, "float8_e4m3fn")


def test_scratch_is_used_and_the_weight_is_not_changed():
    weight = of("gaussian", (8, 8))
    before, scratch = weight.clone(), torch.empty(8, 8)
    with_scratch = fp8.quantize(weight, fp8.measure(weight), scratch)[""].view(torch.uint8)
    assert torch.equal(weight, before)
    assert torch.equal(with_scratch, fp8.quantize(weight, fp8.measure(weight))[""].view(torch.uint8))


def test_planned_outputs_are_what_quantize_returns():
    for shape in SHAPES:
        ours = quantize(torch.ones(shape), "float8_e4m3fn")
        assert {suffix: (tuple(t.shape), t.dtype) for suffix, t in ours.items()} == fp8.outputs(shape)
