"""When a LoRA's tensors are a delta of a base tensor, by shape alone, and what to say when they are not.

A delta must have the base's own shape, axis by axis; one that merely has as many elements is refused, because
a reshape that happens to fit scrambles the weight (ComfyUI adds a transposed LoRA that way). Trailing axes of length 1, as a
convolution of kernel 1 has, are no axes. Where a convolution is factored, its kernel axes may be flattened into the inputs.
"""
import math

from ..bases.variant import WIDTHS

OWNERS = {width: size for size, widths in WIDTHS.items() for width in widths}
Shape = tuple[int, ...]


def whose(shape: Shape, target: Shape) -> str:
    """`; made for the 5B model` when a width says so and the target has no such axis, else nothing."""
    owners = {OWNERS[length] for length in shape if length in OWNERS and length not in target}
    return f"; made for the {owners.pop()} model" if len(owners) == 1 else ""


def trim(shape: Shape, axes: int) -> Shape:
    """Without the trailing ones that `axes` axes leave over."""
    while len(shape) > axes and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def misfit(found: Shape, target: Shape) -> str:
    """The words for a delta of another shape."""
    return f"shape {found} does not fit {target}{whose(found, target)}"


def same(found: Shape, target: Shape) -> str | None:
    """Why a whole tensor is none of the base's shape; None when it is."""
    return None if found == target else misfit(found, target)


def pair_problem(up: Shape, down: Shape, target: Shape) -> str | None:
    """Why up @ down is no delta of `target`; None when it is one.

    up: (out, rank), or with trailing ones as a convolution has; down: (rank, in), for a convolution (rank, in, kernel...) or flat.
    """
    if len(target) < 2 or len(up) < 2 or len(down) < 2:
        return f"factors {up} and {down} do not make a delta of shape {target}"
    flat_up, down = trim(up, 2), trim(down, len(target))
    up_fits = up[0] == target[0] and len(flat_up) == 2
    down_fits = down[1:] == target[1:] or (len(down) == 2 and len(target) > 2 and down[1] == math.prod(target[1:]))
    if up_fits and down_fits and up[1] == down[0] > 0:
        return None
    if len(up) == len(down) == 2 and up[0] == down[1] and up[1] == target[0] and down[0] == target[1]:
        return f"factors are transposed: expected up ({target[0]}, rank) and down (rank, {target[1]}), found {up} and {down}"
    if up[1] != down[0]:
        return f"up has rank {up[1]}, down has rank {down[0]}"
    if down[0] == 0:
        return "the factors have rank 0"
    return misfit((up[0], *down[1:]), target)


def core_problem(up: Shape, core: Shape, down: Shape, target: Shape) -> str | None:
    """Why a Tucker core (outer, inner, kernel...) between up (out, outer) and down (inner, in) is no delta of `target`."""
    if len(core) < 2 or len(down) < 2 or len(trim(down, 2)) != 2:
        return f"core {core} and inner factor {down} do not make a delta of shape {target}"
    if core[1] != down[0]:
        return f"the core has inner rank {core[1]}, its factor has rank {down[0]}"
    return pair_problem(up, (core[0], down[1], *core[2:]), target)


def kron_problem(left: Shape, right: Shape, target: Shape) -> str | None:
    """Why kron(left, right) is no delta of `target`. left: (a, b); right: (out / a, in / b, kernel...), or its last axes as one."""
    left, right = trim(left, 2), trim(right, len(target))
    if len(target) < 2 or len(left) != 2 or len(right) < 2 or 0 in left + right:
        return f"kron of {left} and {right} is no delta of shape {target}"
    rows, columns = left[0] * right[0], left[1] * right[1]
    flat = len(right) == 2 and len(target) > 2
    is_whole = flat and target[1] % left[1] == 0 and columns == math.prod(target[1:])
    if rows == target[0] and (is_whole or (columns == target[1] and right[2:] == target[2:])):
        return None
    if len(right) == len(target) == 2 and (columns, rows) == target:
        return f"factors are transposed: their kron has shape {(rows, columns)}, expected {target}"
    return misfit((rows, columns, *right[2:]), target)


def vector_axis(shape: Shape, target: Shape) -> int | None:
    """Along which axis of `target` one number per output (0) or per input (1) lies; None when it can be neither.

    (out, 1, ...) is 0, (1, in, 1, ...) is 1, a plain vector goes by its length, 0 when both fit: PEFT's, which is per output.
    """
    if len(target) < 2 or not shape or len(shape) > len(target):
        return None
    first = len(shape) > 1 and shape[0] == target[0] and set(shape[1:]) <= {1}
    second = len(shape) > 1 and shape[0] == 1 and shape[1] == target[1] and set(shape[2:]) <= {1}
    if len(shape) == 1:
        first, second = shape[0] == target[0], shape[0] == target[1]
    return 0 if first else 1 if second else None
