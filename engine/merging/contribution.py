"""One LoRA's part in one tensor, and how the parts of a pass become one change: what was asked, without any numbers yet.

    W' = W + Σ_passes f_pass(the pass's deltas, all against the ORIGINAL base), then transforms in list order, then normalize
"""
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .gate import ClassicConstants

if TYPE_CHECKING:
    from ..loras.lora import LoraFile
    from ..loras.modules import Module

CLASSIC = ClassicConstants()


@dataclass(frozen=True)
class PassRule:
    """How the LoRAs of one pass are combined: see engine/merging/combine.

    combine: sum, ties, dare_ties, breadcrumbs, slerp or orthogonal. density: share kept by the middle three; gamma: share of
    outliers that breadcrumbs drops; t: place on slerp's arc; seed: of dare_ties' coins.
    """

    combine: str = "sum"
    density: float = 1.0
    gamma: float = 0.01
    t: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class Rules:
    """What holds for every tensor of a merge. passes: by pass number, a missing one is a plain sum.

    normalize: give each merged 2-D weight the norm of its base. compat: `correct`, or `comfyui` for what ComfyUI's own loader
    would make of the same LoRAs.
    """

    passes: tuple[PassRule, ...] = ()
    normalize: bool = False
    compat: str = "correct"

    def of(self, number: int) -> PassRule:
        """The rule of one pass."""
        return self.passes[number] if number < len(self.passes) else PassRule()


@dataclass(frozen=True)
class Contribution:
    """What one LoRA adds to one tensor.

    strength contains the pass's global factor and the factors by block and kind. method: addition, classic or adaptive.
    protected: added exactly, after the combination of its pass's others. dense_density, dense_mode (magnitude or dare), seed: how
    deltas that are no product of factors are thinned under classic and adaptive. gated: the measured factors of an adaptive one.
    place: which of its pass's unprotected LoRAs it is; sha256: of the file (both say the same for every tensor of a LoRA).
    """

    lora: "LoraFile"
    modules: "list[Module]"
    strength: float
    method: str = "addition"
    constants: object = CLASSIC
    pass_number: int = 0
    protected: bool = False
    dense_density: float = 1.0
    dense_mode: str = "magnitude"
    seed: int = 0
    gated: object = None
    place: int = 0
    sha256: str = ""
