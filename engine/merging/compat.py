"""What ComfyUI 0.33 itself would make of the same LoRAs on one tensor, bit for bit in float32 on the CPU, to repeat an old merge.

    W_0 = W,  W_k = patch_k(W_{k-1}, strength_k)        in list order, each patch on what the one before it left
Used where a recipe says `compat: comfyui`; `lay_out` takes the place of the ledger's own reading. The arithmetic is in
adapters/comfy_maths.py. ComfyUI works on whole tensors, so this does too: beside the line's buffer it takes about as much memory as
ComfyUI, three times the largest tensor. On a GPU ComfyUI computes in float16; its float32 result is what is given here.
"""
from dataclasses import dataclass, field

import torch

from ..bands import Rows, split
from ..errors import LoraError, RecipeError
from ..loras.adapters.comfy_keys import lay_out
from ..loras.adapters.comfy_patch import ComfyPatch
from ..specs import TensorSpec
from .alteration import BandEnergy, Energies, Run
from .contribution import Contribution, Rules

__all__ = ["ComfyChange", "ComfyPatch", "lay_out", "load_comfy_change"]


@dataclass
class ComfyChange:
    """An Alteration (alteration.py) that does everything in `finish`, on the whole tensor."""

    key: str
    shape: tuple[int, ...]
    contributions: list[Contribution]
    needs_whole: bool = True
    steps: list[float] = field(default_factory=list)
    moved: float = 0.0
    rest: float = 0.0

    def decide(self, whole: torch.Tensor, run: Run) -> None:
        """See `Alteration.decide`: there is nothing to decide."""

    def add(self, band: torch.Tensor, rows: Rows, scratch: torch.Tensor) -> BandEnergy:
        """See `Alteration.add`: nothing is added band by band."""
        count = len(self.contributions)
        return BandEnergy(torch.zeros(count, count, dtype=torch.float64), (0,) * count)

    def finish(self, whole: torch.Tensor, run: Run) -> None:
        """Apply every patch in order, IN PLACE, and measure the way."""
        original, before = whole.clone(), torch.empty_like(whole)
        guarded = torch.zeros_like(whole) if any(each.protected for each in self.contributions) else None
        self.steps = []
        for each in self.contributions:
            before.copy_(whole)
            for patch in each.modules:
                _apply(patch, each, whole)
            self.steps.append(_distance(whole, before, run))
            if each.protected:
                guarded.add_(whole).sub_(before)
        self.moved = _distance(whole, original, run)
        self.rest = self.moved if guarded is None else _distance(whole, original.add_(guarded), run)

    def energies(self, bands: list[BandEnergy]) -> Energies:
        """See `Alteration.energies`. On the diagonal is how far each LoRA went from what it found; there are no inner products."""
        if not torch.isfinite(torch.tensor(self.steps, dtype=torch.float64)).all():
            names = " and ".join(dict.fromkeys(each.lora.name for each in self.contributions))
            raise ValueError(f"the delta overflows float32; lower the strength, or replace the LoRA {names}")
        return Energies(torch.diag(torch.tensor(self.steps, dtype=torch.float64)).tolist(), self.moved, self.rest)

    def row_space(self) -> None:
        """See `Alteration.row_space`: not known here."""

    def describe(self) -> list[dict]:
        """See `Alteration.describe`."""
        return [{"lora": each.lora.name, "method": "addition", "rank": 0, "alpha_over_rank": [], "compat": "comfyui",
                 "kinds": sorted({patch.kind for patch in each.modules})} for each in self.contributions]


def _apply(patch: ComfyPatch, asked: Contribution, whole: torch.Tensor) -> None:
    try:
        patch.apply(asked.lora, whole, asked.strength)
    except RuntimeError as cause:
        where = f"{asked.lora.name}: {patch.keys[0]}"
        raise LoraError(f"{where}: expected what ComfyUI 0.33 can merge, found: {cause}; merge with compat correct") from cause


def _distance(one: torch.Tensor, other: torch.Tensor, run: Run) -> float:
    """||one - other||^2, float64, band by band."""
    def square(rows: Rows) -> float:
        wide = (one[rows[0]:rows[1]] if one.dim() else one).double().sub_(other[rows[0]:rows[1]] if one.dim() else other)
        return torch.linalg.vector_norm(wide).item() ** 2

    return sum(run(square, split(tuple(one.shape))))


def load_comfy_change(key: str, spec: TensorSpec, contributions: list[Contribution], rules: Rules) -> ComfyChange:
    """What ComfyUI would do to `key`; the contributions' modules are those of `lay_out`. Nothing is read yet.

    Raises RecipeError for what ComfyUI's loader cannot do: another method than addition, a pass that is more than a sum, normalize.
    """
    methods = {each.method for each in contributions} - {"addition"}
    combines = {rules.of(each.pass_number).combine for each in contributions} - {"sum"}
    if methods or combines or rules.normalize:
        found = " and ".join(sorted(methods | combines | ({"normalize"} if rules.normalize else set())))
        expected = "expected addition, which is all that ComfyUI's LoRA loader does"
        raise RecipeError(f"compat comfyui: {expected}, found {found}; choose addition, or compat correct")
    return ComfyChange(key, spec.shape, contributions)
