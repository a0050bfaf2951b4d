"""Other checkpoints of the same shape mixed into a base before any LoRA, tensor by tensor, in lockstep with reading it."""
from .mixed import MixedSource, open_mixed

__all__ = ["MixedSource", "open_mixed"]
