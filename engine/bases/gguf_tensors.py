"""Where the tensors of a GGUF file lie: what its header states of them, checked against each other and against the file's size.

ggml takes a tensor only where the one before it ends, rounded up to the alignment (source: ggml/src/gguf.cpp, gguf_init_from_file),
so a wrong type, shape or offset shows at the next one, and is refused here before anything is read.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from ..errors import HeaderError
from ..header import MAX_AXES, MAX_COUNT
from .gguf_fields import Fields
from .gguf_types import GgmlType, type_of

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."          # of a tensor that city96's tools/convert.py stored in rows of 256
AGAIN = "download it again"


@dataclass(frozen=True)
class Stated:
    """As the header has it. axes: innermost first; number: of the type; offset: from where the tensors begin."""

    name: str
    axes: list[int]
    number: int
    offset: int


@dataclass(frozen=True)
class GgufTensor:
    """name: as the file spells it; shape: outermost axis first; start: in the file; nbytes: 0 of a type without a size."""

    name: str
    tensor_type: GgmlType
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_stated(fields: Fields) -> Stated:
    """The next tensor's entry. Raises ValueError."""
    name, axes = fields.text(), fields.number("I")
    if axes > MAX_AXES:
        raise ValueError(f"{name[:99]!r} of {axes} axes")
    return Stated(name, [fields.number("Q") for _ in range(axes)], fields.number("I"), fields.number("Q"))


def place(path: str, stated: Sequence[Stated], metadata: Mapping[str, object], base: int) -> list[GgufTensor]:
    """The tensors in the order of the file. base: where they begin.

    Raises HeaderError: a shape that no file holds, rows that are no whole blocks, an original shape of another size.
    """
    return sorted((_tensor(path, each, base, metadata) for each in stated), key=lambda each: (each.start, each.nbytes))


def _tensor(path: str, stated: Stated, base: int, metadata: Mapping[str, object]) -> GgufTensor:
    """One tensor, its numbers checked against each other."""
    name, axes, kind = stated.name, stated.axes, type_of(stated.number)
    where, columns = f"{path}: {name[:200]!r}", axes[0] if axes else 1
    if _spread(axes) > MAX_COUNT:
        raise HeaderError(f"{where}: expected a shape that a file can hold, found {axes}; the file is damaged, {AGAIN}")
    if kind.elements and columns % kind.elements:
        raise HeaderError(f"{where}: expected rows of a multiple of {kind.elements} for {kind.name}, found {columns}; the file is "
                          f"damaged, {AGAIN}")
    numel, shape = prod(axes), list(reversed(axes))
    found = metadata.get(ORIGINAL_SHAPE + name, shape)
    is_shape = isinstance(found, list) and all(type(axis) is int and axis >= 0 for axis in found) and _spread(found) <= MAX_COUNT
    if not is_shape or prod(found) != numel:
        raise HeaderError(f"{where}: expected an original shape of {numel} elements, found {str(found)[:80]}; the file is damaged, "
                          f"{AGAIN}")
    nbytes = numel // kind.elements * kind.nbytes if kind.elements else 0
    return GgufTensor(name, kind, tuple(found), base + stated.offset, nbytes)


def _spread(axes: list[int]) -> int:
    """The product, with 1 for 0: neither it nor a part of it may be more than torch counts."""
    return prod(max(axis, 1) for axis in axes)


def check_places(path: str, tensors: Sequence[GgufTensor], base: int, alignment: int, size: int) -> None:
    """Raise HeaderError unless each tensor begins where the one before ends, up to the alignment, and the file ends with the last.

    tensors: in the order of the file. After one of an unknown type only overlaps show.
    """
    end, before, is_known = base, "the header", True
    for each in tensors:
        expected = end + -(end - base) % alignment
        if each.start < expected or (is_known and each.start > expected):
            what = f"overlaps {before}" if each.start < end else f"does not follow {before}"
            raise HeaderError(f"{path}: {each.name[:200]!r} {what}: expected at {expected}, found at {each.start}; the file is "
                              f"damaged, {AGAIN}")
        end, before, is_known = each.start + each.nbytes, repr(each.name[:200]), each.tensor_type.elements > 0
        if end > size:
            raise HeaderError(f"{path}: expected a whole GGUF file, found one that ends at {size}, within {before}, {AGAIN}")
    rest = size - end - -(end - base) % alignment
    if rest > 0 and is_known and tensors:
        raise HeaderError(f"{path}: expected {size - rest} bytes, found {rest} more after {before}; the file is damaged, {AGAIN}")
