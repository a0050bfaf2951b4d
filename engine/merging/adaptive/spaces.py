"""The singular value decomposition of a delta, from its factors, without the delta.

    δ = B A = U Σ Vᵀ      B D = Q_b R_b,  (D⁻¹ A)ᵀ = Q_a R_a,  R_b R_aᵀ = u Σ vᵀ,  U = Q_b u,  V = Q_a v
(Golub and Van Loan 2013, Matrix Computations, section 8.6.6: the product SVD of two tall factors.) Neither Q is formed: from
δ V = U Σ and δᵀ U = V Σ follow the small matrices that make U and V of the factors as they lie in the file,

    U = B left,  left = D R_aᵀ v Σ⁻¹        Vᵀ = right A,  right = (D⁻¹ R_bᵀ u Σ⁻¹)ᵀ

which need no inverse of a factor: columns that are equal, zero or nearly dependent cost nothing, since only directions of δ with
σ > 10⁻⁶ σ₁ are divided by. The error of column i is about 10⁻¹⁶ ‖B‖ ‖A‖ / σ_i.
"""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spaces:
    """left: (rank of the factors, r), sigma: (r,) descending, right: (r, rank of the factors); float64, CPU. r = 0 where δ = 0."""

    left: torch.Tensor
    sigma: torch.Tensor
    right: torch.Tensor


def decompose(up: torch.Tensor, down: torch.Tensor, negligible: float) -> Spaces:
    """Decompose up @ down. up: (out, rank), down: (rank, in), any float dtype; computed in float64.

    negligible: singular values at or below this share of the largest are left out.
    """
    b, a = up.double(), down.double().t()
    balance = _balance(b, a)
    r_b = torch.linalg.qr(b * balance, mode="r").R
    r_a = torch.linalg.qr(a / balance, mode="r").R
    u, sigma, vt = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    r = significant(sigma, negligible)
    u, sigma, v = u[:, :r], sigma[:r], vt[:r].t()
    left = balance[:, None] * (r_a.t() @ v) / sigma
    right = (r_b.t() @ u) / balance[:, None] / sigma
    return Spaces(left, sigma, right.t().contiguous())


def significant(sigma: torch.Tensor, negligible: float) -> int:
    """How many of these singular values, descending, count; 0 when all are zero."""
    return int((sigma > negligible * sigma[0]).sum()) if sigma.numel() and sigma[0] > 0 else 0


def _balance(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Powers of two d_i that make the columns of b d and a / d equally long, so that none drowns another; 1 for zero columns."""
    ratio = a.norm(dim=0) / b.norm(dim=0)
    usable = torch.isfinite(ratio) & (ratio > 0)
    return torch.where(usable, torch.exp2(torch.round(torch.log2(torch.where(usable, ratio, 1.0)) / 2)), 1.0)
