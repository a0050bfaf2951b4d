"""The tensors of a converted LoRA, planned from the header: which bytes of which file stand under which new name.

Factors, alphas and differences keep every bit. Three things are written anew, and only where the target cannot say them otherwise:
an alpha from a configuration becomes a tensor (scalars.py); PEFT's magnitude (out,) and dora_scale (out, 1, ...) change shape, not
bits; a LoRA bias, which is scaled by alpha / rank, becomes diff_b = alpha / rank * bias, exact for powers of two.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..errors import LoraError
from ..loras.alpha import factor
from ..loras.modules import Refused
from ..specs import TensorSpec
from . import scalars
from .reading import Contents, FileModule, read_stored
from .spelling import Dialect

NO_PARTNER = "partner factor missing"
COMPANIONS = {"mid", "bias", "magnitude", "dora_scale"}
FACTORS = {"down", "hada_w1_a", "lokr_w1", "lokr_w1_a"}


@dataclass(frozen=True)
class Piece:
    """One tensor of the new file. key: of the old one; fetch: reads it, in the spec's dtype and shape."""

    key: str
    spec: TensorSpec
    fetch: Callable[[], torch.Tensor]


@dataclass
class Half:
    """What one expert's modules become. pieces: new name -> Piece; told, moved: scalars for the metadata, keys of those."""

    pieces: dict[str, Piece] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    told: list[scalars.Scalar] = field(default_factory=list)
    moved: set[str] = field(default_factory=set)
    dora: int = 0


def plan_half(contents: Contents, modules: list[FileModule], to: Dialect, role: str | None) -> Half:
    """Spell `modules` of one expert in dialect `to`. role: whose half it becomes in a combined file, else None."""
    half = Half()
    style = scalars.alpha_style(contents.lora.metadata)
    for module in modules:
        name = to.module(module.layer, role)
        problems = {part: problem for part in module.parts if (problem := _problem(contents, module, part, to))}
        kept = [part for part in module.parts if part not in problems]
        if kept == ["alpha"]:                      # an alpha alone says nothing
            problems["alpha"] = next(iter(problems.values()), "alpha without factors")
        half.refused += [Refused(module.parts[part], why) for part, why in problems.items()]
        for part in (each for each in kept if each not in problems):
            if part == "alpha" and to.is_peft:
                half.moved.add(module.parts[part])
            else:
                _put(half, name + to.suffix(module, part), _piece(contents, module, part, to))
        if {"up", "down"} & set(kept):
            _scalars(half, contents, module, to, (name, style))
    if 0 < half.dora < len(half.told):
        raise LoraError(f"{contents.lora.name}: expected DoRA on all layers or none, as {to.title} holds it, found it "
                        f"on {half.dora} of {len(half.told)}; convert to native instead")
    return half


def _put(half: Half, name: str, piece: Piece) -> None:
    if name in half.pieces:
        raise LoraError(f"{piece.key}: expected one tensor for {name}, found also {half.pieces[name].key}; use Merge LoRAs")
    half.pieces[name] = piece


def _problem(contents: Contents, module: FileModule, part: str, to: Dialect) -> str | None:
    """Why a part cannot stand in the new file."""
    if part in {"up", "down"} and {"up", "down"} - set(module.parts):
        return NO_PARTNER
    if part in COMPANIONS and not FACTORS & set(module.parts):
        return NO_PARTNER
    if to.is_peft and part == "dora_scale" and _outputs(contents, module, part) is None:
        return f"{to.title} holds a DoRA magnitude per output, this one has shape {contents.spec(module.parts[part]).shape}; " \
               "convert to native instead"
    return to.why_not(module, part)


def _outputs(contents: Contents, module: FileModule, part: str) -> int | None:
    """Number of outputs when this magnitude has one value for each, else None. PEFT's for a convolution is (1, out, 1, ...)."""
    shape = contents.spec(module.parts[part]).shape
    out = contents.spec(module.parts["up"]).shape[:1] if "up" in module.parts else ()
    fits = shape[:1] == out or (part == "magnitude" and shape[:2] == (1, *out))
    return out[0] if out and fits and math.prod(shape) == out[0] else None


def _piece(contents: Contents, module: FileModule, part: str, to: Dialect) -> Piece:
    key = module.parts[part]
    spec, lora = contents.spec(key), contents.lora
    if part == "bias" and not to.is_peft:
        value, _ = factor(lora, module.name, module.parts.get("alpha"), scalars.rank_of(contents, module))
        if value == 1:
            return Piece(key, spec, lambda: read_stored(lora, key))
        wide = TensorSpec(spec.shape, torch.float32)
        return Piece(key, wide, lambda: (read_stored(lora, key).double() * value).float())
    shape = _magnitude_shape(contents, module, part, to) or spec.shape
    return Piece(key, TensorSpec(shape, spec.dtype), lambda: read_stored(lora, key).reshape(shape))


def _magnitude_shape(contents: Contents, module: FileModule, part: str, to: Dialect) -> tuple[int, ...] | None:
    """(out,) for PEFT, (out, 1, ...) for dora_scale; None where nothing changes: other parts, and a dora_scale that stays one."""
    if part not in {"magnitude", "dora_scale"} or (part == "dora_scale" and not to.is_peft):
        return None
    out = _outputs(contents, module, part)
    if out is None:
        key = module.parts[part]
        raise LoraError(f"{contents.lora.name}: {key}: expected one magnitude per output, found {contents.spec(key).shape}")
    axes = len(contents.spec(module.parts["down"]).shape)
    return (out,) if to.is_peft else (out, *(1,) * (axes - 1))


def _scalars(half: Half, contents: Contents, module: FileModule, to: Dialect, told: tuple[str, tuple | None]) -> None:
    """Put the module's alpha where the target reads it."""
    name, style = told
    if to.is_peft:
        half.told.append(scalars.read_scalar(contents, module, name.removeprefix(to.prefixes[1]).removeprefix(to.prefixes[0])))
        half.dora += bool({"magnitude", "dora_scale"} & set(module.parts))
    elif "alpha" not in module.parts:
        tensor = scalars.alpha_tensor(contents, module, style)
        if tensor is not None:
            key = module.parts["down"]
            _put(half, f"{name}.alpha", Piece(key, TensorSpec(tuple(tensor.shape), tensor.dtype), lambda: tensor))
