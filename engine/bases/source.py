"""A base model as the engine reads it: the protocol, and opening one from files with every refusal that headers allow."""
import os
from typing import Protocol

import torch

from ..errors import SourceError
from ..header import Entry, Header
from ..specs import NAMES, TensorSpec
from ..system import ReadFile, open_read
from . import kinds, names, scaled
from .shards import find_files, read_headers
from .stored import Place, StoredTensors

PLAIN = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
ROUTE = "use the bf16 or fp16 file of this model, or turn on allow_quantized_source"
# Split over other tensors in the diffusers spelling (source: huggingface/diffusers, scripts/convert_wan_to_diffusers.py).
UNMAPPED = ("face_adapter.", "motion_encoder.", "motion_synthesis_weight")


class Source(Protocol):
    """A base model under native bare keys; what each method promises stands in `stored.StoredTensors`."""

    path: str
    name: str
    metadata: dict[str, str]
    lossy: str | None
    left_out: dict[str, int]

    def keys(self) -> list[str]: ...
    def spec(self, key: str) -> TensorSpec: ...
    def read(self, key: str, rows: tuple[int, int] | None = None, out: torch.Tensor | None = None) -> torch.Tensor: ...
    def advise(self, key: str, rows: tuple[int, int] | None = None) -> None: ...
    def nbytes(self, key: str) -> int: ...
    def identity(self) -> dict: ...
    def close(self) -> None: ...


def open_source(path: str | os.PathLike, *, allow_lossy: bool = False) -> StoredTensors:
    """The diffusion model at `path`: a .safetensors file, an index, any shard of a set, or a folder that holds one of these.

    allow_lossy: take FP8 weights, which lost precision that a merge cannot bring back; refused otherwise.
    Raises HeaderError for a damaged file, SourceError for a sound one that is no base: another kind of model, a part missing,
    quantized to a format that is not read back. No weight is read.
    """
    path = os.fspath(path)
    headers = read_headers(find_files(path))
    prefix = names.find_prefix(key for header in headers for key in header.entries)
    if prefix is None:
        raise SourceError(f"{path}: expected a Wan diffusion model, found {_found(headers)}")
    entries, left_out = _native_entries(path, headers, prefix)
    files: list[ReadFile] = []
    try:
        files += [open_read(header.path) for header in headers]
        places = _places(path, entries, headers[0].metadata, prefix, files)
        lossy = _grade(path, places, allow_lossy=allow_lossy)
    except BaseException:
        for file in files:
            file.close()
        raise
    name = os.path.basename(os.path.normpath(path))
    return StoredTensors(path, name, headers, files, places, lossy=lossy, left_out=left_out)


def _found(headers: list[Header]) -> str:
    keys = [key for header in headers for key in header.entries]
    kind = kinds.recognise(keys)
    return kind or f"{len(keys)} tensors without head.modulation ({', '.join(keys[:3])}); choose the file of a Wan model"


def _native_entries(path: str, headers: list[Header], prefix: str) -> tuple[dict[str, tuple[int, Entry]], dict[str, int]]:
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


def _places(path: str, entries: dict[str, tuple[int, Entry]], metadata: dict[str, str], prefix: str,
            files: list[ReadFile]) -> dict[str, Place]:
    """The model's own tensors, each with its scale's value where it has one."""
    def fetch(key: str) -> bytes:
        number, entry = entries[key]
        stored = bytearray(entry.nbytes)
        files[number].read_into(entry.start, memoryview(stored))
        return bytes(stored)

    specs = {key: entry.spec for key, (_, entry) in entries.items()}
    layers = scaled.metadata_layers(path, metadata)
    scales = scaled.find_scales(path, specs, None if layers is None else _of_model(layers, specs, prefix), fetch)
    values = {key: scaled.read_scale(path, scale, specs[scale], fetch(scale)) for key, scale in scales.scale_of.items()}
    return {key: Place(number, entry, values.get(key)) for key, (number, entry) in entries.items() if key not in scales.companions}


def _of_model(layers: dict, specs: dict[str, TensorSpec], prefix: str) -> dict:
    """The settings of layers that this model has, under native bare names; the header also lists those of its companions."""
    native = {names.to_native(layer.removeprefix(prefix)): layers[layer] for layer in layers}
    return {layer: setting for layer, setting in native.items() if f"{layer}.weight" in specs}


def _grade(path: str, places: dict[str, Place], *, allow_lossy: bool) -> str | None:
    """None for full precision, else in words what was lost."""
    first = None
    for key, place in places.items():
        dtype = place.entry.spec.dtype
        if dtype in scaled.FP8:
            first = first or (key, f"{scaled.FP8[dtype]}, {'un' if place.scale is None else ''}scaled")
        elif dtype not in PLAIN:
            raise SourceError(f"{path}: {key}: expected floating-point weights, found {NAMES[dtype]}; {scaled.ROUTE}")
    if first is not None and not allow_lossy:
        raise SourceError(f"{path}: {first[0]}: expected 16 or 32-bit weights, found {first[1]}; {ROUTE}")
    return first and first[1]
