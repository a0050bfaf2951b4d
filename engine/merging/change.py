"""What is added to one tensor, band by band: the deltas of all LoRAs, each pass combined by its method.

    merged = W + Σ_passes f_pass({delta_k})        float32, nothing rounded in between, every delta against the original W
(Hu et al. 2021, arXiv 2106.09685, section 4.1, summed over LoRAs.) Everything runs in row bands, so that no full delta exists.
The bytes depend on the band boundaries and on the order of contributions, never on which thread takes which band.
"""
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..bands import TILE_COLUMNS, Rows
from ..loras.factors import Factors
from .alteration import BandEnergy, Energies, Run
from .combine import Combined, gram_of
from .finish import NOTHING, After, finish
from .rounds import decide
from .term import Term


@dataclass
class Change:
    """All that is done to one tensor: see `Alteration`. combined: the passes that are more than a sum."""

    key: str
    shape: tuple[int, ...]
    terms: list[Term]
    joint: Factors | None = None  # all factors side by side, when there is nothing else to add
    combined: list[Combined] = field(default_factory=list)
    normalize: bool = False
    original: torch.Tensor | None = None           # flat copy of the base, where the end needs it
    after: After = NOTHING
    columns: int = field(init=False)

    def __post_init__(self):
        self.columns = math.prod(self.shape[1:])
        self.normalize = self.normalize and len(self.shape) == 2

    @property
    def is_sum(self) -> bool:
        """Whether W' - W is exactly the sum of the deltas."""
        return not (self.normalize or any(term.transforms for term in self.terms))

    @property
    def needs_whole(self) -> bool:
        """Whether a gate, a norm or a rank has to be taken over the whole tensor first, or something comes after the sum."""
        decides = any(term.is_gated or term.sees_base or term.thins == "magnitude" for term in self.terms)
        return decides or not self.is_sum or any(each.needs_gram or each.ranks for each in self.combined)

    def decide(self, whole: torch.Tensor, run: Run) -> None:
        """See `Alteration.decide`."""
        if not self.is_sum:
            self.original = whole.reshape(-1, self.columns).clone()
        decide(self, whole, run)

    def add(self, band: torch.Tensor, rows: Rows, scratch: torch.Tensor) -> BandEnergy:
        """See `Alteration.add`."""
        flat = band.view(rows[1] - rows[0], self.columns)
        if self.joint is not None:
            self.joint.add_to(flat, rows)
            return BandEnergy(self._joint_gram(rows), (0,) * len(self.terms))
        return self._add_dense(flat, rows, scratch.view(-1))

    def _add_dense(self, flat: torch.Tensor, rows: Rows, scratch: torch.Tensor) -> BandEnergy:
        """`add` where each delta has to be seen by itself: tile by tile, all of them side by side in the scratch."""
        if any(term.is_gated and term.gate is None for term in self.terms):
            raise RuntimeError(f"{self.key}: the gates have not been decided yet")
        total, gram = [0] * len(self.terms), self.no_gram()
        base = flat.clone() if any(term.sees_base for term in self.terms) else None
        for columns, deltas in self.tiles(rows, scratch):
            kept = [term.write(rows, columns, base, delta) for term, delta in zip(self.terms, deltas, strict=True)]
            for each in self.combined:
                each.apply(deltas, rows, columns)
                for k in each.members if each.drops else ():
                    kept[k] = int(torch.count_nonzero(deltas[k]))
            total = [sum(pair) for pair in zip(total, kept, strict=True)]
            gram += gram_of(deltas)
            for delta in deltas[1:]:
                deltas[0].add_(delta)
            flat[:, columns].add_(deltas[0])
        return BandEnergy(gram, tuple(total))

    def finish(self, whole: torch.Tensor, run: Run) -> None:
        """See `Alteration.finish`."""
        if not self.is_sum:
            self.after, self.original = finish(self, whole.view(-1, self.columns), run), None

    def energies(self, bands: list[BandEnergy]) -> Energies:
        """See `Alteration.energies`."""
        gram = self.no_gram()
        for band in bands:
            gram += band.gram
        for k, energy in enumerate(self.after.transformed):
            gram[k, k] += energy
        if not torch.isfinite(gram).all():
            huge = [each for each, energy in zip(self.terms, gram.diagonal().tolist(), strict=True) if not math.isfinite(energy)]
            names = " and ".join(dict.fromkeys(each.contribution.lora.name for each in huge or self.terms))
            raise ValueError(f"the delta overflows float32; lower the strength, or replace the LoRA {names}")
        for k, term in enumerate(self.terms):
            term.kept = sum(band.kept[k] for band in bands)
        return Energies(gram.tolist(), self.after.moved, self.after.rest)

    def row_space(self) -> torch.Tensor | None:
        """See `Alteration.row_space`: the down factors of all LoRAs, where none is dense or a transform. A gate or method that
        works on single elements lets a delta out of it; what the LoRAs listen to stays the same."""
        if self.joint is not None:
            return self.joint.down
        products = all(term.factors is not None and not (term.deltas or term.transforms) for term in self.terms)
        return torch.cat([term.factors.down for term in self.terms]) if products else None

    def describe(self) -> list[dict]:
        """See `Alteration.describe`. kept is the share of elements that gate and pass let through."""
        told = [term.describe() for term in self.terms]
        for each in self.combined:
            for place, said in zip(each.members, each.describe(), strict=True):
                told[place] |= said | ({"kept": self.terms[place].kept / math.prod(self.shape)} if each.drops else {})
        return told

    def no_gram(self) -> torch.Tensor:
        """Zeros, (terms, terms), float64."""
        return torch.zeros(len(self.terms), len(self.terms), dtype=torch.float64)

    def tiles(self, rows: Rows, scratch: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Column tiles of a band, each with room for all deltas of it, (terms, rows, columns), which the next one overwrites.

        As many columns as make all of them fit into the scratch, (the band's elements,).
        """
        count, height = len(self.terms), rows[1] - rows[0]
        width = max(1, min(TILE_COLUMNS, self.columns // count))
        for start in range(0, self.columns, width):
            columns = slice(start, min(start + width, self.columns))
            shape = (count, height, columns.stop - columns.start)
            if scratch.numel() < math.prod(shape):  # more LoRAs than columns: biases
                scratch = torch.empty(math.prod(shape), device=scratch.device)
            yield columns, scratch[:math.prod(shape)].view(shape)

    def _joint_gram(self, rows: Rows) -> torch.Tensor:
        """Rows of the Gram matrix, spread over the bands so that no thread has to do all of them."""
        count, ranks, gram = len(self.terms), [term.factors.down.shape[0] for term in self.terms], self.no_gram()
        for j in range(count):
            if rows[0] <= j * self.shape[0] // count < rows[1]:
                start = sum(ranks[:j])
                inner = self.terms[j].factors.inner(self.joint.part(start, sum(ranks)))
                gram[j, j:] = gram[j:, j] = torch.stack([part.sum() for part in inner.split(ranks[j:])])
        return gram
