"""Where a block scale lies in the file: the 128 x 4 tiles of cuBLAS, used by NVFP4 and MXFP8.

Scale (r, c) of a plain (rows, columns) matrix goes to the flat offset

    ((r // 128) * tiles + c // 4) * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4          tiles = ceil(columns / 4)

(cuBLAS, 1D block scaling factors layout; comfy-kitchen `float_utils.to_blocked`). Rows are padded to 128, columns to 4, with zeros,
and the result is stored in that padded 2-D shape. The 128 rows of one band of tiles are contiguous in the file and depend on no
others, so runs of rows that start at a multiple of 128 are swizzled alone and put one after the other; a single row cannot be read
alone.
"""
import torch

ROWS, COLUMNS = 128, 4                             # one tile, cuBLAS 1D block scaling factors layout
QUARTER = 32                                       # rows of a tile that lie 16 bytes apart; the same table


def padded_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape in which a (rows, columns) matrix of scales is stored."""
    return -(-rows // ROWS) * ROWS, -(-columns // COLUMNS) * COLUMNS


def swizzle(plain: torch.Tensor) -> torch.Tensor:
    """Scales as they are stored.

    plain: (rows, columns) of a one-byte dtype, not modified; its first row belongs to a multiple of 128.
    Returns a new tensor of `padded_shape(rows, columns)`, same dtype; the padding is zero.
    """
    shape = padded_shape(*plain.shape)
    codes = plain.view(torch.uint8)                # fill and copy know every one-byte dtype only as bytes
    if codes.shape != shape:
        codes = torch.nn.functional.pad(codes, (0, shape[1] - codes.shape[1], 0, shape[0] - codes.shape[0]))
    tiles = codes.view(shape[0] // ROWS, ROWS // QUARTER, QUARTER, shape[1] // COLUMNS, COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).contiguous().view(shape).view(plain.dtype)


def unswizzle(stored: torch.Tensor, rows: int | None = None, columns: int | None = None) -> torch.Tensor:
    """Scales in plain order, the inverse of `swizzle`.

    stored: (rows % 128 == 0, columns % 4 == 0) of a one-byte dtype. rows, columns: how many of them to return; None: all, with the
    padding. Raises ValueError on another shape.
    """
    shape = tuple(stored.shape)
    if shape != padded_shape(*shape):
        raise ValueError(f"block scales: expected rows in steps of {ROWS} and columns in steps of {COLUMNS}, got {shape}")
    tiles = stored.contiguous().view(torch.uint8).view(shape[0] // ROWS, shape[1] // COLUMNS, QUARTER, ROWS // QUARTER, COLUMNS)
    plain = tiles.permute(0, 3, 2, 1, 4).reshape(shape)[:rows, :columns]
    return plain.contiguous().view(stored.dtype)
