"""The 16 uneven values of IQ4_NL and IQ4_XS, and the nearest of them.

The middle between two neighbours is a whole number or a half. So floor(2 v), clamped, names one of 512 intervals, and each has one
nearest value: a table finds it, exactly. A tie goes up, as in ggml-quants.c, `best_index_int8`. Comparing with all middles, or
torch.bucketize, costs torch 20 times as much.
"""
from itertools import pairwise

import torch

VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)     # ggml-common.h, kvalues_iq4nl
MIDDLES = tuple((low + high) / 2 for low, high in pairwise(VALUES))
HALVES = 256                                       # intervals on either side of 0
CODES = sum(torch.arange(-HALVES, HALVES) >= 2 * middle for middle in MIDDLES).to(torch.uint8)
NEAREST = torch.tensor(VALUES, dtype=torch.float32)[CODES.int()]


def nearest_code(scaled: torch.Tensor) -> torch.Tensor:
    """Indices of the nearest values, uint8. scaled: float32, any shape; overwritten."""
    return _look_up(scaled, CODES)


def nearest_value(scaled: torch.Tensor) -> torch.Tensor:
    """The nearest values, float32. scaled: float32, any shape; overwritten."""
    return _look_up(scaled, NEAREST)


def _look_up(scaled: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    interval = scaled.clamp_(-HALVES / 2, (HALVES - 1) / 2).mul_(2).floor_().add_(HALVES).int()
    return table.to(scaled.device).index_select(0, interval.view(-1)).view(scaled.shape)
