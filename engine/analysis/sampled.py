"""Sign conflict of every pair of LoRAs on 64 seeded rows of a tensor, as sums from which any set of layers can be judged.

Of row r, share s_r = columns where both deltas are nonzero and their signs differ / columns where both are nonzero; its weight
w_r = ‖a_r‖ ‖b_r‖, so a row counts by what is at stake in it. Within a row every column counts once: for a pair of Gaussian
deltas with cosine c the expectation is then arccos(c) / π exactly (Sheppard 1899), whatever c is. Weighting the columns by their
size too would break that (for c = -0.5 by +0.18, docs/log.md), and LoRAs would seem to fight beyond what their cosine says.
"""
import hashlib

import torch

from .exact import chance
from .layer import Layer, Stacked
from .scratch import Scratch

ROWS, SEED = 64, 0                                 # another seed is another METHOD (section.py): analyses are kept
# Sums over rows, with d = s - chance: of w, w s, w d, w², w² d, w² d².
SUMS = ("w", "ws", "wd", "ww", "wwd", "wwdd")


def rows_of(key: str, total: int) -> list[int]:
    """Up to ROWS different row numbers of a tensor, ascending; the same for the same key and size, everywhere."""
    if total <= ROWS:
        return list(range(total))
    found, number = set(), 0
    while len(found) < ROWS:
        digest = hashlib.sha256(f"conflict|{SEED}|{key}|{number}".encode()).digest()
        found.add(int.from_bytes(digest[:8], "little") % total)
        number += 1
    return sorted(found)


def has_rows(shape: tuple[int, int]) -> bool:
    """Whether a tensor has rows and columns to compare; biases, norms and modulation have not, and carry almost no energy."""
    return min(shape) > 1


def sample(layer: Layer, stacked: Stacked | None, rows: list[int], scratch: Scratch) -> torch.Tensor:
    """The deltas on these rows: (members, rows, columns), float32, in the scratch."""
    found = scratch.take("sample", len(layer.members), len(rows), layer.shape[1])
    for place, member in enumerate(layer.members):
        if stacked is not None:
            start, stop = stacked.spans[place]
            torch.mm(stacked.ups[start:stop, rows].t(), stacked.downs[start:stop], out=found[place])
        else:
            for number, row in enumerate(rows):
                member.write((row, row + 1), slice(0, layer.shape[1]), found[place, number:number + 1])
    return found


def conflicts(deltas: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Sums of every pair j < k in order, and of all pairs together last: (pairs + 1, 6) float64, columns as in SUMS.

    deltas: (members, rows, columns), OVERWRITTEN by their signs; gram: exact, of the whole tensor.
    """
    norms = torch.linalg.vector_norm(deltas, dim=2).double()
    signs = deltas.sign_().transpose(0, 1)
    agree = torch.bmm(signs, signs.transpose(1, 2)).double()
    both = torch.full_like(agree, deltas.shape[2])
    if torch.count_nonzero(deltas) < deltas.numel():
        magnitude = signs.abs()
        both = torch.bmm(magnitude, magnitude.transpose(1, 2)).double()
    first, second = torch.triu_indices(len(gram), len(gram), 1)
    share = torch.where(both > 0, (both - agree) / (2 * both), 0.5)[:, first, second]
    weight = torch.where(both > 0, norms.t()[:, :, None] * norms.t()[:, None, :], 0.0)[:, first, second]
    beyond = weight * (share - chance(gram)[first, second])
    weight, opposed, beyond = (torch.cat([each, each.sum(1, keepdim=True)], 1) for each in (weight, weight * share, beyond))
    return torch.stack([weight, opposed, beyond, weight**2, weight * beyond, beyond**2], 2).sum(0)
