"""What all runs of one expert tell together, read layer by layer: 64 runs of a 14B hold gigabytes.

    mean x² of a channel = Σ over runs and steps of Σ x² / Σ n             float64
    outlier channels     = share of channels whose rms is above 4 times the median rms; the same of the largest values

Halves, for holding one out: with two runs or more the runs of even and of odd place, with one run its even and odd steps. The text
that every cross-attention sees is the same in each step, and the negative prompt's in each run, so a token that is in half 0 to the
bit is left out of half 1.
"""
import hashlib
import json

import torch

from ..errors import RecipeError
from .compare import unlike
from .piece import Piece
from .records import Call
from .run import Run
from .session import Session

OUTLIER = 4.0                                      # times the median: where a channel counts as one that sticks out


def gather(session: Session, role: str) -> "Gathered":
    """All that counts of a role. Raises RecipeError when nothing was recorded of it."""
    runs = [run for run in session.runs(role) if run.files]
    if not runs:
        raise RecipeError(f"{session.name}: {role}: expected recorded runs, found none; calibrate first")
    return Gathered(role, runs)


class Gathered:
    """runs: that count, with a step or more; points: point -> layers; calls: (run number, step, Call) of every call, in order of
    recording; notices: what the user should know."""

    def __init__(self, role: str, runs: list[Run]):
        self.role, self.runs, self._pieces = role, runs, Piece.pieces(runs)
        self.points: dict[str, tuple[str, ...]] = {}
        for run in runs:
            self.points = {**run.points, **self.points}
        self.calls: list[tuple[int, int, Call]] = [(piece.run.number, step, call) for piece in self._pieces
                                                   for step, call in piece.file.calls]
        self.notices = self._told()

    def layers(self) -> list[str]:
        """Every layer that belongs to a point, point by point."""
        return list(dict.fromkeys(layer for layers in self.points.values() for layer in layers))

    def amax(self, layer: str) -> torch.Tensor:
        """(n,), float32: exact max |x| of each call that saw the layer, with finite inputs, in order of recording.

        The same for all layers of a point. Shorter than `calls` where a call did not see it; `places` says which did.
        """
        found = self._column("amax", layer)
        return found[torch.isfinite(found)]

    def places(self, layer: str) -> torch.Tensor:
        """(n,), int64: places in `calls` of what `amax` gives."""
        return torch.isfinite(self._column("amax", layer)).nonzero().flatten()

    def rows(self, layer: str) -> torch.Tensor:
        """(n,), int64: input vectors of each call in `amax`."""
        return self._column("rows", layer)[self.places(layer)].long()

    def left_out(self, layer: str) -> int:
        """Inputs that were not finite, and are in no sum."""
        return sum(int(count) for piece in self._of(layer) if (count := piece.row("left_out", layer)) is not None)

    def columns(self, layer: str, half: int | None = None) -> tuple[torch.Tensor, int]:
        """(mean x² by channel, (in,) float64; vectors it is the mean of), of all or a half. An empty tensor and 0 where none is."""
        total, vectors = torch.zeros(0, dtype=torch.float64), 0
        for piece in self._of(layer):
            for point, here, count in piece.halves(layer, half):
                if count:
                    squares = piece.file.of("squares", point, here)
                    total, vectors = (total + squares if vectors else squares), vectors + count
        return (total / vectors if vectors else total), vectors

    def peaks(self, layer: str) -> torch.Tensor:
        """(in,), float32: largest |x| of each channel; empty where nothing was seen."""
        found = [piece.file.of("peaks", piece.point_of[layer]) for piece in self._of(layer)]
        found = [peaks for peaks in found if peaks is not None]
        return torch.stack(found).amax(0) if found else torch.zeros(0)

    def histogram(self, layer: str) -> torch.Tensor:
        """(bins,), int64: of |x| of a subsample (bins.py)."""
        return torch.stack([row for piece in self._of(layer) if (row := piece.row("histogram", layer)) is not None]).sum(0)

    def tokens(self, layer: str, half: int | None = None) -> torch.Tensor:
        """(n, in), float32: input vectors as they came, of all or a half; (0, 0) where none were kept. Never the same in both."""
        found = self._tokens(layer, half)
        if half != 1 or not len(found):
            return found
        before = {row.numpy().tobytes() for row in self._tokens(layer, 0)}
        return found[torch.tensor([row.numpy().tobytes() not in before for row in found])]

    def outliers(self, layer: str) -> tuple[float, float]:
        """Share of channels that stick out: by rms, by largest value. NaN where nothing was seen."""
        rms, peaks = self.columns(layer)[0].sqrt(), self.peaks(layer)
        return _outliers(rms), _outliers(peaks)

    @property
    def state(self) -> str:
        """SHA-256 of what was recorded: changes when a run or a step is added, replaced or thinned."""
        digest = hashlib.sha256()
        for run in self.runs:
            digest.update(json.dumps([run.number, run.facts.to_json(), run.subject.to_json()], sort_keys=True).encode())
        for piece in self._pieces:
            digest.update(piece.file.stored.sha256.encode())
            for tensor in piece.tables.values():
                digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _told(self) -> list[str]:
        lost = sum(int(piece.tables["left_out"].sum()) for piece in self._pieces)
        half = sum(run.half_written for run in self.runs)
        said = [text for count, text in (
            (lost, f"{lost} inputs held inf, NaN or squares beyond float32, and are in no sum"),
            (half, f"{half} files of steps are half-written or damaged, and are left out")) if count]
        return [f"{self.role}: {text}" for text in [*said, *unlike(self.runs)]]

    def _of(self, layer: str) -> list[Piece]:
        """Pieces whose run knows the layer. Raises RecipeError when none does."""
        found = [piece for piece in self._pieces if layer in piece.point_of]
        if not found:
            raise RecipeError(f"{self.role}: {layer}: expected a layer that was recorded, found another; calibrate it")
        return found

    def _column(self, name: str, layer: str) -> torch.Tensor:
        """(calls,), NaN where a run does not know the layer."""
        self._of(layer)
        unseen = torch.tensor(torch.nan)
        columns = [(len(piece.file.calls), piece.column(name, layer)) for piece in self._pieces]
        return torch.cat([unseen.expand(calls) if column is None else column for calls, column in columns])

    def _tokens(self, layer: str, half: int | None) -> torch.Tensor:
        found = [piece.file.of("tokens", point, here) for piece in self._of(layer) for point, here, _ in piece.halves(layer, half)]
        found = [tokens.float() for tokens in found if tokens is not None]
        return torch.cat(found) if found else torch.zeros(0, 0)


def _outliers(size: torch.Tensor) -> float:
    return float((size > OUTLIER * size.median()).double().mean()) if len(size) else float("nan")
