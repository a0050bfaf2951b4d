"""Stochastic rounding to the grid of a small float format: unbiased, where nearest loses a change below half a step.

    step = 2 ** (max(exponent of the value, exponent of the smallest normal) - mantissa_bits)
    rounded = floor(value / step + noise) * step            P(up) = how far the value lies above its lower neighbour, in steps

so the mean over the noise is the value, and the error is sqrt(2) times that of rounding to nearest (Croci et al. 2022, "Stochastic
rounding: implementation, error analysis and applications", section 2). The step is taken from the exponent bits, the division is
by a power of two and exact. The noise is cut to 23 - mantissa_bits bits: then value / step + noise has no rounding of its own for
a normal value, and never carries a value that lies on the grid to the next one. Below the smallest normal the bias is under
2**-20 of a step.
"""
import torch

MANTISSA_BITS = 23                                 # float32, IEEE 754 table 3.5, as are the two below
EXPONENT_MASK = 0x7F800000
BIAS = 127
TILE = 1 << 16                                     # values; the passes over one tile stay in a core's L2


def round_stochastic(values: torch.Tensor, noise: torch.Tensor, mantissa_bits: int, smallest_exponent: int) -> torch.Tensor:
    """Values moved to one of their two neighbours on the grid.

    values: contiguous float32, finite, not above the grid's largest value, overwritten and returned. noise: uniform [0, 1) float32
    of the same shape. mantissa_bits, smallest_exponent: of the grid; the smallest normal value is 2**smallest_exponent.
    """
    levels = float(1 << MANTISSA_BITS - mantissa_bits)
    for part, random in zip(values.view(-1).split(TILE), noise.reshape(-1).split(TILE), strict=True):
        exponent = part.view(torch.int32).bitwise_and(EXPONENT_MASK).clamp_(min=smallest_exponent + BIAS << MANTISSA_BITS)
        step = exponent.sub_(mantissa_bits << MANTISSA_BITS).view(torch.float32)
        cut = (random * levels).floor_().mul_(1.0 / levels)
        part.div_(step).add_(cut).floor_().mul_(step)
    return values
