"""ConvRot: the regular Hadamard rotation of 256 input columns that comfy-kitchen's integer formats store a weight in.

    H4 = [[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]          H = H4 x H4 x H4 x H4 / 16   (x: Kronecker)
    rotated[:, 256 g : 256 (g + 1)] = weight[:, 256 g : 256 (g + 1)] @ H.T

(comfy_kitchen/tensor/int8_utils.py; arXiv 2512.03673.) H is orthogonal, so an error keeps its size, and it mixes 256 weights into
each number, so a row becomes nearly Gaussian and its largest magnitude small. H is symmetric: the rotation is its own inverse. The
activations are rotated when the model runs.

H4 x = sum(x) - 2 * reverse(x), so four passes of additions, one for each base-4 digit of the column, take the place of a product
with H: 28 additions for 4 numbers instead of 1024 multiplications. The columns of a tile are laid out first, (256, rows * groups),
which makes every pass run over contiguous memory. Measured for one thread, ns per weight: 1.6, the product 4.9.

The order of the additions is fixed here. A product of matrices takes another order below 4 rows (measured), and may on another
processor or release of torch; the bytes of a file may not depend on those. comfy-kitchen multiplies, so its result differs in the
last bits: up to 256 roundings of a sum instead of 12. Measured against float64, Gaussian weights of 1: ours is off by 4e-7 at most,
the product by 18e-7.
"""
from collections.abc import Iterator

import torch

from .words import NOT_FINITE

GROUP = 256                                        # what ComfyUI assumes when `convrot_groupsize` is missing, comfy/ops.py
UNIT = 1 / 16                                      # 256 ** -0.5, the length of a column of signs; a power of two, so exact
TILE = 512                                         # columns of a tile, 0.5 MiB of float32; smaller lose more to calls than L2 gives
ALIGNMENT = 128                                    # bands start at multiples of this row; so do tiles, whatever the bands are


def require_groups(shape: tuple[int, ...], name: str) -> None:
    """Raises ValueError unless a weight of this shape can be rotated. name: of the format that wants to."""
    if len(shape) != 2 or shape[1] % GROUP or not shape[1]:
        raise ValueError(f"{name} rotates {GROUP} input columns at a time, but the weight is {'x'.join(map(str, shape))}; "
                         "choose float8_e4m3fn, or int8_tensorwise with scaling by row, for this layer")


def rotate(band: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rotated rows, and the rows back from rotated ones.

    band: (rows, in_features) float32 with in_features a multiple of 256. out: the same shape, may be band itself; None allocates,
    and band is not modified. Returns out.
    """
    rotated = torch.empty_like(band) if out is None else out
    for rows, tile in rotated_tiles(band):
        rotated[rows].view(-1, GROUP).copy_(tile.T)
    return rotated


def rotated_tiles(band: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of a band with their rotated weights, a tile at a time.

    band: (rows, in_features) float32, contiguous. Yields a slice of rows and (256, rows * groups) float32: entry
    (j, r * groups + g) is column 256 g + j of row r. The tile may be overwritten, and is when the next one is made.
    """
    groups = band.shape[1] // GROUP
    step = tile_rows(groups)
    tile, spare = band.new_empty(step * groups * GROUP), band.new_empty(step * groups * GROUP * 3 // 2)
    for start in range(0, len(band), step):
        rows = slice(start, min(start + step, len(band)))
        columns = tile[:band[rows].numel()].view(GROUP, -1)
        columns.copy_(band[rows].view(-1, GROUP).T).mul_(UNIT)
        _multiply_by_signs(columns, spare)
        yield rows, columns


def tile_rows(groups: int) -> int:
    """Rows of a tile: a power of two that divides 128, so that a row's neighbours in its tile never depend on the bands."""
    return min(ALIGNMENT, 1 << (max(1, TILE // groups).bit_length() - 1))


def spread(per_row: torch.Tensor, groups: int) -> torch.Tensor:
    """One number for each row -> one for each column of its tile. per_row: (rows,). Returns (rows * groups,)."""
    return per_row.repeat_interleave(groups)


def row_amax(tile: torch.Tensor, groups: int) -> torch.Tensor:
    """Largest magnitude of each row of a tile. tile: (256, rows * groups). Returns (rows,). Raises ValueError on NaN or inf."""
    return finite(torch.maximum(tile.amax(0), -tile.amin(0)).view(-1, groups).amax(1))


def finite(amax: torch.Tensor) -> torch.Tensor:
    """The largest magnitudes that were given. Raises ValueError unless all are finite, and with them every weight."""
    if not torch.isfinite(amax).all():
        raise ValueError(NOT_FINITE)
    return amax


def _multiply_by_signs(columns: torch.Tensor, spare: torch.Tensor) -> None:
    """columns <- (H4 x H4 x H4 x H4) columns. columns: (256, n), contiguous; spare: at least 384 n numbers, overwritten."""
    size = columns.numel()
    source, target = columns, spare[:size].view_as(columns)
    first, second = spare[size:size + size // 4], spare[size + size // 4:size + size // 2]
    for outer in (1, 4, 16, 64):                   # the digit's weight is 64 / outer; after four passes the result is in `columns`
        a, b, c, d = source.view(outer, 4, -1).unbind(1)
        total, part = first.view_as(a), second.view_as(a)
        torch.add(a, b, out=total).add_(torch.add(c, d, out=part))
        for into, without in zip(target.view(outer, 4, -1).unbind(1), (d, c, b, a), strict=True):
            torch.sub(total, without, alpha=2, out=into)
        source, target = target, source
