"""What one tensor's change is to those who drive it (line, preview, bake): `Change` is one, ComfyUI's arithmetic the other."""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from ..bands import Rows

Run = Callable[[Callable, list[Rows]], list]


@dataclass(frozen=True)
class BandEnergy:
    """What `add` learned in one band: its share of the Gram matrix (n, n) float64, and elements let through per LoRA."""

    gram: torch.Tensor
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Energies:
    """How far one tensor was moved, before rounding.

    gram[j][k] = <delta_j, delta_k> over the whole tensor, in the order of the contributions, of what each of them really adds
    after the method of its pass; a transform's own ||T(V) - V||^2 is on the diagonal. moved = ||W' - W||^2 and
    rest = ||W' - W - sum of the protected deltas||^2 where these are not sums of the Gram matrix, else None.
    """

    gram: list[list[float]]
    moved: float | None = None
    rest: float | None = None

    def row(self) -> dict:
        """As the report row has it."""
        extra = {"moved": self.moved, "rest": self.rest}
        return {"gram": self.gram, **{name: value for name, value in extra.items() if value is not None}}


class Alteration(Protocol):
    """All that is done to one tensor.

    needs_whole: the ORIGINAL tensor must lie whole in one buffer; then `decide`, `add` for every band, `finish`. Else `add` alone.
    run(compute, bands) calls compute on every band, on any threads, and returns the results in order (`Workers.map`). Neither the
    bytes nor the energies depend on the threads; the bands are those of `bands.split(shape)`.
    """

    needs_whole: bool

    def decide(self, whole: torch.Tensor, run: Run) -> None:
        """Look at the original tensor, float32, contiguous, of its own shape; it is not changed."""

    def add(self, band: torch.Tensor, rows: Rows, scratch: torch.Tensor) -> BandEnergy:
        """Add all deltas to rows [start, stop), IN PLACE.

        band: (rows, the other axes), float32, contiguous; scratch: float32, contiguous, of as many elements, overwritten.
        """

    def finish(self, whole: torch.Tensor, run: Run) -> None:
        """After the last band: what needs the merged tensor whole (transforms, normalize), IN PLACE."""

    def energies(self, bands: list[BandEnergy]) -> Energies:
        """Sum what `add` returned, in band order. Raises ValueError, which names the LoRAs, when the sums overflowed."""

    def row_space(self) -> torch.Tensor | None:
        """(rank, columns) float32 whose rows span the inputs that the LoRAs listen to; None where these may be any. Ask before
        `decide`."""

    def describe(self) -> list[dict]:
        """Per contribution, as JSON: complete after `energies`."""
