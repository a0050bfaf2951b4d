"""What a LoRA's keys become: modules, each of which does one thing to one tensor of the base; or refusals, with their reason.

The two kinds that nearly every file consists of are here; the others are in adapters/, one file each.
"""
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch

from .delta import Delta, FactorDelta, StoredDelta, Transform
from .factors import load_factors

if TYPE_CHECKING:
    from .lora import LoraFile

UNSCALED = "not scaled by alpha"
Shape = tuple[int, ...]


class Module(Protocol):
    """One adapter module of one LoRA on one tensor, known from headers and alphas alone.

    kind: "lora", "tucker", "dora", "loha", "lokr", "oft", "boft", "glora", "ia3", "diff", "bias", "set".
    form: "factors" (exactly up @ down), "dense" (known without the base), "base" (needs the original base), "transform".
    keys: the file's keys it uses. rank: of its product, 0 where it is none. factor: alpha / rank as applied, 1 where there is
    none; alpha_from: what it rests on.
    """

    @property
    def kind(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def rank(self) -> int: ...
    @property
    def factor(self) -> float: ...
    @property
    def alpha_from(self) -> str: ...

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Delta | Transform:
        """Read what it does to a base tensor of this shape. Raises LoraError, naming file and key, for values not finite."""
        ...


@dataclass(frozen=True)
class Pair:
    """delta = factor * up @ down, or with a Tucker core `mid` (LoCon) factor * up @ (mid x down).

    up, down, alpha, mid: keys, alpha and mid may be None; alpha_from: what the factor rests on (alpha.py).
    """

    form: ClassVar[str] = "factors"
    up: str
    down: str
    alpha: str | None
    rank: int
    factor: float
    alpha_from: str
    mid: str | None = None

    @property
    def kind(self) -> str:
        return "lora" if self.mid is None else "tucker"

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in (self.up, self.down, self.alpha, self.mid) if key is not None)

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Delta:
        """See `Module.load`."""
        return FactorDelta(load_factors(shape, [(lora, self, 1.0)], device))


@dataclass(frozen=True)
class Diff:
    """delta = factor * the tensor itself. kind: "diff" (weights, biases, norms, modulation) or "bias" (of a LoRA)."""

    form: ClassVar[str] = "dense"
    rank: ClassVar[int] = 0
    key: str
    kind: str = "diff"
    factor: float = 1.0
    alpha_from: str = UNSCALED

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Delta:
        """See `Module.load`; rows are read when they are needed."""
        return StoredDelta(lora, self.key, device, self.factor)


@dataclass(frozen=True)
class Refused:
    """One key of the file that is not used, and why, in words for the user."""

    key: str
    reason: str
