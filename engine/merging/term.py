"""One contribution ready to be multiplied out: its delta, at its strength, tile by tile.

    delta = strength * gate((alpha / rank) * up @ down) + strength * thin(Σ dense deltas)
Only products of factors are gated, as in the original; dense deltas are thinned instead, where a density below 1 is asked for:
exactly the largest int(density * n) of them, as they are, or DARE's coins and a division by the density (combine/dare.py).
"""
import math
from dataclasses import dataclass, field

import torch

from ..bands import Rows
from ..loras.delta import Delta, Transform
from ..loras.factors import Factors
from .combine.dare import coin_key, coins
from .combine.select import Cut, Search
from .contribution import Contribution
from .gate import Gate

PLAIN = {"lora", "diff"}                           # kinds that need no mention in the report


@dataclass
class Term:
    """factors hold alpha / rank, and the strength too unless classic gates them; deltas and transforms are at strength 1.

    adaptive: what the adaptive gate says of it, for the report. kept: elements that the gate, or the pass's method, let through.
    """

    contribution: Contribution
    key: str
    shape: tuple[int, ...]
    factors: Factors | None = None
    deltas: list[Delta] = field(default_factory=list)
    transforms: list[Transform] = field(default_factory=list)
    adaptive: dict | None = None
    gate: Gate | None = None
    cut: Cut | None = None
    kept: int = 0

    def __post_init__(self):
        self.matrix = (self.shape[0] if self.shape else 1, math.prod(self.shape[1:]))
        self.coin = coin_key(self.contribution.seed, self.key, self.contribution.sha256 or self.contribution.lora.name)

    @property
    def is_gated(self) -> bool:
        """Whether classic decides how much of the factors passes."""
        return self.contribution.method == "classic" and self.factors is not None

    @property
    def sees_base(self) -> bool:
        """Whether a delta of it depends on the original base."""
        return any(module.form == "base" for module in self.contribution.modules)

    @property
    def thins(self) -> str | None:
        """How the dense deltas are thinned: magnitude, dare, or None. Vectors, and what is added, never are."""
        asked = self.contribution
        is_vector = len(self.shape) < 2 or self.shape[0] == 1          # (1, 6, dim): a modulation is six vectors
        thinned = self.deltas and asked.method != "addition" and not asked.protected and asked.dense_density < 1.0
        return asked.dense_mode if thinned and not is_vector else None

    def search(self) -> Search:
        """For the `cut` of a term that thins by magnitude."""
        return Search(int(self.contribution.dense_density * math.prod(self.matrix)), self.matrix)

    def dense(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """OVERWRITE `out` with the sum of the dense deltas of this tile, at strength 1, not thinned."""
        self.deltas[0].write(rows, columns, base, out)
        part = torch.empty_like(out) if len(self.deltas) > 1 else out
        for delta in self.deltas[1:]:
            delta.write(rows, columns, base, part)
            out.add_(part)

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> int:
        """Fill `out` with the delta of these rows and columns; returns the elements of it that the gate let through.

        base: these rows of the original tensor, all columns, for a term that sees it.
        """
        if self.factors is None:
            out.zero_()
        else:
            self.factors.product(rows, columns, out)
        kept, strength = 0, self.contribution.strength
        if self.gate is not None:
            self.gate.apply(out, strength)
            kept = int(torch.count_nonzero(out))
        part = torch.empty_like(out) if self.deltas else out
        if self.thins:
            self.dense(rows, columns, base, part)
            out.add_(self._thin(part, rows, columns), alpha=strength)
        else:
            for delta in self.deltas:
                delta.write(rows, columns, base, part)
                out.add_(part, alpha=strength)
        return kept

    def _thin(self, part: torch.Tensor, rows: Rows, columns: slice) -> torch.Tensor:
        """IN PLACE; returns it."""
        if self.cut is not None:
            return part.mul_(self.cut.keeps(part, rows, columns))
        density = self.contribution.dense_density
        return part.mul_(coins(self.coin, density, (rows, columns, self.matrix[1]), part.device)).div_(density or 1.0)

    def describe(self) -> dict:
        """As JSON, complete after the last band: the method really used, and what the gate did."""
        asked, modules = self.contribution, self.contribution.modules
        pairs = [module for module in modules if module.form == "factors"]
        told = {"lora": asked.lora.name, "method": "classic" if self.is_gated else "addition",
                "rank": sum(module.rank for module in pairs), "alpha_over_rank": sorted({module.factor for module in pairs})}
        told = told if self.adaptive is None else {**told, **self.adaptive}
        if self.gate is not None:
            kept = self.kept / math.prod(self.shape)
            told |= {"tier": "new" if self.gate.is_new else "refine", "limit_hit": self.gate.limit_hit, "kept": kept}
        kinds = sorted({module.kind for module in modules})
        told |= {"kinds": kinds} if set(kinds) - PLAIN else {}
        told |= {"dense": True} if self.deltas and len(self.shape) > 1 and asked.method != "addition" else {}
        told |= {"dense_density": asked.dense_density, "dense_mode": self.thins} if self.thins else {}
        return told | ({"protected": True} if asked.protected else {})
