"""Sixteen seeded rows of every tensor: what quantizing cost, and proof that the file holds what was computed.

Error = sqrt(sum (W' - decoded)^2 / sum W'^2) over the rows, W' the float32 merge, decoded as ComfyUI decodes the stored tensors.
The same rows are read back from the finished file and decoded by comfy-kitchen; their energy, and their product with a fixed
vector, must be what the encoder saw: then their error is the same figure too.
"""
import hashlib
import math
from dataclasses import asdict, dataclass

import torch

ROWS = 16
GOLDEN = 2.399963229728653                         # radians: no row of cosines at this step is like another


def rows_of(key: str, total: int) -> list[int]:
    """Up to ROWS row numbers of a tensor, ascending; the same for the same key and size, everywhere."""
    digest = b"".join(hashlib.sha256(f"{key}|{number}".encode()).digest()[:8] for number in range(ROWS))
    return sorted({int.from_bytes(digest[8 * n:8 * n + 8], "little") % total for n in range(ROWS)}) if total else []


@dataclass(frozen=True)
class Sample:
    """Sums over sampled rows, float64."""

    lost: float = 0.0                              # sum (W' - decoded)^2
    merged: float = 0.0                            # sum W'^2
    decoded: float = 0.0                           # sum decoded^2
    probed: float = 0.0                            # see `probe`

    def __add__(self, other: "Sample") -> "Sample":
        return Sample(*(one + another for one, another in zip(vars(self).values(), vars(other).values(), strict=True)))

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


def probe(rows: torch.Tensor, numbers: list[int]) -> float:
    """Sum of value * (1 + row number % 31) * cos(GOLDEN * column), float64: changes with every single value, and with their order.

    rows: (len(numbers), ...), float32.
    """
    flat = rows.reshape(len(rows), -1).double()
    wave = torch.arange(flat.shape[1], dtype=torch.float64, device=flat.device).mul_(GOLDEN).cos_()
    return (flat @ wave * torch.tensor([1.0 + number % 31 for number in numbers], device=flat.device)).sum().item()


def compare(merged: torch.Tensor, decoded: torch.Tensor, numbers: list[int]) -> Sample:
    """Sample of some rows, both float32 of one shape; numbers: of these rows in the tensor."""
    return Sample(square(merged - decoded), square(merged), square(decoded), probe(decoded, numbers))
