"""Products of float32 factors: the inner loop of every merge, by the fastest library that torch carries for this processor.

oneDNN's float32 product runs at twice the rate of MKL's on AMD's processors (docs/log.md, Products); torch.mm takes MKL. It is
reached through the operator that torch.compile emits for linear layers (aten/src/ATen/native/mkldnn/Linear.cpp). Where a build of
torch has none, or it fails its test, torch.mm it is, on one thread: MKL shares a product out by the number of threads, which shows
in the last bits; oneDNN's are the same for any. The choice depends on the build alone, so equal machines give equal bytes.
"""
from collections.abc import Callable
from functools import cache

import torch

from .bands import one_thread
from .device import full_float32


def multiply(left: torch.Tensor, right_t: torch.Tensor) -> torch.Tensor:
    """left @ right_tᵀ, a new tensor.

    left: (rows, inner), right_t: (columns, inner); float32 on one device, fast when contiguous.
    """
    operator = _linear() if left.device.type == "cpu" and left.numel() and right_t.numel() else None
    if operator is not None:
        return operator(left, right_t, None, "none", [], "")
    with one_thread():
        return torch.mm(left, right_t.t())


@cache
def _linear() -> Callable | None:
    """The operator, or None. Its test: as near to float64 as float32 products are, and the same bits again."""
    if not torch.backends.mkldnn.is_available():
        return None
    random = torch.Generator().manual_seed(0)
    left, right_t = (torch.randn(rows, 64, generator=random) for rows in (128, 320))
    try:
        operator = torch.ops.mkldnn._linear_pointwise
        with full_float32():                       # judged, and kept for good, as the merges will use it
            first, again = (operator(left, right_t, None, "none", [], "") for _ in range(2))
    except (AttributeError, RuntimeError, TypeError):
        return None                                # another torch: its own product is as right
    exact = left.double() @ right_t.double().t()
    is_right = (first.double() - exact).norm() <= 1e-6 * exact.norm() and torch.equal(first, again)
    return operator if is_right else None
