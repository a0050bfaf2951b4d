"""From the names in a model's files to the diffusion model's own: without prefix, in the native spelling; the rest is counted."""
from collections.abc import Sequence

from ..errors import SourceError
from ..header import Entry, Header
from . import kinds, names

# Split over other tensors in the diffusers spelling (source: huggingface/diffusers, scripts/convert_wan_to_diffusers.py).
UNMAPPED = ("face_adapter.", "motion_encoder.", "motion_synthesis_weight")


def prefix_of(path: str, headers: Sequence[Header]) -> str:
    """What stands before the diffusion model's keys. Raises SourceError, with what the file is instead, where there is none."""
    keys = [key for header in headers for key in header.entries]
    prefix = names.find_prefix(keys)
    if prefix is None:
        other = f"{len(keys)} tensors without head.modulation ({', '.join(keys[:3])}); choose the file of a Wan model"
        raise SourceError(f"{path}: expected a Wan diffusion model, found {kinds.recognise(keys) or other}")
    return prefix


def native_entries(path: str, headers: Sequence[Header], prefix: str) -> tuple[dict[str, tuple[int, Entry]], dict[str, int]]:
    """The diffusion model's entries by native key with the number of their file, in file order; the rest, counted."""
    bare: dict[str, tuple[int, Entry]] = {}
    left_out: dict[str, int] = {}
    for number, header in enumerate(headers):
        for key, entry in header.entries.items():
            kind = kinds.companion(key, prefix)
            if kind is None:
                bare[key[len(prefix):]] = (number, entry)
            else:
                left_out[kind] = left_out.get(kind, 0) + 1
    if not names.is_diffusers(bare):
        return bare, left_out
    native: dict[str, tuple[int, Entry]] = {}
    for key, found in bare.items():
        if key.startswith(UNMAPPED):
            raise SourceError(f"{path}: {key}: expected native names for an Animate model, found diffusers'; use the ComfyUI file")
        if names.to_native(key) in native:
            raise SourceError(f"{path}: {key}: expected once, found also as {names.to_native(key)}; download the file again")
        native[names.to_native(key)] = found
    return native, left_out
