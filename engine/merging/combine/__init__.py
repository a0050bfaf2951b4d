"""How the LoRAs of one pass become one change: sum, TIES, DARE-TIES, Breadcrumbs, SLERP, orthogonalized sum.

Always on the dense deltas of one tensor, strengths included, never on the factors apart: sums and masks of A and of B by
themselves are not those of B @ A (PEFT documents only its `cat` and `svd` as exact). One file per paper, with free functions over
whole tensors; `Combined` (combined.py) does the same tile by tile.
"""
from .combined import METHODS, Combined, check
from .linear import gram_of

__all__ = ["METHODS", "Combined", "check", "gram_of"]
