"""Which code rounds to FP8: numba's where it is installed and the weight lies in the memory of the CPU, else torch's.

Both write the same bytes (tested where numba is installed), so a job that was begun with one may end with the other.
"""
from functools import cache
from types import ModuleType

import torch


@cache
def compiled() -> ModuleType | None:
    """The compiled passes; None where numba is absent, or does not know this Python or numpy."""
    try:
        from . import fp8_compiled
    except ImportError:
        return None
    return fp8_compiled


def passes(band: torch.Tensor, noise: torch.Tensor | None) -> ModuleType | None:
    """The compiled passes where they take such a band: on the CPU, rounded to nearest. Else None."""
    return compiled() if band.device.type == "cpu" and noise is None else None
