"""Exact inner products and overlaps of the deltas of one tensor; from factors alone where everything is low-rank.

    <up_j down_j, up_k down_k> = Σ (up_jᵀ up_k) ∘ (down_j down_kᵀ)
    overlap of output directions = <δ_j δ_jᵀ, δ_k δ_kᵀ> / (‖δ_j δ_jᵀ‖ ‖δ_k δ_kᵀ‖), of input directions with δᵀδ: Escoufier's RV
    coefficient (1973), uncentered: 0 for spaces at right angles, 1 for the same directions at the same relative sizes. With
    G = up_jᵀ up_k and S_j = down_j down_jᵀ its numerator is Σ (S_j G) ∘ (G S_k): exact, and nothing is inverted.
"""
import math
from dataclasses import dataclass

import torch

from ..bands import TILE_COLUMNS, split
from ..products import multiply
from .layer import Layer, Stacked
from .scratch import Scratch


@dataclass(frozen=True)
class Exact:
    """gram[j, k] = <δ_j, δ_k>, strengths inside, float64. outputs, inputs: (n, n), of the overlaps, None where unknown."""

    gram: torch.Tensor
    outputs: torch.Tensor | None = None
    inputs: torch.Tensor | None = None


def products(stacked: torch.Tensor, spans: list[tuple[int, int]], out: torch.Tensor) -> torch.Tensor:
    """stacked @ stackedᵀ into `out`, (ranks, ranks) float32: only the upper triangle is computed, in steps of one LoRA.

    stacked: (ranks, length). Returns `out`.
    """
    for start, stop in spans:
        found = multiply(stacked[start:stop], stacked[start:])
        out[start:stop, start:] = found
        out[stop:, start:stop] = found[:, stop - start:].t()
    return out


def low_rank(stacked: Stacked, scratch: Scratch) -> Exact:
    """All of it, from the factors. The small products run in float32, the sums over them in float64."""
    ranks, spans = stacked.ups.shape[0], stacked.spans
    ups = products(stacked.ups, spans, scratch.take("up products", ranks, ranks))
    downs = products(stacked.downs, spans, scratch.take("down products", ranks, ranks))
    return Exact(_blocks(ups, downs, spans), _overlaps(ups, downs, spans), _overlaps(downs, ups, spans))


def _blocks(one: torch.Tensor, other: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """Sum of one ∘ other over the block of each pair: (n, n) float64."""
    sums = one.double().mul_(other)
    sums = torch.stack([sums[start:stop].sum(0) for start, stop in spans])
    upper = torch.stack([sums[:, start:stop].sum(1) for start, stop in spans], 1).triu()
    return upper + upper.triu(1).t()               # the other half differs by the order of its sums


def _overlaps(across: torch.Tensor, within: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """<δ_j δ_jᵀ, δ_k δ_kᵀ> for every pair, where `across` holds G and the diagonal blocks of `within` hold S."""
    left, right = torch.empty_like(across), torch.empty_like(across)
    for start, stop in spans:
        own = within[start:stop, start:stop]
        torch.mm(own, across[start:stop], out=left[start:stop])
        right[:, start:stop] = across[:, start:stop] @ own
    return _blocks(left, right, spans)


def dense(layer: Layer) -> Exact:
    """The Gram matrix tile by tile, where a delta is no product of factors. The overlaps stay unknown."""
    count, (_, columns) = len(layer.members), layer.shape
    gram = torch.zeros(count, count, dtype=torch.float64)
    for rows in split(layer.shape):
        for start in range(0, columns, TILE_COLUMNS):
            place = slice(start, min(start + TILE_COLUMNS, columns))
            tile = torch.empty(count, rows[1] - rows[0], place.stop - start)
            for member, out in zip(layer.members, tile, strict=True):
                member.write(rows, place, out)
            by_row = tile.transpose(0, 1)
            gram += torch.bmm(by_row, by_row.transpose(1, 2)).double().sum(0)
    return Exact(gram)


def chance(gram: torch.Tensor) -> torch.Tensor:
    """arccos(cos) / π for every pair: the share of opposite signs in two Gaussian deltas of that cosine; 0.5 where one is zero."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.outer(norms, norms)
    cosine = torch.where(scale > 0, gram / scale, 0.0).clamp(-1, 1)
    return torch.arccos(cosine) / math.pi
