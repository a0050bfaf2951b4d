"""The straight line: a tensor is read, merged, measured, quantized and written, alone, in row bands.

    read ─► base, float32 ─► Σ deltas (gated ones after their statistics) ─► stats of the format ─► codes, scales ─► planned offset

A tensor whose formats need no statistics goes through band by band; one that needs them (FP8: amax; classic injection: moments) is
merged into one reused float32 buffer and encoded from it. Either way each band is computed by one thread, in one fixed order.
"""
import math
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from .bands import Rows, Workers, split
from .errors import at
from .gate import Moments, moments
from .merge import Change
from .output import Output
from .precision import is_block_linear
from .specs import TensorSpec


@dataclass(frozen=True)
class Step:
    """One base tensor on its way."""

    key: str
    spec: TensorSpec
    change: Change | None
    outputs: list[Output]


@dataclass
class Notes:
    """What the bands of one tensor told, by band: nothing is summed across threads."""

    squares: dict[Rows, float] = field(default_factory=dict)
    absolutes: dict[Rows, tuple[float, float]] = field(default_factory=dict)   # sum |W|, sum |W'|; for the legacy number only
    moments: dict[Rows, Moments] = field(default_factory=dict)
    energies: dict[Rows, object] = field(default_factory=dict)
    stats: dict[tuple[str, Rows], float] = field(default_factory=dict)


class Line:
    """Carries tensors of one source through; keeps the reused buffers. means: also take mean|W|, which only the legacy number
    needs."""

    def __init__(self, source, workers: Workers, device: torch.device, *, means: bool = False):
        self.source, self.workers, self.device, self.means = source, workers, device, means
        self.buffer = torch.empty(0)
        self.local = threading.local()

    def carry(self, step: Step) -> dict:
        """Take one tensor through; returns its report row (see `meter.summarize`)."""
        gated = step.change is not None and step.change.needs_base_moments
        measured = [out for out in step.outputs if out.form(step.key).measure]
        self.whole = self._whole(step.spec) if gated or measured else None
        bands, notes = split(step.spec.shape), Notes()
        if self.whole is None:
            self._encode(step, bands, notes, lambda rows: (self._read(step, rows, notes), self._merge(step, rows, notes)))
        else:
            with self._at(step, "merge"):
                if gated:
                    self.workers.map(lambda rows: self._read(step, rows, notes), bands)
                    step.change.decide(_total(notes.moments, bands), lambda compute: self.workers.map(compute, bands))
                    self.workers.map(lambda rows: self._merge(step, rows, notes), bands)
                else:
                    self.workers.map(lambda rows: (self._read(step, rows, notes), self._merge(step, rows, notes)), bands)
            self._encode(step, bands, notes, lambda rows: None)
        return self._row(step, bands, notes)

    def _read(self, step: Step, rows: Rows, notes: Notes) -> None:
        """Fill the band with the base, float32; its sum of squares also finds NaN and inf."""
        band = self._band(step.spec, rows)
        with self._at(step, "read"):
            if self.device.type == "cpu":
                self.source.read(step.key, rows if step.spec.shape else None, out=band)
            else:
                band.copy_(self.source.read(step.key, rows if step.spec.shape else None))
            flat = band.reshape(-1)
            notes.squares[rows] = square = torch.dot(flat, flat).item()
            if not math.isfinite(square) and not torch.isfinite(flat).all():
                raise ValueError("the base holds NaN or inf; get the file again, or choose another base")
        if step.change is not None and step.change.needs_base_moments:
            notes.moments[rows] = moments(band)

    def _merge(self, step: Step, rows: Rows, notes: Notes) -> None:
        band = self._band(step.spec, rows)
        if step.change is not None:
            before = band.abs().sum(dtype=torch.float64).item() if self.means else 0.0
            notes.energies[rows] = step.change.add(band, rows, self._scratch(step.spec, rows))
            notes.absolutes[rows] = (before, band.abs().sum(dtype=torch.float64).item() if self.means else 0.0)
        for name, measure in {out.form(step.key).NAME: out.form(step.key).measure for out in step.outputs}.items():
            if measure:
                notes.stats[name, rows] = measure(band)

    def _encode(self, step: Step, bands: list[Rows], notes: Notes, prepare) -> None:
        """Every output's codes, band after band; the hash follows in order."""
        with self._at(step, "quantize"):
            forms = [out.form(step.key) for out in step.outputs]
            stats = [form.combine([notes.stats[form.NAME, rows] for rows in bands]) if form.measure else None for form in forms]

        def encode(rows: Rows) -> list:
            with self._at(step, "merge"):
                prepare(rows)
            band, spare = self._band(step.spec, rows), self._scratch(step.spec, rows)
            with self._at(step, "quantize"):
                return [out.encode(step.key, band, rows, stat, spare) for out, stat in zip(step.outputs, stats, strict=True)]

        for results in self.workers.each(encode, bands):
            for out, result in zip(step.outputs, results, strict=True):
                out.take(result)
        for out, stat in zip(step.outputs, stats, strict=True):
            out.close_tensor(step.key, stat)

    def _row(self, step: Step, bands: list[Rows], notes: Notes) -> dict:
        row = {"base": math.fsum(notes.squares.values()) if is_block_linear(step.key, step.spec) or step.change else 0.0}
        if step.change is not None:
            with self._at(step, "merge"):
                energies = step.change.energies([notes.energies[rows] for rows in bands])
            row |= {"gram": energies.gram, "gates": step.change.describe()}
            if self.means:
                row["mean_abs"] = [math.fsum(column) / step.spec.numel for column in zip(*notes.absolutes.values(), strict=True)]
        return row

    def _at(self, step: Step, stage: str) -> AbstractContextManager:
        return at(step.key, stage, self.source.name)

    def _whole(self, spec: TensorSpec) -> torch.Tensor:
        """The reused float32 buffer, as this tensor."""
        if self.buffer.numel() < spec.numel:
            self.buffer = torch.empty(0)           # the old one goes before the larger one comes
            self.buffer = torch.empty(spec.numel, dtype=torch.float32, device=self.device)
        return self.buffer[:spec.numel].view(spec.shape)

    def _band(self, spec: TensorSpec, rows: Rows) -> torch.Tensor:
        """Where this band lives: in the buffer, or in this thread's own tile."""
        if self.whole is not None:
            return self.whole[rows[0]:rows[1]] if spec.shape else self.whole
        return self._tile("band", spec, rows)

    def _scratch(self, spec: TensorSpec, rows: Rows) -> torch.Tensor:
        return self._tile("scratch", spec, rows)

    def _tile(self, name: str, spec: TensorSpec, rows: Rows) -> torch.Tensor:
        shape = (rows[1] - rows[0], *spec.shape[1:]) if spec.shape else ()
        need = math.prod(shape)
        tile = getattr(self.local, name, None)
        if tile is None or tile.numel() < need:
            tile = torch.empty(need, dtype=torch.float32, device=self.device)
            setattr(self.local, name, tile)
        return tile[:need].view(shape)


def _total(parts: dict[Rows, Moments], bands: list[Rows]) -> Moments:
    total = parts[bands[0]]
    for rows in bands[1:]:
        total = total + parts[rows]
    return total
