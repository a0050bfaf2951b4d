"""One LoRA's part in one tensor: what it was asked to add, and its delta, tile by tile.

    delta = strength * gate((alpha / rank) * up @ down) + strength * diff
"""
from dataclasses import dataclass

import torch

from .factors import Factors, read_difference
from .gate import ClassicConstants, Gate
from .ledger import Diff, Module, Pair
from .lora import LoraFile

Rows = tuple[int, int]
CLASSIC = ClassicConstants()


@dataclass(frozen=True)
class Contribution:
    """What one LoRA adds to one tensor. strength includes the pass's global factor; method is `addition` or `classic`."""

    lora: LoraFile
    modules: list[Module]
    strength: float
    method: str = "addition"
    constants: ClassicConstants = CLASSIC


@dataclass
class Term:
    """One contribution, ready to be multiplied out. `factors` hold alpha / rank, and the strength too unless they are gated."""

    contribution: Contribution
    factors: Factors | None = None
    gate: Gate | None = None
    kept: int = 0

    @property
    def pairs(self) -> list[Pair]:
        return [module for module in self.contribution.modules if isinstance(module, Pair)]

    @property
    def diffs(self) -> list[Diff]:
        return [module for module in self.contribution.modules if isinstance(module, Diff)]

    @property
    def is_gated(self) -> bool:
        """Classic gates products of factors; full differences and vectors are added as they are, as in the original."""
        return self.contribution.method == "classic" and bool(self.pairs)

    def read_differences(self, rows: Rows, device: torch.device) -> list[torch.Tensor]:
        """Rows of every full difference, (rows, the other axes as one), float32."""
        return [read_difference(self.contribution.lora, diff.key, rows, device) for diff in self.diffs]

    def write(self, rows: Rows, columns: slice, differences: list[torch.Tensor], out: torch.Tensor) -> int:
        """Fill `out` with the delta of these rows and columns; returns the elements of it that the gate let through.

        differences: from `read_differences` for the same rows.
        """
        if self.factors is None:
            out.zero_()
        else:
            self.factors.product(rows, columns, out)
        kept = 0
        if self.gate is not None:
            self.gate.apply(out, self.contribution.strength)
            kept = int(torch.count_nonzero(out))
        for difference in differences:
            out.add_(difference[:, columns], alpha=self.contribution.strength)
        return kept

    def describe(self, numel: int) -> dict:
        """As JSON, complete after the last band. numel: elements of the tensor."""
        told = {"lora": self.contribution.lora.name, "method": "classic" if self.is_gated else "addition",
                "rank": sum(pair.rank for pair in self.pairs), "alpha_over_rank": sorted({pair.factor for pair in self.pairs})}
        if self.gate is not None:
            told |= {"tier": "new" if self.gate.is_new else "refine", "limit_hit": self.gate.limit_hit, "kept": self.kept / numel}
        return told
