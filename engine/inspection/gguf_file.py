"""What a GGUF file is, told from its header: model, mix, types by kind of layer, what ComfyUI-GGUF makes of it."""
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from ..bases.gguf_header import GgufHeader, is_gguf, open_gguf
from ..bases.gguf_source import ARCHITECTURE, ARCHITECTURES, FIVE_AXES, PLAIN, lacking_axes
from ..bases.gguf_tensors import GgufTensor
from ..bases.names import find_prefix
from ..bases.roles import role_of
from ..bases.source import open_source
from ..bases.variant import detect
from ..errors import SourceError
from ..gguf_mix import BARE, MIXES
from ..imatrix import IMATRIX, SUMS
from . import openers
from .contract import SEVERITIES, Problem

__all__ = ["inspect_gguf", "is_gguf"]

# ComfyUI-GGUF, ops.py: GGML operations cover Linear, Conv2d, Embedding, LayerNorm, GroupNorm; the rest has to be wide.
WIDE = ("F32", "F16")
WIDE_ONLY = ("modulation", *(f"{layer}.weight" for layer in FIVE_AXES))
BLOCK_WEIGHT = re.compile(r"((?:vace_)?blocks)\.\d+\.(.+)\.weight")
STRIPPED = ("", "model.diffusion_model.")          # prefixes that ComfyUI-GGUF takes off (loader.py)


def inspect_gguf(path: str) -> dict:
    """As `facts.inspect`, of a GGUF file.

    Beside that "file_type": the mix by name or number, None where the file does not say; "quantization_version": of ggml's blocks,
    None likewise; "types": lines about the types of each kind of layer. Raises HeaderError when its header is damaged.
    """
    header = open_gguf(path)
    prefix = find_prefix(tensor.name for tensor in header.tensors)
    tensors = {tensor.name.removeprefix(prefix or ""): tensor for tensor in header.tensors}
    layers = {key.removesuffix(".weight"): _type(tensor) for key, tensor in tensors.items()
              if key.endswith(".weight") and _type(tensor) not in PLAIN}
    kept = {key: tensor for key, tensor in tensors.items() if key.removesuffix(".weight") not in layers}
    said = header.metadata.get(ARCHITECTURE)
    problems = sorted(_problems(tensors, prefix), key=lambda each: SEVERITIES.index(each.severity))
    role = role_of(path, {name: value for name, value in header.metadata.items() if isinstance(value, str)})
    dtypes = _dtypes(tensors)
    return {
        "name": os.path.basename(path), "bytes": header.size, "tensors": len(tensors), "files": 1,
        "what": _what(header, tensors, is_wan=prefix is not None), "role": role.role, "evidence": role.evidence,
        "dtypes": dtypes, "kept": _dtypes(kept), "quantized": dict(Counter(layers.values()).most_common()),
        "input_scales": {}, "lora": None,
        "layers": {layer: {"format": name, "full_precision": True, "input_scale": None} for layer, name in layers.items()},
        "file_type": _mix(header), "quantization_version": header.metadata.get("general.quantization_version"),
        "types": _types(tensors), "problems": problems, "metadata": dict(header.metadata),
        "opens_in": _opens_in(header, "wan" if prefix is not None and said in ARCHITECTURES else said, dtypes, problems),
    }


def _opens_in(header: GgufHeader, architecture: str | None, dtypes: Mapping, problems: list[Problem]) -> list[dict]:
    if _is_imatrix(header):
        return [openers.opens("none", None, "an importance matrix is no model; Quantize takes it")]
    return openers.of_gguf(architecture, dtypes, problems)


def _is_imatrix(header: GgufHeader) -> bool:
    return header.metadata.get("general.type") == IMATRIX


def _type(tensor: GgufTensor) -> str:
    return tensor.tensor_type.name


def _dtypes(tensors: Mapping[str, GgufTensor]) -> dict[str, dict[str, int]]:
    count, nbytes = Counter(), Counter()
    for tensor in tensors.values():
        count[_type(tensor)] += 1
        nbytes[_type(tensor)] += tensor.nbytes
    return {name: {"tensors": count[name], "bytes": total} for name, total in nbytes.most_common()}


def _what(header: GgufHeader, tensors: Mapping[str, GgufTensor], *, is_wan: bool) -> str:
    """In words; for a model that is a Wan by its names also why it is no base, if it is none."""
    blocks = {key.split(".")[1] for key in tensors if key.startswith("blocks.")}
    if _is_imatrix(header):
        return f"importance matrix of {sum(name.endswith(SUMS) for name in tensors)} layers"
    plain = f"GGUF of architecture {header.metadata.get(ARCHITECTURE)}, {len(blocks)} blocks"
    if not is_wan:
        return plain
    try:
        with open_source(header.path, allow_lossy=True) as source:
            mix, lossy = f" {_mix(header)}" if _mix(header) else "", f", lossy source: {source.lossy}" if source.lossy else ""
            return f"{detect(source).title}, GGUF{mix}{lossy}"
    except SourceError as cause:
        return f"{plain}, not usable as a base: {cause}"


def _mix(header: GgufHeader) -> str | None:
    """The mix that general.file_type names; its number where it is none of ours."""
    number = header.metadata.get("general.file_type")
    if not isinstance(number, int):
        return None
    return next((name for name, mix in MIXES.items() if mix.file_type == number), f"file type {number}")


def _types(tensors: Mapping[str, GgufTensor]) -> list[str]:
    """A line for the kinds of a block's weights that have the same types, as `types: ffn.2, self_attn.v: 20 Q6_K, 20 Q4_K`."""
    kinds: dict[str, Counter] = {}
    for key, tensor in tensors.items():
        found = BLOCK_WEIGHT.fullmatch(key)
        if found and len(tensor.shape) > 1:
            kinds.setdefault(found[2] if found[1] == "blocks" else f"{found[1]} {found[2]}", Counter())[_type(tensor)] += 1
    alike: dict[str, list[str]] = {}
    for kind, types in kinds.items():
        alike.setdefault(", ".join(f"{count} {name}" for name, count in types.most_common()), []).append(kind)
    return [f"types: {', '.join(names)}: {text}{' each' if names[1:] else ''}" for text, names in alike.items()]


def _problems(tensors: Mapping[str, GgufTensor], prefix: str | None) -> Iterator[Problem]:
    """What ComfyUI-GGUF cannot use, and what is slow there. tensors: by their names without the prefix."""
    if prefix is not None and prefix not in STRIPPED:
        yield Problem("", f"expected names as {STRIPPED[1]}blocks.0 or bare ones, found {prefix}blocks.0; ComfyUI-GGUF does not "
                      "know them", "error")
    lacking = lacking_axes({key: tensor.shape for key, tensor in tensors.items()}) if prefix is not None else {}
    for key, found in lacking.items():
        yield Problem((prefix or "") + key, f"expected 5 axes, found {found}; llama.cpp leaves out tensors of 5 axes, ComfyUI-GGUF "
                      "does not load a model without", "error")
    for key, tensor in tensors.items():
        name = _type(tensor)
        is_bare = key.endswith(WIDE_ONLY) or (BARE.fullmatch(key) and len(tensor.shape) > 1)
        if not tensor.tensor_type.elements:
            yield Problem(tensor.name, f"expected a type that is known, found {name}; ComfyUI-GGUF stops here", "error")
        elif is_bare and name not in WIDE:
            yield Problem(tensor.name, f"expected F32 or F16, all that ComfyUI-GGUF can use here, found {name}", "error")
        elif name not in openers.GGUF_TYPES:
            yield Problem(tensor.name, f"expected a type that ComfyUI-GGUF decodes on the card, found {name}: it is decoded on the "
                          "processor, slowly, and not read back here", "warning")
