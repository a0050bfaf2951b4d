"""The table of formats, spelled as ComfyUI's QUANT_ALGOS spells them, and the whole-tensor call that tests and tools use.

A format is: `outputs(shape)`; `measure(band)` and `combine(list)` when something about the whole tensor has to be known first, else
`measure` is None; `quantize(band, stats)` -> rows of the stored tensors; `constants(stats)` -> the stored tensors without rows.
"""
import torch

from . import fp8, plain

FORMATS = {"float8_e4m3fn": fp8, "bf16": plain.BF16, "fp16": plain.FP16, "fp32": plain.FP32}
QUANTIZED = frozenset({"float8_e4m3fn"})           # the others store floats as they are


def quantize(weight: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    """Suffix -> tensor as ComfyUI stores it. weight: (out_features, in_features), float32, not modified. Raises ValueError on NaN
    or inf."""
    form = FORMATS[name]
    stats = form.combine([form.measure(weight)]) if form.measure else None
    return {**form.quantize(weight, stats), **form.constants(stats)}


def dequantize(parts: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Inverse of `quantize`, up to rounding; float32."""
    return FORMATS[name].dequantize(parts)
