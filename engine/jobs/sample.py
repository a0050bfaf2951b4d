"""Sixteen seeded rows of every tensor: what quantizing cost, and proof that the file holds what was computed.

Error = sqrt(sum (W' - decoded)^2 / sum W'^2) over the rows, W' the float32 merge, decoded as ComfyUI decodes the stored tensors.
The same rows are read back from the finished file; their energy must be what the encoder saw.
"""
import hashlib
import math
from dataclasses import asdict, dataclass

import torch

ROWS = 16


def rows_of(key: str, total: int) -> list[int]:
    """Up to 16 row numbers of a tensor, ascending; the same for the same key and size, everywhere."""
    digest = b"".join(hashlib.sha256(f"{key}|{number}".encode()).digest()[:8] for number in range(ROWS))
    return sorted({int.from_bytes(digest[8 * n:8 * n + 8], "little") % total for n in range(ROWS)}) if total else []


@dataclass(frozen=True)
class Sample:
    """Sums over sampled rows, float64."""

    lost: float = 0.0                              # sum (W' - decoded)^2
    merged: float = 0.0                            # sum W'^2
    decoded: float = 0.0                           # sum decoded^2

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(self.lost + other.lost, self.merged + other.merged, self.decoded + other.decoded)

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @property
    def error(self) -> float:
        """Relative error; 0 for a tensor of zeros."""
        return math.sqrt(self.lost / self.merged) if self.merged else 0.0


def square(tensor: torch.Tensor) -> float:
    """Sum of squares in float64."""
    flat = tensor.reshape(-1).double()
    return torch.dot(flat, flat).item()


def compare(merged: torch.Tensor, decoded: torch.Tensor) -> Sample:
    """Sample of some rows, both float32 of one shape."""
    return Sample(square(merged - decoded), square(merged), square(decoded))
