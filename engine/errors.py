"""Errors a user can act on: each names where, what was expected, what came, and the way out.

MergeError
  - HeaderError    a file is not what its name says
  - SourceError    a base model that cannot be used: lossy, of another kind, not a pair
  - LoraError      a LoRA of which nothing fits, or whose numbers make no sense
  - RecipeError    a recipe that says something impossible
  - PlanError      a target that cannot be written: disk, name, folder
  - TensorError    one tensor failed; carries its key and the stage
Stopped is none of them: the user asked for it, and what can be resumed is kept.
"""
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# ComfyUI knows these by type and answers by freeing models, so they must stay what they are.
# torch 2.4 has the first one in torch.cuda alone, and AcceleratorError came later.
OUT_OF_MEMORY = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
DEVICE_ERRORS = (OUT_OF_MEMORY, getattr(torch, "AcceleratorError", OUT_OF_MEMORY))


class MergeError(Exception):
    """Base: everything this pack raises on purpose."""


class HeaderError(MergeError):
    """The file's header is unreadable or contradicts its size."""


class SourceError(MergeError):
    """The file is sound but cannot serve as this base model."""


class LoraError(MergeError):
    """The LoRA does not fit this model at all, or a number in it makes no sense."""


class RecipeError(MergeError):
    """The recipe asks for something impossible."""


class PlanError(MergeError):
    """The target cannot be written as planned."""


class TensorError(MergeError):
    """One tensor failed. The message starts with the file, where it is known, then key and stage."""

    def __init__(self, key: str, stage: str, cause: Exception, where: str = ""):
        super().__init__(f"{where}: {key}: {stage} failed: {cause}" if where else f"{key}: {stage} failed: {cause}")
        self.key, self.stage = key, stage


class Stopped(Exception):
    """`should_stop()` said yes; what can be resumed stays on disk."""


@contextmanager
def at(key: str, stage: str, where: str = "") -> Iterator[None]:
    """Name the tensor and the stage in whatever goes wrong inside; out-of-memory passes as it is. where: the file's name."""
    try:
        yield
    except DEVICE_ERRORS:
        raise
    except (ValueError, KeyError, RuntimeError) as cause:
        raise TensorError(key, stage, cause, where) from cause
