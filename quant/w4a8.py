"""W4A8: rotated rows in 4-bit codes of a codebook, a scale for each 16 weights, as ComfyUI's `asym_w4a8_int8` stores them.

    level(code, s_rel) = clamp(round_half_even(codebook[code] * s_rel), -127, 127)          an INT8 number: the product runs in INT8
    read back: level * s_channel, rotated                packed[:, j] = code[:, 2 j] | code[:, 2 j + 1] << 4

(comfy_kitchen/backends/eager/w4a8_int8.py.) s_channel, float32, is the rotated row's amax / 127. s_rel, E4M3, is searched for each
16: amax / s_channel rounded to E4M3 and its neighbours, a byte up or down being 6 to 12 %, each with the error that the levels
really leave; the least wins. Then each weight takes the nearest level. comfy-kitchen fits s_rel in float32 and rounds it last.

The codebook is comfy-kitchen's: Lloyd-Max for 16 Gaussian numbers over their amax. Rotated rows are nearly Gaussian whatever the
weight is, so nothing about the whole tensor has to be known. A codebook refitted to the searched scales gains 0.05 %: left alone.

Relative error, 5120 columns:    fast     balanced   best      comfy-kitchen's own encoder
    Gaussian                     0.0720   0.0711     0.0710    0.0731
    Student-t, Laplace           0.0718   0.0710     0.0709    0.0729
    columns of lognormal size    0.0697   0.0688     0.0687    0.0709      (exp(n), n normal; benchmarks/error.py draws exp(0.5 n))
"""
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch

from .int8 import INT8_MAX, SMALLEST_SCALE
from .rotation import GROUP, require_groups, rotate, rotated_tiles, row_amax, spread
from .words import entry

BLOCK = 16                                         # weights of one s_rel: ComfyUI's `group_size`
CODEBOOK = (-0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.155210, -0.050720,
            0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671)   # comfy-kitchen's _FIXED_LUT
# Bytes to add to that of amax / s_channel. Of -7 to 6, Gaussian weights take 0 in 55 %, 1 in 15, -1 in 12, 2 in 9, 3 in 5, 4 and 5
# in 1 each, the others never.
OFFSETS = {"fast": (0, 1, -1), "balanced": (0, 1, -1, 2, 3), "best": (0, 1, -1, 2, 3, 4, 5)}
BINS, REACH = 2048, 1.0                            # a table of the nearest entry for -1 ... 1; beyond, the outermost entry is it
MAX_CODE = 15.0


@dataclass(frozen=True)
class AsymW4A8:
    """search: how many scales are tried for each 16 weights: "fast" 3, "balanced" 5, "best" 7."""

    search: str = "balanced"
    NAME: ClassVar[str] = "asym_w4a8_int8"
    STORED: ClassVar[torch.dtype] = torch.int8
    GROUPS: ClassVar[Mapping[str, int]] = MappingProxyType({})
    CONSTANTS: ClassVar[tuple[str, ...]] = ("_codebook",)
    INPUT_AMAX: ClassVar[None] = None
    STOCHASTIC: ClassVar[bool] = False
    measure: ClassVar[None] = None

    def outputs(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Suffix -> (shape, dtype). Raises ValueError unless in_features is a multiple of 256."""
        require_groups(shape, self.NAME)
        rows, columns = shape
        return {"": ((rows, columns // 2), torch.int8), "_s_rel": ((rows, columns // BLOCK), torch.float8_e4m3fn),
                "_s_channel": ((rows,), torch.float32), "_codebook": ((len(CODEBOOK),), torch.float32)}

    def constants(self, stats: None) -> dict[str, torch.Tensor]:
        """`_codebook`, (16,) float32, ascending."""
        return {"_codebook": torch.tensor(CODEBOOK)}

    def quantize(self, band: torch.Tensor, stats: None = None, scratch: torch.Tensor | None = None, *,
                 importance: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Packed codes and scales of some rows.

        band: (rows, in_features) float32, not modified. scratch: ignored, a tile is enough. importance: ignored, the rotation mixes
        256 input columns evenly into each code. noise: must be None. Raises ValueError on noise, and on NaN or inf in the band.
        """
        if noise is not None:
            raise ValueError(f"{self.NAME} has no stochastic rounding; round to nearest, or choose int8_tensorwise")
        rows, columns = band.shape
        groups, tables = columns // GROUP, _tables(band.device)
        packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device=band.device)
        s_rel = torch.empty(rows, columns // BLOCK, dtype=torch.uint8, device=band.device)
        s_channel = band.new_empty(rows)
        for some, tile in rotated_tiles(band):
            s_channel[some] = row_amax(tile, groups).div_(INT8_MAX).clamp_(min=SMALLEST_SCALE)
            blocks = tile.div_(spread(s_channel[some], groups)).view(GROUP // BLOCK, BLOCK, -1)
            byte, codes = _search(blocks, OFFSETS[self.search], tables)
            low, high = codes.view(GROUP // 2, 2, -1).unbind(1)
            packed[some].view(-1, GROUP // 2).copy_(torch.add(low, high, alpha=16).to(torch.uint8).T)
            s_rel[some].view(-1, GROUP // BLOCK).copy_(byte.to(torch.uint8).T)
        return {"": packed.view(torch.int8), "_s_rel": s_rel.view(torch.float8_e4m3fn), "_s_channel": s_channel}

    def dequantize(self, parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
        """float32 weight, rotated back. parts: all four stored tensors, of any rows; rows: which of them, None: all."""
        stored = (parts[suffix] for suffix in ("", "_s_rel", "_s_channel"))
        packed, s_rel, s_channel = stored if rows is None else (part[rows] for part in stored)
        codes = torch.stack([packed & 15, (packed >> 4) & 15], dim=-1).to(torch.int32)
        weight = parts["_codebook"].to(packed.device).index_select(0, codes.view(-1)).view(-1, BLOCK)
        weight.mul_(s_rel.float().view(-1, 1)).round_().clamp_(-INT8_MAX, INT8_MAX)
        weight = weight.view(len(packed), -1).mul_(s_channel[:, None])
        return rotate(weight, out=weight)

    def comfy_quant(self, *, full_precision: bool) -> dict:
        """What ComfyUI reads from `<layer>.comfy_quant`; see words.entry."""
        return entry(self.NAME, full_precision=full_precision, group_size=BLOCK, convrot_groupsize=GROUP)


def _tables(device: torch.device) -> tuple[torch.Tensor, ...]:
    """The codebook, the code of its nearest entry for each of BINS, and the value of each E4M3 byte without a sign; float32."""
    codebook = torch.tensor(CODEBOOK)
    centers = (torch.arange(BINS) + 0.5) * (2 * REACH / BINS) - REACH
    nearest = torch.bucketize(centers, (codebook[1:] + codebook[:-1]) / 2)
    scales = torch.arange(128, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    return codebook.to(device), nearest.float().to(device), scales.to(device)


def _search(blocks: torch.Tensor, offsets: tuple[int, ...], tables: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The best scale of each block and the codes at that scale.

    blocks: (16, 16, n) float32 in units of s_channel, the second axis within a block. Returns bytes (16, n) int32 and codes
    (16, 16, n) float32.
    """
    codebook, nearest, scales = tables
    entries = codebook[nearest.int()]
    buffers = blocks.new_empty(3, *blocks.shape)
    # & 127: the amax of zeros may be -0, whose byte would count as 128. Byte 0 is no scale; the largest amax, 127, is far from 448.
    start = torch.maximum(blocks.amax(1), -blocks.amin(1)).to(torch.float8_e4m3fn).view(torch.uint8) & 127
    start = start.to(torch.int32)
    best, byte = torch.full_like(blocks[:, 0], float("inf")), torch.ones_like(start)
    for offset in offsets:
        candidate = (start + offset).clamp_(min=1)
        scale = scales.index_select(0, candidate.view(-1)).view_as(best)[:, None]
        error = _off(entries, _bins(blocks, scale, buffers[0]), (blocks, scale), buffers[1]).square_()
        for half in (8, 4, 2, 1):                  # sums by halves: an order that no thread or device changes
            error = error[:, :half].add_(error[:, half:2 * half])
        better = error[:, 0] < best
        torch.minimum(best, error[:, 0], out=best)
        torch.where(better, candidate, byte, out=byte)
    scale = scales.index_select(0, byte.view(-1)).view_as(best)[:, None]
    return byte, _nearest(blocks, scale, tables, buffers)


def _bins(blocks: torch.Tensor, scale: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """Where blocks / scale lies in a table of BINS, int32, flat. buffer: of blocks' shape, overwritten."""
    torch.mul(blocks, BINS / (2 * REACH) / scale, out=buffer).add_(BINS / 2).clamp_(0, BINS - 1)
    return buffer.view(-1).to(torch.int32)


def _off(table: torch.Tensor, index: torch.Tensor, of: tuple[torch.Tensor, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """out <- blocks - the INT8 levels of the table's entries. index: int32, flat; of: blocks and their scale."""
    torch.index_select(table, 0, index, out=out.view(-1))
    return torch.sub(of[0], out.mul_(of[1]).round_().clamp_(-INT8_MAX, INT8_MAX), out=out)


def _nearest(blocks: torch.Tensor, scale: torch.Tensor, tables: tuple[torch.Tensor, ...], buffers: torch.Tensor) -> torch.Tensor:
    """Codes of the nearest INT8 levels: the table's, or their neighbours where the rounding of the levels has brought those nearer,
    worth 0.2 % of the error. buffers: (3, ...) of blocks' shape, overwritten."""
    codebook, nearest, _ = tables
    codes, off, step = buffers
    bins = _bins(blocks, scale, codes)
    _off(codebook[nearest.int()], bins, (blocks, scale), off)
    torch.index_select(nearest, 0, bins, out=codes.view(-1))
    torch.sign(off, out=step).add_(codes).clamp_(0, MAX_CODE)
    neighbour = step.view(-1).to(torch.int32)
    nearer = off.abs_().sub_(_off(codebook, neighbour, (blocks, scale), torch.empty_like(off)).abs_()).sign_().clamp_(min=0)
    return codes.add_(step.sub_(codes).mul_(nearer))
