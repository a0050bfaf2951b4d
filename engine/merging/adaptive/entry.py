"""What the measuring step leaves of one LoRA on one tensor: small matrices and figures."""
import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Entry:
    """left: (rank of the factors, r), right: (r, rank of the factors), new: (r,) or (r, r), known: (r, r) or None; float64, CPU.

    U = up @ left and Vᵀ = right @ down are orthonormal; new and known are the gated parts between them (split.py).
    figures: as JSON, with those of the base: `base` ‖W‖², `base_spectral` an estimate of ‖W‖₂ from below. r = 0 where δ = 0.
    """

    left: torch.Tensor
    right: torch.Tensor
    new: torch.Tensor
    known: torch.Tensor | None
    figures: dict

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def inner(self, new: float, refine: float) -> torch.Tensor:
        """new times the gated new part plus refine times the gated known part, (r, r) float64."""
        total = (torch.diag(self.new) if self.new.dim() == 1 else self.new) * new
        return total if self.known is None else total + self.known * refine


def factor_modules(modules: list) -> list:
    """Those of a tensor's modules whose delta is exactly up @ down."""
    return [module for module in modules if module.form == "factors"]


def entry_name(key: str, shape: tuple[int, ...], modules: list) -> str:
    """Name of an entry in its file: the key, and what the factors are made of; another factor or another tensor of the LoRA is
    another entry."""
    made_of = repr((tuple(shape), factor_modules(modules)))
    return f"{key}#{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
