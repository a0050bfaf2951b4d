"""Which inputs are measured: one point for all the layers that see the same tensor.

q, k and v of a self-attention share their input, and k and v of every cross-attention see the one text, so a model of 40 blocks has
40 * 6 + 1 points in place of 400 inputs (plans/input_scales.py tells who shares).
"""
from collections.abc import Iterable

from ..plans.input_scales import same_input


def points_of(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Point -> the layers that see this one tensor. A point is named after the first of them.

    layers: names without `.weight`, in the model's order, which the points keep. A layer named twice counts once.
    """
    groups: dict[str, list[str]] = {}
    for layer in dict.fromkeys(layers):
        groups.setdefault(same_input(layer) or layer, []).append(layer)
    return {members[0]: tuple(members) for members in groups.values()}
