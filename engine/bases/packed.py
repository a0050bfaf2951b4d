"""A weight in a packed format of ComfyUI's: which stored tensors make it up, and rows of it as float32.

What the numbers mean is quant's; here stands where they lie. With out and in the weight's logical shape, beside `<layer>.weight`
(source: ComfyUI comfy/ops.py, `_load_quantized_module`, and the layouts of comfy-kitchen):

    nvfp4            uint8 (out, in / 2)    weight_scale e4m3, swizzled    weight_scale_2 ()
    mxfp8            e4m3 (out, in)         weight_scale e8m0, swizzled
    int8_tensorwise  int8 (out, in)         weight_scale () or (out, 1)
    convrot_w4a4     int8 (out, in / 2)     weight_scale (out)
    asym_w4a8_int8   int8 (out, in / 2)     weight_s_rel e4m3 (out, in / 16)    weight_s_channel (out)    weight_codebook (16)

Swizzled scales lie in tiles of 128 rows, so rows are read from the first one of their tile on, and cut.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch

from ..bands import BAND_ELEMENTS
from ..header import Entry
from ..specs import TensorSpec
from ..system import ReadFile

# Elements decoded at once: a usual band in one call, for 2.6 MB. Measured in the page cache, one thread, Gelem/s by piece: nvfp4
# 64 Ki 0.36, 128 Ki 0.43, 256 Ki 0.49, 512 Ki 0.50, a whole band 0.65; int8_tensorwise by row 1.9, 2.4, 3.0, 3.4, 3.9.
PIECE = BAND_ELEMENTS


@dataclass(frozen=True)
class Part:
    """One stored tensor with a row for each of the weight's.

    entry: in file number `file`; spec: what it is handed on as; group: rows that lie interleaved and are read together.
    """

    file: int
    entry: Entry
    spec: TensorSpec
    group: int

    def span(self, first: int, last: int) -> tuple[int, tuple[int, ...]]:
        """Absolute offset and shape of what has to be read for the rows [first, last); `first` starts a group."""
        rows, *rest = self.entry.spec.shape
        stop = min(-(-last // self.group) * self.group, rows)
        return self.entry.start + first * prod(rest) * self.entry.spec.dtype.itemsize, (stop - first, *rest)

    def load(self, files: Sequence[ReadFile], first: int, last: int) -> torch.Tensor:
        """The stored rows. Raises MergeError when the file cannot be read."""
        offset, shape = self.span(first, last)
        stored = torch.empty(shape, dtype=self.entry.spec.dtype)
        files[self.file].read_into(offset, memoryview(stored.view(torch.uint8).numpy()))
        viewed = stored.dtype.itemsize == self.spec.dtype.itemsize == 1  # bytes are looked at anew, wider floats are converted
        stored = stored.view(self.spec.dtype) if viewed else stored.to(self.spec.dtype)
        return stored.view(len(stored), *self.spec.shape[1:])


@dataclass(frozen=True)
class Packed:
    """A weight and how it is read back.

    form: format object of quant; spec: logical shape, bf16 (nothing in these grids needs more); parts: suffix -> stored tensor with
    rows; constants: suffix -> the stored tensors without, read when the file was opened; nbytes: of all of them on disk.
    """

    form: object
    spec: TensorSpec
    parts: Mapping[str, Part]
    constants: Mapping[str, torch.Tensor]
    nbytes: int

    def read(self, files: Sequence[ReadFile], rows: tuple[int, int], out: torch.Tensor) -> None:
        """Write the rows [start, stop) into `out`, (stop - start, in_features) float32. Raises MergeError, as `Part.load`."""
        start, stop = rows
        columns = self.spec.shape[1]
        step = max(1, PIECE // max(1, columns))
        for first, last in self._runs(start, stop, step):
            stored = {suffix: part.load(files, first, last) for suffix, part in self.parts.items()} | dict(self.constants)
            for begin in range(max(first, start), last, step):
                end = min(begin + step, last)
                wanted = None if (begin, end) == (first, last) else list(range(begin - first, end - first))
                out[begin - start:end - start].copy_(self.form.dequantize(stored, wanted)[:, :columns])

    def _runs(self, start: int, stop: int, step: int) -> list[tuple[int, int]]:
        """Rows that are read from the files together: one tile of interleaved ones, or `step` of those that can be read alone."""
        group = max(part.group for part in self.parts.values())
        length = group if group > 1 else step
        return [(first, min(first + length, stop)) for first in range(start // group * group, stop, length)]

    def advise(self, files: Sequence[ReadFile], rows: tuple[int, int]) -> None:
        """Hint that these rows are read soon."""
        for part in self.parts.values():
            offset, shape = part.span(rows[0] // part.group * part.group, rows[1])
            files[part.file].advise(offset, prod(shape) * part.entry.spec.dtype.itemsize)
