"""What a caller of a LoRA tool says: where to save, in which dtype, how many ranks, and how to be told and stopped."""
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..errors import PlanError, RecipeError, Stopped
from ..progress import Clock, Progress, silent

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ON_EXISTS = ("number", "overwrite", "error")
HIGHEST_RANK = 4096                                # beyond it a LoRA for Wan is larger than the model itself


@dataclass(frozen=True)
class Save:
    """One LoRA file to be written. on_exists: another file of that name stays (number, error) or is replaced at the very end.
    metadata: what shall stand in its header besides the pack's own entry."""

    path: str
    dtype: str = "fp32"
    on_exists: str = "number"
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype: expected one of {', '.join(DTYPES)}, found {self.dtype!r}")
        if self.on_exists not in ON_EXISTS:
            raise RecipeError(f"on_exists: expected one of {', '.join(ON_EXISTS)}, found {self.on_exists!r}")
        if not self.path.lower().endswith(".safetensors"):
            raise PlanError(f"{self.path}: expected a name that ends in .safetensors")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Ranks:
    """How many components a layer keeps: at most `most`; with `energy`, the fewest that hold this share of the delta's ‖δ‖²."""

    most: int = 64
    energy: float | None = None

    def __post_init__(self):
        if not 1 <= self.most <= HIGHEST_RANK:
            raise RecipeError(f"rank: expected 1 to {HIGHEST_RANK}, found {self.most}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise RecipeError(f"energy: expected a share above 0 and up to 1, found {self.energy}")

    def choose(self, sigma: torch.Tensor, total: float) -> int:
        """Number of components to keep. sigma: singular values, descending, float64; total: ‖δ‖² of the whole delta."""
        most = min(self.most, int((sigma > sigma[:1].sum() * SMALLEST).sum()))
        if self.energy is None or most == 0:
            return most
        held = torch.cumsum(sigma[:most].square(), 0)
        return min(most, int((held < self.energy * total * (1 - ROUNDING)).sum()) + 1)


SMALLEST = 2.0**-23                                # of σ₁: below it a float32 factor holds rounding only
ROUNDING = 1e-12                                   # of a sum of squares in float64


@dataclass
class Watch:
    """How a long run is stopped and told of. should_stop is asked between small steps."""

    should_stop: Callable[[], bool] = bool
    on_progress: Callable[[Progress], None] = silent
    clock: Clock | None = field(default=None, init=False)

    def begin(self, total: int) -> None:
        """total: bytes of all that `advance` will be told."""
        self.clock = Clock(total, self.on_progress)

    def check(self) -> None:
        """Raise Stopped when the user wants it."""
        if self.should_stop():
            raise Stopped("stopped; nothing was written")

    def advance(self, nbytes: int, key: str, phase: str) -> None:
        self.check()
        self.clock.advance(nbytes, "model", key, phase)


def root(square: float) -> float:
    """Square root of a sum of squares that rounding may have left below 0."""
    return math.sqrt(max(square, 0.0))
