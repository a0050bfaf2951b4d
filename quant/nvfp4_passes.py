"""NVFP4's three passes as one choice: numba's, or torch's with their work space (backend.py)."""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from . import nvfp4_codes, nvfp4_search
from .backend import compiled_for


class Passes(NamedTuple):
    """`nvfp4_codes.block_amax`, `nvfp4_search.search` and `nvfp4_codes.encode` without their work space."""

    block_amax: Callable
    search: Callable
    encode: Callable


def passes(blocks: torch.Tensor, scratch: torch.Tensor | None) -> Passes:
    """The passes for such blocks. scratch: overwritten by the passes of torch, None allocates."""
    if found := compiled_for(blocks):
        return Passes(found.nvfp4.block_amax, found.nvfp4.search, found.nvfp4.encode)
    work = nvfp4_codes.workspace(blocks, scratch)
    return Passes(*(partial(part, work=work) for part in (nvfp4_codes.block_amax, nvfp4_search.search, nvfp4_codes.encode)))
