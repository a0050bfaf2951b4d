"""The low-rank factors of one tensor's LoRAs: read, folded with their scalars, laid side by side, multiplied band by band.

    Σ_k s_k up_k @ down_k = [s_1 up_1 ... s_n up_n] @ [down_1; ...; down_n]        any number of LoRAs is one product
    <up_j @ down_j, up_k @ down_k> = Σ (up_jᵀ up_k) ∘ (down_j down_kᵀ)            inner products need no full delta
"""
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from ..errors import LoraError
from ..products import multiply

if TYPE_CHECKING:
    from .lora import LoraFile
    from .modules import Pair


NOT_FINITE = "expected finite numbers, found NaN or inf; the file is damaged or its training diverged, replace it"


@dataclass(frozen=True)
class Factors:
    """up: (out, rank), down: (rank, in), float32 on one device; rank is the sum over all pairs inside."""

    up: torch.Tensor
    down: torch.Tensor

    @cached_property
    def down_t(self) -> torch.Tensor:
        """downᵀ, (in, rank), contiguous: what `multiply` takes."""
        return self.down.t().contiguous()

    @cached_property
    def up_t(self) -> torch.Tensor:
        """upᵀ, (rank, out), contiguous."""
        return self.up.t().contiguous()

    def product(self, rows: tuple[int, int], columns: slice, out: torch.Tensor) -> None:
        """Write rows and columns of the delta into `out`."""
        out.copy_(multiply(self.up[rows[0]:rows[1]], self.down_t[columns]))

    def add_to(self, band: torch.Tensor, rows: tuple[int, int]) -> None:
        """Add rows of the delta to `band`, (rows, in), IN PLACE."""
        band.add_(multiply(self.up[rows[0]:rows[1]], self.down_t))

    def part(self, start: int, stop: int) -> "Factors":
        """The pairs at these positions along the rank, as views."""
        found = Factors(self.up[:, start:stop], self.down[start:stop])
        found.__dict__["up_t"] = self.up_t[start:stop]
        return found

    def strengthen(self, by: float) -> None:
        """Multiply the delta by a number, IN PLACE: what this is a part of changes with it."""
        self.up.mul_(by)
        if "up_t" in self.__dict__:
            self.up_t.mul_(by)

    def inner(self, other: "Factors") -> torch.Tensor:
        """Inner products of the full deltas of self and every single column-row pair of other: (other's rank,), float64 on the CPU.

        The small products run in float32, whose relative error here is about 1e-8, and are summed in float64.
        """
        ups, downs = multiply(self.up_t, other.up_t), multiply(self.down, other.down)
        return (ups.to("cpu", torch.float64) * downs.to("cpu", torch.float64)).sum(0)


def read_tensor(lora: "LoraFile", key: str) -> torch.Tensor:
    """One tensor of a LoRA, float32. Raises LoraError when a value is not finite: it would spread over whole rows of the weight."""
    tensor = lora.read(key)
    flat = tensor.reshape(-1)
    if not math.isfinite(torch.dot(flat, flat)) and not torch.isfinite(flat).all():
        raise LoraError(f"{lora.name}: {key}: {NOT_FINITE}")
    return tensor


def load_factors(shape: tuple[int, ...], pairs: list[tuple["LoraFile", "Pair", float]], device: torch.device) -> Factors:
    """Factors of all pairs, side by side in their order.

    shape: of the base tensor; all axes but the first are one. pairs: (file, pair, strength); strength * alpha / rank goes into up,
    in float64, rounded once to float32.
    """
    rank, columns = sum(pair.rank for _, pair, _ in pairs), math.prod(shape[1:])
    up, down = torch.empty(shape[0], rank), torch.empty(rank, columns)
    start = 0
    for lora, pair, strength in pairs:
        stop = start + pair.rank
        up[:, start:stop] = read_tensor(lora, pair.up).reshape(shape[0], pair.rank).double().mul_(strength * pair.factor)
        down[start:stop] = _read_down(lora, pair).reshape(pair.rank, columns)
        start = stop
    return Factors(up.to(device), down.to(device))


def _read_down(lora: "LoraFile", pair: "Pair") -> torch.Tensor:
    """The down factor, with a Tucker core multiplied in: `mn...,nj->mj...`, accumulated in float64."""
    down = read_tensor(lora, pair.down)
    return down if pair.mid is None else expand(read_tensor(lora, pair.mid), down)


def expand(core: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """A Tucker core (m, n, kernel...) times its inner factor (n, in, and ones): (m, in, kernel...), float32, summed in float64."""
    inner = down.double().reshape(down.shape[:2])
    return torch.tensordot(core.double(), inner, ([1], [0])).movedim(-1, 1).to(torch.float32)


def read_difference(lora: "LoraFile", key: str, rows: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Rows of a full difference, (rows, the other axes as one), float32. Raises LoraError when a value is not finite."""
    tensor = lora.read(key, rows)
    if not torch.isfinite(tensor).all():
        raise LoraError(f"{lora.name}: {key}: {NOT_FINITE}")
    return tensor.reshape(rows[1] - rows[0], -1).to(device)
