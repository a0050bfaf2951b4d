"""The straight line: a tensor is read, merged, measured, quantized and written, alone, in row bands.

    read ─► base, float32 ─► Σ deltas (gated ones after their statistics) ─► stats of the format ─► codes, scales ─► planned offset

A tensor whose formats need no statistics goes through band by band; one that needs them (FP8: amax), or whose change does (gates,
ranks, norms, transforms), is merged in one reused float32 buffer and encoded from it. Either way each band is computed by one
thread, in one fixed order.
"""
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from ..bands import Rows, Workers, split
from ..errors import at
from ..merging.merge import Alteration
from ..precision import is_block_linear
from ..specs import TensorSpec
from .output import Band, Output, sampled_rows
from .room import Room
from .sample import rows_of
from .survival import Space


@dataclass(frozen=True)
class Step:
    """One base tensor on its way."""

    key: str
    spec: TensorSpec
    change: Alteration | None
    outputs: list[Output]
    space: Space | None = None                     # of the change's rows, where outputs tell what they keep of it


@dataclass
class Notes:
    """What the bands of one tensor told, by band: nothing is summed across threads."""

    squares: dict[Rows, float] = field(default_factory=dict)
    before: dict[Rows, float] = field(default_factory=dict)                    # sum |W|, for the legacy number only
    after: dict[Rows, float] = field(default_factory=dict)                     # sum |W'|
    energies: dict[Rows, object] = field(default_factory=dict)
    stats: dict[tuple[Callable, Rows], object] = field(default_factory=dict)   # by what measures: formats share an amax
    sampled: list[int] = field(default_factory=list)                           # numbers of the sampled rows
    bases: dict[Rows, torch.Tensor] = field(default_factory=dict)              # those rows before the merge


class Line:
    """Carries tensors of one source through; keeps the reused buffers. means: also take mean|W|, which only the legacy number
    needs."""

    def __init__(self, source, workers: Workers, device: torch.device, *, means: bool = False):
        self.source, self.workers, self.device, self.means = source, workers, device, means
        self.room = Room(device)

    def carry(self, step: Step) -> dict:
        """Take one tensor through; returns its report row (see `meter.summarize`)."""
        change = step.change if step.change is not None and step.change.needs_whole else None
        measured = [out for out in step.outputs if out.form(step.key).measure]
        self.room.take(step.spec, whole=bool(change or measured))
        bands, notes = split(step.spec.shape), Notes(sampled=rows_of(step.key, step.spec.shape[0]) if step.spec.shape else [])
        if self.room.whole is None:
            self._encode(step, bands, notes, lambda rows: self._through(step, rows, notes))
        else:
            with self._at(step, "merge"):
                if change:
                    self.workers.map(lambda rows: self._read(step, rows, notes), bands)
                    change.decide(self.room.whole, self.workers.map)
                    self.workers.map(lambda rows: self._merge(step, rows, notes), bands)
                    change.finish(self.room.whole, self.workers.map)
                    self.workers.map(lambda rows: self._measure(step, rows, notes), bands)
                else:
                    self.workers.map(lambda rows: self._through(step, rows, notes), bands)
            self._encode(step, bands, notes, lambda rows: None)
        return self._row(step, bands, notes)

    def _through(self, step: Step, rows: Rows, notes: Notes) -> None:
        """A band that depends on no other."""
        self._read(step, rows, notes)
        self._merge(step, rows, notes)
        self._measure(step, rows, notes)

    def _read(self, step: Step, rows: Rows, notes: Notes) -> None:
        """Fill the band with the base, float32; its sum of squares also finds NaN and inf."""
        band = self.room.band(step.spec, rows)
        with self._at(step, "read"):
            if self.device.type == "cpu":
                self.source.read(step.key, rows if step.spec.shape else None, out=band)
            else:
                band.copy_(self.source.read(step.key, rows if step.spec.shape else None))
            flat = band.reshape(-1)
            notes.squares[rows] = square = torch.dot(flat, flat).item()
            if not math.isfinite(square) and not torch.isfinite(flat).all():
                raise ValueError("the base holds NaN or inf; get the file again, or choose another base")
            if step.space is not None:
                notes.bases[rows] = band[sampled_rows(notes.sampled, rows)]

    def _merge(self, step: Step, rows: Rows, notes: Notes) -> None:
        if step.change is not None:
            band = self.room.band(step.spec, rows)
            notes.before[rows] = self._absolute(band)
            notes.energies[rows] = step.change.add(band, rows, self.room.scratch(step.spec, rows))

    def _measure(self, step: Step, rows: Rows, notes: Notes) -> None:
        """What the merged band has to tell: the legacy number, and the statistics of the formats."""
        band = self.room.band(step.spec, rows)
        if step.change is not None:
            notes.after[rows] = self._absolute(band)
        for measure in {out.form(step.key).measure for out in step.outputs} - {None}:
            notes.stats[measure, rows] = measure(band)

    def _absolute(self, band: torch.Tensor) -> float:
        return band.abs().sum(dtype=torch.float64).item() if self.means else 0.0

    def _encode(self, step: Step, bands: list[Rows], notes: Notes, prepare) -> None:
        """Every output's codes, band after band; the hash follows in order."""
        with self._at(step, "quantize"):
            forms = [out.form(step.key) for out in step.outputs]
            stats = [form.combine([notes.stats[form.measure, rows] for rows in bands]) if form.measure else None for form in forms]

        def encode(rows: Rows) -> list:
            with self._at(step, "merge"):
                prepare(rows)
            band = Band(step.key, rows, self.room.band(step.spec, rows), self.room.scratch(step.spec, rows),
                        sampled_rows(notes.sampled, rows), len(notes.sampled), notes.bases.get(rows), step.space)
            return [out.encode(band, stat) for out, stat in zip(step.outputs, stats, strict=True)]

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
            row |= energies.row() | {"gates": step.change.describe()}
            if self.means:
                row["mean_abs"] = [math.fsum(sums.values()) / step.spec.numel for sums in (notes.before, notes.after)]
        return row

    def _at(self, step: Step, stage: str) -> AbstractContextManager:
        return at(step.key, stage, self.source.name)
