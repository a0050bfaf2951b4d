"""What a step of one expert tells, and the same on disk: a safetensors file that holds one step, or a whole run.

    amax (calls, points) float32, rows (calls, points) int64, histogram (points, bins) int64, left_out (points,) int64,
    counts (2, points) int64, and for each half h and point p: squares.h.p (in,) float64, tokens.h.p (n, in); peaks.p (in,) float32

Halves are even and odd steps, apart on disk so that one run can be split; the entry `calibration` of the metadata is JSON and says
which call was of which step.
"""
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ..errors import HeaderError
from ..specs import TensorSpec
from .bins import BINS
from .tensors import Stored, write

if TYPE_CHECKING:
    from .seen import Told

PARTS = ("cond", "uncond")                         # of a batch, in the order of ComfyUI's cond_or_uncond: 0 and 1
ENTRY, VERSION = "calibration", 1
TABLES = ("amax", "rows", "histogram", "counts", "left_out")


@dataclass(frozen=True)
class Call:
    """One half of one forward pass: its noise level and whose it was, "cond" or "uncond"."""

    sigma: float
    part: str


@dataclass(frozen=True)
class StepRecord:
    """One step, on the CPU.

    amax: (calls, points), float32, exact max |x|; NaN where the point was not seen, inf where the input was not finite. rows:
    (calls, points), int64, input vectors. Of what was finite alone: squares, point -> (in,) float64, Σ x² by channel; counts, point
    -> vectors in it; peaks, point -> (in,) float32, largest |x|; histogram, (points, bins) int64; tokens, point -> (n, in), as it
    came. left_out: point -> inputs that were not finite. Points that were not seen are in none of the mappings.
    """

    step: int
    calls: tuple[Call, ...]
    points: tuple[str, ...]
    amax: torch.Tensor
    rows: torch.Tensor
    squares: dict[str, torch.Tensor]
    counts: dict[str, int]
    peaks: dict[str, torch.Tensor]
    histogram: torch.Tensor
    tokens: dict[str, torch.Tensor]
    left_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_told(cls, step: int, calls: tuple[Call, ...], points: tuple[str, ...], told: "Mapping[str, Told]") -> "StepRecord":
        """From what each point that was seen tells."""
        unseen = torch.full((len(calls),), torch.nan), torch.zeros(len(calls), dtype=torch.int64)
        both = [(told[point].amax, told[point].rows) if point in told else unseen for point in points]
        bins = [told[point].histogram if point in told else torch.zeros(BINS, dtype=torch.int64) for point in points]
        amax, rows = (torch.stack(each, 1) for each in zip(*both, strict=True))
        return cls(step, calls, points, amax, rows, {point: each.squares for point, each in told.items()},
                   {point: each.count for point, each in told.items()}, {point: each.peaks for point, each in told.items()},
                   torch.stack(bins), {point: each.tokens for point, each in told.items()},
                   {point: each.left_out for point, each in told.items() if each.left_out})

    def save(self, path: str | os.PathLike) -> None:
        """Write it whole or not at all. Raises PlanError on a full disk."""
        half = self.step % 2
        counts = torch.zeros(2, len(self.points), dtype=torch.int64)
        counts[half] = torch.tensor([self.counts.get(point, 0) for point in self.points])
        held = {"amax": self.amax, "rows": self.rows, "histogram": self.histogram, "counts": counts,
                "left_out": torch.tensor([self.left_out.get(point, 0) for point in self.points])}
        for point in self.squares:
            held |= {f"squares.{half}.{point}": self.squares[point], f"tokens.{half}.{point}": self.tokens[point],
                     f"peaks.{point}": self.peaks[point]}
        write(path, {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in held.items()}, held.__getitem__,
              {ENTRY: describe([self.step] * len(self.calls), self.calls, self.points)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "StepRecord":
        """What `save` wrote. Raises HeaderError for another file, or one that holds a whole run."""
        file = RecordFile(path)
        steps = {step for step, _ in file.calls}
        if len(steps) != 1:
            raise HeaderError(f"{file.path}: expected a record of one step, found {len(steps)} steps; read it as a run")
        step, left_out = steps.pop(), file.table("left_out").tolist()
        half, counts = step % 2, file.table("counts")[step % 2].tolist()
        seen = [point for point in file.points if file.spec("peaks", point)]
        return cls(step, tuple(call for _, call in file.calls), file.points, file.table("amax"), file.table("rows"),
                   {point: file.of("squares", point, half) for point in seen},
                   {point: count for point, count in zip(file.points, counts, strict=True) if point in seen},
                   {point: file.of("peaks", point) for point in seen}, file.table("histogram"),
                   {point: file.of("tokens", point, half) for point in seen},
                   {point: count for point, count in zip(file.points, left_out, strict=True) if count})


def describe(steps: list[int], calls: tuple[Call, ...], points: tuple[str, ...]) -> str:
    """The entry of a file's metadata. steps: of each call."""
    told = [[step, call.sigma, call.part] for step, call in zip(steps, calls, strict=True)]
    return json.dumps({"version": VERSION, "calls": told, "points": list(points)})


class RecordFile:
    """A step or a run on disk. calls: (step, Call) of each row; points: of each column. Nothing stays open."""

    def __init__(self, path: str | os.PathLike):
        """Reads the header alone. Raises HeaderError for what is no record of ours, or is cut short."""
        self.stored = Stored(path)
        self.path = self.stored.path
        try:
            said = json.loads(self.stored.metadata[ENTRY])
            self.calls = [(int(step), Call(float(sigma), str(part))) for step, sigma, part in said["calls"]]
            self.points: tuple[str, ...] = tuple(said["points"])
            is_ours = said["version"] == VERSION
        except (KeyError, TypeError, ValueError):
            is_ours = False
        if not is_ours or not set(TABLES) <= set(self.stored.specs):
            raise HeaderError(f"{self.path}: expected a record of a calibration, version {VERSION}, found another file; delete it, "
                              "or update the pack if a newer version wrote it")

    def table(self, name: str) -> torch.Tensor:
        """amax, rows, histogram, counts or left_out, whole."""
        return self.stored.read(name)

    def of(self, kind: str, point: str, half: int | None = None) -> torch.Tensor | None:
        """squares or tokens of a half, or peaks (half None), of one point; None where it was not seen."""
        name = self.name_of(kind, point, half)
        return self.stored.read(name) if name in self.stored.specs else None

    def spec(self, kind: str, point: str, half: int | None = None) -> TensorSpec | None:
        """Shape and dtype of what `of` gives."""
        return self.stored.specs.get(self.name_of(kind, point, half))

    @staticmethod
    def name_of(kind: str, point: str, half: int | None = None) -> str:
        """Name in the file."""
        return f"{kind}.{point}" if half is None else f"{kind}.{half}.{point}"
