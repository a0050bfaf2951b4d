"""What a layer's input becomes where a card multiplies in the layer's own format: rounded, and read back.

W4A4 and W8A8 round both factors of a product, each format the input in its own way (ComfyUI comfy/ops.py, Linear.forward;
comfy/quant_ops.py):
    nvfp4             blocks of 16 along a row; one scale for all, input_scale = amax / 2688
    float8_e4m3fn     one scale for all, input_scale = amax / 448; what is larger becomes 448
    mxfp8             blocks of 32 along a row, by their own amax
    int8_tensorwise, asym_w4a8_int8    each row by its own amax / 127, rotated as the weight is
    convrot_w4a4      each row, rotated, by its own amax / 7 in INT4; by amax / 127 where INT8 takes the 4-bit weight
These are the roundings of weights, row for token, so the encoders of weights do them; where a scale is stored, the calibrated amax
takes the place of the tensor's own. What is rotated is rotated back, which changes no product: (X H)(W H)ᵀ = X Wᵀ.
"""
from dataclasses import dataclass

import torch

from ...quant import mxfp8
from ...quant.formats import BLOCK_TYPES
from ...quant.fp8 import E4M3
from ...quant.int8 import CONVROT, ROW
from ...quant.nvfp4 import E2M1_MAX, FAST, blocks_of, rounded_scale, weight_scale_2
from ...quant.nvfp4_search import value
from ...quant.w4a4 import FAST as INT4_ROWS
from ..plans.cards import INT4, PLAIN, SIXTEEN, judge

# The oldest card that multiplies a format as it was made to be: what is measured where no card is named.
AT_HOME = {"nvfp4": "rtx50", "mxfp8": "rtx50", "float8_e4m3fn": "rtx40", "float8_e5m2": "rtx40", "int8_tensorwise": "rtx20",
           "asym_w4a8_int8": "rtx20", "convrot_w4a4": "rtx20"}


def input_form(form, card: str | None = None):
    """The encoder that rounds the inputs of a layer stored as `form`; None where the product is in 16 bit and nothing is rounded.

    form: an object of quant/formats.py; card: a key of CARDS, None: one that multiplies the format natively.
    """
    name = form.NAME
    if name in PLAIN or name in BLOCK_TYPES or name not in AT_HOME:
        return None
    unit = judge(name, card or AT_HOME[name]).unit
    if name == "convrot_w4a4":                     # where no unit takes it, the input is still rounded to 4 bit
        return INT4_ROWS if unit in (INT4, SIXTEEN) else CONVROT
    if unit == SIXTEEN:
        return None
    if name == "int8_tensorwise":
        return CONVROT if form.scaling == "convrot" else ROW
    return {"nvfp4": FAST, "float8_e4m3fn": E4M3, "mxfp8": mxfp8, "asym_w4a8_int8": CONVROT}[name]


def rounded(x: torch.Tensor, form, amax: float) -> torch.Tensor:
    """Inputs as the product sees them, a new tensor.

    x: (tokens, in_features) float32, contiguous, not modified; form: of `input_form`; amax: what the stored input scale stands for,
    margin included, read by nvfp4 and FP8 alone. Raises ValueError on NaN or inf, and for columns that cannot be rotated.
    """
    held = x.clamp(-amax, amax) if form is E4M3 else x               # older torch casts 500 to NaN, newer ones to 448
    parts = form.quantize(held, amax) | form.constants(amax)
    return form.dequantize(parts)[:x.shape[0], :x.shape[1]]


@dataclass(frozen=True)
class InputQuality:
    """What NVFP4 leaves of a layer's input, in the terms of jorismak/convert_nvfp4's analyze_input_precision_sensitivity.py.

    rel_rmse: root mean square of the error over that of the input; mean_abs, max_abs: of the error; clip_rate: share of values
    beyond 6 of their block's scale. The scale is rounded to E4M3 and half of the time down, so that a clip rate of about 0.03 is
    what no larger scale takes away.
    """

    rel_rmse: float
    mean_abs: float
    clip_rate: float
    max_abs: float


def input_quality(x: torch.Tensor, amax: float) -> InputQuality:
    """Of some tokens. x: (tokens, in_features) float32; amax: as in `rounded`.

    A block of zeros, or one whose scale rounds to zero, has no 6 to lie beyond: there the original divides by zero.
    """
    error = (rounded(x, FAST, amax) - x).double()
    blocks = blocks_of(x).abs()
    scale_2 = weight_scale_2(amax).to(x.device)
    total = (scale_2 * value(rounded_scale(blocks.amax(2), scale_2))).unsqueeze(2)
    clipped = (blocks / total.masked_fill(total == 0, float("inf"))) > E2M1_MAX
    size = x.double().square().mean().sqrt()
    return InputQuality((error.square().mean().sqrt() / size).item() if size > 0 else 0.0, error.abs().mean().item(),
                        clipped.sum().item() / x.numel(), error.abs().max().item())
