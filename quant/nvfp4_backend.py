"""Which code runs NVFP4's passes: numba's where it is installed and the weight lies in the memory of the CPU, else torch's.

Both write the same bytes (tested where numba is installed), so a job that was begun with one may end with the other.
"""
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import NamedTuple

import torch

from . import nvfp4_codes, nvfp4_search


class Passes(NamedTuple):
    """`nvfp4_codes.block_amax`, `nvfp4_search.search` and `nvfp4_codes.encode` without their work space."""

    block_amax: Callable
    search: Callable
    encode: Callable


@cache
def compiled() -> ModuleType | None:
    """The compiled passes; None where numba is absent, or does not know this Python or numpy."""
    try:
        from . import nvfp4_compiled
    except ImportError:
        return None
    return nvfp4_compiled


def backend() -> str:
    """For a job's report: what quantizes on the CPU, with the version of numba, which compiles on this machine."""
    return f"numba {compiled().numba.__version__}" if compiled() else "torch"


def passes(blocks: torch.Tensor, scratch: torch.Tensor | None) -> Passes:
    """The passes for such blocks. scratch: overwritten by the passes of torch, None allocates."""
    if blocks.device.type == "cpu" and compiled():
        return Passes(compiled().block_amax, compiled().search, compiled().encode)
    work = nvfp4_codes.workspace(blocks, scratch)
    return Passes(*(partial(part, work=work) for part in (nvfp4_codes.block_amax, nvfp4_search.search, nvfp4_codes.encode)))
