"""What a file says of its quantized layers, put together from its headers and its small tensors as ComfyUI puts it together.

Three ways, in ComfyUI's order (comfy/utils.py, convert_old_quants): `_quantization_metadata` in the header, which replaces the
entries of the layers it names; without it the marker tensor `scaled_fp8` with `<layer>.scale_weight`, older than both; and one
`<layer>.comfy_quant` tensor per layer (uint8, the bytes of a JSON object). Nothing is judged here: contract.py of the room
`inspection` does that, and scaled.py refuses what cannot be read back.
"""
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from ..header import Header
from ..specs import TensorSpec
from ..system import open_read
from .names import PREFIXES, find_prefix
from .quant_entries import ENTRY, METADATA, OLDER_SCALE, Fetch, header_layers, number, older_layers, read_entries

LEGACY = {OLDER_SCALE: ".weight_scale", ".scale_input": ".input_scale"}  # the older names, and what ComfyUI makes of them
OLDER = "scaled fp8, older kind"
UNREADABLE = "unreadable"


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
        return number(self.specs[key], self.keys[key], fetch) if key in self.specs else None

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
    told, damage = header_layers(headers[0].metadata)
    older = older_layers({key: entries[name] for key, name in keys.items()}) if told is None else None
    keys = keys if older is None else _renewed(keys, entries, fetch)
    specs = {key: entries[name] for key, name in keys.items()}
    layers, why = read_entries(specs, lambda key: fetch(keys[key]))
    why = ({METADATA: damage} if damage else {}) | why
    bare = {layer: _bare(layer, specs) for layer in told or {}}
    said = {bare[layer]: setting if isinstance(setting, dict) else {} for layer, setting in (told or {}).items()}
    clashing = tuple(layer for layer, setting in said.items() if layer in layers and layers[layer] != setting)
    said |= older or {}
    why = {key: text for key, text in why.items() if key.removesuffix(ENTRY) not in said}  # ComfyUI does not read those
    prefixed = tuple(layer for layer, name in bare.items() if name != layer)
    return Stated(specs, keys, layers | said, why, prefixed, clashing, older is not None)


def _renewed(keys: dict[str, str], entries: dict[str, TensorSpec], fetch: Fetch) -> dict[str, str]:
    """Under the names of today. An input scale of 1.0 means none (convert_old_quants)."""
    fresh = {}
    for key, name in keys.items():
        old = next((ending for ending in LEGACY if key.endswith(ending)), "")
        if old == ".scale_input" and number(entries[name], name, fetch) == 1.0:
            continue
        fresh[key.removesuffix(old) + LEGACY.get(old, "")] = name
    return fresh


def _bare(layer: str, specs: dict[str, TensorSpec]) -> str:
    """A layer's name without the prefix of a checkpoint, where the model knows it so."""
    names = (layer.removeprefix(prefix) for prefix in PREFIXES if layer.startswith(prefix))
    return layer if f"{layer}.weight" in specs else next((name for name in names if f"{name}.weight" in specs), layer)
