"""Methods that only give each delta a coefficient, from the Gram matrix: nothing dense is needed, the fast product stays.

SLERP (Shoemake 1985, "Animating rotation with quaternion curves", section 3.3), of the deltas, not of the weights:
    f = sin((1-t) w)/sin w * a + sin(t w)/sin w * b,   cos w = <a, b> / (||a|| ||b||);   a straight line where |cos w| > 0.9995
Orthogonalized sum: Gram-Schmidt in descending norm, each remainder given the norm its delta had, so that what two LoRAs share is
counted once, for the stronger. The deltas already contain their strengths.
"""
import math
from collections.abc import Sequence

import torch

PARALLEL = 0.9995                                  # beyond it sin w is too small to divide by; mergekit's DOT_THRESHOLD
CONTAINED = 1e-6  # a remainder of less than this share of its delta's energy is rounding noise, which its norm would blow up


def slerp_coefficients(gram: torch.Tensor, t: float) -> list[float]:
    """Of a and b. gram: (2, 2) float64. Where one of them is 0 there is no angle: the straight line too."""
    lengths = math.sqrt(float(gram[0, 0]) * float(gram[1, 1]))
    cosine = float(gram[0, 1]) / lengths if lengths else 1.0
    if abs(cosine) > PARALLEL:
        return [1.0 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def orthogonal_coefficients(gram: torch.Tensor) -> list[float]:
    """Of each delta in the sum of the remainders. gram: (n, n) float64. A delta that the stronger ones contain adds nothing."""
    basis, total = [], torch.zeros(len(gram), dtype=torch.float64)
    for k in sorted(range(len(gram)), key=lambda k: -float(gram[k, k])):
        rest = torch.zeros(len(gram), dtype=torch.float64)
        rest[k] = 1.0
        for other, energy in basis:
            rest = rest - float(rest @ gram @ other) / energy * other
        left = float(rest @ gram @ rest)
        if left > CONTAINED * float(gram[k, k]):
            basis.append((rest, left))
            total += rest * math.sqrt(float(gram[k, k]) / left)
    return total.tolist()


def gram_of(deltas: torch.Tensor) -> torch.Tensor:
    """Inner products of a tile's deltas, (n, rows, columns) -> (n, n), each row's in float32, summed in float64 on the CPU."""
    by_row = deltas.transpose(0, 1)
    return torch.bmm(by_row, by_row.transpose(1, 2)).to("cpu", torch.float64).sum(0)


def _gram(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    flat = torch.stack([delta.double().reshape(-1) for delta in deltas])
    return (flat @ flat.t()).cpu()


def _weighted(deltas: Sequence[torch.Tensor], by: list[float]) -> torch.Tensor:
    return sum(weight * delta for weight, delta in zip(by, deltas, strict=True))


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """SLERP of two whole tensors of one shape; t = 0 is a, t = 1 is b."""
    return _weighted((a, b), slerp_coefficients(_gram((a, b)), t))


def orthogonal(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Orthogonalized sum of whole tensors of one shape."""
    return _weighted(deltas, orthogonal_coefficients(_gram(deltas)))
