"""Which tensors of a file are scales of quantized ones: what they scale, what they are called, what cannot be undone.

weight = float32(code) * weight_scale (source: ComfyUI comfy/quant_ops.py, TensorCoreFP8Layout; comfy/utils.py, convert_old_quants).
Three ways a file says so, in ComfyUI's order: `_quantization_metadata` in the header, the legacy marker tensor `scaled_fp8` with
`<layer>.scale_weight`, and one `<layer>.comfy_quant` tensor (JSON bytes) per layer.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from .. import strict_json
from ..errors import SourceError
from ..specs import NAMES, TensorSpec

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
MARKER = "scaled_fp8"
METADATA = "_quantization_metadata"
SCALE_ENDINGS = (".weight_scale", ".scale_weight")
SUFFIXES = (*SCALE_ENDINGS, ".weight_scale_2", ".input_scale", ".scale_input", ".comfy_quant", ".weight_s_rel",
            ".weight_s_channel", ".weight_codebook", ".pre_quant_scale")
ROUTE = "use the bf16 or fp16 file of this model"


@dataclass(frozen=True)
class Scales:
    """`scale_of`: weight key -> key of its scale. `companions`: keys that are no weights of their own."""

    scale_of: dict[str, str] = field(default_factory=dict)
    companions: frozenset[str] = frozenset()


def find_scales(path: str, specs: Mapping[str, TensorSpec], layers: Mapping | None, fetch: Callable[[str], bytes]) -> Scales:
    """Pair every quantized weight with its scale.

    specs: native key -> stored spec; layers: native layer -> {"format": ...} out of the header's metadata, None without one;
    fetch: the stored bytes of a (small) tensor. Raises SourceError naming the format that cannot be read back, or the key at odds.
    """
    companions = frozenset(key for key in specs if key == MARKER or key.endswith(SUFFIXES))
    if not companions and not layers:
        return Scales()
    formats = _formats(path, specs, layers, fetch)
    for layer, name in formats.items():
        if name not in FP8.values():
            raise SourceError(f"{path}: {layer}: expected 16 or 32-bit weights, found {name}, which is not read back; {ROUTE}")
    scale_of = {f"{layer}.weight": _scale_key(path, layer, specs) for layer in formats}
    for key in companions:
        layer, _, kind = key.rpartition(".")
        if layer and layer not in formats:
            what = "weights packed as nvfp4" if kind == "weight_scale_2" else f"a {kind} nothing explains"
            raise SourceError(f"{path}: {key}: expected its layer to name its format, found {what}; {ROUTE}")
        if kind == "pre_quant_scale":
            raise SourceError(f"{path}: {key}: weights are smoothed channel by channel, which is not undone here; {ROUTE}")
    return Scales(scale_of, companions)


def read_scale(path: str, key: str, spec: TensorSpec, stored: bytes) -> float:
    """The one number in a scale tensor. Raises SourceError unless it is a single finite float above 0."""
    if spec.numel != 1 or not spec.dtype.is_floating_point:
        raise SourceError(f"{path}: {key}: expected one float, found {NAMES[spec.dtype]} {list(spec.shape)}; {ROUTE}")
    scale = torch.frombuffer(bytearray(stored), dtype=spec.dtype).float().item()
    if not 0 < scale < float("inf"):
        raise SourceError(f"{path}: {key}: expected a finite scale above 0, found {scale}; the file is damaged, download it again")
    return scale


def metadata_layers(path: str, metadata: Mapping[str, str]) -> dict | None:
    """Layer -> settings as the header's metadata says it, None when it says nothing."""
    if METADATA not in metadata:
        return None
    try:
        layers = strict_json.parse(metadata[METADATA].encode()).get("layers")
    except ValueError as cause:
        raise SourceError(f"{path}: {METADATA}: expected JSON, found: {str(cause)[:200]}; download it again") from cause
    if not isinstance(layers, dict):
        raise SourceError(f"{path}: {METADATA}: expected layers by name, found {str(layers)[:80]}; download it again")
    return layers


def _formats(path: str, specs: Mapping[str, TensorSpec], layers: Mapping | None, fetch: Callable[[str], bytes]) -> dict[str, str]:
    """Layer -> format's name."""
    settings = dict(layers or {})
    for key in specs:
        if key.endswith(".comfy_quant") and key.removesuffix(".comfy_quant") not in settings:
            try:
                settings[key.removesuffix(".comfy_quant")] = strict_json.parse(fetch(key))
            except ValueError as cause:
                raise SourceError(f"{path}: {key}: expected JSON, found: {str(cause)[:200]}; download it again") from cause
    formats = {}
    for layer, setting in settings.items():
        name = setting.get("format") if isinstance(setting, dict) else None
        if not isinstance(name, str):
            raise SourceError(f"{path}: {layer}: expected the name of its format, found {str(setting)[:80]}; {ROUTE}")
        formats[layer] = name
    if layers is None and MARKER in specs:  # ComfyUI reads the legacy marker only where the metadata is silent
        for key in specs:
            if key.endswith(".scale_weight"):
                formats[key.removesuffix(".scale_weight")] = "float8_e4m3fn"
    return formats


def _scale_key(path: str, layer: str, specs: Mapping[str, TensorSpec]) -> str:
    weight = specs.get(f"{layer}.weight")
    if weight is None or weight.dtype not in FP8:
        found = "no weight" if weight is None else NAMES[weight.dtype]
        raise SourceError(f"{path}: {layer}.weight: expected an FP8 weight for its scale, found {found}; {ROUTE}")
    found = [layer + ending for ending in SCALE_ENDINGS if layer + ending in specs]
    if len(found) != 1:
        raise SourceError(f"{path}: {layer}.weight: expected one scale, found {found or 'none'}; download it again")
    return found[0]
