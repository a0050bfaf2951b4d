"""Which scales and codes the blocks of Q8_0, Q4_0, Q5_0, Q4_1 and Q5_1 get.

`best` and `max` guess (block_search.py). Where there is no minimum the guesses send the peak to the longer, negative side of the
grid. The other sign cannot help: no other weight is larger than the peak, so where it were best, mirrored codes do the same.
The few guesses of `best` were picked greedily from a fine grid: each is the one that lowers the mean error most after those before
it, on four distributions. So 6 of 33 levels leave 0.1 % more error than all of them, and 8 of 64 pairs of ends 0.8 %.

`reference` is the plain rule of ggml-quants.c (`quantize_row_q4_0_ref` and its neighbours): d = peak / -8 or -16,
q = floor(x / d + 8.5 or 16.5); with a minimum d = (max - min) / 15 or 31, q = floor((x - min) / d + 0.5).
"""
import torch

from .block_search import BestRange, BestScale, reciprocal
from .lanes import rounded

Found = tuple[list[torch.Tensor], torch.Tensor]    # scales, (n,) each, and codes from 0 on, (32, n), float32
FEW, MANY = "best", "max"
# By bits of a code: where the peak goes, or the ends of the range; block_search.py.
LEVELS = {(4, FEW): (-8.2, -8.7, -7.2, -7.8, -8.4, -6.9), (4, MANY): tuple(-6 - step / 10 for step in range(33)),
          (5, FEW): (-16.1, -15.1, -16.5, -14.1, -15.8, -13, -14.8, -16.8), (5, MANY): tuple(-12 - step / 8 for step in range(44)),
          (8, MANY): tuple(-110 - step / 2 for step in range(39))}
ENDS = {(4, FEW): ((.25, .25), (-.25, .5), (.5, 0.), (0., .25), (.25, -.75), (0., -.25), (0., .5), (0., -.75)),
        (4, MANY): tuple((a / 4, b / 4) for a in range(-4, 4) for b in range(-4, 4)),
        (5, FEW): ((0., 0.), (-.75, .25), (-.25, .25), (.25, -.25), (0., -2.), (0., -1.25), (-.25, -1.), (-1., -2.)),
        (5, MANY): tuple((a / 4, b / 4) for a in range(-8, 3) for b in range(-8, 3))}
ROUNDS = {FEW: 1, MANY: 2}                         # how often the winner guesses again


def least_scale(blocks: torch.Tensor, weight: torch.Tensor | None, bits: int, setting: str) -> Found:
    """The scale, rounded, of least error. blocks: (32, n) float32; weight: the same shape or None; setting: best or max."""
    middle = 1 << bits - 1

    def level(scaled: torch.Tensor) -> torch.Tensor:
        return scaled.clamp_(-middle, middle - 1).round_()

    scale = rounded(BestScale(blocks, weight, level).search(LEVELS[bits, setting], ROUNDS[setting], -middle)[0])
    return [scale], level(blocks * reciprocal(scale)).add_(middle)


def least_range(blocks: torch.Tensor, weight: torch.Tensor | None, bits: int, setting: str) -> Found:
    """The scale and minimum, rounded, of least error; else as least_scale."""
    largest = (1 << bits) - 1
    scale, minimum = map(rounded, BestRange(blocks, weight, largest).search(ENDS[bits, setting], ROUNDS[setting]))
    return [scale, minimum], (blocks - minimum).mul_(reciprocal(scale)).clamp_(0, largest).round_()


def plain_scale(blocks: torch.Tensor, bits: int) -> Found:
    """The reference's; its codes follow from the scale before it is rounded. blocks: (32, n) float32."""
    first = blocks.abs().argmax(0, keepdim=True)   # the first of several: ggml's loop asks for larger
    middle = 1 << bits - 1
    scale = (blocks.gather(0, first)[0] + 0.0) * (-1 / middle)        # a zero block's peak is no -0
    return [scale], (blocks * finite_reciprocal(scale)).add_(middle + 0.5).floor_().clamp_(max=2 * middle - 1)


def plain_range(blocks: torch.Tensor, bits: int) -> Found:
    """As plain_scale, with a minimum."""
    low = blocks.amin(0)
    scale = (blocks.amax(0) - low) / low.new_full((), (1 << bits) - 1)
    return [scale, low], ((blocks - low) * finite_reciprocal(scale)).add_(0.5).floor_().clamp_(max=(1 << bits) - 1)


def finite_reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale; 0 where that is not finite."""
    inverse = 1 / scale
    return torch.where(torch.isfinite(inverse), inverse, 0.0)
