"""One pass on one tensor, tile by tile: what its method has to know beforehand, and what it leaves of each delta.

Every method is written so that it leaves of each delta its part of the result, and the result is the sum of the parts: Gram
matrix, shift of each LoRA and of each pass then tell what was really added.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ...bands import Rows
from ...errors import RecipeError
from ..contribution import Contribution, PassRule
from .breadcrumbs import ranks
from .dare import coin_key, coins
from .linear import orthogonal_coefficients, slerp_coefficients
from .select import Cut, Search
from .ties import elect

LINEAR = ("slerp", "orthogonal")
METHODS = ("sum", "ties", "dare_ties", "breadcrumbs", *LINEAR)


def check(rule: PassRule, pass_name: str, count: int) -> None:
    """Raise RecipeError when a pass of `count` unprotected LoRAs cannot be combined by its method."""
    if rule.combine not in METHODS:
        raise RecipeError(f"{pass_name}: combine: expected one of {', '.join(METHODS)}, found {rule.combine!r}")
    if rule.combine == "slerp" and count != 2:
        raise RecipeError(f"{pass_name}: slerp takes exactly two LoRAs, found {count}; use sum or orthogonal, or another pass "
                          "(protected distillation LoRAs do not count, they are added exactly)")


@dataclass
class Combined:
    """The unprotected contributions of one pass on one tensor; protected ones are added exactly, after it.

    members: their places in the list of all; shape: (rows, columns) of the tensor.
    """

    rule: PassRule
    key: str
    shape: tuple[int, int]
    members: list[int]
    contributions: list[Contribution]
    coefficients: list[float] | None = None
    cuts: list[tuple[Cut, ...]] = field(default_factory=list)

    def __post_init__(self):
        if self.rule.combine == "slerp" and len(self.members) > 2:
            check(self.rule, f"pass {self.contributions[0].pass_number + 1}", len(self.members))
        if self.rule.combine == "slerp" and len(self.members) == 1:    # the other one is 0 here: the straight line
            self.coefficients = [self.rule.t if self.contributions[0].place else 1.0 - self.rule.t]
        if self.rule.combine == "orthogonal" and len(self.members) == 1:
            self.coefficients = [1.0]
        self.coins = [coin_key(self.rule.seed, self.key, each.sha256 or each.lora.name) for each in self.contributions]

    @property
    def needs_gram(self) -> bool:
        """Whether `weigh` has to come first."""
        return self.rule.combine in LINEAR and self.coefficients is None

    def weigh(self, gram: torch.Tensor) -> None:
        """Set the coefficients. gram: (members, members), float64."""
        self.coefficients = slerp_coefficients(gram, self.rule.t) if self.rule.combine == "slerp" else orthogonal_coefficients(gram)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of each member's delta, how many of the largest elements have to be found before `apply`; empty when none."""
        numel, density = self.shape[0] * self.shape[1], self.rule.density
        if self.rule.combine == "ties" and density < 1.0:
            return (int(density * numel),)
        return ranks(numel, density, self.rule.gamma) if self.rule.combine == "breadcrumbs" else ()

    @property
    def drops(self) -> bool:
        """Whether elements get lost."""
        return self.rule.combine in ("ties", "dare_ties", "breadcrumbs")

    def searches(self) -> list[list[Search]]:
        """One for each of `ranks`, for each member."""
        return [[Search(rank, self.shape) for rank in self.ranks] for _ in self.members]

    def take(self, searches: list[list[Search]]) -> None:
        """Keep what was found."""
        self.cuts = [tuple(search.cut for search in own) for own in searches]

    def apply(self, deltas: Sequence[torch.Tensor], rows: Rows, columns: slice) -> None:
        """Leave of each delta its part of the result, IN PLACE. deltas: all contributions' of one tile, float32."""
        mine = [deltas[place] for place in self.members]
        for number, delta in enumerate(mine):
            if self.coefficients is not None:
                delta.mul_(self.coefficients[number])
            elif self.rule.combine == "dare_ties":
                where = (rows, columns, self.shape[1])
                delta.mul_(coins(self.coins[number], self.rule.density, where, delta.device)).div_(self.rule.density or 1.0)
            elif self.cuts:
                *outer, inner = [cut.keeps(delta, rows, columns) for cut in self.cuts[number]]
                delta.mul_(inner & ~outer[0] if outer else inner)
        if self.rule.combine in ("ties", "dare_ties"):
            elect(mine)

    def describe(self) -> list[dict]:
        """Per member, as JSON."""
        weights = self.coefficients or [None] * len(self.members)
        return [{"combine": self.rule.combine} | ({} if weight is None else {"coefficient": weight}) for weight in weights]
