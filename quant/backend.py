"""Which code quantizes on a processor: numba's passes where it is installed and the weight lies in the CPU's memory, else torch's.

Both write the same bytes (tested where numba is installed), so a job that was begun with one may end with the other. GGUF's
encoders choose by themselves (gguf/block_type.py), as a job of theirs is kept to what it was begun with.
"""
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch


class Compiled(NamedTuple):
    """The modules of compiled passes."""

    nvfp4: ModuleType
    fp8: ModuleType


@cache
def compiled() -> Compiled | None:
    """The compiled passes; None where numba is absent, or does not know this Python or numpy."""
    try:
        from . import fp8_compiled, nvfp4_compiled
    except ImportError:
        return None
    return Compiled(nvfp4_compiled, fp8_compiled)


def compiled_for(band: torch.Tensor) -> Compiled | None:
    """The compiled passes where they take such a tensor: on the CPU."""
    return compiled() if band.device.type == "cpu" else None


def backend() -> str:
    """For a job's report: what quantizes on the CPU, with the version of numba, which compiles on this machine."""
    return f"numba {compiled().nvfp4.numba.__version__}" if compiled() else "torch"
