"""The best product of few ranks for a delta that is already a product: QR of the factors and a small SVD, in float64.

    B A = Q_b R_b (Q_a R_a)ᵀ = Q_b (R_b R_aᵀ) Q_aᵀ,  R_b R_aᵀ = U Σ Vᵀ   →   (Q_b U √Σ) (√Σ Vᵀ Q_aᵀ)
The first r components are the nearest matrix of rank r in every unitarily invariant norm (Eckart & Young 1936; Mirsky 1960). Errors
are measured on what is stored, rounding included:
    B'A' − BA = [B'−B, B] [A'; A'−A],      ‖XY‖² = Σ (XᵀX) ∘ (Y Yᵀ)
"""
from dataclasses import dataclass

import torch

from .wish import Ranks


@dataclass(frozen=True)
class Fit:
    """A delta as it will be stored. up: (out, rank), down: (rank, in), in the dtype of the file.

    total: ‖δ‖²; lost: ‖δ − up @ down‖², both float64 numbers.
    """

    up: torch.Tensor
    down: torch.Tensor
    total: float
    lost: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def norm_square(up: torch.Tensor, down: torch.Tensor) -> float:
    """‖up @ down‖² without the product; float64 factors."""
    return ((up.t() @ up) * (down @ down.t())).sum().clamp_min(0.0).item()


def stored_fit(up: torch.Tensor, down: torch.Tensor, dtype: torch.dtype) -> Fit:
    """Exact factors, rounded once to `dtype`. up: (out, rank), down: (rank, in), float64."""
    kept_up, kept_down = round_factors(up, down, dtype)
    near_up, near_down = kept_up.double(), kept_down.double()
    lost = norm_square(torch.cat([near_up - up, up], 1), torch.cat([near_down, near_down - down]))
    return Fit(kept_up, kept_down, norm_square(up, down), lost)


def round_factors(up: torch.Tensor, down: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Both factors in `dtype`. float16 ends at 6e-8 and 65504, so there each component is first balanced by a power of two."""
    if dtype == torch.float16 and up.numel() and down.numel():
        high, low = up.abs().amax(0), down.abs().amax(1)
        both = (high > 0) & (low > 0)
        shift = torch.where(both, torch.round(torch.log2(torch.where(both, low / high, 1.0)) / 2), 0.0)
        up, down = torch.ldexp(up, shift), torch.ldexp(down, -shift[:, None])
    return up.to(dtype).contiguous(), down.to(dtype).contiguous()


def truncate(up: torch.Tensor, down: torch.Tensor, ranks: Ranks, dtype: torch.dtype) -> Fit:
    """The nearest product of fewer ranks. up: (out, R), down: (R, in), float64; R may exceed both sides."""
    left, left_small = torch.linalg.qr(up)
    right, right_small = torch.linalg.qr(down.t())
    turn, sigma, turn_back = torch.linalg.svd(left_small @ right_small.t(), full_matrices=False)
    total = sigma.square().sum().item()
    rank, root = ranks.choose(sigma, total), sigma.sqrt()
    new_up = left @ (turn[:, :rank] * root[:rank])
    new_down = (root[:rank, None] * turn_back[:rank]) @ right.t()
    kept_up, kept_down = round_factors(new_up, new_down, dtype)
    near_up, near_down = kept_up.double(), kept_down.double()
    rounding = norm_square(torch.cat([near_up - new_up, new_up], 1), torch.cat([near_down, near_down - new_down]))
    dropped = sigma[rank:].square().sum().item()
    return Fit(kept_up, kept_down, total, dropped + rounding)
