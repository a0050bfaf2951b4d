"""Part of adaptive_error.py: the gates' output errors, the interference of stacked refinements, and the picture of the former."""
import math
from collections.abc import Callable
from pathlib import Path

import torch
from harness import table
from planted import Base, make_base
from wan22_master.engine.merging.adaptive.constants import AdaptiveConstants
from wan22_master.engine.merging.adaptive.split import shrink

SPECTRA = {"flat": lambda i: torch.ones_like(i), "1/√i": lambda i: i**-0.5, "1/i": lambda i: 1 / i,
           "exponential": lambda i: torch.exp(-i / 8)}
GATES = ("adaptive", "classic, equal Σσ", "classic, equal Σσ along δ", "whole components", "scaling")
COLORS = ("#2a6fbb", "#c0504d", "#e2a29f", "#8a8a8a", "#d9a441")


def _error(gated: torch.Tensor, delta: torch.Tensor) -> float:
    """‖(gated - delta) x‖ / ‖delta x‖ over random x."""
    return ((gated - delta).norm() / delta.norm()).item()


def _nuclear(matrix: torch.Tensor) -> float:
    """Σσ by the eigenvalues of the Gram matrix: 1e-8 σ₁ is far below what a table shows."""
    return torch.linalg.eigvalsh(matrix.t() @ matrix).clamp(min=0).sqrt().sum().item()


def _classic(delta: torch.Tensor, times_mean: float) -> torch.Tensor:
    return torch.where(delta.abs() > times_mean * delta.abs().mean(), delta, 0.0)


def _classic_at(delta: torch.Tensor, share: float, measure: Callable[[torch.Tensor], float]) -> torch.Tensor:
    """Classic's gate with the threshold at which `measure` of it is `share` of the delta's."""
    low, high, whole = 0.0, 20.0, measure(delta)
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if measure(_classic(delta, middle)) > share * whole else (low, middle)
    return _classic(delta, high)


def show_gates(n: int) -> dict[tuple[str, int], list[float]]:
    """Returns (spectrum, rank) -> error by gate."""
    print("\n## Output error ‖(gated - δ) x‖ / ‖δ x‖ of refinement's gate at equal Σσ share")
    print("\nΣσ of an element-wise mask: of the whole result (it adds thousands of small σ), or along δ: tr(Uᵀ X V)\n")
    rows, bars = [], {}
    for name, spectrum in SPECTRA.items():
        for rank in (16, 64, 128):
            sigma = spectrum(torch.arange(1, rank + 1, dtype=torch.float64))
            draw = torch.Generator().manual_seed(rank)
            u, v = (torch.linalg.qr(torch.randn(n, rank, generator=draw, dtype=torch.float64)).Q for _ in range(2))
            delta = u * sigma @ v.t()
            kept, share, _ = shrink(sigma, AdaptiveConstants())
            whole = torch.where(sigma.cumsum(0) <= share * sigma.sum() * (1 + 1e-12), sigma, 0.0)
            own, polar = _classic(delta, 1.8), u @ v.t()
            equal = [_classic_at(delta, share, measure) for measure in (_nuclear, lambda x, polar=polar: (x * polar).sum().item())]
            errors = [_error(u * kept @ v.t(), delta), *(_error(each, delta) for each in equal), _error(u * whole @ v.t(), delta),
                      1 - share]
            rows.append([name, str(rank), f"{share:.2f}", *(f"{each:.3f}" for each in errors), f"{_error(own, delta):.3f}",
                         f"{_nuclear(own) / sigma.sum().item():.2f}"])
            bars[name, rank] = errors
    table(["σ", "rank", "share", *GATES, "classic at 1.8", "its Σσ share"], rows)
    return bars


def _refinements(base: Base, overlap: float, count: int, *, rank: int, alike: bool) -> list[tuple]:
    """(left, sigma, right) of LoRAs of base components; `overlap` of each one's components are common to all, in the same order of
    importance where they are alike, else in any."""
    n, common = len(base.weight), round(overlap * rank)
    places = torch.randperm(n // 4, generator=torch.Generator().manual_seed(3)).tolist()
    found = []
    for number in range(count):
        start = common + number * (rank - common)
        own = places[:common] + places[start:start + rank - common]
        draw = torch.Generator().manual_seed(100 + number)
        sigma = (torch.rand(rank, generator=draw, dtype=torch.float64) * 3).exp().sort(descending=True).values
        order = torch.arange(rank) if alike else torch.randperm(rank, generator=draw)
        found.append((base.u[:, own][:, order], sigma, base.v[:, own][:, order]))
    return found


def show_interference(n: int, rank: int = 16, count: int = 5) -> None:
    print("\n## Five stacked refinements, each gated, against each scaled to the same norm, and all added whole")
    print("\ninterference: ‖Σ_{k≠j} D_k V_j‖ / ‖D_j V_j‖, mean over j, inputs from LoRA j's own space; loss: ‖Σ D - Σ δ‖ / ‖Σ δ‖\n")
    rows = []
    base = make_base("power law", n, seed=n)
    for alike in (False, True):
        for overlap in (0.0, 0.25, 0.5, 1.0):
            loras = _refinements(base, overlap, count, rank=rank, alike=alike)
            gated = [shrink(sigma, AdaptiveConstants())[0] for _, sigma, _ in loras]
            ways = {"whole": [sigma for _, sigma, _ in loras], "gated": gated,
                    "scaled": [sigma * kept.norm() / sigma.norm() for (_, sigma, _), kept in zip(loras, gated, strict=True)]}
            dense = {way: [u * kept @ v.t() for (u, _, v), kept in zip(loras, each, strict=True)] for way, each in ways.items()}
            cells = [f"{_interference(dense[way], loras):.3f}" for way in ways]
            cells.append(f"{_interference(dense['gated'], loras, dense['whole']):.3f}")
            target = sum(dense["whole"])
            cells += [f"{(sum(dense[way]) - target).norm() / target.norm():.3f}" for way in ("gated", "scaled")]
            cells += [f"{sum(dense[way]).norm() / target.norm():.3f}" for way in ("gated", "scaled")]
            rows.append(["same" if alike else "any", f"{overlap:.0%}", *cells])
    table(["order", "shared", "whole", "gated", "scaled", "gated, to its wanted part", "loss gated", "loss scaled", "‖Σ‖ gated",
           "‖Σ‖ scaled"], rows)


def _interference(deltas: list[torch.Tensor], loras: list, wanted: list[torch.Tensor] | None = None) -> float:
    """wanted: count only the part of D_j along these as its effect, <D_j, δ_j> / ‖δ_j‖."""
    total, sizes = sum(deltas), [delta.norm() for delta in deltas]
    if wanted is not None:
        sizes = [(delta * whole).sum() / whole.norm() for delta, whole in zip(deltas, wanted, strict=True)]
    each = [((total - delta) @ v).norm() / size for delta, size, (_, _, v) in zip(deltas, sizes, loras, strict=True)]
    return (sum(each) / len(each)).item()


def draw(bars: dict[tuple[str, int], list[float]], path: Path) -> None:
    """Grouped bars of the errors, as SVG."""
    wide, high, left, top, group = 940, 330, 46, 50, 72
    names, most = list(bars), max(1.0, *(value for each in bars.values() for value in each))
    def y(value: float) -> float:
        return top + (high - top - 50) * (1 - value / most)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" font-family="sans-serif" font-size="11">',
           f'<rect width="{wide}" height="{high}" fill="#fff"/>',
           f'<text x="{left}" y="18" font-size="14">Output error of the gate at equal share of Σσ (smaller is better)</text>']
    for place, (gate, color) in enumerate(zip(GATES, COLORS, strict=True)):
        x = left + place * 170
        out.append(f'<rect x="{x}" y="27" width="11" height="11" fill="{color}"/><text x="{x + 16}" y="37">{gate}</text>')
    for step in range(math.ceil(most / 0.25 - 1e-9) + 1):
        value = min(step * 0.25, most)
        out.append(f'<path d="M{left} {y(value):.1f}H{wide - 10}" stroke="#ddd"/><text x="{left - 6}" y="{y(value) + 4:.1f}" '
                   f'text-anchor="end">{value:.2f}</text>')
    for number, name in enumerate(names):
        x = left + 8 + number * group
        for place, (value, color) in enumerate(zip(bars[name], COLORS, strict=True)):
            out.append(f'<rect x="{x + place * 11}" y="{y(value):.1f}" width="10" height="{y(0) - y(value):.1f}" fill="{color}"/>')
        out.append(f'<text x="{x + 28}" y="{high - 30}" text-anchor="middle">rank {name[1]}</text>')
        if number % 3 == 1:
            out.append(f'<text x="{x + 28}" y="{high - 12}" text-anchor="middle" font-size="13">{name[0]}</text>')
    path.write_text("\n".join([*out, "</svg>\n"]), encoding="utf-8")
