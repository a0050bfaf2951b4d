"""Largest singular values, estimated from below: of a base in row bands, and of a sum of factors. For the report only.

    σ₁(W) ≈ √λ_max(T), T the tridiagonal matrix of a few Lanczos steps on WᵀW from a seeded start
(Golub and Van Loan 2013, sections 10.1 and 10.4; Golub-Kahan's bidiagonalization computes the same.)
"""
from collections.abc import Callable

import torch

STEPS = 6   # Gaussian 1024 x 1024: 0.96 of σ₁ (benchmarks/adaptive_error.py); one step reads the weight once
SEED = 0


def start_vector(columns: int) -> torch.Tensor:
    """(columns,) float32, unit norm, the same for every tensor of this width."""
    drawn = torch.randn(columns, generator=torch.Generator().manual_seed(SEED))
    return drawn / drawn.norm()


def spectral_norm(normal: Callable[[torch.Tensor], torch.Tensor], columns: int) -> float:
    """normal(x): WᵀWx, (columns,) float32 -> (columns,) float64. Returns an estimate of ‖W‖₂, never above it but for rounding."""
    basis = [start_vector(columns).double()]
    diagonal, off = [], []
    for _ in range(min(STEPS, columns)):
        image = normal(basis[-1].float())
        diagonal.append(torch.dot(image, basis[-1]))
        for _ in range(2):                         # twice is enough (Giraud et al. 2005): the basis stays orthogonal
            for each in basis:
                image = image - torch.dot(image, each) * each
        rest = image.norm()
        if rest <= 1e-6 * diagonal[0].abs():       # the space is exhausted, up to the float32 of `normal`
            break
        off.append(rest)
        basis.append(image / rest)
    small = torch.diag(torch.stack(diagonal))
    for place, value in enumerate(off[:len(diagonal) - 1]):
        small[place, place + 1] = small[place + 1, place] = value
    return max(0.0, torch.linalg.eigvalsh(small)[-1].item()) ** 0.5


def norm_of_sum(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """σ₁ of Σ up @ down, estimated from below. up: (out, rank), down: (rank, in), float32."""
    def normal(x: torch.Tensor) -> torch.Tensor:
        y = sum(up @ (down @ x) for up, down in factors)
        return sum(down.t() @ (up.t() @ y) for up, down in factors).double()

    return spectral_norm(normal, factors[0][1].shape[1]) if factors else 0.0
