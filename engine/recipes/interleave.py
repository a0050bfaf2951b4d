"""Two lists as one that keeps the order of both: what is common to them stands once, as often as the order allows."""
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def interleave(one: Sequence[T], other: Sequence[T], are_equal: Callable[[T, T], bool]) -> list[tuple[T | None, T | None]]:
    """Rows of (from `one`, from `other`), None where a list has nothing there; each list's own items come in its own order.

    A longest common subsequence (Wagner & Fischer 1974), so that as many rows as possible have both; of several, the one that
    pairs the first items of `one`.
    """
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]      # of what is common to the rests of both lists
    for i in reversed(range(len(one))):
        for j in reversed(range(len(other))):
            both = 1 + lengths[i + 1][j + 1] if are_equal(one[i], other[j]) else 0
            lengths[i][j] = max(both, lengths[i + 1][j], lengths[i][j + 1])
    rows, i, j = [], 0, 0
    while i < len(one) or j < len(other):
        is_both = i < len(one) and j < len(other) and are_equal(one[i], other[j]) and lengths[i][j] == 1 + lengths[i + 1][j + 1]
        takes_one = is_both or j == len(other) or (i < len(one) and lengths[i + 1][j] == lengths[i][j])
        takes_other = is_both or not takes_one
        rows.append((one[i] if takes_one else None, other[j] if takes_other else None))
        i, j = i + takes_one, j + takes_other
    return rows
