"""Adaptive injection as the formulas say it, dense and in float64: written apart from the engine, slow and plain."""
import math

import torch


def split_and_gate(delta: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """R, N before the gate and after it, all dense; with the default constants."""
    m, n = weight.shape
    big_u, sigma, big_vt = torch.linalg.svd(delta, full_matrices=False)
    r = int((sigma > 1e-6 * sigma[0]).sum())
    big_u, sigma, big_v = big_u[:, :r], sigma[:r], big_vt[:r].t()
    a, gamma, bt = torch.linalg.svd(big_u.t() @ weight @ big_v)
    own = gamma > 1.5 * 2 * math.sqrt(r) * weight.norm() / math.sqrt(m * n)
    a, b = a[:, own], bt.t()[:, own]
    refinement = big_u @ a @ (a.t() @ torch.diag(sigma) @ b) @ b.t() @ big_v.t()
    if refinement.square().sum() > 1.5 * gamma[own].square().sum():
        refinement = torch.zeros_like(delta)
    new = delta - refinement
    return {"R": refinement, "N": new, "gated R": gate_refinement(refinement), "gated N": gate_new(new)}


def gate_refinement(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix whose nuclear norm is the share, τ found by bisection."""
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    if sigma[0] == 0:
        return matrix
    mean = sigma[sigma > 1e-6 * sigma[0]].mean()
    share = min(0.4, max(0.2, float(sigma[sigma > 1.8 * mean].sum() / sigma.sum())))
    low, high = 0.0, float(sigma[0])
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (sigma - middle).clamp(min=0).sum() > share * sigma.sum() else (low, middle)
    return u * (sigma - low).clamp(min=0) @ vt


def gate_new(matrix: torch.Tensor) -> torch.Tensor:
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    mean = sigma[sigma > 1e-6 * sigma[0]].mean()
    return u * torch.where(sigma > 0.4 * mean, sigma, 0.0) @ vt
