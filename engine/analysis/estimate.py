"""From row sums of many layers to one excess conflict and its standard error: a combined ratio estimate over strata.

    excess = max(Σ_l f_l Σ_r w (s - chance_l) / Σ_l f_l Σ_r w, 0),   f_l = rows of layer l / rows sampled in it
    se² = Σ_l f_l² n_l var_l(w (s - chance_l) - R w) / (Σ_l f_l Σ_r w)²,   R the ratio before the max
(Cochran, Sampling Techniques, 3rd ed. 1977, sections 6.10 and 6.11.) No correction for a finite number of rows is made, so the
error also covers "another LoRA of the same kind". The max is taken once, at the end: taken per layer it would add up noise.
"""
import math
from dataclasses import dataclass

from .sampled import SUMS


@dataclass(frozen=True)
class Stratum:
    """Sums of one layer for one pair. factor: rows of the layer / rows sampled; count: rows sampled; sums: as in SUMS."""

    factor: float
    count: int
    sums: list[float]


@dataclass(frozen=True)
class Excess:
    """conflict: weighted share of opposite signs; chance: what the cosines alone explain; excess: beyond it; se: of excess."""

    conflict: float
    chance: float
    excess: float
    se: float

    def to_json(self) -> dict[str, float]:
        return {"conflict": self.conflict, "chance": self.chance, "excess": self.excess, "se": self.se}


def excess(strata: list[Stratum]) -> Excess | None:
    """The estimate over these layers; None where the pair never meets."""
    totals = {name: math.fsum(each.factor * each.sums[place] for each in strata) for place, name in enumerate(SUMS)}
    if not totals["w"] > 0:
        return None
    ratio = totals["wd"] / totals["w"]
    variance = math.fsum(_variance(each, ratio) for each in strata)
    conflict = totals["ws"] / totals["w"]
    return Excess(conflict, conflict - ratio, max(ratio, 0.0), math.sqrt(variance) / totals["w"])


def _variance(stratum: Stratum, ratio: float) -> float:
    """f² n var(e) of one layer, e = w d - R w; var from the sums, unbiased; 0 for a single row, which shows no spread."""
    if stratum.count < 2:
        return 0.0
    total, _, beyond, squares, mixed, beyond_squares = stratum.sums
    spread = beyond_squares - 2 * ratio * mixed + ratio * ratio * squares - (beyond - ratio * total) ** 2 / stratum.count
    return stratum.factor**2 * stratum.count * max(spread, 0.0) / (stratum.count - 1)
