"""What one module of one LoRA does to one tensor, tile by tile: the two things a merge knows, and their simplest cases.

    Delta       is added: W' = W + Σ strength * delta; it knows at most the ORIGINAL base, so the order of deltas never matters
    Transform   is applied to what has been merged so far (OFT, BOFT, GLoRA, set): these are the ones that depend on order

A tensor is seen as (rows, columns), every axis but the first being columns; a delta is never held whole where it can be avoided.
"""
import math
import threading
from typing import TYPE_CHECKING

import torch

from ..bands import Rows
from .factors import Factors, read_difference

if TYPE_CHECKING:
    from .lora import LoraFile



class Delta:
    """What one module adds at strength 1, alpha / rank folded in, float32.

    factors is set when the delta is exactly up @ down (form "factors"). `observe` and `settle` are for form "base" only and
    come first: `observe` once per band of the original base, then `settle` once with every result, in band order.
    """

    factors: Factors | None = None

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """OVERWRITE `out` (rows, columns), float32, with that part of the delta.

        base: those rows of the original base with all columns, float32, for form "base"; else None. Safe from many threads.
        """
        raise NotImplementedError

    def observe(self, rows: Rows, base: torch.Tensor) -> object:
        """Small statistics of these rows of the original base, (rows, all columns), float32; changes nothing."""
        return None

    def settle(self, observed: list[object]) -> None:
        """Take the statistics of all bands, in band order."""


class Transform:
    """What depends on the tensor as merged so far.

    whole False: `apply` takes a row band with all of its columns. True: it mixes rows, so it takes all rows of a column tile.
    """

    whole: bool = False

    def apply(self, weight: torch.Tensor, rows: Rows, columns: slice, strength: float) -> None:
        """Change `weight`, that part of the flat (out, columns) float32 tensor, IN PLACE. Strength 0 changes nothing."""
        raise NotImplementedError


class FactorDelta(Delta):
    """up @ down."""

    def __init__(self, factors: Factors):
        self.factors = factors

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """See `Delta.write`."""
        self.factors.product(rows, columns, out)


class StoredDelta(Delta):
    """factor * a tensor of the file, whose rows are read when they are asked for; each thread keeps the last ones."""

    def __init__(self, lora: "LoraFile", key: str, device: torch.device, factor: float = 1.0):
        self.lora, self.key, self.device, self.factor = lora, key, device, factor
        self.local = threading.local()

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """See `Delta.write`. Raises LoraError when a value is not finite."""
        torch.mul(self.read(rows)[:, columns], self.factor, out=out)

    def read(self, rows: Rows) -> torch.Tensor:
        """These rows of the stored tensor, (rows, the other axes as one), float32, without the factor."""
        if getattr(self.local, "rows", None) != rows:
            self.local.rows = None
            self.local.tensor, self.local.rows = read_difference(self.lora, self.key, rows, self.device), rows
        return self.local.tensor


def flat_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) under which a tensor of this shape is merged; a 0-d tensor is one of each."""
    return (shape[0] if shape else 1, math.prod(shape[1:]))
