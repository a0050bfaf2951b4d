"""Model Breadcrumbs (Davari & Belilovsky 2023, arXiv 2312.06795, section 3): drop the outliers and the small, add what is left.

Of each delta the int(gamma * n) largest magnitudes go, the next int(density * n) stay, the rest goes. If both together are more
than there is, fewer outliers go (as in mergekit). The deltas already contain their strengths.
"""
from collections.abc import Sequence

import torch

from .select import as_matrix, find_cut


def ranks(numel: int, density: float, gamma: float) -> tuple[int, int]:
    """(outliers, outliers and kept): how many of the largest elements make each."""
    kept = int(density * numel)
    outliers = min(int(gamma * numel), numel - kept)
    return outliers, outliers + kept


def breadcrumbs(deltas: Sequence[torch.Tensor], density: float, gamma: float) -> torch.Tensor:
    """Breadcrumbs of whole tensors of one shape, which are not changed; float32."""
    total = 0.0
    for delta in deltas:
        flat = as_matrix(delta)
        outer, inner = (find_cut(flat, rank).keeps(flat, (0, flat.shape[0]), slice(0, flat.shape[1]))
                        for rank in ranks(flat.numel(), density, gamma))
        total = total + (flat * (inner & ~outer)).reshape(delta.shape)
    return total
