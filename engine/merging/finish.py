"""What comes after the sum of the deltas: transforms in list order, then the norm of the base, then how far it really went.

    normalize: W' := W' * ||W|| / ||W'||        Frobenius, per 2-D weight, as the original recipe's switch means it
Sums run over row bands in float64, in band order. Transforms depend on what was merged before them: the only place where the
order of LoRAs matters (OFT, BOFT, GLoRA, set_weight).
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..bands import BAND_ELEMENTS, Rows, split
from ..loras.delta import Transform
from .alteration import Run

if TYPE_CHECKING:
    from .change import Change


@dataclass(frozen=True)
class After:
    """transformed: ||T(V) - V||^2 of each term's transforms, summed; moved, rest: see `Energies`."""

    transformed: tuple[float, ...] = ()
    moved: float | None = None
    rest: float | None = None


NOTHING = After()


def finish(change: "Change", flat: torch.Tensor, run: Run) -> After:
    """Change `flat`, the merged tensor as (rows, columns), float32, IN PLACE; `change.original` is its base."""
    transformed = [math.fsum(_apply(flat, transform, term.contribution.strength, run) for transform in term.transforms)
                   for term in change.terms]
    bands = split(change.shape)
    if change.normalize:
        before, after = (math.fsum(run(lambda rows, of=of: _square(of[rows[0]:rows[1]].double()), bands))
                         for of in (change.original, flat))
        factor = math.sqrt(before / after) if after else 1.0
        run(lambda rows: flat[rows[0]:rows[1]].mul_(factor), bands)
    measured = run(lambda rows: _distance(change, flat, rows), bands)
    return After(tuple(transformed), *(math.fsum(column) for column in zip(*measured, strict=True)))


def _apply(flat: torch.Tensor, transform: Transform, strength: float, run: Run) -> float:
    """One transform over the whole tensor, by bands of rows, or of columns where it mixes rows; ||T(V) - V||^2."""
    height, width = flat.shape

    def one(span: Rows) -> float:
        rows, columns = ((0, height), slice(*span)) if transform.whole else (span, slice(0, width))
        part = flat[rows[0]:rows[1], columns]
        before = part.clone()
        transform.apply(part, rows, columns, strength)
        return _square(before.sub_(part).double())

    step = max(1, BAND_ELEMENTS // height)
    strips = [(start, min(start + step, width)) for start in range(0, width, step)]
    return math.fsum(run(one, strips if transform.whole else split((height, width))))


def _distance(change: "Change", flat: torch.Tensor, rows: Rows) -> tuple[float, float]:
    """||W' - W||^2 of one band, and the same less the protected deltas."""
    base = change.original[rows[0]:rows[1]]
    moved = flat[rows[0]:rows[1]].double().sub_(base)
    whole, protected = _square(moved), [term for term in change.terms if term.contribution.protected]
    if protected:
        for columns, room in change.tiles(rows, torch.empty(0, device=flat.device)):
            for term in protected:
                term.write(rows, columns, base, room[0])
                moved[:, columns].sub_(room[0])
    return whole, _square(moved) if protected else whole


def _square(wide: torch.Tensor) -> float:
    """Sum of squares, float64."""
    wide = wide.reshape(-1)
    return torch.dot(wide, wide).item()
