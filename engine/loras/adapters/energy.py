"""How much a module would move a weight, from the file alone: the weight by which keys count in the ledger.

    |delta|_F^2 at strength 1: factors by their Gram matrices, kron as |w1|^2 |w2|^2, LoHa band by band, differences directly
The base is not read, so that what fits nothing can be weighed too. Where the delta depends on the base this is a stand-in:
DoRA: of the delta under it; GLoRA: of b1 b2; OFT, BOFT, IA3, set_weight: None, they say nothing without a weight.
"""
import math
from typing import TYPE_CHECKING

import torch

from ..alpha import factor
from ..factors import Factors, expand, read_difference, read_tensor
from .layer import Layer
from .spelling import BIASES, GLORA, LOHA, LOKR, PAIR_PARTS

if TYPE_CHECKING:
    from ..lora import LoraFile

BAND = 128
NUMBERS = {"alpha", "on_input", "reshape_weight"}  # by themselves they move nothing
WHOLE = ("diff", "diff_b", "diff_m", "w_norm", "b_norm", *BIASES)


def energy(lora: "LoraFile", parts: dict[str, str], *, rs_lora: bool | None = None) -> float | None:
    """|delta|_F^2 at strength 1 of one module name, all its adapters added up; None when the file alone cannot tell.

    parts: part (a value of SUFFIXES) -> key; rs_lora: as `build` takes it. Incomplete adapters count as nothing. Raises LoraError
    for values not finite.
    """
    if parts.keys() <= NUMBERS:
        return 0.0
    found = [_product(lora, parts, pair, rs_lora=rs_lora) for pair in PAIR_PARTS.values() if set(pair) <= parts.keys()]
    if set(LOHA[:4]) <= parts.keys():
        found.append(_hadamard(lora, parts))
    if any(part in parts for part in LOKR):
        found.append(_kron(lora, parts))
    if set(GLORA) <= parts.keys():
        found.append(_glora(lora, parts))
    found += [_whole(lora, parts[part]) for part in WHOLE if part in parts]
    known = [each for each in found if each is not None]
    return math.fsum(known) if known else None


def _factor_squared(lora: "LoraFile", parts: dict[str, str], rank: int) -> float:
    """(alpha / rank)^2 of a kind whose alpha only its own tensor can give; 1 without one that can be used."""
    usable = "alpha" in parts and _has_one_alpha(lora, parts) and rank
    return factor(lora, "", parts["alpha"], rank)[0] ** 2 if usable else 1.0


def _has_one_alpha(lora: "LoraFile", parts: dict[str, str]) -> bool:
    """False for an alpha of several numbers, or none, which cannot be used."""
    return "alpha" not in parts or math.prod(lora.header.entries[parts["alpha"]].spec.shape) == 1


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1) if tensor.ndim > 1 else tensor.reshape(1, -1)


def _squared(up: torch.Tensor, down: torch.Tensor) -> float | None:
    """|up @ down|^2; None when they cannot be multiplied."""
    if up.shape[1] != down.shape[0]:
        return None
    return Factors(up, down).inner(Factors(up, down)).sum().item()


def _product(lora: "LoraFile", parts: dict[str, str], pair: tuple[str, str], *, rs_lora: bool | None) -> float | None:
    up, down = pair
    first, second = read_tensor(lora, parts[up]), read_tensor(lora, parts[down])
    if not second.ndim:
        return None
    rank = second.shape[0]
    if up == "up" and "mid" in parts:
        second = _core(read_tensor(lora, parts["mid"]), second)
    squared = None if second is None else _squared(_flat(first), _flat(second))
    if not squared or not _has_one_alpha(lora, parts):
        return squared
    return squared * Layer(lora, None, "", parts, rs_lora).lora_factor(down, rank)[0] ** 2


def _core(core: torch.Tensor, down: torch.Tensor) -> torch.Tensor | None:
    fits = core.ndim > 1 and down.ndim > 1 and core.shape[1] == down.shape[0] and down[0].numel() == down.shape[1]
    return expand(core, down) if fits else None


def _hadamard(lora: "LoraFile", parts: dict[str, str]) -> float | None:
    sides = []
    for number in "12":
        up, down = (read_tensor(lora, parts[f"hada_w{number}_{side}"]) for side in "ab")
        if f"hada_t{number}" in parts:
            up, down = up.t() if up.ndim == 2 else up, _core(read_tensor(lora, parts[f"hada_t{number}"]), down)
        if down is None or not down.ndim or _flat(up).shape[1] != _flat(down).shape[0]:
            return None
        sides.append((_flat(up), _flat(down)))
    (up, down), (other_up, other_down) = sides
    if up.shape[0] != other_up.shape[0] or down.shape[1] != other_down.shape[1]:
        return None
    total = 0.0
    for start in range(0, up.shape[0], BAND):
        rows = slice(start, start + BAND)
        total += torch.linalg.vector_norm((up[rows] @ down).mul_(other_up[rows] @ other_down), dtype=torch.float64).item() ** 2
    return total * _factor_squared(lora, parts, lora.header.entries[parts["hada_w1_b"]].spec.shape[0])


def _kron(lora: "LoraFile", parts: dict[str, str]) -> float | None:
    total, rank = 1.0, None
    for name in ("lokr_w1", "lokr_w2"):
        a, b, core = f"{name}_a", f"{name}_b", name.replace("w", "t")
        if name in parts:
            total *= _whole(lora, parts[name])
        elif a in parts and b in parts:
            up, down = read_tensor(lora, parts[a]), read_tensor(lora, parts[b])
            if not down.ndim:
                return None
            rank = down.shape[0]
            if core in parts:
                up, down = up.t() if up.ndim == 2 else up, _core(read_tensor(lora, parts[core]), down)
            squared = None if down is None else _squared(_flat(up), _flat(down))
            if squared is None:
                return None
            total *= squared
        else:
            return None
    return total * (1.0 if rank is None else _factor_squared(lora, parts, rank))


def _glora(lora: "LoraFile", parts: dict[str, str]) -> float | None:
    b1, b2 = (_flat(read_tensor(lora, parts[part])) for part in ("b1", "b2"))
    first, second = (b1, b2) if b1.shape[1] == b2.shape[0] else (b2, b1)
    squared = _squared(first, second)
    return None if squared is None else squared * _factor_squared(lora, parts, second.shape[0])


def _whole(lora: "LoraFile", key: str) -> float:
    """Row bands of the stored tensor; a large one is never held whole."""
    shape = lora.header.entries[key].spec.shape
    rows = shape[0] if shape else 1
    step = max(1, BAND * 5120 // max(1, math.prod(shape[1:])))
    bands = ((start, min(start + step, rows)) for start in range(0, rows, step))
    parts = (read_difference(lora, key, band, torch.device("cpu")) for band in bands)
    return math.fsum(torch.linalg.vector_norm(part, dtype=torch.float64).item() ** 2 for part in parts)
