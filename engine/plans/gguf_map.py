"""A GGUF file of the same model as a precision map: only the types of its tensors are read, none of its values.

As jorismak/convert_nvfp4 decides (classify_layers_from_gguf), for a 2-D weight of type T, and N = --gguf-nvfp4-max-bitdepth:
    not in the file, or F16, BF16, F32    keep
    n = first Q(\\d+) in T (Q5_K: 5, IQ4_XS: 4, TQ1_0: 1)    n <= N: nvfp4    n > N: float8_e4m3fn with --use-fp8, else keep
    no such number (MXFP4, I8)            keep
    --gguf-keep-edge-blocks-fp16          blocks 0, 1, L-2, L-1: keep
F32 names, of whatever tensors, form the set that stays in F32 when the source is. Only linears of the blocks are concerned here;
the original quantizes embeddings too when a GGUF has them narrow, which its makers never do (city96, lcpp.patch).
A plan for a GGUF copies the types as they are; one that is not written here becomes the next of as many bits (`copied`).
"""
import os
import re
from collections.abc import Mapping

from ...quant.formats import BLOCK_TYPES
from ..bases.gguf_header import open_gguf
from ..errors import SourceError
from ..precision import BLOCK_LINEAR
from ..specs import TensorSpec
from .moves import Choices, keep_edges, moved
from .names import PREFIX, bare, some
from .plan import KEEP, Choice, block_linears

ARCHITECTURE = "wan"     # general.architecture, as city96's tools/convert.py writes it
DEPTH = re.compile(r"Q(\d+)")
PLAIN = ("F16", "BF16", "F32")
WRITTEN = {1: "Q2_K", 2: "Q2_K", 3: "Q3_K", 4: "IQ4_XS", 5: "Q5_K", 6: "Q6_K", 8: "Q8_0"}  # IQ4_XS has MXFP4's 4.25 bits


def types_of(path: str | os.PathLike) -> dict[str, str]:
    """Key -> name of its GGML type (Q5_K, F16), as the file spells the keys. Reads the header alone, whatever the file's size.

    Raises HeaderError: not a GGUF file, or damaged; SourceError: of another architecture. Both name the file.
    """
    header = open_gguf(path)
    architecture = str(header.metadata.get("general.architecture", ""))
    if architecture != ARCHITECTURE:
        raise SourceError(f"{path}: expected a GGUF of architecture {ARCHITECTURE}, found {architecture or 'none'!r}, "
                          f"choose a GGUF of a Wan model")
    return {tensor.name: tensor.tensor_type.name for tensor in header.tensors}


def from_gguf(model: Mapping[str, TensorSpec], types: Mapping[str, str], *, nvfp4_max_bitdepth: int = 4, use_fp8: bool = False,
              keep_edge_blocks: bool = False) -> Choices:
    """The choice of each block linear of `model` after the types that `types_of` read. A prefix on either side is ignored.

    Raises SourceError when not one block linear is in the map.
    """
    found = {layer: _choice(name, nvfp4_max_bitdepth, use_fp8=use_fp8) for layer, name in _by_layer(model, types).items()}
    return keep_edges(found) if keep_edge_blocks else found


def copied(model: Mapping[str, TensorSpec], types: Mapping[str, str]) -> Choices:
    """The type of each block linear of `model` in the GGUF, for another GGUF; KEEP where it has none, or floats there.

    Raises SourceError when not one block linear is in the map.
    """
    return {layer: _copy(name) for layer, name in _by_layer(model, types).items()}


def _by_layer(model: Mapping[str, TensorSpec], types: Mapping[str, str]) -> dict[str, str | None]:
    """Block linear of the model -> type in the map, None where it has none."""
    linears = block_linears({bare(key): spec for key, spec in model.items()})
    known = {bare(key): name for key, name in types.items()}
    if not any(f"{layer}.weight" in known for layer in linears):
        raise SourceError(f"gguf map: expected the {len(linears)} block linears of the model, found none of them among "
                          f"{len(known)} names ({some(known)}), choose a GGUF of this model")
    return {layer: known.get(f"{layer}.weight") for layer in linears}


def _copy(name: str | None) -> Choice:
    if name in BLOCK_TYPES:
        return Choice(name, reason=f"{name} in the GGUF")
    depth = re.search(r"(?:Q|FP)(\d)", name or "")
    if depth and int(depth[1]) in WRITTEN:
        return Choice(WRITTEN[int(depth[1])], reason=f"{name} in the GGUF, which is not written here: {WRITTEN[int(depth[1])]}")
    return Choice(KEEP, reason=f"{name} in the GGUF" if name else "not in the GGUF")


def _choice(name: str | None, limit: int, *, use_fp8: bool) -> Choice:
    if name is None:
        return Choice(KEEP, reason="not in the GGUF")
    depth = DEPTH.search(name)
    told = Choice(KEEP, reason=f"{name} in the GGUF")
    if not depth:  # F16, BF16 and F32 among them
        return told
    if int(depth[1]) <= limit:
        return moved(told, "nvfp4", f"at most {limit} bits")
    if use_fp8:
        return moved(told, "float8_e4m3fn", f"more than {limit} bits")
    return Choice(KEEP, reason=f"{told.reason}; more than {limit} bits, and fp8 was not asked for")


def fp32_names(types: Mapping[str, str]) -> tuple[str, ...]:
    """Native keys that the GGUF stores in F32, weights or not; these stay F32 where the source is."""
    return tuple(bare(key) for key, name in types.items() if name == "F32")


def oddities(model: Mapping[str, TensorSpec], types: Mapping[str, str], copies: Choices | None = None) -> list[str]:
    """Notices of how a map and a model differ: prefixes, layers that one of them has not, types that say nothing.

    copies: what `copied` made of them, for a GGUF.
    """
    linears = block_linears({bare(key): spec for key, spec in model.items()})
    known = {bare(key): name for key, name in types.items()}
    missing = [layer for layer in linears if f"{layer}.weight" not in known]
    extra = [key for key in known if BLOCK_LINEAR.fullmatch(key) and key.removesuffix(".weight") not in linears]
    other = [f"{key} {name}" for key, name in known.items() if name not in PLAIN and not DEPTH.search(name)]
    changed = [f"{layer} {known[f'{layer}.weight']} to {each.format}" for layer, each in (copies or {}).items()
               if known.get(f"{layer}.weight") not in (None, *PLAIN, each.format)]
    narrow = [key for key, name in known.items() if DEPTH.search(name) and not BLOCK_LINEAR.fullmatch(key)]
    prefixed = [where for where, keys in (("the model", model), ("the gguf", types)) if any(key.startswith(PREFIX) for key in keys)]
    return [f"gguf map: {text}" for is_so, text in (
        (prefixed, f"{PREFIX} before the names of {' and '.join(prefixed)} was ignored"),
        (missing, f"{len(missing)} of {len(linears)} block linears are not in it and stay unquantized: {some(missing)}"),
        (extra, f"it has {len(extra)} block linears that the model has not, so it may be of another model: {some(extra)}"),
        (other if copies is None else [], f"{len(other)} tensors are of a type without a bit depth and stay unquantized: "
                                          f"{some(other)}"),
        (changed, f"{len(changed)} layers are of a type that is not written here and get the nearest: {some(changed)}"),
        (narrow, f"{len(narrow)} tensors outside the linears of the blocks are quantized there and not here: {some(narrow)}"),
    ) if is_so]
