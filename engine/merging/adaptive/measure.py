"""One tensor's measuring: one reading of the base for all of its LoRAs.

    G_k = Σ_bands (U_k)_bandᵀ (W_band V_k)        W V in float32, band by band; the sums over bands in float64, in band order
Each LoRA's product stands by itself: a LoRA is measured to the same bits alone and beside others (it costs nothing: a band of W
stays in the cache, docs/log.md). Work is shared out as whole LoRAs and whole bands, each on one thread, so that the number of
threads changes nothing.
"""
import math
from dataclasses import dataclass

import torch

from ...bands import Rows, Workers, split
from ...specs import TensorSpec
from .apply import raw_factors
from .constants import AdaptiveConstants
from .entry import Entry
from .spaces import Spaces, decompose
from .spectral import spectral_norm
from .split import split as split_delta

NOT_FINITE = "the base holds NaN or inf; get the file again, or choose another base"


@dataclass(frozen=True)
class Want:
    """A LoRA to measure on one tensor."""

    lora: object
    modules: list
    constants: AdaptiveConstants


@dataclass(frozen=True)
class _Delta:
    """u: U, (out, r) float64; v: Vᵀ, (r, in) float32."""

    spaces: Spaces
    u: torch.Tensor
    v: torch.Tensor


class Bench:
    """Measures tensors of one source; keeps the float32 buffer of the largest."""

    def __init__(self, source, workers: Workers):
        self.source, self.workers, self.buffer = source, workers, torch.empty(0)

    def measure(self, key: str, spec: TensorSpec, wants: list[Want]) -> list[Entry]:
        """An entry per want, in order. Raises Stopped (see `Workers.each`), ValueError for a base that is not finite."""
        deltas = self.workers.map(lambda want: _decompose(want, spec.shape), wants)
        weight, bands = self._whole(spec), split(spec.shape)
        square, couplings = 0.0, [torch.zeros(len(each.spaces.sigma), len(each.spaces.sigma), dtype=torch.float64)
                                  for each in deltas]
        for found, parts in self.workers.each(lambda rows: self._band(key, spec, rows, deltas), bands):
            square += found
            for coupling, part in zip(couplings, parts, strict=True):
                coupling += part
        base = {"base": square, "base_spectral": spectral_norm(lambda x: self._normal(weight, x, bands), weight.shape[1])}
        rms = math.sqrt(square / spec.numel)
        whats = list(zip(wants, deltas, couplings, strict=True))
        return self.workers.map(lambda what: _entry(*what, rms, base), whats)

    def _band(self, key: str, spec: TensorSpec, rows: Rows, deltas: list[_Delta]) -> tuple[float, list[torch.Tensor]]:
        """‖W_band‖², and each delta's part of G."""
        band = self._whole(spec)[rows[0]:rows[1]]
        self.source.read(key, rows, out=band.view(rows[1] - rows[0], *spec.shape[1:]))
        wide = band.double().view(-1)              # a float32 dot of this length is wrong by 2e-6
        square = torch.dot(wide, wide).item()
        if not math.isfinite(square):
            raise ValueError(NOT_FINITE)
        return square, [each.u[rows[0]:rows[1]].t() @ (band @ each.v.t()).double() for each in deltas]

    def _normal(self, weight: torch.Tensor, x: torch.Tensor, bands: list[Rows]) -> torch.Tensor:
        """WᵀWx, float64 sums of float32 products."""
        total = torch.zeros(weight.shape[1], dtype=torch.float64)
        for part in self.workers.each(lambda rows: weight[rows[0]:rows[1]].t() @ (weight[rows[0]:rows[1]] @ x), bands):
            total += part
        return total

    def _whole(self, spec: TensorSpec) -> torch.Tensor:
        """The reused buffer as this tensor, every axis but the first as one."""
        if self.buffer.numel() < spec.numel:
            self.buffer = torch.empty(0)           # the old one goes before the larger one comes
            self.buffer = torch.empty(spec.numel)
        return self.buffer[:spec.numel].view(spec.shape[0], -1)


def _decompose(want: Want, shape: tuple[int, ...]) -> _Delta:
    raw = raw_factors(want.lora, want.modules, shape)
    spaces = decompose(raw.up, raw.down, want.constants.negligible)
    return _Delta(spaces, raw.up.double() @ spaces.left, (spaces.right @ raw.down.double()).float())


def _entry(want: Want, delta: _Delta, coupling: torch.Tensor, rms: float, base: dict) -> Entry:
    spaces = delta.spaces
    if not len(spaces.sigma):                      # δ = 0 passes as it is
        empty = dict.fromkeys(("energy", "energy_new", "energy_refine", "passed_new", "passed_refine", "sigma_1"), 0.0)
        figures = {"rank": 0, "pairs_known": 0, "pairs_too_strong": 0, "share": None, "tau": None, **empty, **base}
        return Entry(spaces.left, spaces.right, spaces.sigma, None, figures)
    gated = split_delta(spaces.sigma, coupling, rms, want.constants)
    return Entry(spaces.left, spaces.right, gated.new, gated.known, gated.figures | base)
