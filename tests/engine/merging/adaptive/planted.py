"""Bases of known spectra and deltas with planted parts, in plain float64 torch."""
import torch


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(seed: int, *shape: int) -> torch.Tensor:
    """Normal float64 numbers."""
    return torch.randn(*shape, generator=draw(seed), dtype=torch.float64)


def orthonormal(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.linalg.qr(randn(seed, rows, columns)).Q


def power_law(n: int, exponent: float = 0.5, seed: int = 0) -> torch.Tensor:
    """(n, n), σ_i = i^-exponent, rms 0.03."""
    sigma = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    weight = orthonormal(seed, n, n) * sigma @ orthonormal(seed + 1, n, n).t()
    return weight * (0.03 * n / weight.norm())


def known_part(weight: torch.Tensor, places: list[int], size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of `size` times the base's own singular components at these places."""
    u, sigma, vt = torch.linalg.svd(weight)
    return u[:, places] * (sigma[places] * size), vt[places]


def new_part(seed: int, shape: tuple[int, int], rank: int, norm: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of a random delta of this norm."""
    up, down = orthonormal(seed, shape[0], rank), orthonormal(seed + 1, shape[1], rank).t()
    return up * (norm / rank**0.5), down


def side_by_side(*parts: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([up for up, _ in parts], 1), torch.cat([down for _, down in parts])
