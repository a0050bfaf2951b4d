"""Inputs as cards round them, against comfy-kitchen's own quantizers of activations and against the formulas in float64."""
import math

import pytest
import torch
from comfy_kitchen.tensor import TensorCoreFP8Layout, TensorCoreMXFP8Layout, TensorCoreNVFP4Layout, TensorWiseINT8Layout
from wan22_master.engine.calibration.activations import AT_HOME, input_form, input_quality, rounded
from wan22_master.quant.formats import FORMATS, GGUF_TYPES, Options, form_of

H4 = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64)
TOKENS, COLUMNS = 50, 512


def inputs(seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(TOKENS, COLUMNS, generator=draw) * torch.randn(COLUMNS, generator=draw).exp()


def turned(x: torch.Tensor) -> torch.Tensor:
    """Groups of 256 columns times H, float64; its own inverse."""
    h = torch.kron(torch.kron(torch.kron(H4, H4), H4), H4) / 16
    return (x.double().view(len(x), -1, 256) @ h).reshape(x.shape)


def kitchen(layout, x: torch.Tensor, **how) -> torch.Tensor:
    codes, params = layout.quantize(x, **how)
    return layout.dequantize(codes, params)[:len(x), :x.shape[1]]


@pytest.mark.parametrize("share", [0.3, 1.0, 2.0])
def test_nvfp4_and_fp8_take_the_calibrated_scale_as_comfy_kitchen_does(share):
    x = inputs()
    amax = share * x.abs().max().item()
    found = rounded(x, input_form(form_of("nvfp4")), amax)
    assert torch.equal(found, kitchen(TensorCoreNVFP4Layout, x, scale=torch.tensor(amax) / 2688))
    found = rounded(x, input_form(form_of("float8_e4m3fn")), amax)
    assert torch.equal(found, kitchen(TensorCoreFP8Layout, x, scale=torch.tensor(amax) / 448)) and found.isfinite().all()


def test_mxfp8_and_int8_rows_measure_each_input_as_comfy_kitchen_does():
    x = inputs()
    assert torch.equal(rounded(x, input_form(form_of("mxfp8")), 1.0), kitchen(TensorCoreMXFP8Layout, x))
    form = input_form(form_of("int8_tensorwise", Options(int8_scaling="row")))
    assert torch.equal(rounded(x, form, 1.0), kitchen(TensorWiseINT8Layout, x, is_weight=False))


@pytest.mark.parametrize(("name", "card", "largest"), [
    ("int8_tensorwise", None, 127), ("asym_w4a8_int8", None, 127), ("convrot_w4a4", "rtx50", 127), ("convrot_w4a4", None, 7)])
def test_rotated_formats_round_the_rotated_rows(name, card, largest):
    x = inputs()
    spun = turned(x)
    step = spun.abs().amax(1, keepdim=True) / largest
    wanted = turned((spun / step).round().clamp(-largest, largest) * step)
    found = rounded(x, input_form(form_of(name), card), 1.0).double()
    # a rotated value may lie within float32's rounding of a tie: one code of a few thousand then differs by one
    assert (found - wanted).square().sum().sqrt() < 2e-2 * (wanted - x).square().sum().sqrt()


def test_what_is_multiplied_in_16_bit_keeps_its_input():
    for name in ("bf16", "fp32", "float8_e5m2"):
        assert input_form(FORMATS[name]) is None
    assert all(input_form(form) is None for form in GGUF_TYPES.values())
    assert all(input_form(form_of(name), "cpu") is None for name in ("nvfp4", "mxfp8", "float8_e4m3fn"))
    assert input_form(form_of("nvfp4"), "rtx40") is None and input_form(form_of("float8_e4m3fn"), "rtx40") is not None
    assert set(AT_HOME) >= {name for name in FORMATS if name not in ("bf16", "fp16", "fp32")}


def test_quality_follows_the_originals_definitions():
    x = inputs(1)
    amax = 0.4 * x.abs().max().item()              # small enough to clip
    scale = torch.tensor(amax, dtype=torch.float32) / 2688
    blocks = x.view(TOKENS, -1, 16)
    steps = ((blocks.abs().amax(2) / 6) / scale).clamp(max=448).to(torch.float8_e4m3fn).float() * scale
    error = (kitchen(TensorCoreNVFP4Layout, x, scale=scale) - x).double()
    found = input_quality(x, amax)
    assert found.rel_rmse == pytest.approx((error.square().mean().sqrt() / x.double().square().mean().sqrt()).item(), rel=1e-12)
    assert found.mean_abs == pytest.approx(error.abs().mean().item(), rel=1e-12) and found.max_abs == error.abs().max().item()
    assert found.clip_rate == ((blocks.abs() / steps[..., None]) > 6).double().mean().item() > 0.02


def test_quality_of_zeros_is_zero_and_blocks_of_zeros_clip_nothing():
    blank = input_quality(torch.zeros(3, 32), 1.0)
    assert (blank.rel_rmse, blank.mean_abs, blank.clip_rate, blank.max_abs) == (0.0, 0.0, 0.0, 0.0)
    x = torch.zeros(2, 48)
    x[:, 0], x[:, 16] = 6.0, 1e-9                  # the second block's scale rounds to zero: lost, not clipped
    found = input_quality(x, 6.0)
    assert found.clip_rate == 0.0 and math.isfinite(found.rel_rmse) and found.max_abs == pytest.approx(1e-9)
    assert torch.equal(rounded(x, input_form(form_of("nvfp4")), 6.0)[:, :16], x[:, :16])
