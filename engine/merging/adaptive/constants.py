"""The constants of adaptive injection, under the names that recipes use."""
from dataclasses import asdict, dataclass

AT_ONCE = ("limit_new", "limit_refine")            # act when factors are applied; the rest decides what is measured and stored


@dataclass(frozen=True)
class AdaptiveConstants:
    """known_over_chance: a pair of directions is known where the base's γ exceeds this many times what random spaces would show.
    refine_energy: a change is refinement up to this many times Σγ². share_*: what is kept of a refinement's Σσ. new_over_mean: a
    new component passes above this many times the mean σ. limit_*: of the norm of the sum, in units of ‖W‖. negligible: σ below
    this share of the largest count as zero."""

    known_over_chance: float = 1.5
    refine_energy: float = 1.5
    share_floor: float = 0.2
    share_ceiling: float = 0.4
    share_over_mean: float = 1.8
    new_over_mean: float = 0.4
    limit_new: float = 0.08
    limit_refine: float = 0.05
    negligible: float = 1e-6

    def measured(self) -> dict[str, float]:
        """The constants that a stored measurement depends on: all but the limits."""
        return {name: value for name, value in asdict(self).items() if name not in AT_ONCE}
