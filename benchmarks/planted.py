"""Synthetic bases whose singular components are known, and LoRAs that are half known, half new. Float64."""
import math
from dataclasses import dataclass
from functools import lru_cache

import torch

BASES = ("gaussian", "power law", "spiked")


@dataclass(frozen=True)
class Base:
    """weight = u diag(sigma) vᵀ, (n, n), with elements of rms 0.03."""

    weight: torch.Tensor
    u: torch.Tensor
    sigma: torch.Tensor
    v: torch.Tensor

    @property
    def rms(self) -> float:
        return (self.weight.norm() / math.sqrt(self.weight.numel())).item()


@dataclass(frozen=True)
class Lora:
    """factors: up, down; known, new: the dense parts without the noise."""

    factors: tuple[torch.Tensor, torch.Tensor]
    known: torch.Tensor
    new: torch.Tensor


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _orthonormal(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(_normal(seed, rows, columns)).Q


@lru_cache(maxsize=6)
def make_base(name: str, n: int, seed: int) -> Base:
    """gaussian: independent elements; power law: σ_i = i^-1/2; spiked: gaussian and 8 components, ten times its largest."""
    if name == "power law":
        u, v = _orthonormal(seed, n, n), _orthonormal(seed + 1, n, n)
        sigma = torch.arange(1, n + 1, dtype=torch.float64) ** -0.5
    else:
        weight = _normal(seed, n, n)
        if name == "spiked":
            weight += _orthonormal(seed + 2, n, 8) @ _orthonormal(seed + 3, n, 8).t() * (20 * math.sqrt(n))
        u, sigma, vt = torch.linalg.svd(weight)
        v = vt.t()
    sigma = sigma * (0.03 * n / sigma.norm())
    return Base((u * sigma) @ v.t(), u, sigma, v)


def lora_factors(base: Base, rank: int, sizes: tuple[float, float], *, spread: bool = False, noise: float = 0.0,
                 places: list[int] | None = None, seed: int = 7) -> Lora:
    """Half of the rank are components of the base, drawn from its strongest eighth unless `places` names them; half are random.

    sizes: singular values of the known and of the new part, in units of 3 % of the base's norm over √rank. spread: they fall to a
    tenth within each part. noise: relative, on both factors, after which they are turned so that no column is one component.
    """
    n, half = len(base.weight), rank // 2
    draw = torch.Generator().manual_seed(seed)
    places = torch.randperm(n // 8, generator=draw)[:half].tolist() if places is None else places
    unit = 0.03 * base.weight.norm() / math.sqrt(rank)
    fall = torch.logspace(0, -1, half, dtype=torch.float64) if spread else torch.ones(half, dtype=torch.float64)
    known = base.u[:, places] * (fall * sizes[0] * unit), base.v[:, places].t()
    new = _orthonormal(seed + 1, n, half) * (fall.flip(0) * sizes[1] * unit), _orthonormal(seed + 2, n, half).t()
    root = [torch.sqrt(torch.cat([fall * sizes[0], fall.flip(0) * sizes[1]]) * unit)] * 2
    up = torch.cat([known[0], new[0]], 1) / root[0]
    down = torch.cat([known[1], new[1]]) * root[1][:, None]
    turn = _orthonormal(seed + 3, len(root[0]), len(root[0]))
    up, down = up @ turn, turn.t() @ down
    for factor, place in ((up, 4), (down, 5)):
        rough = _normal(seed + place, *factor.shape)
        factor += rough * (noise * factor.norm() / rough.norm())
    return Lora((up, down), known[0] @ known[1], new[0] @ new[1])


def random_factors(base: Base, rank: int, norm: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Independent normal factors of a delta of this norm."""
    up, down = _normal(3 * seed + 11, len(base.weight), rank), _normal(3 * seed + 12, rank, base.weight.shape[1])
    return up * (norm / (up @ down).norm()), down
