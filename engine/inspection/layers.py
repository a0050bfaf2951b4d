"""What one quantized layer must look like so that ComfyUI loads it, and loads it right: dtypes and shapes of everything stored.

With a weight of n rows and c stored columns (ComfyUI comfy/ops.py, _load_quantized_module; comfy_kitchen/tensor/*.py):

    float8_*          float8 [N, K]        weight_scale f32 []
    nvfp4             uint8 [N16, K16/2]   weight_scale e4m3 [128 ceil(n/128), 4 ceil(2c/64)] swizzled, weight_scale_2 f32 []
    mxfp8             e4m3 [N32, K32]      weight_scale e8m0 [128 ceil(n/128), 4 ceil(c/128)] swizzled
    int8_tensorwise   int8 [N, K]          weight_scale f32 [] or [N, 1]
    convrot_w4a4      int8 [N, K/2]        weight_scale f32 [N]
    asym_w4a8_int8    int8 [N, K/2]        weight_s_rel e4m3 [N, K/group], weight_s_channel f32 [N], weight_codebook f32 [16]

N16 is N rounded up to a multiple of 16. e4m3 and e8m0 may also be stored as uint8, which ComfyUI views. The loader checks next to
nothing of this: most mistakes give noise, or an error in the middle of sampling.
"""
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..bases.quant_entries import COMPANIONS
from ..specs import NAMES, TensorSpec
from . import entries

E4M3, E5M2, E8M0, U8, I8, F32 = (torch.float8_e4m3fn, torch.float8_e5m2, getattr(torch, "float8_e8m0fnu", None), torch.uint8,
                                 torch.int8, torch.float32)
WIDER = {torch.bfloat16, torch.float16, torch.float64}    # ComfyUI makes float32 of them for fp8 and nvfp4 (Params of the layouts)
ONE = ((), (1,))
# format -> dtype of the weight, stored columns per byte, multiple that both axes are padded to
WEIGHTS = {"float8_e4m3fn": (E4M3, 1, 1), "float8_e5m2": (E5M2, 1, 1), "nvfp4": (U8, 2, 16), "mxfp8": (E4M3, 1, 32),
           "int8_tensorwise": (I8, 1, 1), "convrot_w4a4": (I8, 2, 1), "asym_w4a8_int8": (I8, 2, 1)}
# Tensors that ComfyUI takes from a layer beside its scales (quant_ops.py, QUANT_ALGOS); any other is "unet unexpected" in its log.
TAKEN = {"float8_e4m3fn": {"input_scale"}, "float8_e5m2": {"input_scale"}, "mxfp8": {"input_scale"},
         "nvfp4": {"input_scale", "pre_quant_scale"}}
CHANGES = {"weight_correction", "pre_quant_scale"}  # left unread, the layer computes something else


@dataclass(frozen=True)
class Layer:
    """parts: last part of the name -> spec; shape: the weight's own (rows, columns), None where unknown."""

    name: str
    settings: dict
    parts: dict[str, TensorSpec]
    shape: tuple[int | None, int | None]


@dataclass(frozen=True)
class Wanted:
    """Of one stored tensor: dtypes and shapes of which any will do."""

    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    is_needed: bool = True


Fault = tuple[str, str, str]                       # severity, last part of the key, text


def faults(layer: Layer, form: str) -> Iterator[Fault]:
    """What is wrong with a layer in a format that ComfyUI knows. form: one of WEIGHTS."""
    weight = layer.parts["weight"]
    dtype, pack, multiple = WEIGHTS[form]
    if weight.dtype is not dtype:
        yield "error", "weight", f"expected {NAMES[dtype]} for {form}, found {NAMES[weight.dtype]}; its numbers are cast"
        return
    stored = tuple(None if axis is None else -(-axis // multiple) * multiple for axis in layer.shape)
    expected = (stored[0], None if stored[1] is None else stored[1] // pack)
    if any(axis not in (None, found) for axis, found in zip(expected, weight.shape, strict=True)):
        yield "error", "weight", f"expected {_shape(expected)} as {form}, found {list(weight.shape)}; it cannot be multiplied"
        return
    columns = weight.shape[1] * pack
    yield from ((severity, "comfy_quant", text) for severity, text in entries.faults(layer.settings, form, columns))
    wanted = scales(form, weight.shape, layer.settings)
    for name, each in wanted.items():
        yield from _part(name, each, layer.parts.get(name), form)
    for name in sorted(layer.parts.keys() & COMPANIONS - wanted.keys() - TAKEN.get(form, set())):
        severity = "error" if name in CHANGES else "warning"
        yield severity, name, f"expected none for {form}, found one; ComfyUI does not read it (\"unet unexpected\" in its log)"
    yield from _input(layer, form, columns)


def scales(form: str, stored: tuple[int, ...], settings: dict) -> dict[str, Wanted]:
    """Name -> what the scales of a stored weight have to be."""
    rows, columns = stored
    blocked = 128 * -(-rows // 128)
    if form == "nvfp4":
        return {"weight_scale": Wanted((E4M3, U8), ((blocked, 4 * -(-columns // 32)),)), "weight_scale_2": Wanted((F32,), ONE)}
    if form == "mxfp8":
        return {"weight_scale": Wanted((E8M0, U8), ((blocked, 4 * -(-columns // 128)),))}
    if form == "int8_tensorwise":
        return {"weight_scale": Wanted((F32,), (*ONE, (rows, 1)))}
    if form == "convrot_w4a4":
        return {"weight_scale": Wanted((F32,), ((rows,),))}
    if form == "asym_w4a8_int8":
        groups = 2 * columns // max(1, entries.whole(settings, "group_size"))
        return {"weight_s_rel": Wanted((E4M3, U8, F32), ((rows, groups),)), "weight_s_channel": Wanted((F32,), ((rows,),)),
                "weight_codebook": Wanted((F32,), ((16,),), is_needed=False)}
    return {"weight_scale": Wanted((F32,), ONE)}


def _part(name: str, wanted: Wanted, found: TensorSpec | None, form: str) -> Iterator[Fault]:
    kinds = " or ".join(NAMES[dtype] for dtype in wanted.dtypes if dtype)
    shapes = " or ".join(_shape(shape) for shape in wanted.shapes)
    if found is None:
        if wanted.is_needed:
            yield "error", name, f"expected {kinds} {shapes} for {form}, found none; the layer cannot be used"
        elif name == "weight_codebook":
            yield "note", name, "the layer has no codebook: its 16 levels are evenly spaced"
    elif form == "int8_tensorwise" and found.shape == wanted.shapes[-1][:1] != (1,):
        yield "warning", name, f"expected {shapes}, found {list(found.shape)}: products take it, a LoRA scales the columns by it"
    elif found.shape not in wanted.shapes:
        yield "error", name, f"expected {shapes} for {form}, found {list(found.shape)}; the layer computes noise or stops"
    elif found.dtype not in wanted.dtypes:
        severity, what = "error", "the layer computes noise or stops"
        if F32 in wanted.dtypes and found.dtype in WIDER and form in TAKEN:
            severity, what = "warning", "ComfyUI makes float32 of it, older versions stop"
        elif form in ("int8_tensorwise", "convrot_w4a4") and found.dtype in WIDER:
            severity, what = "warning", "every row is off by its rounding, and the INT8 kernels refuse it"
        yield severity, name, f"expected {kinds} for {form}, found {NAMES[found.dtype]}; {what}"


def _input(layer: Layer, form: str, columns: int) -> Iterator[Fault]:
    scale, smoothing = layer.parts.get("input_scale"), layer.parts.get("pre_quant_scale")
    if scale and form in TAKEN:
        if form == "mxfp8":
            yield "note", "input_scale", "mxfp8 takes a scale for every 32 inputs as they come; this one is ignored"
        elif scale.shape not in ONE or scale.dtype is not F32:
            severity = "warning" if scale.shape in ONE and scale.dtype in WIDER else "error"
            yield severity, "input_scale", f"expected F32 [] or [1], found {NAMES[scale.dtype]} {list(scale.shape)}"
    elif form in ("float8_e4m3fn", "float8_e5m2") and not layer.settings.get("full_precision_matrix_mult"):
        yield "warning", "weight", ("expected input_scale or full_precision_matrix_mult, found neither: cards with FP8 products "
                                    "round its inputs at scale 1.0")
    if smoothing and form == "nvfp4":
        if smoothing.shape != (columns,) and smoothing.shape != (layer.shape[1],):
            yield "error", "pre_quant_scale", f"expected one number for each of {columns} inputs, found {list(smoothing.shape)}"
        yield "warning", "pre_quant_scale", "inputs are smoothed channel by channel: a LoRA applied later on this layer is wrong"


def _shape(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if axis is None else str(axis) for axis in shape)}]"
