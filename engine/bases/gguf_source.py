"""A GGUF file as a base: its header as that of any file, and how its tensors are read.

A quantized weight is one stored tensor, rows of blocks (quant/gguf), so it is `packed` like ComfyUI's formats: one part, uint8
(rows, bytes of a row). F32, F16 and BF16 lie there as in a safetensors file. Names are the native ones. llama.cpp holds four axes
at most, so its files lack the weights of three-dimensional convolutions, which others put back (city96, tools/fix_5d_tensors.py).
"""
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import torch

from ...quant.formats import BLOCK_TYPES, form_of
from ..errors import SourceError
from ..header import Entry, Header
from ..specs import TensorSpec
from .gguf_header import GgufHeader, open_gguf
from .gguf_tensors import GgufTensor
from .gguf_types import GgmlType
from .packed import Packed, Part
from .stored import Place

ARCHITECTURE = "general.architecture"
# Wan's, as city96's tools/convert.py writes it, and those that ComfyUI-GGUF tells by the names of the tensors instead (loader.py):
# none (stable-diffusion.cpp) and two of calcuis' tools.
ARCHITECTURES = ("wan", "pig", "cow", None)
QUANTIZATION_VERSION = 2                           # ggml.h, GGML_QNT_VERSION: the layout of the blocks
# Type -> torch's; whole numbers are told by name when they are refused.
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I8": torch.int8,
         "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
# Layers of ComfyUI's Wan models that are Conv3d (comfy/ldm/wan/model.py, model_animate.py, model_wandancer.py).
FIVE_AXES = ("patch_embedding", "vace_patch_embedding", "pose_patch_embedding", "patch_embedding_pose", "patch_embedding_mask",
             "patch_embedding_global", "cond_encoder", "frame_packer.proj", "frame_packer.proj_2x", "frame_packer.proj_4x")
ROUTE = "choose another GGUF, or the bf16 or fp16 file of this model"
PUT_BACK = f"llama.cpp leaves out tensors of 5 axes: make the GGUF again with a tool that keeps them; {ROUTE}"


@dataclass(frozen=True)
class GgufEntry(Entry):
    """kind: as stored; shape: of the weight. `spec` of a quantized one is (rows, bytes of a row), uint8; of what has no rows of
    whole blocks, its bytes."""

    kind: GgmlType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Blocks(Packed):
    """A weight in blocks, of two axes or more: `form` takes it as a matrix with a row for each index of the first."""

    def read(self, files, rows: tuple[int, int], out: torch.Tensor) -> None:
        """As Packed.read. out: (stop - start, ...) float32, contiguous."""
        matrix = TensorSpec((self.spec.shape[0], prod(self.spec.shape[1:])), self.spec.dtype)
        Packed(self.form, matrix, self.parts, self.constants, self.nbytes).read(files, rows, out.view(len(out), matrix.shape[1]))


def read_header(path: str) -> Header:
    """The header of a GGUF file that may be a base; its metadata are the texts in it.

    Raises HeaderError for a damaged file, SourceError for another architecture, a part of a split file, blocks of another layout.
    """
    found = open_gguf(path)
    _check_metadata(found)
    entries = {tensor.name: _entry(tensor) for tensor in found.tensors}
    metadata = {name: value for name, value in found.metadata.items() if isinstance(value, str)}
    return Header(path, found.size, found.mtime_ns, entries, metadata, found.sha256)


def places(path: str, entries: Mapping[str, tuple[int, GgufEntry]]) -> dict[str, Place]:
    """How each tensor is read. entries: native key -> number of its file and entry.

    Raises SourceError for a type that is not decoded, a quantized tensor without rows of blocks, and a model that lacks tensors of
    five axes; all name the tensor.
    """
    lacking = lacking_axes({key: entry.shape for key, (_, entry) in entries.items()})
    for key, found in lacking.items():
        raise SourceError(f"{path}: {key}: expected 5 axes, found {found}; {PUT_BACK}")
    return {key: Place(number, entry, None, None if entry.kind.name in PLAIN else _packed(path, key, number, entry))
            for key, (number, entry) in entries.items()}


def lacking_axes(shapes: Mapping[str, Collection[int]]) -> dict[str, str]:
    """Native key -> what is there instead, of the weights that must have five axes. shapes: of a whole model."""
    keys = {f"{layer}.weight": f"{layer}.bias" in shapes or layer == FIVE_AXES[0] for layer in FIVE_AXES}
    found = {key: f"shape {list(shapes[key])}" if key in shapes else "no such tensor"
             for key, is_wanted in keys.items() if is_wanted or key in shapes}
    return {key: text for key, text in found.items() if len(shapes.get(key, ())) != 5}


def _check_metadata(header: GgufHeader) -> None:
    path, said = header.path, header.metadata
    if said.get(ARCHITECTURE) not in ARCHITECTURES:
        found = str(said[ARCHITECTURE])[:40]
        raise SourceError(f"{path}: expected a GGUF of architecture wan, found {found!r}; choose a GGUF of a Wan model")
    if said.get("split.count", 1) not in (0, 1):
        raise SourceError(f"{path}: expected a whole model, found one of {said['split.count']} parts; join them with llama.cpp's "
                          "llama-gguf-split --merge")
    version = said.get("general.quantization_version", QUANTIZATION_VERSION)
    if version != QUANTIZATION_VERSION and any(each.tensor_type.name not in PLAIN for each in header.tensors):
        raise SourceError(f"{path}: expected quantization version {QUANTIZATION_VERSION}, found {str(version)[:40]}, whose blocks "
                          f"are laid out otherwise; {ROUTE}")


def _entry(tensor: GgufTensor) -> GgufEntry:
    kind, shape = tensor.tensor_type, tensor.shape
    if kind.name in PLAIN:
        spec = TensorSpec(shape, PLAIN[kind.name])
    elif len(shape) > 1 and kind.elements and shape[0] and prod(shape[1:]) % kind.elements == 0:
        spec = TensorSpec((shape[0], tensor.nbytes // shape[0]), torch.uint8)
    else:
        spec = TensorSpec((tensor.nbytes,), torch.uint8)
    return GgufEntry(spec, tensor.start, kind, shape)


def _packed(path: str, key: str, number: int, entry: GgufEntry) -> Blocks:
    if entry.kind.name not in BLOCK_TYPES:
        raise SourceError(f"{path}: {key}: expected {', '.join(BLOCK_TYPES)}, F32, F16 or BF16, found {entry.kind.name}, which is "
                          f"not read back; {ROUTE}")
    if len(entry.spec.shape) != 2:
        raise SourceError(f"{path}: {key}: expected rows of whole blocks of {entry.kind.elements}, found {entry.kind.name} of "
                          f"shape {list(entry.shape)}; {ROUTE}")
    part = Part(number, entry, entry.spec, 1)
    return Blocks(form_of(entry.kind.name), TensorSpec(entry.shape, torch.bfloat16), {"": part}, {}, entry.nbytes)
