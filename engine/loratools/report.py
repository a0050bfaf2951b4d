"""What a LoRA tool did, tensor by tensor: ranks, errors, what was left out and why; as JSON and as lines for people."""
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field

from .low_rank import Fit
from .wish import root

MOST_LINES = 12


@dataclass(frozen=True)
class Row:
    """One tensor. rank: None for a whole difference; total: ‖δ‖² or None where unknown; why: reason it was left out."""

    key: str
    rank: int | None
    total: float | None
    why: str = ""
    lost: float = 0.0

    @property
    def error(self) -> float:
        """‖δ − stored‖ / ‖δ‖."""
        return root(self.lost / self.total) if self.total else 0.0


@dataclass
class Report:
    """Rows in file order. left_out: what is not in the file; unchanged: keys with δ = 0, which need nothing."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[Row] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    path: str = ""
    notice: str | None = None

    def add(self, key: str, fit: Fit, *, whole: bool = False) -> None:
        """Enter a written tensor."""
        self.rows.append(Row(key, None if whole else fit.rank, fit.total, lost=fit.lost))

    @property
    def total(self) -> float:
        """‖δ‖² of everything, written or not."""
        return math.fsum(row.total or 0.0 for row in [*self.rows, *self.left_out])

    @property
    def error(self) -> float:
        """√(Σ‖δ − stored‖² / Σ‖δ‖²) over all tensors; what was left out counts as lost."""
        lost = math.fsum([*(row.lost for row in self.rows), *(row.total or 0.0 for row in self.left_out)])
        return root(lost / self.total) if self.total else 0.0

    def as_json(self) -> dict:
        """Everything, as JSON values."""
        return {"path": self.path, "error": self.error, "norm": root(self.total), "notes": self.notes,
                "layers": [{"key": row.key, "rank": row.rank, "norm": root(row.total), "error": row.error} for row in self.rows],
                "left_out": [{"key": row.key, "why": row.why, "share": self._share(row)} for row in self.left_out],
                "unchanged": len(self.unchanged)}

    def _share(self, row: Row) -> float | None:
        return None if row.total is None or not self.total else row.total / self.total

    def lines(self) -> list[str]:
        """For people: the file, the error, the worst layers, and all that is not in the file."""
        ranks = [row.rank for row in self.rows if row.rank is not None]
        span = "" if not ranks else f", rank {min(ranks)}" + (f" to {max(ranks)}" if max(ranks) > min(ranks) else "")
        whole = sum(row.rank is None for row in self.rows)
        lines = [f"{os.path.basename(self.path)}: {len(ranks)} layers as factors{span}, {whole} whole differences",
                 f"error of the whole: {self.error:.3g} of the delta's norm"]
        worst = sorted(self.rows, key=lambda row: -row.error)[:3]
        lines += [f"  {row.key}: {row.error:.3g}, rank {row.rank}" for row in worst if row.error > 0 and row.rank is not None]
        return [*lines, *self._left_lines(), *self.notes, *([self.notice] if self.notice else [])]

    def _left_lines(self) -> list[str]:
        counted, energy = Counter(row.why for row in self.left_out), Counter()
        for row in self.left_out:
            energy[row.why] += self._share(row) or 0.0
        lines = []
        for why, count in counted.most_common():
            first = next(row.key for row in self.left_out if row.why == why)
            held = f", {energy[why]:.2%} of the energy" if energy[why] else ""
            lines.append(f"not in the file: {count} × {why}{held} (first: {first})")
        shown = lines[:MOST_LINES]
        return shown + ([f"and {len(lines) - len(shown)} more reasons"] if len(lines) > len(shown) else [])


def entry(told: dict) -> dict[str, str]:
    """The pack's one entry in a LoRA's metadata."""
    return {"wan22_master": json.dumps({"version": 1, **told}, sort_keys=True, ensure_ascii=False)}
