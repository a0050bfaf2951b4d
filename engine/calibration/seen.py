"""What one point has seen since the last step, still on its device, and the three passes over an input that make it."""
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

# Elements of a band that the CPU takes through all its steps while it is in the cache. (4096, 5120) bf16, one thread of a busy
# machine, ms: bands of 256 Ki elements 21, of 4 Mi 176; without bands amax and amin 10 each, squares 11, and together 57; aminmax
# 180; vector_norm along the vectors 240; x.abs().max() alone 55.
BAND = 1 << 18


@dataclass(frozen=True)
class Found:
    """Of one input. peaks, squares: (in_features,), float32: largest |x| and Σ x² by channel; amax: (), largest of the peaks;
    is_finite: (), bool, of all of them."""

    peaks: torch.Tensor
    squares: torch.Tensor
    amax: torch.Tensor
    is_finite: torch.Tensor


@dataclass(frozen=True)
class Told:
    """What a point saw in a step, on the CPU; fields as in `StepRecord`, of one point. left_out: inputs that were not finite."""

    amax: torch.Tensor
    rows: torch.Tensor
    squares: torch.Tensor
    count: int
    peaks: torch.Tensor
    histogram: torch.Tensor
    tokens: torch.Tensor
    left_out: int


def measure(rows: torch.Tensor) -> Found:
    """rows: (n, in_features), n at least 1, any float dtype; not modified. NaN anywhere makes peaks NaN there."""
    peaks, squares = _on_cpu(rows) if rows.device.type == "cpu" else _on_device(rows)
    amax = peaks.amax()
    return Found(peaks, squares, amax, torch.isfinite(amax) & torch.isfinite(squares).all())


def _on_device(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reductions that convert as they read: nothing of the size of `rows` is made."""
    peaks = torch.maximum(rows.amax(0), -rows.amin(0)).abs().float()   # abs: of zeros, 0 and not -0
    return peaks, torch.linalg.vector_norm(rows, 2, dim=0, dtype=torch.float32).square()


def _on_cpu(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    peaks, squares = torch.zeros(rows.shape[1]), torch.zeros(rows.shape[1])
    for part in rows.split(max(1, BAND // rows.shape[1])):
        sizes = part.to(torch.float32, copy=True).abs_()
        peaks = torch.maximum(peaks, sizes.amax(0))
        squares += sizes.square_().sum(0)
    return peaks, squares


@dataclass
class Seen:
    """One point's sums; everything stays where the inputs were. places: call and number of vectors of each input."""

    places: list[tuple[int, int]] = field(default_factory=list)
    amax: list[torch.Tensor] = field(default_factory=list)
    is_finite: list[torch.Tensor] = field(default_factory=list)
    tokens: list[torch.Tensor] = field(default_factory=list)
    sums: tuple[torch.Tensor, ...] = ()            # squares, peaks, histogram

    def add(self, call: int, count: int, found: Found, bins: torch.Tensor, tokens: torch.Tensor) -> None:
        """One input of `count` vectors. bins: (BINS,) int64, zeros where it is not finite; tokens: (n, in_features)."""
        self.places.append((call, count))
        self.amax.append(found.amax)
        self.is_finite.append(found.is_finite)
        self.tokens.append(tokens)
        squares = torch.where(found.is_finite, found.squares, 0.0)
        peaks = torch.where(found.is_finite, found.peaks, 0.0)
        if self.sums:
            before = [tensor.to(squares.device) for tensor in self.sums]   # a model may lie on several devices
            squares, peaks, bins = before[0] + squares, torch.maximum(before[1], peaks), before[2] + bins
        self.sums = squares, peaks, bins

    def tensors(self) -> list[torch.Tensor]:
        """All of them, in the order in which `tell` takes them."""
        return [*self.sums, *self.amax, *self.is_finite, *self.tokens]

    def tell(self, brought: Iterator[torch.Tensor], calls: int) -> Told:
        """brought: `tensors` on the CPU; calls: of the whole step. amax: NaN where nothing was seen, inf where not finite."""
        squares, peaks, bins = next(brought), next(brought), next(brought)
        sizes, fine, tokens = ([next(brought) for _ in self.places] for _ in range(3))
        amax, rows = torch.full((calls,), torch.nan), torch.zeros(calls, dtype=torch.int64)
        for (call, count), size, is_finite in zip(self.places, sizes, fine, strict=True):
            size = size if is_finite else torch.tensor(torch.inf)
            amax[call] = torch.fmax(amax[call], size)
            rows[call] += count
        kept = [each for each, is_finite in zip(tokens, fine, strict=True) if is_finite]
        count = sum(count for (_, count), is_finite in zip(self.places, fine, strict=True) if is_finite)
        return Told(amax, rows, squares.double(), count, peaks, bins, torch.cat(kept or [tokens[0][:0]]), len(fine) - len(kept))
