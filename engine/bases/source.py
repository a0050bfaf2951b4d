"""A base model as the engine reads it: the protocol, and opening one from files with every refusal that headers allow."""
import os
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from ..errors import SourceError
from ..header import Entry
from ..specs import NAMES, TensorSpec
from ..system import ReadFile, open_read
from . import gguf_source, layouts, names, scaled
from .gguf_header import is_gguf
from .native import native_entries, prefix_of
from .packed import Packed
from .shards import find_files, read_headers
from .stored import Place, StoredTensors

PLAIN = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
ROUTE = "use the bf16 or fp16 file of this model, or turn on allow_quantized_source"


class Source(Protocol):
    """A base model under native bare keys; what each method promises stands in `stored.StoredTensors`.

    lossy: in words what full precision was lost to, None where nothing was; formats: key -> name of the quantized format, as
    quant.formats spells it, of the tensors that came in one; moved: keys whose values the source itself has changed since;
    left_out: kind -> number of tensors that are no part of it.
    """

    path: str
    name: str
    metadata: dict[str, str]
    lossy: str | None
    formats: Mapping[str, str]
    moved: Collection[str]
    left_out: dict[str, int]

    def keys(self) -> list[str]: ...
    def spec(self, key: str) -> TensorSpec: ...
    def read(self, key: str, rows: tuple[int, int] | None = None, out: torch.Tensor | None = None) -> torch.Tensor: ...
    def advise(self, key: str, rows: tuple[int, int] | None = None) -> None: ...
    def nbytes(self, key: str) -> int: ...
    def identity(self) -> dict: ...
    def close(self) -> None: ...


def open_source(path: str | os.PathLike, *, allow_lossy: bool = False) -> StoredTensors:
    """The diffusion model at `path`: a .safetensors file, an index, any shard of a set, a folder that holds one of these, or a GGUF
    file, by whatever name.

    allow_lossy: take quantized weights, which lost precision that a merge cannot bring back; refused otherwise.
    Raises HeaderError for a damaged file, SourceError for a sound one that is no base: another kind of model, a part missing,
    quantized to a format that is not read back. No weight is read.
    """
    path = os.fspath(path)
    from_gguf = is_gguf(path)
    headers = [gguf_source.read_header(path)] if from_gguf else read_headers(find_files(path))
    prefix = prefix_of(path, headers)
    entries, left_out = native_entries(path, headers, prefix)
    files: list[ReadFile] = []
    try:
        files += [open_read(header.path) for header in headers]
        places = gguf_source.places(path, entries) if from_gguf else _places(path, entries, headers[0].metadata, prefix, files)
        formats = _formats(path, places)
        lossy = _grade(path, places, formats, allow_lossy=allow_lossy)
    except BaseException:
        for file in files:
            file.close()
        raise
    name = os.path.basename(os.path.normpath(path))
    return StoredTensors(path, name, headers, files, places, lossy=lossy, left_out=left_out, formats=formats)


def _places(path: str, entries: dict[str, tuple[int, Entry]], metadata: dict[str, str], prefix: str,
            files: list[ReadFile]) -> dict[str, Place]:
    """The model's own tensors, each with what it takes to read it."""
    def fetch(key: str) -> bytes:
        number, entry = entries[key]
        stored = bytearray(entry.nbytes)
        files[number].read_into(entry.start, memoryview(stored))
        return bytes(stored)

    specs = {key: entry.spec for key, (_, entry) in entries.items()}
    layers = scaled.metadata_layers(path, metadata)
    found = scaled.find_quantized(path, specs, None if layers is None else _of_model(layers, specs, prefix), fetch)
    scales: dict[str, float] = {}
    packed: dict[str, Packed] = {}
    for layer, setting in found.settings.items():
        if setting["format"] in scaled.PACKED:
            packed[f"{layer}.weight"] = layouts.find_layout(path, layer, setting, entries, fetch)
        else:
            scale = scaled.scale_key(path, layer, specs)
            scales[f"{layer}.weight"] = scaled.read_scale(path, scale, specs[scale], fetch)
    return {key: Place(number, entry, scales.get(key), packed.get(key)) for key, (number, entry) in entries.items()
            if key not in found.companions}


def _of_model(layers: dict, specs: dict[str, TensorSpec], prefix: str) -> dict:
    """The settings of layers that this model has, under native bare names; the header also lists those of its companions."""
    native = {names.to_native(layer.removeprefix(prefix)): layers[layer] for layer in layers}
    return {layer: setting for layer, setting in native.items() if f"{layer}.weight" in specs}


def _formats(path: str, places: dict[str, Place]) -> dict[str, str]:
    """Key -> format of the tensors that are quantized. Raises SourceError for one that is neither that nor floats."""
    formats = {}
    for key, place in places.items():
        dtype = place.entry.spec.dtype
        if place.packed is not None:
            formats[key] = place.packed.form.NAME
        elif dtype in scaled.FP8:
            formats[key] = scaled.FP8[dtype]
        elif dtype not in PLAIN:
            raise SourceError(f"{path}: {key}: expected floating-point weights, found {NAMES[dtype]}; {scaled.ROUTE}")
    return formats


def _grade(path: str, places: dict[str, Place], formats: dict[str, str], *, allow_lossy: bool) -> str | None:
    """None for full precision, else in words what was lost."""
    words = {key: name if places[key].packed else f"{name}, {'un' if places[key].scale is None else ''}scaled"
             for key, name in formats.items()}
    if words and not allow_lossy:
        key, word = next(iter(words.items()))
        raise SourceError(f"{path}: {key}: expected 16 or 32-bit weights, found {word}; {ROUTE}")
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    counts = sorted(Counter(formats.values()).items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in counts) or None
