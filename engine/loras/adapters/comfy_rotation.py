"""ComfyUI 0.33's own arithmetic for OFT and BOFT: see comfy_maths.py. Facts from comfy/weight_adapter/oft.py and boft.py."""
import torch


def _rotation(blocks: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, I), float32. limit: of the norm of Q, 0 for none."""
    eye = torch.eye(blocks.shape[-1], device=blocks.device, dtype=blocks.dtype)
    skew = blocks - blocks.transpose(-1, -2)
    if limit > 0 and not skew.is_meta:
        norm = torch.norm(skew) + 1e-8
        if norm > limit:
            skew = skew * limit / norm
    return (eye + skew) @ (eye - skew).float().inverse(), eye


def rotate(alpha: float | None, prepared: tuple, weight: torch.Tensor, strength: float) -> tuple[torch.Tensor, float]:
    """OFT: (what is added before the strength, which is in it once already; the factor that DoRA would use)."""
    blocks, limit = prepared[0], alpha or 0
    turn, eye = _rotation(blocks, limit)
    parts = weight.view(*blocks.shape[:2], *weight.shape[1:])
    delta = torch.einsum("k n m, k n ... -> k m ...", (turn * strength) - strength * eye, parts)
    return delta.view(-1, *weight.shape[1:]), limit


def butterfly(alpha: float | None, prepared: tuple, weight: torch.Tensor, strength: float) -> tuple[torch.Tensor, float]:
    """BOFT, see `rotate`. Raises RuntimeError without an alpha, as ComfyUI compares it to 0."""
    (blocks, rescale), limit = prepared, alpha
    if limit is None:
        raise RuntimeError("BOFT without alpha")
    turn, eye = _rotation(blocks, limit)
    size, moved = blocks.shape[2], weight
    for stage in range(blocks.shape[0]):
        own, run = turn[stage], 2**stage * (size // 2)
        if strength != 1:
            own = own * strength + (1 - strength) * eye
        moved = moved.unflatten(0, (-1, 2, run)).transpose(1, 2).flatten(0, 2).unflatten(0, (-1, size))
        moved = torch.einsum("b i j, b j ...-> b i ...", own, moved)
        moved = moved.flatten(0, 1).unflatten(0, (-1, run, 2)).transpose(1, 2).flatten(0, 2)
    return (moved if rescale is None else moved * rescale) - weight, limit
