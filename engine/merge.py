"""Where a base tensor meets its deltas: the one place, used by writing, measuring and previewing.

    merged = W + Σ_k strength_k * gate_k((alpha_k / rank_k) up_k @ down_k)        float32, nothing rounded in between
(Hu et al. 2021, arXiv 2106.09685, section 4.1, summed over LoRAs.) Everything runs in row bands, so that no full delta exists.
The bytes depend on the band boundaries and on the order of contributions, never on which thread takes which band.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .contribution import Contribution, Rows, Term
from .factors import Factors, load_factors
from .gate import Moments, decide, moments
from .specs import TensorSpec

__all__ = ["BandEnergy", "Change", "Contribution", "Energies", "load_change"]

TILE_COLUMNS = 1280  # 128 rows of it are 0.66 MB: a tile of the delta stays in a core's L2 cache (docs/log.md)
MapBands = Callable[[Callable[[Rows], list[Moments]]], list[list[Moments]]]


@dataclass(frozen=True)
class BandEnergy:
    """What `Change.add` learned in one band: its share of the Gram matrix (n, n) float64, and elements let through per LoRA."""

    gram: torch.Tensor
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Energies:
    """gram[j][k] = <delta_j, delta_k> over the whole tensor, in the order of the contributions."""

    gram: list[list[float]]


@dataclass
class Change:
    """All that is added to one tensor. Use: `decide` if `needs_base_moments`, then `add` per band, then `energies`."""

    key: str
    shape: tuple[int, ...]
    terms: list[Term]
    joint: Factors | None = None  # all factors side by side, when there is nothing else to add
    columns: int = field(init=False)

    def __post_init__(self):
        self.columns = math.prod(self.shape[1:])

    @property
    def needs_base_moments(self) -> bool:
        """Whether a gate has to see the whole original tensor first."""
        return any(term.is_gated for term in self.terms)

    def decide(self, base: Moments, map_bands: MapBands) -> None:
        """Set the gates. base: moments of the original tensor; map_bands runs a function on every band, results in order."""
        gated = [term for term in self.terms if term.is_gated]
        bands = map_bands(lambda rows: [self._moments(term, rows) for term in gated])
        for term, parts in zip(gated, zip(*bands, strict=True), strict=True):
            term.gate = decide(sum(parts, Moments()), base, term.contribution.constants)

    def add(self, band: torch.Tensor, rows: Rows, scratch: torch.Tensor) -> BandEnergy:
        """Add all deltas to rows [start, stop) of the tensor, IN PLACE.

        band: (rows, the other axes), float32, contiguous; scratch: float32, contiguous, of as many elements, overwritten.
        """
        flat = band.view(rows[1] - rows[0], self.columns)
        if self.joint is not None:
            flat.addmm_(self.joint.up[rows[0]:rows[1]], self.joint.down)
            return BandEnergy(self._joint_gram(rows), (0,) * len(self.terms))
        return self._add_dense(flat, rows, scratch.view(-1))

    def _add_dense(self, flat: torch.Tensor, rows: Rows, scratch: torch.Tensor) -> BandEnergy:
        """`add` where each delta has to be seen by itself: tile by tile, all of them side by side in the scratch."""
        if any(term.is_gated and term.gate is None for term in self.terms):
            raise RuntimeError(f"{self.key}: the gates have not been decided yet")
        count, kept, gram = len(self.terms), [0] * len(self.terms), self._no_gram()
        differences = [term.read_differences(rows, flat.device) for term in self.terms]
        for columns in self._tiles():
            shape = (count, flat.shape[0], columns.stop - columns.start)
            if scratch.numel() < math.prod(shape):  # more LoRAs than columns: biases
                scratch = torch.empty(math.prod(shape), device=flat.device)
            deltas = scratch[:math.prod(shape)].view(shape)
            for k, term in enumerate(self.terms):
                kept[k] += term.write(rows, columns, differences[k], deltas[k])
            by_row = deltas.transpose(0, 1)
            gram += torch.bmm(by_row, by_row.transpose(1, 2)).to("cpu", torch.float64).sum(0)
            for delta in deltas[1:]:
                deltas[0].add_(delta)
            flat[:, columns].add_(deltas[0])
        return BandEnergy(gram, tuple(kept))

    def energies(self, bands: list[BandEnergy]) -> Energies:
        """Sum what `add` returned, in band order. Raises ValueError, which names the LoRAs, when the sums overflowed."""
        gram = self._no_gram()
        for band in bands:
            gram += band.gram
        if not torch.isfinite(gram).all():
            huge = [each for each, energy in zip(self.terms, gram.diagonal().tolist(), strict=True) if not math.isfinite(energy)]
            names = " and ".join(dict.fromkeys(each.contribution.lora.name for each in huge or self.terms))
            raise ValueError(f"the delta overflows float32; lower the strength, or replace the LoRA {names}")
        for k, term in enumerate(self.terms):
            term.kept = sum(band.kept[k] for band in bands)
        return Energies(gram.tolist())

    def describe(self) -> list[dict]:
        """Per contribution, as JSON: complete after `energies`. kept is the share of elements that the gate lets through."""
        return [term.describe(math.prod(self.shape)) for term in self.terms]

    def _no_gram(self) -> torch.Tensor:
        return torch.zeros(len(self.terms), len(self.terms), dtype=torch.float64)

    def _tiles(self) -> list[slice]:
        """Column tiles of a band: as many columns as all deltas of a tile fit into a scratch of the band's size."""
        width = max(1, min(TILE_COLUMNS, self.columns // len(self.terms)))
        return [slice(start, min(start + width, self.columns)) for start in range(0, self.columns, width)]

    def _moments(self, term: Term, rows: Rows) -> Moments:
        """Of the ungated X of one term; the same tiles as in `add`, so that the gate meets the very same numbers."""
        total = Moments()
        for columns in self._tiles():
            tile = torch.empty(rows[1] - rows[0], columns.stop - columns.start, device=term.factors.up.device)
            term.factors.product(rows, columns, tile)
            total += moments(tile)
        return total

    def _joint_gram(self, rows: Rows) -> torch.Tensor:
        """Rows of the Gram matrix, spread over the bands so that no thread has to do all of them."""
        count, ranks, gram = len(self.terms), [term.factors.down.shape[0] for term in self.terms], self._no_gram()
        for j in range(count):
            if rows[0] <= j * self.shape[0] // count < rows[1]:
                start = sum(ranks[:j])
                inner = self.terms[j].factors.inner(self.joint.part(start, sum(ranks)))
                gram[j, j:] = gram[j:, j] = torch.stack([part.sum() for part in inner.split(ranks[j:])])
        return gram


def load_change(key: str, spec: TensorSpec, contributions: list[Contribution], device: torch.device) -> Change:
    """Read what changes `key`. Factors are read whole, in float32; full differences stay on disk and are read per band.

    Classic gates only products of factors: full differences and vectors are added as they are, as in the original.
    """
    terms = [Term(each) for each in contributions]
    pairs = [[(each.lora, pair, 1.0 if term.is_gated else each.strength) for pair in term.pairs]
             for each, term in zip(contributions, terms, strict=True)]
    joint = None
    if all(term.pairs and not term.diffs and not term.is_gated for term in terms):
        joint, start = load_factors(spec.shape, [pair for own in pairs for pair in own], device), 0
    for own, term in zip(pairs, terms, strict=True):
        if joint is not None:
            stop = start + sum(pair.rank for _, pair, _ in own)
            term.factors, start = joint.part(start, stop), stop
        elif own:
            term.factors = load_factors(spec.shape, own, device)
    return Change(key, spec.shape, terms, joint)
