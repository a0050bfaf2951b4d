"""TIES (Yadav et al. 2023, arXiv 2306.01708, section 4): trim, elect a sign per position, mean over those that agree.

    trim       each delta keeps exactly its int(density * n) largest magnitudes, per tensor
    elect      sign of the sum of the trimmed deltas
    disjoint   sum of those with that sign / how many they are
The deltas already contain their strengths, so a strong LoRA has more say in the election, and the mean divides by a number of
LoRAs, not by their strengths. Where the sum is exactly 0 nobody is elected and nothing is added (mergekit takes plus there, which
would make f(-delta) differ from -f(delta)). With two unrelated LoRAs about half of the positions disagree by chance.
"""
from collections.abc import Sequence

import torch

from .dare import drop
from .select import trim


def elect(deltas: Sequence[torch.Tensor]) -> None:
    """Leave of each delta its part of the disjoint mean, IN PLACE, so that their sum is the result; float32, equal shapes.

    The election adds in float64, so that it does not depend on the order of the LoRAs.
    """
    total = torch.zeros_like(deltas[0], dtype=torch.float64)
    for delta in deltas:
        total.add_(delta)
    sign = total.sign_().to(torch.float32)
    agreeing = torch.zeros_like(deltas[0])
    for delta in deltas:
        agrees = (delta.sign() == sign).to(torch.float32)
        delta.mul_(agrees)
        agreeing.add_(agrees)
    for delta in deltas:
        delta.div_(agreeing.clamp(min=1.0))


def ties(deltas: Sequence[torch.Tensor], density: float) -> torch.Tensor:
    """TIES of whole tensors of one shape, which are not changed; float32."""
    parts = trim(deltas, density)
    elect(parts)
    return sum(parts)


def dare_ties(deltas: Sequence[torch.Tensor], density: float, coins: Sequence[int]) -> torch.Tensor:
    """DARE instead of the trim: each delta thinned by its own coins (`dare.coin_key`), then elected; float32."""
    parts = [drop(delta, density, coin) for delta, coin in zip(deltas, coins, strict=True)]
    elect(parts)
    return sum(parts)
