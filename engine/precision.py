"""Which tensor gets which format: the one place that knows what of a Wan DiT may be quantized.

Only the linears of the blocks are: 98 % of the weights, and the only tensors that ComfyUI loads quantized without harm. A quantized
patch_embedding loads with its codes unscaled, and detection reads the raw shapes of head, modulation and blocks.0.ffn.0
(comfy/model_detection.py). Embeddings, time, head, norms and modulation are small and stay as wide as they came.
"""
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..quant.formats import BLOCK_TYPES, FORMATS, GGUF_TYPES, QUANTIZED, Options, form_of
from ..quant.plain import KEPT, as_kept
from . import gguf_mix
from .errors import PlanError
from .specs import TensorSpec

BLOCK_LINEAR = re.compile(r"(?:vace_)?blocks\.(\d+)\.(self_attn|cross_attn|ffn)\.(?:q|k|v|o|k_img|v_img|0|2)\.weight")
KINDS = ("self_attn", "cross_attn", "ffn")
KEEP = "keep"                                      # in a precision plan: not quantized
SOURCE = "source"                                  # what is not quantized keeps the dtype it came in
KEPT_DTYPES = (SOURCE, "bf16", "fp16")             # what it may be stored in
SAFETENSORS, GGUF = "safetensors", "gguf"          # the two kinds of files, and the endings of their names
GGUF_FORMATS = tuple(dict.fromkeys((*gguf_mix.MIXES, *BLOCK_TYPES)))   # mixes, and types that are one for every linear
GGUF_KEPT = {SOURCE: None, "bf16": "BF16", "fp16": "F16"}
# A source in one of these grids is already lossy; what stays unquantized comes out in 16 bit.
NARROW = {torch.float8_e4m3fn: torch.bfloat16, torch.float8_e5m2: torch.bfloat16, torch.float64: torch.float32}


def is_block_linear(key: str, spec: TensorSpec) -> bool:
    """True for the weights that a quantized format quantizes, and that the stability meter divides by."""
    return len(spec.shape) == 2 and BLOCK_LINEAR.fullmatch(key) is not None


def block_of(key: str) -> tuple[int, str] | None:
    """Block number and kind of a block linear's key, of the main blocks only; None for any other key."""
    found = BLOCK_LINEAR.fullmatch(key)
    return (int(found[1]), found[2]) if found and not key.startswith("vace_") else None


def container_of(format: str) -> str:
    """In which kind of file a format is stored."""
    return GGUF if format in GGUF_FORMATS else SAFETENSORS


def layer_of(key: str) -> str:
    """The layer of a weight's key."""
    return key.removesuffix(".weight")


def kept_dtype(spec: TensorSpec) -> torch.dtype:
    """Dtype of a tensor that stays unquantized, where nothing else is asked for: its own."""
    return NARROW.get(spec.dtype, spec.dtype)


def stored(form, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
    """Suffix -> spec of everything that a format stores for a weight of this shape.

    Raises ValueError where it cannot hold the shape, or would pad its rows: ComfyUI takes the model's sizes from what is stored,
    and then finds the bias too short.
    """
    found = {suffix: TensorSpec(*each) for suffix, each in form.outputs(shape).items()}
    if shape and found[""].shape[0] != shape[0]:
        raise ValueError(f"{form.NAME} would store {found[''].shape[0]} rows, the weight has {shape[0]}, which ComfyUI cannot "
                         "load; choose int8_tensorwise, or keep this layer")
    return found


@dataclass(frozen=True)
class Forms:
    """What each tensor of one output file is stored as.

    format: of every block linear that `layers` does not name, or a plain one for every weight; a mix of GGUF stands for its default
    type here, as `layers` has what its rules name (jobs/stored_as.py); layers: layer -> format or KEEP;
    full_precision: layers whose product is computed in 16 bit; kept: dtype of 2-D weights that are not quantized, SOURCE, bf16 or
    fp16; fp32_names: keys that stay F32 if they came so, whatever `kept` says (a GGUF map's); options: of the formats.
    """

    format: str
    layers: Mapping[str, str] = field(default_factory=dict)
    full_precision: frozenset[str] = frozenset()
    kept: str = SOURCE
    fp32_names: frozenset[str] | None = None
    options: Options = field(default_factory=Options)

    @property
    def is_quantized(self) -> bool:
        """Whether this file's block linears are quantized at all."""
        return self.default in QUANTIZED or self.default in BLOCK_TYPES

    @property
    def container(self) -> str:
        """The kind of the file."""
        return container_of(self.format)

    @property
    def default(self) -> str:
        """The format of what `layers` does not name."""
        return gguf_mix.MIXES[self.format].default if self.format in gguf_mix.MIXES else self.format

    def name(self, key: str, spec: TensorSpec) -> str | None:
        """Name of the quantized format of a tensor; None when it is stored as floats without scales."""
        if not self.is_quantized or not is_block_linear(key, spec):
            return None
        name = self.layers.get(layer_of(key), self.default)
        if name in BLOCK_TYPES:
            name = gguf_mix.fallback(name, spec.shape[1])
        return None if name in {KEEP, *gguf_mix.PLAIN} else name

    def of(self, key: str, spec: TensorSpec):
        """The format object for one tensor.

        A plain format takes every 2-D weight; what ComfyUI computes in 32 bit whatever it is stored in (patch_embedding,
        modulation, norms, biases) keeps its dtype, except in fp32, which takes all.
        """
        name = self.name(key, spec)
        if name is not None:
            return form_of(name, self.options)
        if self.container == GGUF:
            return GGUF_TYPES[self._gguf_float(key, spec)]
        is_matrix = len(spec.shape) == 2 and key.endswith(".weight")
        if not self.is_quantized and (self.format == "fp32" or is_matrix):
            return FORMATS[self.format]
        if self.is_quantized and self.kept != SOURCE and is_matrix and not self._stays_fp32(key, spec):
            return as_kept(self.kept)
        return KEPT[kept_dtype(spec)]

    def _gguf_float(self, key: str, spec: TensorSpec) -> str:
        """F32, F16 or BF16, of what is not quantized in a GGUF."""
        if self.fp32_names is not None and key in self.fp32_names:
            return "F32"
        return gguf_mix.kept_type(key, spec, GGUF_KEPT[self.kept] if self.is_quantized else self.default)

    def _stays_fp32(self, key: str, spec: TensorSpec) -> bool:
        """With a GGUF map, only F32 is narrowed, and not where the map keeps F32: as the converter of the map's inventor."""
        return self.fp32_names is not None and (spec.dtype != torch.float32 or key in self.fp32_names)

    def is_full_precision(self, key: str) -> bool:
        """Whether the product of a quantized layer is computed in 16 bit."""
        return layer_of(key) in self.full_precision

    def outputs(self, key: str, spec: TensorSpec) -> dict[str, TensorSpec]:
        """Suffix -> spec of everything stored for one tensor. Raises PlanError where its format cannot hold that shape."""
        try:
            return stored(self.of(key, spec), spec.shape)
        except ValueError as cause:
            raise PlanError(f"{key}: {cause}") from cause


def processing_order(specs: dict[str, TensorSpec]) -> list[str]:
    """Keys in the order they are read, merged and written.

    Kept tensors first, wide dtypes before narrow ones, then the block linears, each group in file order: so every offset is a
    multiple of its dtype in each format, with no hole between tensors (safetensors allows none).
    """
    place = {key: number for number, key in enumerate(specs)}
    return sorted(specs, key=lambda key: (is_block_linear(key, specs[key]), -kept_dtype(specs[key]).itemsize, place[key]))
