"""The nearest product of few ranks for a dense delta: randomized SVD in row bands, or the exact one where a side is short.

    Y = D Ω;  Q = qr(Y);  q times: Q = qr(D qr(Dᵀ Q));  B = Qᵀ D;  SVD of B         Halko, Martinsson & Tropp 2011, arXiv 0909.4061,
algorithms 4.4 (power iterations with orthonormalisation in between) and 5.1. Products run in float32 by the threads of `Workers`,
one torch thread each and summed in band order in float64, so the bytes do not depend on how many there are.
"""
from dataclasses import dataclass

import torch

from ..bands import Rows, Workers, split
from ..random_file import seed_of
from .low_rank import Fit, round_factors
from .wish import Ranks

OVERSAMPLING = 10                                  # arXiv 0909.4061, section 4.2: 5 or 10 beyond the rank suffice
POWERS = 2                                         # section 4.5: a spectrum that decays slowly wants one or two
EXACT_SIDE = 512                                   # up to this shorter side the exact SVD costs less than a second


@dataclass(frozen=True)
class Method:
    """How a dense delta is taken apart. seed: of Ω, with the layer's name; exact_side: shorter sides up to it get the exact SVD."""

    seed: int = 0
    powers: int = POWERS
    oversampling: int = OVERSAMPLING
    exact_side: int = EXACT_SIDE


def fit_dense(key: str, delta: torch.Tensor, ranks: Ranks, dtype: torch.dtype, run: "Run") -> Fit:
    """Factors of `delta`, (out, in), float32, contiguous, not modified. Ranks beyond the shorter side are not used."""
    total = sum(run.workers.map(lambda rows: _square(delta[rows[0]:rows[1]]), split(tuple(delta.shape))))
    if min(delta.shape) <= run.method.exact_side:
        [(left, sigma, right)] = run.workers.map(lambda _: torch.linalg.svd(delta.double(), full_matrices=False), [(0, 1)])
    else:
        left, sigma, right = _randomized(key, delta, ranks.most, run)
    rank = ranks.choose(sigma, total)
    root = sigma[:rank].sqrt()
    up, down = round_factors(left[:, :rank] * root, root[:, None] * right[:rank], dtype)
    near_up, near_down = up.float(), down.float()

    def lost(rows: Rows) -> float:
        return _square(torch.addmm(delta[rows[0]:rows[1]], near_up[rows[0]:rows[1]], near_down, alpha=-1))

    return Fit(up, down, total, sum(run.workers.map(lost, split(tuple(delta.shape)))))


@dataclass(frozen=True)
class Run:
    """What every layer shares."""

    workers: Workers
    method: Method


def _square(band: torch.Tensor) -> float:
    """Sum of squares, float64: of float32 rows, whose own dot products round."""
    return torch.linalg.vector_norm(band, dtype=torch.float64).square().item()


def _randomized(key: str, delta: torch.Tensor, most: int, run: Run) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(left (out, k), singular values (k,), right (k, in)), float64, k a little more than `most`."""
    width = min(most + run.method.oversampling, *delta.shape)
    draw = torch.Generator().manual_seed(seed_of("sketch", run.method.seed, key))
    basis = _basis(_times(delta, torch.randn(delta.shape[1], width, generator=draw), run), run)
    for _ in range(run.method.powers):
        across = _basis(_transposed(delta, basis, run), run)
        basis = _basis(_times(delta, across, run), run)
    small = _transposed(delta, basis, run)         # Bᵀ = Dᵀ Q, (in, k)
    return run.workers.map(lambda _: _small_svd(basis, small), [(0, 1)])[0]


def _small_svd(basis: torch.Tensor, small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    right, triangle = torch.linalg.qr(small)
    turn, sigma, turn_back = torch.linalg.svd(triangle.t())
    return basis.double() @ turn, sigma, turn_back @ right.t()


def _basis(block: torch.Tensor, run: Run) -> torch.Tensor:
    """Orthonormal columns, float32, of a (side, k) float64 block."""
    return run.workers.map(lambda _: torch.linalg.qr(block)[0].float(), [(0, 1)])[0]


def _times(delta: torch.Tensor, block: torch.Tensor, run: Run) -> torch.Tensor:
    """D @ block, float64 (out, k)."""
    bands = run.workers.map(lambda rows: (delta[rows[0]:rows[1]] @ block).double(), split(tuple(delta.shape)))
    return torch.cat(bands)


def _transposed(delta: torch.Tensor, block: torch.Tensor, run: Run) -> torch.Tensor:
    """Dᵀ @ block, float64 (in, k): bands summed in their order."""
    total = torch.zeros(delta.shape[1], block.shape[1], dtype=torch.float64)
    for part in run.workers.each(lambda rows: delta[rows[0]:rows[1]].t() @ block[rows[0]:rows[1]], split(tuple(delta.shape))):
        total += part
    return total
