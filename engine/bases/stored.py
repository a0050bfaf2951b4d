"""Tensors as they lie in safetensors files, read row by row into float32.

Nothing is mapped: each thread reads pieces that fit its core's L2 cache into one small buffer of its own and converts from
there, so memory stays flat whatever is read, and any number of threads may read at once.
"""
import threading
from dataclasses import dataclass

import torch

from ..header import Entry, Header
from ..specs import TensorSpec
from ..system import ReadFile
from . import codes
from .packed import Packed

# Measured on bf16 in the page cache, one thread, Gelem/s by piece: 64 KiB 2.0, 256 KiB 2.6, 512 KiB 3.1, 1 MiB 2.3, 4 MiB 2.1.
PIECE = 512 << 10


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: in which of the files, and its entry there; `scale` multiplies FP8 codes, None for all else; `packed`
    says how a weight of several stored tensors is read, None for those that lie there as they are."""

    file: int
    entry: Entry
    scale: float | None = None
    packed: Packed | None = None

    @property
    def spec(self) -> TensorSpec:
        """What is read, before it is float32: as stored, or a packed weight's logical shape."""
        return self.entry.spec if self.packed is None else self.packed.spec


class StoredTensors:
    """A base model in files, under its native bare keys. Implements `source.Source`."""

    def __init__(self, path: str, name: str, headers: list[Header], files: list[ReadFile], places: dict[str, Place], **about):
        self.path, self.name = path, name
        self.metadata: dict[str, str] = dict(headers[0].metadata)
        self.lossy: str | None = about["lossy"]
        self.left_out: dict[str, int] = about["left_out"]
        self.formats: dict[str, str] = about["formats"]
        self.moved: frozenset[str] = frozenset()   # what is in files is as it was stored
        self._headers, self._files, self._places = headers, files, places
        self._local = threading.local()

    def keys(self) -> list[str]:
        return list(self._places)

    def spec(self, key: str) -> TensorSpec:
        """As stored; a packed weight's is its logical shape and bf16, which holds all that its grid does not."""
        return self._places[key].spec

    def nbytes(self, key: str) -> int:
        """Bytes read for this tensor, a packed weight's scales among them."""
        place = self._places[key]
        return place.entry.nbytes if place.packed is None else place.packed.nbytes

    def identity(self) -> dict:
        """What must be unchanged for a job to be resumed: each file's name, size, time of change and header hash."""
        return {"files": [
            {"name": header.path.replace("\\", "/").rpartition("/")[2], "size": header.size, "mtime_ns": header.mtime_ns,
             "header_sha256": header.sha256} for header in self._headers]}

    def read(self, key: str, rows: tuple[int, int] | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows [start, stop) of dim 0, or the whole tensor when `rows` is None; float32 on the CPU.

        out: contiguous float32 CPU tensor of exactly that shape; it is overwritten and returned. None makes a new one.
        Exact for every stored type but float64; FP8 gives float32(code) * scale, rounded once; a packed weight what its format's
        `dequantize` gives.
        Raises ValueError for rows or an `out` that do not fit, MergeError when the file cannot be read.
        """
        place = self._places[key]
        start, shape = _band(key, place.spec.shape, rows)
        if out is None:
            out = torch.empty(shape, dtype=torch.float32)
        elif out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous() or out.device.type != "cpu":
            found = f"{out.dtype} {tuple(out.shape)}"
            raise ValueError(f"{key}: expected a contiguous float32 CPU buffer of {tuple(shape)}, found {found}")
        if place.packed is not None:
            place.packed.read(self._files, rows or (0, shape[0]), out)
            return out
        offset = place.entry.start + start * place.entry.spec.dtype.itemsize
        self._fill(place, offset, out.view(-1))
        return out

    def advise(self, key: str, rows: tuple[int, int] | None = None) -> None:
        """Hint that these rows are read soon."""
        place = self._places[key]
        start, shape = _band(key, place.spec.shape, rows)
        if place.packed is not None:
            place.packed.advise(self._files, rows or (0, shape[0]))
            return
        itemsize = place.entry.spec.dtype.itemsize
        self._files[place.file].advise(place.entry.start + start * itemsize, shape.numel() * itemsize)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> "StoredTensors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fill(self, place: Place, offset: int, flat: torch.Tensor) -> None:
        dtype, file, done, total = place.entry.spec.dtype, self._files[place.file], 0, flat.numel()
        if dtype == torch.float32 and total:  # the caller's memory is the buffer: nothing to convert
            file.read_into(offset, memoryview(flat.numpy()).cast("B"))
            return
        buffer = self._buffer()
        while done < total:
            count = min(PIECE // dtype.itemsize, total - done)
            nbytes, target = count * dtype.itemsize, flat[done:done + count]
            file.read_into(offset, memoryview(buffer.memory)[:nbytes])
            if dtype == torch.float8_e4m3fn:
                codes.decode(buffer.memory, count, buffer.bits, target, 1.0 if place.scale is None else place.scale)
            else:
                target.copy_(torch.frombuffer(buffer.memory, dtype=dtype, count=count))
                if place.scale is not None:
                    target.mul_(place.scale)
            done, offset = done + count, offset + nbytes

    def _buffer(self) -> threading.local:
        """This thread's own memory: the bytes as read, and room for taking FP8 codes apart."""
        if not hasattr(self._local, "memory"):
            self._local.memory, self._local.bits = bytearray(PIECE), torch.empty(PIECE, dtype=torch.int16)
        return self._local


def _band(key: str, shape: tuple[int, ...], rows: tuple[int, int] | None) -> tuple[int, torch.Size]:
    """First element of the band, and the band's shape."""
    if rows is None:
        return 0, torch.Size(shape)
    start, stop = rows
    if not shape or not 0 <= start <= stop <= shape[0]:
        raise ValueError(f"{key}: expected rows within dim 0 of {shape}, found {rows}")
    rest = torch.Size(shape[1:])
    return start * rest.numel(), torch.Size((stop - start, *rest))
