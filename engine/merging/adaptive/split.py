"""What of a delta refines what the base does already, and what is new to it; and how much of either passes.

δ = U Σ Vᵀ of rank r, W (m, n) the base, G = Uᵀ W V = a diag(γ) bᵀ: what the base itself does between the delta's own spaces.
    K = pairs with γ > 1.5 · 2 √r ‖W‖ / √(mn)          2 √r is the norm of a random r x r matrix of unit elements (Marchenko-Pastur)
    R = U a_K (a_Kᵀ Σ b_K) b_Kᵀ Vᵀ                     refinement if ‖R‖² <= 1.5 Σ_K γ², else it is new
    N = δ - R                                          new knowledge
Gate, σ of R and of N each by themselves, means over σ > 10⁻⁶ σ₁:
    R: share = clip(Σ_{σ > 1.8 mean σ} σ / Σσ, 0.2, 0.4);  σ' = max(σ - τ, 0) with τ such that Σσ' / Σσ = share
    N: σ > 0.4 mean σ passes whole
The first is the projection on the ball of the nuclear norm (Duchi et al. 2008, ICML, figure 1, on the singular values): the
nearest matrix of that share. Everything here is r x r, float64 on the CPU, in the coordinates U, V.
"""
import math
from dataclasses import dataclass

import torch

from .constants import AdaptiveConstants
from .spaces import significant


@dataclass(frozen=True)
class Gated:
    """Gated parts of a delta in the coordinates U, V: new (r, r), or (r,) for a diagonal; known (r, r) or None where none is.

    figures: as JSON. energy_* are squared norms before the gate, passed_* after it; share and tau None without refinement.
    """

    new: torch.Tensor
    known: torch.Tensor | None
    figures: dict


def split(sigma: torch.Tensor, coupling: torch.Tensor, rms: float, constants: AdaptiveConstants) -> Gated:
    """Split and gate a delta. sigma: (r,) descending; coupling: G, (r, r); rms: ‖W‖ / √(mn)."""
    a, gamma, bt = torch.linalg.svd(coupling)
    count = int((gamma > constants.known_over_chance * 2 * math.sqrt(len(sigma)) * rms).sum())
    a, gamma, bt = a[:, :count], gamma[:count], bt[:count]
    core = a.t() @ (sigma[:, None] * bt.t())
    energy = core.square().sum().item()
    is_refinement = count > 0 and 0 < energy <= constants.refine_energy * gamma.square().sum().item()
    figures = {"rank": len(sigma), "pairs_known": count, "pairs_too_strong": 0 if is_refinement else count,
               "sigma_1": sigma[0].item(), "energy": sigma.square().sum().item(), "share": None, "tau": None}
    if not is_refinement:
        new = _pass_new(sigma, constants)
        return Gated(new, None, figures | _energies(sigma.square().sum(), 0.0, new, None))
    p, rho, qt = torch.linalg.svd(core)
    kept, share, tau = shrink(rho, constants)
    known = (a @ p * kept) @ (qt @ bt)
    u, nu, vt = torch.linalg.svd(torch.diag(sigma) - a @ core @ bt)
    new = (u * _pass_new(nu, constants)) @ vt
    figures |= {"share": share, "tau": tau}
    return Gated(new, known, figures | _energies(nu.square().sum(), energy, new, known))


def shrink(sigma: torch.Tensor, constants: AdaptiveConstants) -> tuple[torch.Tensor, float, float]:
    """Refinement's gate: σ' of these σ (descending, the first > 0), the share of Σσ that it keeps, and τ."""
    strong = sigma > constants.share_over_mean * _mean(sigma, constants)
    share = (sigma[strong].sum() / sigma.sum()).item()
    share = min(max(share, constants.share_floor), constants.share_ceiling)
    tau = threshold(sigma, share)
    return (sigma - tau).clamp(min=0), share, tau


def threshold(sigma: torch.Tensor, share: float) -> float:
    """τ with Σ max(σ - τ, 0) = share · Σσ, exactly, by sorting. sigma: descending, the first > 0; share: in (0, 1]."""
    sums = sigma.cumsum(0)
    taus = (sums - share * sums[-1]) / torch.arange(1, len(sigma) + 1, dtype=sigma.dtype)
    return max(0.0, taus[int((sigma > taus).sum()) - 1].item())


def _pass_new(sigma: torch.Tensor, constants: AdaptiveConstants) -> torch.Tensor:
    """New knowledge's gate: σ where it passes, else 0."""
    return torch.where(sigma > constants.new_over_mean * _mean(sigma, constants), sigma, 0.0)


def _mean(sigma: torch.Tensor, constants: AdaptiveConstants) -> torch.Tensor:
    return sigma[:max(1, significant(sigma, constants.negligible))].mean()


def _energies(new: torch.Tensor, refine: float, passed_new: torch.Tensor, passed_refine: torch.Tensor | None) -> dict:
    return {"energy_new": float(new), "energy_refine": refine, "passed_new": passed_new.square().sum().item(),
            "passed_refine": 0.0 if passed_refine is None else passed_refine.square().sum().item()}
