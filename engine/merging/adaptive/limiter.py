"""The limiter: the sum of all gated LoRAs of one tensor stays below a share of the base's norm, tier by tier.

    ‖Σ s N‖ <= 0.08 ‖W‖,  ‖Σ s R‖ <= 0.05 ‖W‖        one factor per tier and tensor, on every LoRA that is not protected
    ‖Σ s N‖² = Σ_jk s_j s_k <N_j, N_k>,  <U_j X_j V_jᵀ, U_k X_k V_kᵀ> = Σ (X_jᵀ (U_jᵀ U_k) X_k) ∘ (V_jᵀ V_k)
exact from Gram matrices, so that no order matters; where Σ |s| ‖N‖ is below the limit, the triangle inequality says so at once.
"""
import math
from dataclasses import dataclass
from functools import cached_property

import torch

from ...bands import one_thread
from ...loras.factors import Factors
from .constants import AdaptiveConstants
from .entry import Entry

CHUNK = 2048  # rows of one float32 product; their sum is taken in float64


@dataclass(frozen=True)
class Part:
    """One LoRA's gated delta of one tensor. raw: its factors at strength 1; sha256: of its file, which fixes the order of sums."""

    entry: Entry
    raw: Factors
    strength: float
    sha256: str

    @cached_property
    def u(self) -> torch.Tensor:
        """U, (out, r) float32."""
        return (self.raw.up.double() @ self.entry.left).float()

    @cached_property
    def vt(self) -> torch.Tensor:
        """Vᵀ, (r, in) float32."""
        return (self.entry.right @ self.raw.down.double()).float()

    def tier(self, name: str) -> torch.Tensor | None:
        """The gated matrix between U and V, (r, r), or (r,) for a diagonal; None where it is zero."""
        return self.entry.known if name == "refine" else self.entry.new

    def size(self, name: str) -> float:
        """|s| times the norm of the tier."""
        return abs(self.strength) * math.sqrt(self.entry.figures[f"passed_{name}"])


def limit(parts: list[Part], constants: list[AdaptiveConstants]) -> dict[str, dict]:
    """tier -> {"factor": at most 1, "norm": ‖Σ s ·‖ before it (an upper bound where that sufficed), "limit", "exact"}.

    parts: the LoRAs that are not protected, in any order. constants: of all; where passes differ, the smallest limit holds.
    """
    parts = sorted((part for part in parts if part.entry.rank), key=lambda part: (part.sha256, part.strength, part.size("new")))
    base = math.sqrt(parts[0].entry.figures["base"]) if parts else 0.0
    bounds = {"new": base * min((each.limit_new for each in constants), default=1.0),
              "refine": base * min((each.limit_refine for each in constants), default=1.0)}
    told = {name: {"factor": 1.0, "norm": math.fsum(part.size(name) for part in parts), "limit": bound, "exact": len(parts) < 2}
            for name, bound in bounds.items()}
    exceeding = [name for name, said in told.items() if said["norm"] > said["limit"]]
    if exceeding and len(parts) > 1:
        for name, norm in _norms(parts, exceeding).items():
            told[name] |= {"norm": norm, "exact": True}
    for said in told.values():
        if said["norm"] > said["limit"]:
            said["factor"] = said["limit"] / said["norm"]
    return told


def _norms(parts: list[Part], tiers: list[str]) -> dict[str, float]:
    """Exact norm of the sum per tier."""
    ranks = [part.entry.rank for part in parts]
    ups, downs = torch.cat([part.u for part in parts], 1), torch.cat([part.vt for part in parts]).t().contiguous()
    terms: dict[str, list[float]] = {name: [part.size(name) ** 2 for part in parts] for name in tiers}
    for j, one in enumerate(parts[:-1]):
        start, middle = sum(ranks[:j]), sum(ranks[:j + 1])
        lefts, rights = (cross(each[:, start:middle], each[:, middle:]).split(ranks[j + 1:], 1) for each in (ups, downs))
        for other, left, right in zip(parts[j + 1:], lefts, rights, strict=True):
            for name in tiers:
                x, y = one.tier(name), other.tier(name)
                if x is not None and y is not None:
                    inner = (_between(x, left, y) * right).sum().item()
                    terms[name].append(2 * one.strength * other.strength * inner)
    return {name: math.sqrt(max(0.0, math.fsum(found))) for name, found in terms.items()}


def _between(x: torch.Tensor, middle: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """xᵀ middle y, where x and y may be diagonals."""
    first = x[:, None] * middle if x.dim() == 1 else x.t() @ middle
    return first * y if y.dim() == 1 else first @ y


def cross(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """oneᵀ @ other, float64: (rows, j) and (rows, k) float32 -> (j, k). In chunks of fixed rows and on one thread: the bits of a
    float32 product depend on both."""
    total = torch.zeros(one.shape[1], other.shape[1], dtype=torch.float64)
    with one_thread():
        for start in range(0, len(one), CHUNK):
            total += one[start:start + CHUNK].t() @ other[start:start + CHUNK]
    return total
