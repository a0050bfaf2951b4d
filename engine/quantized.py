"""What a file says of its quantized layers, put together from its headers and its small tensors as ComfyUI puts it together.

Three ways, in ComfyUI's order (comfy/utils.py, convert_old_quants): `_quantization_metadata` in the header, which replaces the
entries of the layers it names; without it the marker tensor `scaled_fp8` with `<layer>.scale_weight`, older than both; and one
`<layer>.comfy_quant` tensor per layer (uint8, the bytes of a JSON object). Nothing is judged here: contract.py does that.
"""
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from . import strict_json
from .bases.names import PREFIXES, find_prefix
from .bases.scaled import MARKER, METADATA
from .header import Header
from .specs import TensorSpec
from .system import open_read

ENTRY, LONGEST = ".comfy_quant", 4096              # more bytes are no entry: ComfyUI's longest has about 120
LEGACY = {".scale_weight": ".weight_scale", ".scale_input": ".input_scale"}  # the older names, and what ComfyUI makes of them
OLDER = "scaled fp8, older kind"
UNREADABLE = "unreadable"

Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class Stated:
    """specs: bare key (ComfyUI's prefix off, older names renewed) -> stored spec; keys: bare key -> its name in the file; layers:
    layer -> settings, {} where they cannot be read; unreadable: key or layer -> why; prefixed, clashing: layers of the header that
    carry the prefix, or that contradict the layer's own entry; is_legacy: the older kind."""

    specs: dict[str, TensorSpec]
    keys: dict[str, str]
    layers: dict[str, dict]
    unreadable: dict[str, str] = field(default_factory=dict)
    prefixed: tuple[str, ...] = ()
    clashing: tuple[str, ...] = ()
    is_legacy: bool = False

    def format_of(self, layer: str) -> str:
        """The layer's format as the file spells it, or UNREADABLE."""
        name = self.layers[layer].get("format")
        return name if isinstance(name, str) else UNREADABLE

    def number(self, key: str, fetch: Fetch) -> float | None:
        """The one number in a stored tensor; None when there is no such tensor, or it is not one float."""
        spec = self.specs.get(key)
        if spec is None or spec.numel != 1 or not spec.dtype.is_floating_point:
            return None
        stored = fetch(self.keys[key])
        if spec.dtype is torch.float32:            # a file has a thousand of them, and a tensor costs ten times more to make
            return struct.unpack("<f", stored)[0]
        return torch.frombuffer(bytearray(stored), dtype=spec.dtype).float().item()

    def parts(self) -> dict[str, dict[str, TensorSpec]]:
        """Layer -> last part of the name -> spec, of every tensor."""
        found: dict[str, dict[str, TensorSpec]] = {}
        for key, spec in self.specs.items():
            layer, _, last = key.rpartition(".")
            found.setdefault(layer, {})[last] = spec
        return found


@contextmanager
def fetching(headers: Sequence[Header]) -> Iterator[Fetch]:
    """Stored bytes of a tensor by its name in the file; the files stay open inside."""
    with ExitStack() as stack:
        files = [stack.enter_context(open_read(header.path)) for header in headers]
        place = {key: (number, entry) for number, header in enumerate(headers) for key, entry in header.entries.items()}

        def fetch(key: str) -> bytes:
            number, entry = place[key]
            stored = bytearray(entry.nbytes)
            files[number].read_into(entry.start, stored)
            return bytes(stored)
        yield fetch


def read(headers: Sequence[Header], fetch: Fetch) -> Stated:
    """headers: of one model's files; fetch: stored bytes by name in the file, asked for small tensors only."""
    entries = {key: entry.spec for header in headers for key, entry in header.entries.items()}
    prefix = find_prefix(entries) or ""
    keys = {key.removeprefix(prefix): key for key in entries}
    told, why = _header_layers(headers[0].metadata)
    is_legacy = told is None and MARKER in keys
    keys = _renewed(keys, entries, fetch) if is_legacy else keys
    specs = {key: entries[name] for key, name in keys.items()}
    layers = _legacy_layers(specs) if is_legacy else {}
    for key in (key for key in specs if key.endswith(ENTRY)):
        layer = key.removesuffix(ENTRY)
        layers[layer], wrong = _entry(specs[key], keys[key], fetch)
        why |= {key: wrong} if wrong else {}
    bare = {layer: _bare(layer, specs) for layer in told or {}}
    said = {bare[layer]: setting if isinstance(setting, dict) else {} for layer, setting in (told or {}).items()}
    clashing = tuple(layer for layer, setting in said.items() if layer in layers and layers[layer] != setting)
    why = {key: text for key, text in why.items() if key.removesuffix(ENTRY) not in said}  # ComfyUI does not read those
    prefixed = tuple(layer for layer, name in bare.items() if name != layer)
    return Stated(specs, keys, layers | said, why, prefixed, clashing, is_legacy)


def _header_layers(metadata: dict[str, str]) -> tuple[dict | None, dict[str, str]]:
    """Layers as the header names them, None when it says nothing; and what is wrong with it."""
    if METADATA not in metadata:
        return None, {}
    try:
        layers = strict_json.parse(metadata[METADATA].encode()).get("layers")
    except ValueError as cause:
        return {}, {METADATA: f"expected JSON, found: {str(cause)[:100]}"}
    return (layers, {}) if isinstance(layers, dict) else ({}, {METADATA: f"expected layers by name, found {str(layers)[:80]}"})


def _entry(spec: TensorSpec, key: str, fetch: Fetch) -> tuple[dict, str | None]:
    if spec.nbytes > LONGEST:
        return {}, f"expected at most {LONGEST} bytes of JSON, found {spec.nbytes}"
    try:
        body = fetch(key)
        return strict_json.parse(body.decode(json.detect_encoding(body)).encode()), None  # as json.loads takes it
    except ValueError as cause:
        return {}, f"expected JSON, found: {str(cause)[:100]}"


def _renewed(keys: dict[str, str], entries: dict[str, TensorSpec], fetch: Fetch) -> dict[str, str]:
    """Under the names of today. An input scale of 1.0 means none (convert_old_quants)."""
    fresh = {}
    for key, name in keys.items():
        old = next((ending for ending in LEGACY if key.endswith(ending)), "")
        spec = entries[name]
        is_float = old == ".scale_input" and spec.numel == 1 and spec.dtype.is_floating_point
        if is_float and torch.frombuffer(bytearray(fetch(name)), dtype=spec.dtype).item() == 1.0:
            continue
        fresh[key.removesuffix(old) + LEGACY.get(old, "")] = name
    return fresh


def _legacy_layers(specs: dict[str, TensorSpec]) -> dict[str, dict]:
    settings = {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if specs[MARKER].numel == 2 else {})
    return {key.removesuffix(".weight_scale"): dict(settings) for key in specs if key.endswith(".weight_scale")}


def _bare(layer: str, specs: dict[str, TensorSpec]) -> str:
    """A layer's name without the prefix of a checkpoint, where the model knows it so."""
    names = (layer.removeprefix(prefix) for prefix in PREFIXES if layer.startswith(prefix))
    return layer if f"{layer}.weight" in specs else next((name for name in names if f"{name}.weight" in specs), layer)
