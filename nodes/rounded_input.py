"""What a layer's input becomes on a card that multiplies in the layer's own format: quantized, and read back.

W4A4 and W8A8 round both factors of a product. ComfyUI quantizes the input as a matrix of (tokens, in_features) (comfy/ops.py,
mixed_precision_ops, Linear.forward), and each format does it in its own way (comfy/quant_ops.py):
  nvfp4            blocks of 16 along a row; one scale for all: input_scale, or amax / 2688 of this very input
  float8           one scale for all: input_scale, or 1.0, never amax: without a scale only clamped to 448 (e5m2: 57344)
  mxfp8            blocks of 32 along a row, always by their own amax; an input_scale is not read
  int8_tensorwise, asym_w4a8_int8   each row by its own amax / 127, after ConvRot's rotation where the weight is rotated
  convrot_w4a4     each row, rotated, by its own amax / 7 in INT4; where INT8 takes the 4-bit weight, as asym_w4a8_int8
The product of the rounded factors is exact enough in 16 bit: cards add up in float32, as the rounded factors' product does here.
Quantizer and dequantizer are ComfyUI's own, on its eager backend, so the bits are those of the reference, not of one card's kernel.
"""
from collections.abc import Iterator
from typing import NamedTuple

import comfy_kitchen
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from ..engine.plans.cards import INTS

NVFP4_MAX = 2688.0                                 # 448 * 6: largest block scale times largest code (comfy/quant_ops.py)
INT4_MAX = 7.0                                     # comfy_kitchen/backends/eager/svdquant.py, _INT4_MAX
INT4_SMALLEST = 1e-10                              # floor of a row's amax there (convrot_w4a4.py, quantize_signed_int4_rowwise)
ROTATED = {"convrot_w4a4": 256, "asym_w4a8_int8": 256}   # always rotated, in groups of 256 unless the layer says otherwise
BAND = 1 << 24                                     # numbers at a time: the quantizers make several float32 copies of what they get
H4 = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))


class LayerActivations(NamedTuple):
    """How one quantized layer was stored, as far as its input is concerned.

    format: as QUANT_ALGOS names it. input_scale: None when the file has none. convrot_groupsize: of a rotated int8 weight; 0: not
    rotated, or as the format always is. Integer formats ignore full_precision, as ComfyUI does: their weight stays quantized.
    """

    format: str
    full_precision: bool = False
    input_scale: float | None = None
    convrot_groupsize: int = 0


def rounded(x: torch.Tensor, layer: LayerActivations) -> torch.Tensor:
    """`x` as the product sees it: same shape, dtype and device, a new tensor. x: (..., in_features), not modified.

    Returned as it is: one dimension, or quantized already (ComfyUI multiplies those in full precision, or does it itself).
    An input of zeros stays zeros where comfy-kitchen's dynamic nvfp4 scale makes NaN of it.
    """
    if x.ndim < 2 or isinstance(x, QuantizedTensor):
        return x
    flat, out = x.reshape(-1, x.shape[-1]), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    scale, filled = _scale(flat, layer), out.view(-1, x.shape[-1])
    with comfy_kitchen.use_backend("eager"):
        for rows in _bands(flat):
            filled[rows] = _read_back(flat[rows], layer, scale)
    return out


def _bands(flat: torch.Tensor) -> Iterator[slice]:
    step = max(BAND // max(flat.shape[1], 1), 1)
    return (slice(start, start + step) for start in range(0, flat.shape[0], step))


def _scale(flat: torch.Tensor, layer: LayerActivations) -> torch.Tensor | None:
    """Scale of the whole input, float32; None for formats without one."""
    if layer.format == "mxfp8" or layer.format in INTS:
        return None
    if layer.input_scale is not None:
        return torch.tensor(layer.input_scale, dtype=torch.float32, device=flat.device)
    if layer.format != "nvfp4" or not flat.numel():
        return torch.ones((), dtype=torch.float32, device=flat.device)
    dynamic = (torch.amax(flat.abs()) / NVFP4_MAX).float()       # divided in the dtype of x, as ComfyUI does
    return torch.where(dynamic == 0, 1.0, dynamic)


def _read_back(x: torch.Tensor, layer: LayerActivations, scale: torch.Tensor | None) -> torch.Tensor:
    if layer.format not in INTS:
        return QuantizedTensor.from_float(x, QUANT_ALGOS[layer.format]["comfy_tensor_layout"], scale=scale).dequantize()
    size = layer.convrot_groupsize or ROTATED.get(layer.format, 0)
    turned = _rotated(x, size) if size else x
    if layer.format == "convrot_w4a4":
        step = turned.abs().amax(dim=-1, keepdim=True).clamp(min=INT4_SMALLEST) / INT4_MAX
        turned = (turned / step).round_().clamp_(-INT4_MAX, INT4_MAX) * step
    else:
        turned = QuantizedTensor.from_float(turned, "TensorWiseINT8Layout", is_weight=False).dequantize()
    return _rotated(turned, size) if size else turned


def _rotated(x: torch.Tensor, size: int) -> torch.Tensor:
    """Groups of `size` columns times H = H4 (x) H4 (x) ..., normalized. Its own inverse: H is symmetric and orthogonal.

    A product in the dtype of x, as ComfyUI turns activations; `quant.rotation` adds in float32, for weights.
    """
    h = h4 = torch.tensor(H4, dtype=x.dtype, device=x.device)
    while h.shape[0] < size:
        h = torch.kron(h, h4)
    return torch.matmul(x.reshape(x.shape[0], -1, size), h / size**0.5).reshape(x.shape)
