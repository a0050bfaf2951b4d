"""What tells Q4_K, Q5_K and Q2_K apart, and how far each setting searches: figures alone, for the torch and the compiled path."""
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Form:
    """size: weights of a sub-block; count: sub-blocks of a super-block; top, code_top: largest code of a weight, of a scale."""

    size: int
    count: int
    top: int
    code_top: int


# ggml-common.h: block_q4_K, block_q5_K, block_q2_K.
FORMS = MappingProxyType({"Q4_K": Form(32, 8, 15, 63), "Q5_K": Form(32, 8, 31, 63), "Q2_K": Form(16, 16, 3, 15)})


@dataclass(frozen=True)
class Effort:
    """grids: (a, b), steps that the grid reaches beyond the least and the largest weight; starts: factors on the first d and dmin;
    rounds: times that the codes of the weights follow the scales; steps: codes that a scale is moved by, with codes of its own."""

    grids: tuple[tuple[float, float], ...]
    starts: tuple[tuple[float, float], ...]
    rounds: int
    steps: tuple[int, ...] = ()


def square(*values: float) -> tuple[tuple[float, float], ...]:
    """All pairs."""
    return tuple((a, b) for a in values for b in values)


# Against one start, five take 0.2 to 0.5 % off the relative L2 error on Gaussian weights; more pay only in the longer search.
CROSS = ((1, 1), (.94, 1), (1.06, 1), (1, .94), (1, 1.06))
STARTS = square(1, .85, .9, .95, 1.05)
EVEN = square(-1.2, -.9, -.6, -.3, 0, .3, .6, .9, 1.2)
NARROW = square(-.45, -.3, -.15, 0, .15, .3, .45, .6, .75)
# Of the pairs of EVEN and NARROW, the eight that together lower the squared error of four distributions most: added one by one, and
# after each every one exchanged for a better. A ninth takes 0.2 % (Q2_K 0.04 %) off the relative L2 error.
BEST = MappingProxyType({
    "Q4_K": Effort(((-.9, .3), (0, 0), (0, .3), (0, .6), (.3, -.9), (.3, 0), (.3, .3), (.6, 0)), CROSS, 2),
    "Q5_K": Effort(((-1.2, 0), (-.9, -.9), (-.9, 0), (-.3, .3), (0, 0), (0, .3), (.3, -.3), (.3, 0)), CROSS, 2),
    "Q2_K": Effort(((-.15, .15), (0, .75), (.15, 0), (.15, .6), (.3, .45), (.45, -.15), (.45, .3), (.75, .15)), CROSS, 2)})
MAX = MappingProxyType({"Q4_K": Effort(EVEN, STARTS, 3, (-1, 1)), "Q5_K": Effort(EVEN, STARTS, 3, (-1, 1)),
                        "Q2_K": Effort(NARROW, STARTS, 3, (-1, 1))})
