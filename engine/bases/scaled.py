"""Which layers of a file are quantized, in which format, and which tensors are their scales: what cannot be undone is refused here.

How a file says so is read by quant_entries.py. Read back are the formats of ComfyUI's comfy/quant_ops.py, QUANT_ALGOS; in FP8 a
weight is code * weight_scale.
"""
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..errors import SourceError
from ..specs import NAMES, TensorSpec
from . import quant_entries
from .quant_entries import COMPANIONS, ENTRY, MARKER, METADATA, OLDER_SCALE, Fetch

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
PACKED = ("nvfp4", "mxfp8", "int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8")  # see `packed`
SCALE_ENDINGS = (".weight_scale", OLDER_SCALE)
SUFFIXES = (ENTRY, *(f".{name}" for name in COMPANIONS))
UNDONE = {  # what changes the weights and is not undone here
    "pre_quant_scale": "weights are smoothed channel by channel, which is not undone here",
    "weight_correction": "weights have an offset for each group, which ComfyUI does not load either",
}
ROUTE = "use the bf16 or fp16 file of this model"


@dataclass(frozen=True)
class Quantized:
    """`settings`: native layer -> what the file says of it, with "format". `companions`: keys that are no weights of their own."""

    settings: dict[str, dict] = field(default_factory=dict)
    companions: frozenset[str] = frozenset()


def find_quantized(path: str, specs: Mapping[str, TensorSpec], layers: Mapping | None, fetch: Fetch) -> Quantized:
    """Every layer that the file calls quantized.

    specs: native key -> stored spec; layers: native layer -> {"format": ...} out of the header's metadata, None without one;
    fetch: the stored bytes of a (small) tensor. Raises SourceError naming the format that cannot be read back, or the key at odds.
    """
    companions = frozenset(key for key in specs if key == MARKER or key.endswith(SUFFIXES))
    if not companions and not layers:
        return Quantized()
    settings = _settings(path, specs, layers, fetch)
    for layer, setting in settings.items():
        if setting["format"] not in (*FP8.values(), *PACKED):
            found = f"{setting['format'][:80]}, which is not read back"
            raise SourceError(f"{path}: {layer}: expected 16 or 32-bit weights, found {found}; {ROUTE}")
    for key in sorted(companions):
        layer, _, kind = key.rpartition(".")
        if layer and layer not in settings:
            what = "weights packed as nvfp4" if kind == "weight_scale_2" else f"a {kind} nothing explains"
            raise SourceError(f"{path}: {key}: expected its layer to name its format, found {what}; {ROUTE}")
        if kind in UNDONE:
            raise SourceError(f"{path}: {key}: {UNDONE[kind]}; {ROUTE}")
    return Quantized(settings, companions)


def scale_key(path: str, layer: str, specs: Mapping[str, TensorSpec]) -> str:
    """Key of an FP8 layer's scale. Raises SourceError unless there is one, and an FP8 weight for it."""
    weight = specs.get(f"{layer}.weight")
    if weight is None or weight.dtype not in FP8:
        found = "no weight" if weight is None else NAMES[weight.dtype]
        raise SourceError(f"{path}: {layer}.weight: expected an FP8 weight for its scale, found {found}; {ROUTE}")
    found = [layer + ending for ending in SCALE_ENDINGS if layer + ending in specs]
    if len(found) != 1:
        raise SourceError(f"{path}: {layer}.weight: expected one scale, found {found or 'none'}; download it again")
    return found[0]


def read_scale(path: str, key: str, spec: TensorSpec, fetch: Fetch) -> float:
    """The one number in a scale tensor. Raises SourceError unless it is a single finite float above 0."""
    scale = quant_entries.number(spec, key, fetch)
    if scale is None:
        raise SourceError(f"{path}: {key}: expected one float, found {NAMES[spec.dtype]} {list(spec.shape)}; {ROUTE}")
    if not 0 < scale < float("inf"):
        raise SourceError(f"{path}: {key}: expected a finite scale above 0, found {scale}; the file is damaged, download it again")
    return scale


def metadata_layers(path: str, metadata: Mapping[str, str]) -> dict | None:
    """Layer -> settings as the header's metadata says it, None when it says nothing."""
    layers, wrong = quant_entries.header_layers(metadata)
    if wrong:
        raise SourceError(f"{path}: {METADATA}: {wrong}; download it again")
    return layers


def _settings(path: str, specs: Mapping[str, TensorSpec], layers: Mapping | None, fetch: Fetch) -> dict[str, dict]:
    """Layer -> settings, with a format's name in each."""
    # ComfyUI reads the older marker only where the metadata is silent.
    said = dict((quant_entries.older_layers(specs) or {}) if layers is None else layers)
    entries = {key: spec for key, spec in specs.items() if key.removesuffix(ENTRY) not in said}
    own, why = quant_entries.read_entries(entries, fetch)
    for key, wrong in why.items():
        raise SourceError(f"{path}: {key}: {wrong}; download it again")
    settings = {**said, **own}
    for layer, setting in settings.items():
        if not isinstance(setting, dict) or not isinstance(setting.get("format"), str):
            raise SourceError(f"{path}: {layer}: expected the name of its format, found {str(setting)[:80]}; {ROUTE}")
    return settings
