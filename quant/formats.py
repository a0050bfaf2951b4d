"""The tables of formats, and the whole-tensor calls that tests and tools use: FORMATS of safetensors files, spelled as ComfyUI's
QUANT_ALGOS spells them, and GGUF_TYPES of GGUF files, spelled as ggml does.

A format is an object with
    outputs(shape)                  suffix -> (shape, dtype) of everything stored, "" first; ValueError for a shape it cannot hold
    measure(band), combine(list)    what has to be known of the whole tensor first; measure is None where nothing has
    quantize(band, stats, ...)      rows of every stored tensor that has rows; bands start at multiples of 128 rows
    constants(stats)                the stored tensors without rows, named in CONSTANTS
    dequantize(parts, rows)         float32 again
    comfy_quant(full_precision=)    what ComfyUI reads from `<layer>.comfy_quant`
and NAME, STORED (dtype of the codes), GROUPS (suffix -> rows that lie interleaved in the file), INPUT_AMAX (activation amax that an
input scale of 1 stands for; None: ComfyUI reads none), STOCHASTIC (whether `noise` is taken).
"""
from dataclasses import dataclass

import torch

from . import mxfp8, plain
from .fp8 import E4M3, E5M2
from .gguf.block_type import SETTINGS, BlockType
from .gguf.families import SIZES
from .int8 import Int8
from .nvfp4 import Nvfp4
from .w4a4 import ConvrotW4A4
from .w4a8 import AsymW4A8

SEARCHES = ("balanced", "fast", "best")            # how long the 4-bit formats look for their scales; the first is the default
INT8_SCALINGS = ("convrot", "row", "tensor")       # what one scale of int8_tensorwise is for


@dataclass(frozen=True)
class Options:
    """How formats that leave a choice are made. Nothing of it changes how a file is read."""

    search: str = SEARCHES[0]
    int8_scaling: str = INT8_SCALINGS[0]
    gguf_setting: str = SETTINGS[0]                # see gguf/block_type.py
    backend: str = "auto"                          # which code encodes GGUF's blocks


DEFAULT = Options()
CHOOSING = {"nvfp4": lambda options: Nvfp4(options.search), "int8_tensorwise": lambda options: Int8(options.int8_scaling),
            "convrot_w4a4": lambda options: ConvrotW4A4(options.search), "asym_w4a8_int8": lambda options: AsymW4A8(options.search)}
QUANTIZED_FORMS = {"float8_e4m3fn": E4M3, "float8_e5m2": E5M2, "mxfp8": mxfp8,
                   **{name: make(DEFAULT) for name, make in CHOOSING.items()}}
FORMATS = {**QUANTIZED_FORMS, **plain.PLAIN}         # in the order that menus show
QUANTIZED = frozenset(QUANTIZED_FORMS)             # the others store floats as they are
BLOCK_TYPES = tuple(SIZES)                         # quantized ones of GGUF
GGUF_TYPES = {**{name: BlockType(name) for name in BLOCK_TYPES}, **plain.GGUF_FLOATS}


def form_of(name: str, options: Options = DEFAULT):
    """The format object of a name in FORMATS or GGUF_TYPES. Raises KeyError for an unknown one."""
    if name in BLOCK_TYPES:
        return BlockType(name, options.gguf_setting, options.backend)
    return CHOOSING[name](options) if name in CHOOSING else FORMATS.get(name) or GGUF_TYPES[name]


def weighs(form) -> bool:
    """Whether a format weighs columns by their importance: it searches its scales."""
    if form.NAME in BLOCK_TYPES:
        return form.setting != "reference" and (form.NAME != "Q8_0" or form.setting == "max")
    return form.NAME == "nvfp4" and form.search != "fast"


def quantize(weight: torch.Tensor, name: str, options: Options = DEFAULT) -> dict[str, torch.Tensor]:
    """Suffix -> tensor as ComfyUI stores it. weight: (out_features, in_features), float32, not modified. Raises ValueError on NaN
    or inf."""
    form = form_of(name, options)
    stats = form.combine([form.measure(weight)]) if form.measure else None
    return {**form.quantize(weight, stats), **form.constants(stats)}


def dequantize(parts: dict[str, torch.Tensor], name: str, options: Options = DEFAULT) -> torch.Tensor:
    """Inverse of `quantize`, up to rounding; float32, of the stored shape, padding included."""
    return form_of(name, options).dequantize(parts)
