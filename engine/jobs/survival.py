"""How much of what was merged a quantizer lets through, on sampled rows.

With W the base as it was read, W' the merge, Ŵ what the file decodes to, δ = W' - W:
    projection = <Ŵ - W, δ> / ‖δ‖²           1: the whole effect is there; 0: none of it
    cosine     = <Ŵ - W, δ> / (‖Ŵ - W‖ ‖δ‖)   how much of what changed is the delta, and not rounding
    unchanged  = share of codes that are those of the base, quantized with the same scales of the tensor; not of GGUF's blocks
    effect over noise = ‖δV‖ / ‖(Ŵ - W')V‖   V: orthonormal basis of δ's rows, the inputs that the LoRA listens to
From a full-precision base, E[projection] = <Ŵ, W> / ‖W‖²: 1 - err² where the scales leave the least error, err the format's
relative one (nvfp4: 0.993; 0.996 by `fast`, whose scales do not). That is near 1 for every δ, so it tells a wrong order of work (a
delta added on a quantized base and rounded back), and effect over noise tells which layer deserves more bits.
Standard error of the projection: sqrt(Σ (n_i δ_i)²) / ‖δ‖², n = Ŵ - W', as if the roundings were independent.
"""
import math
from dataclasses import asdict, dataclass

import torch

from ..products import multiply

# Of the unit rows' Gram matrix in float32: its entries are true to about 1e-7, its eigenvalues to sqrt(rank) of that.
RIDGE = 1e-6
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Survival:
    """Sums over sampled rows, float64."""

    delta: float = 0.0                             # ‖δ‖²
    kept: float = 0.0                              # <Ŵ - W, δ>
    moved: float = 0.0                             # ‖Ŵ - W‖²
    spread: float = 0.0                            # Σ (n δ)²
    noise: float = 0.0                             # ‖n‖²
    effect: float = 0.0                            # ‖δV‖²
    noise_in: float = 0.0                          # ‖nV‖²
    codes: int = 0                                 # compared
    same: int = 0                                  # of them as the base's

    def __add__(self, other: "Survival") -> "Survival":
        return Survival(*(one + another for one, another in zip(vars(self).values(), vars(other).values(), strict=True)))

    def to_json(self) -> dict[str, float]:
        """The sums; `tell` makes figures of them."""
        return asdict(self)


def tell(sums: Survival) -> dict[str, float] | None:
    """The figures as a report shows them; None where nothing was merged into the sampled rows. A noise of nothing is told as an
    effect over noise of None."""
    if not sums.delta:
        return None
    return {"projection": sums.kept / sums.delta, "standard_error": math.sqrt(sums.spread) / sums.delta,
            "cosine": sums.kept / math.sqrt(sums.moved * sums.delta) if sums.moved else 0.0,
            "unchanged": sums.same / sums.codes if sums.codes else None,
            "effect_over_noise": math.sqrt(sums.effect / sums.noise_in) if sums.noise_in else None}


class Space:
    """The space of a delta's rows, for projecting onto it. down: (rank, in_features) float32, spanning it; None: all of space.

    ‖XV‖² = ‖L⁻¹ D Xᵀ‖², D Dᵀ = L Lᵀ, D the rows at length 1: no basis has to be made, and a LoRA whose size is in its up factor
    counts as one whose size is here. RIDGE sqrt(rank) is added to D Dᵀ, so that rows which say the same twice do no harm.
    """

    def __init__(self, down: torch.Tensor | None):
        self.down = down if down is not None and 0 < down.shape[0] < down.shape[1] else None
        if self.down is not None:
            largest = self.down.abs().amax(1, keepdim=True).clamp_(min=TINY)   # first: squares of 1e-23 are zero in float32
            self.down = torch.nn.functional.normalize(self.down / largest)
            gram = multiply(self.down, self.down).double()
            gram.diagonal().add_(RIDGE * math.sqrt(len(gram)))
            self.factor = torch.linalg.cholesky(gram)

    def energy(self, rows: torch.Tensor) -> float:
        """‖rows V‖², rows: (n, in_features) float32."""
        if self.down is None:
            inside = rows.reshape(-1).double()
        else:
            inside = torch.linalg.solve_triangular(self.factor, (self.down @ rows.T).double(), upper=False).reshape(-1)
        return torch.dot(inside, inside).item()


def survey(base: torch.Tensor, merged: torch.Tensor, decoded: torch.Tensor, space: Space) -> Survival:
    """Sums of some rows without the codes; all (n, in_features), float32."""
    noise, delta = decoded - merged, merged - base
    moved, flat = (decoded - base).reshape(-1).double(), delta.reshape(-1).double()
    lost = noise.reshape(-1).double()
    return Survival(torch.dot(flat, flat).item(), torch.dot(moved, flat).item(), torch.dot(moved, moved).item(),
                    (lost * flat).square_().sum().item(), torch.dot(lost, lost).item(), space.energy(delta), space.energy(noise))


def same_codes(ours: torch.Tensor, bases: torch.Tensor, columns: int) -> tuple[int, int]:
    """(codes compared, equal ones) of the stored rows of merge and base. Two codes to a byte where a row has fewer than
    `columns`."""
    one, other = ours.contiguous().view(torch.uint8), bases.contiguous().view(torch.uint8)
    if ours.shape[1] >= columns:
        return ours.numel(), int((one == other).sum())
    differ = one ^ other
    return 2 * ours.numel(), int(((differ & 0x0F) == 0).sum() + ((differ & 0xF0) == 0).sum())
