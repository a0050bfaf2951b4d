"""Where a module's alpha goes when its dialect changes: its own tensor, bit by bit, or PEFT's configuration in the metadata.

diffusers reads alphas from `lora_adapter_metadata` only (PEFT LoraConfig: r, lora_alpha, rank_pattern, alpha_pattern) and ignores
alpha tensors; all others read alpha tensors only. Numbers pass exactly: JSON holds a float64, and a tensor is float32 where that
gives the same alpha / rank in float64, else float64.
"""
import json
from collections import Counter
from dataclasses import dataclass

import torch

from ..errors import LoraError
from ..loras.alpha import ABSENT, factor
from ..loras.peft_config import METADATA
from ..specs import DTYPES, NAMES
from .reading import Contents, FileModule, read_stored

ALPHA_AS = "alpha_as"                              # in the pack's entry: dtype and shape of the alpha tensors before
PREFIXES = ("transformer", "transformer_2")


@dataclass(frozen=True)
class Scalar:
    """One module in diffusers' metadata. alpha None: none was given, so it is the rank."""

    layer: str
    rank: int
    alpha: float | None
    style: tuple[str, tuple[int, ...]] | None      # dtype name and shape of the tensor it was


def rank_of(contents: Contents, module: FileModule) -> int:
    """From the down factor. Raises LoraError when it has no axis."""
    shape = contents.spec(module.parts["down"]).shape
    if len(shape) < 2:
        key = module.parts["down"]
        raise LoraError(f"{contents.lora.name}: {key}: expected two axes or more, found {shape}; get the file again")
    return shape[0]


def read_scalar(contents: Contents, module: FileModule, layer: str) -> Scalar:
    """Rank and alpha of a module with factors, from its tensor or the file's configuration; `layer`: its name in the metadata."""
    rank, key = rank_of(contents, module), module.parts.get("alpha")
    if key is None:
        value, where = factor(contents.lora, module.name, None, rank)
        return Scalar(layer, rank, None if where.startswith(ABSENT) else value * rank, None)
    tensor = read_stored(contents.lora, key)
    if tensor.numel() != 1 or not torch.isfinite(tensor.double()).all():
        raise LoraError(f"{contents.lora.name}: {key}: expected one finite number, found shape {tuple(tensor.shape)}; get it again")
    return Scalar(layer, rank, tensor.double().item(), (NAMES[tensor.dtype], tuple(tensor.shape)))


def alpha_tensor(contents: Contents, module: FileModule, style: tuple[str, list[int]] | None) -> torch.Tensor | None:
    """The alpha that a configuration gives a module with factors, as a tensor; None when alpha is the rank by default.

    style: dtype and shape that such tensors had in the file this one was made from, used where it holds the number.
    """
    rank = rank_of(contents, module)
    value, where = factor(contents.lora, module.name, None, rank)
    if where.startswith(ABSENT):
        return None
    exact = torch.tensor(value * rank, dtype=torch.float64)
    if style is not None and exact.to(DTYPES[style[0]]).double() == exact:
        return exact.to(DTYPES[style[0]]).reshape(style[1])
    return exact.float() if exact.float().double() / rank == value else exact


def alpha_style(metadata: dict[str, str]) -> tuple[str, list[int]] | None:
    """What `to_metadata` noted of the alpha tensors, None when nothing or nonsense is there."""
    try:
        found = json.loads(metadata.get("wan22_master", "{}")).get(ALPHA_AS)
        name, shape = found
    except (ValueError, TypeError, AttributeError):
        return None                                # somebody else's entry: it is a hint, not needed for the numbers
    plain = name in DTYPES and DTYPES[name].itemsize <= 8 and isinstance(shape, list) and shape in ([], [1], [1, 1])
    return (name, shape) if plain else None


def to_metadata(halves: list[list[Scalar]], *, dora: bool) -> tuple[dict[str, str], dict]:
    """(metadata for diffusers, what goes into the pack's entry). halves: of the only or high-noise half, and of the low one."""
    scalars = [each for half in halves for each in half]
    if all(each.alpha is None for each in scalars) and not dora:
        return {}, {}
    told = {}
    for prefix, half in zip(PREFIXES, halves, strict=False):
        told |= {f"{prefix}.{field}": value for field, value in _config(half, dora=dora).items()}
    styles = {each.style for each in scalars}
    only = styles.pop() if len(styles) == 1 else None
    return {METADATA: json.dumps(told, sort_keys=True)}, {ALPHA_AS: only} if only else {}


def _config(half: list[Scalar], *, dora: bool) -> dict:
    """PEFT's LoraConfig: the commonest rank and alpha, patterns for the others, bound to the whole name by "^"."""
    rank = Counter(each.rank for each in half).most_common(1)[0][0]
    alphas = {each.layer: _number(each.rank if each.alpha is None else each.alpha) for each in half}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {"r": rank, "lora_alpha": alpha, "use_rslora": False, "use_dora": dora,
            "rank_pattern": {"^" + each.layer.replace(".", r"\."): each.rank for each in half if each.rank != rank},
            "alpha_pattern": {"^" + layer.replace(".", r"\."): value for layer, value in alphas.items() if value != alpha},
            "target_modules": sorted(alphas)}


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
