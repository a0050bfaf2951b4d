"""ComfyUI 0.33's own arithmetic for one patch of a LoRA on one whole tensor, operation by operation, so that the bits agree.

Facts from comfy/lora.py (calculate_weight) and comfy/weight_adapter/*.py. What is wrong there is wrong here: DoRA's norm on the
output axis is W's, not V's, plus eps; OFT's strength counts twice; a factor of another shape but as many elements is
reshaped; kron on 5-D puts the kernel axes of w1 in front; set_weight ignores the strength; alpha itself limits a rotation.
`prepare` is what ComfyUI does outside its try (an error there stops its loading), `apply` what is inside (an error leaves the
layer as it is).
Both also run on meta tensors, which tells errors by shape before anything is read.
"""
from collections.abc import Callable

import torch

from .comfy_rotation import butterfly, rotate

Read = Callable[[str], torch.Tensor | None]        # part -> float32 tensor, None where the file has none


def prepare(kind: str, alpha: float | None, read: Read) -> tuple:
    """What `apply` needs, from the file alone. alpha: as stored. Raises what torch raises."""
    if kind == "lora":
        up, down, mid = read("up"), read("down"), read("mid")
        factor = 1.0 if alpha is None else alpha / down.shape[0]
        if mid is not None:
            shape = [down.shape[1], down.shape[0], mid.shape[2], mid.shape[3]]
            down = torch.mm(down.transpose(0, 1).flatten(1), mid.transpose(0, 1).flatten(1)).reshape(shape).transpose(0, 1)
        return up, down, factor
    if kind == "loha":
        sides = [(read(f"hada_w{n}_a"), read(f"hada_w{n}_b"), read(f"hada_t{n}")) for n in "12"]
        factor = 1.0 if alpha is None else alpha / sides[0][1].shape[0]
        cores = sides[0][2] is not None
        return *(_core(core, b, a) if cores else torch.mm(a, b) for a, b, core in sides), factor
    if kind == "lokr":
        return _lokr(alpha, read)
    if kind == "glora":
        return tuple(read(part) for part in ("a1", "a2", "b1", "b2"))
    if kind in ("oft", "boft"):
        blocks = read("oft_blocks")
        return blocks, read("rescale")
    return (read(kind),)


def _core(core: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return torch.einsum("i j k l, j r, i p -> p r k l", core, b, a)


def _lokr(alpha: float | None, read: Read) -> tuple:
    first, second, core = read("lokr_w1"), read("lokr_w2"), read("lokr_t2")
    rank = None
    if first is None:
        a, b = read("lokr_w1_a"), read("lokr_w1_b")
        first, rank = torch.mm(a, b), b.shape[0]
    if second is None:
        a, b = read("lokr_w2_a"), read("lokr_w2_b")
        second, rank = torch.mm(a, b) if core is None else _core(core, b, a), b.shape[0]
    if second.dim() == 4:
        first = first.unsqueeze(2).unsqueeze(2)
    return first, second, 1.0 if alpha is None or rank is None else alpha / rank


def apply(kind: str, alpha: float | None, read: tuple[tuple, torch.Tensor | None], weight: torch.Tensor, strength: float) -> None:
    """Change `weight`, the whole tensor in its own shape, IN PLACE. read: (from `prepare`, DoRA's magnitude or None).

    Raises what torch raises.
    """
    prepared, magnitude = read
    if kind == "set_weight":
        weight.copy_(prepared[0])
        return
    if kind in ("diff", "w_norm", "b_norm", "diff_b"):
        if strength != 0.0:
            if prepared[0].shape != weight.shape:
                raise RuntimeError(f"shape {tuple(prepared[0].shape)} does not fit {tuple(weight.shape)}")
            weight += strength * prepared[0]
        return
    delta, factor = _DELTAS[kind](alpha, prepared, weight, strength)
    if magnitude is None:
        weight += (strength if kind in ("oft", "boft") else strength * factor) * delta
    else:
        _decompose(weight, delta, factor, magnitude, strength)


def _lora(alpha: float | None, prepared: tuple, weight: torch.Tensor, strength: float) -> tuple[torch.Tensor, float]:
    up, down, factor = prepared
    return torch.mm(up.flatten(1), down.flatten(1)).reshape(weight.shape), factor


def _loha(alpha: float | None, prepared: tuple, weight: torch.Tensor, strength: float) -> tuple[torch.Tensor, float]:
    first, second, factor = prepared
    return (first * second).reshape(weight.shape), factor


def _kron(alpha: float | None, prepared: tuple, weight: torch.Tensor, strength: float) -> tuple[torch.Tensor, float]:
    first, second, factor = prepared
    return torch.kron(first, second).reshape(weight.shape), factor


def _glora(alpha: float | None, prepared: tuple, weight: torch.Tensor, strength: float) -> tuple[torch.Tensor, float]:
    a1, a2, b1, b2 = prepared
    is_old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    is_new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    rank = a1.shape[0]
    if is_new and not (is_old and a2.shape[0] == weight.shape[0] == weight.shape[1]):
        is_old, rank = False, a2.shape[0]
    factor = 1.0 if alpha is None else alpha / rank
    a1, a2, b1, b2 = (each.flatten(1) for each in prepared)
    if is_old:
        return (torch.mm(b2, b1) + torch.mm(torch.mm(weight.flatten(1), a2), a1)).reshape(weight.shape), factor
    if weight.dim() > 2:
        turned = torch.einsum("o i ..., i j -> o j ...", torch.einsum("o i ..., i j -> o j ...", weight, a1), a2)
    else:
        turned = torch.mm(torch.mm(weight, a1), a2)
    delta = turned.reshape(weight.shape)
    delta += torch.mm(b1, b2).reshape(weight.shape)
    return delta, factor


def _decompose(weight: torch.Tensor, delta: torch.Tensor, factor: float, magnitude: torch.Tensor, strength: float) -> None:
    """DoRA as ComfyUI has it, IN PLACE."""
    delta *= factor
    moved = weight + delta
    ones = [1] * (weight.dim() - 1)
    if magnitude.shape[0] == moved.shape[0]:
        norm = weight.reshape(weight.shape[0], -1).norm(dim=1, keepdim=True).reshape(weight.shape[0], *ones)
    else:
        flat = moved.transpose(0, 1).reshape(moved.shape[1], -1)
        norm = flat.norm(dim=1, keepdim=True).reshape(moved.shape[1], *ones).transpose(0, 1)
    moved *= magnitude / (norm + torch.finfo(weight.dtype).eps)
    if strength != 1.0:
        moved -= weight
        weight += strength * moved
    else:
        weight.copy_(moved)


_DELTAS = {"lora": _lora, "loha": _loha, "lokr": _kron, "glora": _glora, "oft": rotate, "boft": butterfly}
