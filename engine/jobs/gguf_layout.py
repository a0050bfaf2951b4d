"""Where every byte of a GGUF file lies, from headers alone; the header is the gguf library's, in the first of its two phases.

The library writes a header, fields and the list of tensors, then the tensors in the same order, each padded to the alignment
(ggml docs/gguf.md). Here the first phase goes into memory, and the second is the writer's (writer.py): the same bytes, in row
bands, from several threads, resumable. Shapes are the weight's own, outermost first; the library turns them round. A tensor of any
rank is a plain entry, so patch_embedding stays as it is.
"""
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

from ...quant.formats import BLOCK_TYPES
from .. import gguf_mix
from ..errors import PlanError
from ..precision import Forms
from ..recipes.embedded import ENTRY
from ..specs import TensorSpec
from .layout import Layout

ARCHITECTURE = "wan"                               # ComfyUI-GGUF, loader.py, and city96's tools/convert.py
ALIGNMENT = 32                                     # general.alignment where a file does not say
QUANTIZATION_VERSION = 2                           # ggml.h, GGML_QNT_VERSION
LONGEST_NAME = 127                                 # bytes; GGML_MAX_NAME is 128 with its end, as city96's patch sets it
PAGE = ROOM = 4096                                 # bytes that the tensors' start is a multiple of, and left for later words


def place(specs: Mapping[str, TensorSpec], order: list[str], forms: Forms, metadata: Mapping[str, str]) -> Layout:
    """Lay out a file: `order` are keys of `specs`, in the order of the file.

    metadata: text by name. The pack's own entry, JSON, ends in spaces up to the next page, so that a few more words in it move no
    tensor. Raises PlanError for a name or a shape that GGUF does not hold.
    """
    stored = {key: (forms.of(key, specs[key]).NAME, forms.outputs(key, specs[key])[""]) for key in order}
    for key, (_, spec) in stored.items():
        _check(key, spec)
    said = {name: text for name, text in metadata.items() if text}
    mix = _mix(stored, forms.format)
    header = _header(stored, mix, said)
    if ENTRY in said:
        said[ENTRY] += " " * (ROOM + -(len(header) + ROOM) % PAGE)
        header = _header(stored, mix, said)
    placed, at = {}, len(header)
    for key, (_, spec) in stored.items():
        placed[key] = (spec, at)
        at += spec.nbytes + -spec.nbytes % ALIGNMENT
    return Layout(header, placed, at, metadata=said, alignment=ALIGNMENT)


def _check(key: str, spec: TensorSpec) -> None:
    if len(key.encode()) > LONGEST_NAME:
        raise PlanError(f"{key}: expected a name of at most {LONGEST_NAME} bytes in a GGUF, found {len(key.encode())}; save it as "
                        "safetensors")
    if not spec.shape:
        raise PlanError(f"{key}: expected at least one axis in a GGUF, found a single number; save it as safetensors")


def _mix(stored: Mapping[str, tuple[str, TensorSpec]], asked: str) -> str:
    """The mix that the file says it is: the one asked for, unless most quantized tensors are of another type, as in a plan."""
    found = Counter(name for name, _ in stored.values() if name in BLOCK_TYPES).most_common(1)
    default = gguf_mix.MIXES[asked].default if asked in gguf_mix.MIXES else asked
    return asked if not found or found[0][0] == default else found[0][0]


def _header(stored: Mapping[str, tuple[str, TensorSpec]], mix: str, metadata: Mapping[str, str]) -> bytes:
    """All before the tensors. stored: key -> type and what is stored."""
    from gguf import GGMLQuantizationType, GGUFWriter  # here: only GGUF files need it
    from gguf.gguf_writer import WriterState
    with _quiet():
        writer = GGUFWriter(None, ARCHITECTURE)
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_file_type(gguf_mix.file_type(mix))
    for name, text in metadata.items():
        writer.add_string(name, text)
    for key, (name, spec) in stored.items():
        dtype = np.dtype("uint8" if name in BLOCK_TYPES else "float32")      # of bytes, the library makes the shape out itself
        writer.add_tensor_info(key, spec.shape, dtype, spec.nbytes, GGMLQuantizationType[name])
    writer.fout, writer.state = [io.BytesIO()], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    header = writer.fout[0].getvalue()
    return header + bytes(-len(header) % ALIGNMENT)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's word on the byte order of every file, which would stand in the host's log twice for each plan."""
    logger = logging.getLogger("gguf.gguf_writer")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
