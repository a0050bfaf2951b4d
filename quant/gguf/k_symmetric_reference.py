"""llama.cpp's own search for Q6_K and Q3_K without an importance matrix, in its order of float32 operations: its bytes.

ggml-quants.c, `quantize_row_q6_K_ref` with `make_qx_quants` and `quantize_row_q3_K_ref` with `make_q3_quants`. Errors count by
w = x^2. m: the first weight of largest magnitude in a sub-block; n = 32 or 4; sums run from the first weight to the last.
    Q6_K   of 19 factors f = 0, -0.9, -0.8, .. 0.9: l = clamp(round(-(n + f) / m * x)), the largest S(w x l)^2 / S(w l^2)
    Q3_K   f = 0, then 5 times over the weights: the best code for one while the others stay, if it raises the same quotient and
           S(w x l) without it is positive: half of all sub-blocks, those with m > 0, have a negative one, and stay as they are
    both   c = round(s * -C / largest s), d = float16(largest s / -C), codes round(x / (d c)), or those of the search where d c = 0
A sub-block whose largest magnitude is under 1e-15 has code -n everywhere, and where s is under that for a whole super-block of
Q6_K, or 0 for one of Q3_K, its d is 0.
"""
import torch

from .k_symmetric_layout import KINDS, SUB, Kind
from .lanes import rounded

TINY = 1e-15                                       # ggml-quants.c: GROUP_MAX_EPS
MAGIC = 12582912.0                                 # 1.5 * 2**23: the low 22 bits of a sum with it are a whole number


def nearest_int(value: torch.Tensor) -> torch.Tensor:
    """ggml-quants.c, `nearest_int`, float32: to even, and modulo 2**23, which a quotient of rounding errors can exceed."""
    return (((value + MAGIC).view(torch.int32) & 0x7FFFFF) - 0x400000).float()


def running(terms: torch.Tensor) -> torch.Tensor:
    """Sum over dim 0 in its order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def first_largest(values: torch.Tensor) -> torch.Tensor:
    """The first value of largest magnitude over dim 0."""
    return values.gather(0, values.abs().argmax(0, keepdim=True))[0]


def _at(x: torch.Tensor, inverse: torch.Tensor, levels: int) -> torch.Tensor:
    return nearest_int(inverse * x).clamp_(-levels, levels - 1)


def _qx_scales(x: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """`make_qx_quants`, rmse_type 1: the scales, (16, n), and the codes, (16, 16, n)."""
    m, weight = first_largest(x), x * x
    product = weight * x
    for step in (0, *range(-9, 0), *range(1, 10)):
        factor = kind.levels + torch.tensor(0.1, device=x.device) * step      # float32
        inverse = -factor / m
        codes = _at(x, inverse, kind.levels)
        first, second = running(product * codes), running(weight * codes * codes)
        ratio = torch.where(second > 0, first / second, 0.0)
        if step == 0:
            scale, best, chosen = ratio, ratio * first, inverse
        else:
            higher = (second > 0) & (first * first > best * second)
            scale, best = torch.where(higher, ratio, scale), torch.where(higher, ratio * first, best)
            chosen = torch.where(higher, inverse, chosen)
    return scale, _at(x, chosen, kind.levels)


def _q3_scales(x: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """`make_q3_quants`, do_rmse: as `_qx_scales`."""
    weight = x * x
    product = weight * x
    codes = _at(x, -kind.levels / first_largest(x), kind.levels)
    first, second = running(product * codes), running(weight * codes * codes)
    for index in [*range(SUB)] * 5:
        old, w, wx = codes[index], weight[index], product[index]
        rest, rest_2 = first - wx * old, second - w * old * old
        new = nearest_int(x[index] * rest_2 / rest).clamp_(-kind.levels, kind.levels - 1)
        total, total_2 = rest + wx * new, rest_2 + w * new * new
        better = (rest > 0) & (new != old) & (total_2 > 0) & (total * total * second > first * first * total_2)
        codes[index] = torch.where(better, new, old)
        first, second = torch.where(better, total, first), torch.where(better, total_2, second)
    return torch.where(second > 0, first / second, 0.0), codes


def _encode(x: torch.Tensor, scales: torch.Tensor, found: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, ...]:
    """Codes + n (16, 16, n) uint8, c (16, n) and d (n,) float32 of the scales and codes of a search."""
    nothing = x.abs().amax(0) < TINY
    scales, found = torch.where(nothing, 0.0, scales), torch.where(nothing, -kind.levels, found)
    largest = first_largest(scales)
    void = largest.abs() < TINY if kind.levels == 32 else largest == 0
    inverse = -kind.steps / torch.where(void, 1.0, largest)
    c = nearest_int(inverse * scales).clamp_(-kind.steps, kind.steps - 1)
    d = torch.where(void, 0.0, rounded(1 / inverse))
    step = d * c
    codes = torch.where(step == 0, found, nearest_int(x / step).clamp_(-kind.levels, kind.levels - 1))
    return (codes + kind.levels).to(torch.uint8), c, d, void


def encode_q6_k(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x: (16, 16, n) float32 as `spread`. Returns codes + 32 (16, 16, n) uint8, c (16, n), d (n,) float32."""
    codes, c, d, void = _encode(x, *_qx_scales(x, KINDS["Q6_K"]), KINDS["Q6_K"])
    return torch.where(void, 0, codes), torch.where(void, 0.0, c), d          # all bytes 0


def encode_q3_k(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x: (16, 16, n) float32 as `spread`. Returns codes + 4 (16, 16, n) uint8, c (16, n), d (n,) float32."""
    codes, c, d, void = _encode(x, *_q3_scales(x, KINDS["Q3_K"]), KINDS["Q3_K"])
    return codes, torch.where(void, -32.0, c), d                              # all scale bytes 0


ENCODE = {"Q6_K": encode_q6_k, "Q3_K": encode_q3_k}
