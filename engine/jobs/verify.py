"""Before a part gets its final name: does the file say and hold what the plan and the encoder meant?

Sixteen seeded rows of every tensor are read back and decoded by comfy-kitchen, which is what will read the file, or, of a GGUF, by
the gguf library, not by the code that wrote it: their error must be the figure that the encoder saw (sample.py).
"""
import math
import os

import torch

from ...quant.readback import decode_rows
from ..bases import stated
from ..errors import TensorError, at
from ..header import Header, read_header
from ..inspection import contract
from ..precision import GGUF
from ..system import ReadFile, open_read
from .layout import Layout
from .sample import Sample, probe, rows_of, square

# Two programs may round a product of scales, or sum a rotation, in another order: 2**-24 of a row's values each. A probe weighs
# values by up to 31 (sample.py).
TOLERANCE, HEAVIEST = 1e-6, 31.0


def check(part: str, out, expert, samples: dict[str, dict]) -> float:
    """Re-read header and sampled rows of `part`. Returns the relative error over the quantized tensors, or over all where the
    format is a plain one.

    samples: key -> what the encoder saw (`Sample.to_json`). Raises HeaderError or TensorError; the part then stays as it is.
    """
    total = Sample()
    if out.forms.container == GGUF:
        _check_gguf(part, out, expert)
    else:
        header = read_header(part)
        _compare({name: (entry.spec, entry.start) for name, entry in header.entries.items()}, out.layout.tensors)
        _check_contract(header)
    with open_read(part) as file:
        for name, content in out.layout.constants.items():   # entries, flags and input scales, as they were planned
            if _tensor(file, out.layout.tensors[name][1], len(content), torch.uint8).numpy().tobytes() != content:
                raise TensorError(name, "verify", ValueError("it does not hold what was planned; check disk and memory, delete the "
                                                             ".part file, start over"))
        for key in expert.order:
            seen, spec = Sample(**samples[key]), expert.specs[key]
            with at(key, "verify"):
                _check_tensor(file, out.layout, key, (out.forms.of(key, spec), spec.shape), seen)
            if out.forms.name(key, spec) or not out.forms.is_quantized:
                total += seen
    return total.error


def _compare(found: dict[str, tuple], planned: dict[str, tuple]) -> None:
    """Raise TensorError for the first tensor that is not what and where it was planned. name -> what it is, and where."""
    if found != planned:
        wrong = min(name for name, _ in set(found.items()) ^ set(planned.items()))
        raise TensorError(wrong, "verify", ValueError("it is not where the plan put it; delete the .part file, start over"))


def _check_gguf(part: str, out, expert) -> None:
    """Raise TensorError unless the gguf library reads names, types, shapes and places as they were planned. It maps the file, until
    the reader is gone."""
    from gguf import GGUFReader  # here: only GGUF files need it
    try:
        tensors = GGUFReader(part).tensors
    except (KeyError, ValueError, IndexError) as cause:
        why = ValueError(f"the gguf library does not read it: {cause}; delete the .part file, start over")
        raise TensorError(os.path.basename(part), "verify", why) from cause
    found = {tensor.name: ((tensor.tensor_type.name, tuple(int(size) for size in reversed(tensor.shape))),
                           (int(tensor.data_offset), int(tensor.n_bytes))) for tensor in tensors}
    planned = {key: ((out.forms.of(key, expert.specs[key]).NAME, expert.specs[key].shape), (start, spec.nbytes))
               for key, (spec, start) in out.layout.tensors.items()}
    _compare(found, planned)


def _check_contract(header: Header) -> None:
    """Raise TensorError for the first thing that ComfyUI would not load as it is meant (inspection/contract.py)."""
    with stated.fetching([header]) as fetch:
        wrong = [problem for problem in contract.check([header], fetch) if problem.severity == "error"]
    if wrong:
        raise TensorError(wrong[0].key, "verify", ValueError(f"{wrong[0].text}; delete the .part file, and tell the pack's makers"))


def _check_tensor(file: ReadFile, layout: Layout, key: str, how: tuple, seen: Sample) -> None:
    """how: the format and the shape of the weight."""
    form, shape = how
    rows = rows_of(key, shape[0]) if shape else []
    if not rows:
        return

    def fetch(suffix: str, first: int | None, stop: int | None) -> torch.Tensor:
        return _read(file, layout, key + suffix, first, stop)

    decoded = decode_rows(form, shape, rows, fetch)
    slack = TOLERANCE * HEAVIEST * math.sqrt(seen.decoded)
    for figure, told, off in ((square(decoded), seen.decoded, 0.0), (probe(decoded, rows), seen.probed, slack)):
        if not math.isclose(figure, told, rel_tol=TOLERANCE, abs_tol=off):
            raise ValueError(f"rows on disk decode to {figure!r}, written were {told!r}; check disk and memory, delete the .part "
                             "file, start over")


def _read(file: ReadFile, layout: Layout, name: str, first: int | None, stop: int | None) -> torch.Tensor:
    """Rows [first, stop) of one stored tensor, or all of it."""
    spec, start = layout.tensors[name]
    if first is None or not spec.shape:
        return _tensor(file, start, spec.nbytes, spec.dtype).reshape(spec.shape)
    nbytes, rest = spec.nbytes // spec.shape[0], spec.shape[1:]
    return _tensor(file, start + first * nbytes, (stop - first) * nbytes, spec.dtype).reshape(stop - first, *rest)


def _tensor(file: ReadFile, start: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    content = bytearray(nbytes)
    file.read_into(start, memoryview(content))
    return torch.frombuffer(content, dtype=torch.uint8).view(dtype)
