"""The low-rank factors of one tensor's LoRAs: read, folded with their scalars, laid side by side, multiplied band by band.

    Σ_k s_k up_k @ down_k = [s_1 up_1 ... s_n up_n] @ [down_1; ...; down_n]        any number of LoRAs is one product
    <up_j @ down_j, up_k @ down_k> = Σ (up_jᵀ up_k) ∘ (down_j down_kᵀ)            inner products need no full delta
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..errors import LoraError

if TYPE_CHECKING:
    from .lora import LoraFile
    from .modules import Pair


NOT_FINITE = "expected finite numbers, found NaN or inf; the file is damaged or its training diverged, replace it"


@dataclass(frozen=True)
class Factors:
    """up: (out, rank), down: (rank, in), float32 on one device; rank is the sum over all pairs inside."""

    up: torch.Tensor
    down: torch.Tensor

    def product(self, rows: tuple[int, int], columns: slice, out: torch.Tensor) -> None:
        """Write rows and columns of the delta into `out`."""
        torch.mm(self.up[rows[0]:rows[1]], self.down[:, columns], out=out)

    def part(self, start: int, stop: int) -> "Factors":
        """The pairs at these positions along the rank, as views."""
        return Factors(self.up[:, start:stop], self.down[start:stop])

    def inner(self, other: "Factors") -> torch.Tensor:
        """Inner products of the full deltas of self and every single column-row pair of other: (other's rank,), float64 on the CPU.

        The small products run in float32, whose relative error here is about 1e-8, and are summed in float64.
        """
        ups, downs = self.up.t() @ other.up, self.down @ other.down.t()
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
