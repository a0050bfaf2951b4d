"""Before a part gets its final name: does the file say and hold what the plan and the encoder meant?"""
import math

import torch

from ...quant.formats import QUANTIZED
from ..errors import TensorError
from ..header import Header, read_header
from ..precision import choose, is_block_linear
from ..system import ReadFile, open_read
from .sample import Sample, rows_of, square

TOLERANCE = 1e-9                                   # the same float64 sums over the same decoded rows; only their order may differ


def check(part: str, out, expert, samples: dict[str, dict]) -> float:
    """Re-read header and sampled rows of `part`. Returns the relative error over the tensors in the output's format.

    samples: key -> what the encoder saw (`Sample.to_json`). Raises HeaderError or TensorError; the part then stays as it is.
    """
    header, total = read_header(part), Sample()
    found = {name: (entry.spec, entry.start) for name, entry in header.entries.items()}
    if found != out.layout.tensors:
        wrong = min(name for name, _ in set(found.items()) ^ set(out.layout.tensors.items()))
        raise TensorError(wrong, "verify", ValueError("it is not where the plan put it; delete the .part file, start over"))
    with open_read(part) as file:
        for key in expert.order:
            seen = Sample(**samples[key])
            _check_tensor(file, header, key, choose(key, expert.specs[key], out.format), seen)
            if is_block_linear(key, expert.specs[key]) or out.format not in QUANTIZED:
                total += seen
    return total.error


def _check_tensor(file: ReadFile, header: Header, key: str, form, seen: Sample) -> None:
    spec = header.entries[key].spec
    rows = rows_of(key, spec.shape[0]) if spec.shape else []
    if not rows:
        return
    parts = {suffix: _read(file, header, key + suffix, rows) for suffix in form.outputs(spec.shape)}
    energy = square(form.dequantize(parts))
    if not math.isclose(energy, seen.decoded, rel_tol=TOLERANCE):
        raise TensorError(key, "verify", ValueError(f"rows on disk decode to energy {energy!r}, written were {seen.decoded!r}; "
                                                    "check disk and memory, delete the .part file, start over"))


def _read(file: ReadFile, header: Header, name: str, rows: list[int]) -> torch.Tensor:
    """The sampled rows of one stored tensor, or all of it where it has none."""
    entry = header.entries[name]
    if not entry.spec.shape:
        return _tensor(file, entry.start, entry.nbytes, entry.spec.dtype).reshape(())
    nbytes, rest = entry.nbytes // entry.spec.shape[0], entry.spec.shape[1:]
    return torch.stack([_tensor(file, entry.start + row * nbytes, nbytes, entry.spec.dtype).reshape(rest) for row in rows])


def _tensor(file: ReadFile, start: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    content = bytearray(nbytes)
    file.read_into(start, memoryview(content))
    return torch.frombuffer(content, dtype=torch.uint8).view(dtype)
