"""When a LoRA's tensors are a delta of a base tensor, by shape alone, and what to say when they are not.

A delta must have the base's own shape, axis by axis; one that merely has as many elements is refused, because
a reshape that happens to fit scrambles the weight (ComfyUI adds a transposed LoRA that way).
"""
import math

from .variant import WIDTHS

OWNERS = {width: size for size, widths in WIDTHS.items() for width in widths}
Shape = tuple[int, ...]


def whose(shape: Shape, target: Shape) -> str:
    """`; made for the 5B model` when a width says so and the target has no such axis, else nothing."""
    owners = {OWNERS[length] for length in shape if length in OWNERS and length not in target}
    return f"; made for the {owners.pop()} model" if len(owners) == 1 else ""


def pair_problem(up: Shape, down: Shape, target: Shape) -> str | None:
    """Why up @ down is no delta of `target`; None when it is one.

    up: (out, rank), or with trailing ones as a convolution has; down: (rank, in), for a convolution (rank, in, kernel...) or flat.
    """
    if len(target) < 2 or len(up) < 2 or len(down) < 2:
        return f"factors {up} and {down} do not make a delta of shape {target}"
    up_fits = up[0] == target[0] and set(up[2:]) <= {1} and len(up) in (2, len(target))
    down_fits = down[1:] == target[1:] or (len(down) == 2 and len(target) > 2 and down[1] == math.prod(target[1:]))
    if up_fits and down_fits and up[1] == down[0] > 0:
        return None
    if len(up) == len(down) == 2 and up[0] == down[1] and up[1] == target[0] and down[0] == target[1]:
        return f"factors are transposed: expected up ({target[0]}, rank) and down (rank, {target[1]}), found {up} and {down}"
    if up[1] != down[0]:
        return f"up has rank {up[1]}, down has rank {down[0]}"
    if down[0] == 0:
        return "the factors have rank 0"
    delta = (up[0], *down[1:])
    return f"shape {delta} does not fit {target}{whose(delta, target)}"
