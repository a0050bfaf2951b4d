"""One patch of one LoRA on one tensor, as ComfyUI 0.33 holds and applies it."""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...errors import LoraError
from ..factors import read_tensor
from ..fit import Shape
from ..modules import UNSCALED, Diff, Module, Pair
from . import comfy_maths
from .spelling import GLORA

if TYPE_CHECKING:
    from ..lora import LoraFile

FAILS = "ComfyUI 0.33 fails here and leaves the layer as it is"
WAY_OUT = "merge with compat correct"
DIFFERENCES = ("diff", "diff_b", "w_norm", "b_norm")


@dataclass(frozen=True)
class ComfyPatch:
    """One patch as ComfyUI holds it. parts: part -> key of the file; alpha: its value as stored, None without one."""

    # A Module in all but `load`: ComfyUI patches whole tensors, see `apply`; what could be loaded is told by `plain`.

    form: ClassVar[str] = "comfyui"
    kind: str
    parts: dict[str, str]
    alpha: float | None
    rank: int = 0

    @property
    def factor(self) -> float:
        """alpha / rank of a LoRA or LoHa; 1 for the other kinds, whose rank is not told here."""
        return self.alpha / self.rank if self.rank and self.alpha is not None else 1.0

    @property
    def alpha_from(self) -> str:
        return "as ComfyUI 0.33 reads it" if self.rank else UNSCALED

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.parts.values())

    def apply(self, lora: "LoraFile", weight: torch.Tensor, strength: float) -> None:
        """Change `weight`, the whole float32 tensor, IN PLACE. Raises LoraError, naming file and key, for values not finite."""
        def read(part: str) -> torch.Tensor | None:
            return read_tensor(lora, self.parts[part]).to(weight.device) if part in self.parts else None

        prepared = comfy_maths.prepare(self.kind, self.alpha, read)
        comfy_maths.apply(self.kind, self.alpha, (prepared, read("dora_scale")), weight, strength)

    def plain(self, lora: "LoraFile", shape: Shape) -> "Module | ComfyPatch":
        """The module that adds the same, but for rounding, to a tensor of this shape, whatever that holds; else this patch."""
        def own(part: str) -> Shape:
            return lora.header.entries[self.parts[part]].spec.shape

        if self.kind in DIFFERENCES:
            return Diff(self.parts[self.kind])
        if self.kind != "lora" or {"mid", "dora_scale"} & self.parts.keys():
            return self
        up, down = own("up"), own("down")
        if up[:1] != shape[:1] or math.prod(down[1:]) != math.prod(shape[1:]) or math.prod(up[1:]) != down[0]:
            return self                            # ComfyUI reshapes what has as many elements
        return Pair(self.parts["up"], self.parts["down"], self.parts.get("alpha"), self.rank, self.factor, self.alpha_from)

    def check(self, lora: "LoraFile", shape: Shape) -> str | None:
        """Why ComfyUI would leave the layer as it is; None when it changes it. Raises LoraError where its loading would stop."""
        def read(part: str) -> torch.Tensor | None:
            return torch.empty(lora.header.entries[self.parts[part]].spec.shape, device="meta") if part in self.parts else None

        where = f"{lora.name}: {next(iter(self.parts.values()))}"
        magnitude = read("dora_scale")
        if magnitude is not None and magnitude.dim() < 2:
            found = f"found {tuple(magnitude.shape)}, which ComfyUI 0.33 turns into garbage"
            raise LoraError(f"{lora.name}: {self.parts['dora_scale']}: expected two axes or more, {found}; {WAY_OUT}")
        if self.kind == "lora" and "down" not in self.parts:
            raise LoraError(f"{where}: expected what ComfyUI 0.33 can load, its partner factor is missing; {WAY_OUT}")
        missing = [part for part in GLORA if part not in self.parts] if self.kind == "glora" else []
        if missing:
            raise LoraError(f"{where}: expected what ComfyUI 0.33 can load, {' and '.join(missing)} missing beside it; {WAY_OUT}")
        try:
            prepared = comfy_maths.prepare(self.kind, self.alpha, read)
        except (RuntimeError, AttributeError, IndexError, TypeError) as cause:
            raise LoraError(f"{where}: expected what ComfyUI 0.33 can load, it fails here ({_line(cause)}); {WAY_OUT}") from cause
        try:
            comfy_maths.apply(self.kind, self.alpha, (prepared, magnitude), torch.empty(shape, device="meta"), 1.0)
        except (RuntimeError, IndexError) as cause:
            return f"{FAILS}: {_line(cause)}"
        return None


def _line(cause: Exception) -> str:
    return str(cause).partition("\n")[0][:99]
