"""One output file as the line sees it: the format of each tensor, its codes on their way into the part, its sampled error."""
from dataclasses import dataclass

import torch

from .. import precision
from ..bands import Rows
from ..specs import TensorSpec
from .sample import Sample, compare, rows_of
from .writer import PartWriter


@dataclass(frozen=True)
class Encoded:
    """One band, written; its bytes by suffix wait for the hash."""

    content: dict[str, memoryview]
    sample: Sample


class Output:
    """Takes encoded bands of one tensor after the other."""

    def __init__(self, format_name: str, specs: dict[str, TensorSpec], writer: PartWriter):
        self.format_name, self.specs, self.writer = format_name, specs, writer
        self.later: dict[str, list[memoryview]] = {}
        self.carried: set[str] = set()             # keys that this run wrote
        self.sample = Sample()

    def has(self, key: str) -> bool:
        """True when `key` is already in the part, from an earlier run."""
        return key in self.writer.done

    def form(self, key: str):
        """The format of one tensor."""
        return precision.choose(key, self.specs[key], self.format_name)

    def encode(self, key: str, band: torch.Tensor, rows: Rows, stats, spare: torch.Tensor) -> Encoded:
        """Quantize and write one band; worker threads. band: float32, not modified; spare: overwritten."""
        form = self.form(key)
        parts = form.quantize(band, stats, spare)
        first = rows[0] if band.dim() else 0
        content = {suffix: self.writer.write(key + suffix, first, tensor) for suffix, tensor in parts.items()}
        wanted = [row - rows[0] for row in rows_of(key, self.specs[key].shape[0] if band.dim() else 1) if rows[0] <= row < rows[1]]
        if not wanted or not band.dim():
            return Encoded(content, Sample())
        picked = {suffix: tensor[wanted] for suffix, tensor in parts.items()} | form.constants(stats)
        return Encoded(content, compare(band[wanted], form.dequantize(picked)))

    def take(self, encoded: Encoded) -> None:
        """Next band of the tensor, in order: its first part goes into the hash at once, the others when that one is through."""
        first, *others = encoded.content
        self.writer.hash(encoded.content[first])
        for suffix in others:
            self.later.setdefault(suffix, []).append(encoded.content[suffix])
        self.sample += encoded.sample

    def close_tensor(self, key: str, stats) -> None:
        """The tensor is through: hash what waited, keep its scales for `enter`."""
        for contents in self.later.values():
            for content in contents:
                self.writer.hash(content)
        self.last = key + next(reversed(self.later), "")
        self.sides = {key + suffix: tensor for suffix, tensor in self.form(key).constants(stats).items()}
        self.later = {}

    def enter(self, key: str, row: dict) -> None:
        """Enter the finished tensor, with its report row, into the job."""
        self.carried.add(key)
        self.writer.finish_key(key, self.last, self.sides, {**row, "sample": self.sample.to_json()})
        self.sample = Sample()
