"""The search of the asymmetric types: scale and minimum of each sub-block, and the two float16 that their codes multiply.

A super-block stores d, dmin and whole codes S, M of its sub-blocks: s = d S, m = dmin M (formulas of s, m: k_asymmetric_sums.py).

1. Grids. ggml-quants.c (`make_qkx2_quants`) puts code 0 on the least weight and tries where the largest falls. Here both ends move:
   l = round((x - min) / (max - min) * (top + a + b) - a) for pairs (a, b), and the highest gain wins. Eight pairs do better than 40
   that move one end. The codes nearest to the line found, and their line, are the aim of what follows.
2. Super-block. For d and dmin about (largest s) / code_top and (largest m) / code_top: S is s / d rounded down or up, M the code
   nearest to the best m *for that S*, which takes back most of what rounding s cost; the lower excess decides. Then d and dmin by
   least squares, from sums of the same sums: with a = sum S**2 L2, b = sum S M L1, c = sum M**2 W, p = sum S LX, q = sum M X
       d = (p c - q b) / (a c - b**2), dmin = (p b - q a) / (a c - b**2)
   The pair of lowest excess stays.
3. Rounds. Codes l for the stored scales, sums, line, d and dmin, S and M again; the round of lowest excess is stored. `max` also
   tries S one code up and down, with M and l of its own.
"""
import torch

from .k_asymmetric_forms import Effort, Form
from .k_asymmetric_pairs import Stored, better, coded, first, joint, nearest_low
from .k_asymmetric_sums import Known, Line, Sums, excess, fitted, gain, known, moments, positions
from .lanes import tree

FLAT = 1e-30                                       # weights that differ by less: float16 holds no scale for them (least 2**-24)
BATCH = 9                                          # grids whose sums are looked at together: fewer calls; more leave the cache


def search(x: torch.Tensor, weight: torch.Tensor | None, form: Form, effort: Effort) -> Stored:
    """What to store of super-blocks.

    x: (size, count, blocks) float32, not modified; weight: how much each squared error counts, the same shape, positive;
    None: 1. Raises ValueError where float16 does not hold a scale.
    """
    block = known(x, weight)
    line = grids(block, form, effort)
    sums = Sums(*moments(block, positions(x, line), form.top))
    stored = first(block, sums, fitted(block, sums, line), effort.starts, form.code_top)
    best = None
    for turn in range(effort.rounds):
        if turn:
            line = fitted(block, sums, stored.line())
            stored = coded(block, sums, line, joint(block, sums, stored), form.code_top)
        sums = Sums(*moments(block, positions(x, stored.line()), form.top))
        if effort.steps:
            stored, sums = moved(block, sums, stored, form, effort)
        stored = stored._replace(excess=tree(excess(block, sums, stored.line())))
        best = stored if best is None else better(stored, best)
    return best


def grids(block: Known, form: Form, effort: Effort) -> Line:
    """Step 1. Where all weights are the same, or none of the grids tells them apart: ggml's first grid."""
    least = block.x.amin(0).clamp_(max=0)
    span = block.x.amax(0) - least
    inverse = torch.where(span > FLAT, span.reciprocal(), 0.0)
    above = block.x - least
    kept = []
    for start in range(0, len(effort.grids), BATCH):
        for a, b in effort.grids[start:start + BATCH]:
            kept.append(moments(block, above.mul(inverse * (form.top + a + b)).sub_(a), form.top))
        kept = [highest(block, torch.stack(kept, 1))]
    return fitted(block, Sums(*kept[0]), Line(span * (1.0 / form.top), -least))


def highest(block: Known, tries: torch.Tensor) -> torch.Tensor:
    """Of sums (3, tries, count, blocks) those of the highest gain, (3, count, blocks); the first at a tie."""
    gains = gain(block, Sums(*tries))
    best, chosen = gains[0], torch.zeros_like(gains[:1], dtype=torch.long)
    for index, other in enumerate(gains[1:].unbind(), 1):
        higher = other > best
        chosen.masked_fill_(higher, index)
        best = torch.where(higher, other, best)
    return tries.gather(1, chosen.expand(3, -1, -1).unsqueeze(1)).squeeze(1)


def moved(block: Known, sums: Sums, stored: Stored, form: Form, effort: Effort) -> tuple[Stored, Sums]:
    """Scales a few codes away, each with minimum and codes of its own, in the sub-blocks where their error is lower."""
    kept = (excess(block, sums, stored.line()), stored.scales, stored.minima, *sums)
    for step in effort.steps:
        scales = (stored.scales + step).clamp_(0, form.code_top)
        minima = nearest_low(block, sums, stored.d * scales, stored.dmin).round_().clamp_(0, form.code_top)
        line = Line(stored.d * scales, stored.dmin * minima)
        new = Sums(*moments(block, positions(block.x, line), form.top))
        error = excess(block, new, line)
        lower = error < kept[0]
        kept = tuple(torch.where(lower, a, b) for a, b in zip((error, scales, minima, *new), kept, strict=True))
    return stored._replace(scales=kept[1], minima=kept[2]), Sums(*kept[3:])
