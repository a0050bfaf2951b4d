"""One output file as the line sees it: the format of each tensor, its codes on their way into the part, its sampled error.

What goes wrong in one output (a full disk, a value its dtype cannot hold) ends this output and no other: it takes nothing more, its
part stays as it is for resuming, and `failure` says why.
"""
import zlib
from dataclasses import dataclass

import torch

from ...quant.noise import uniform
from ..bands import Rows
from ..errors import MergeError, at
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .gathered import Gathered, Piece, tell
from .sample import Sample
from .survival import Space, Survival
from .writer import PartWriter

SMALLEST_HALF = 2.0 ** -14                         # of float16's normal numbers
FAILURES = (OSError, MergeError, ValueError)


class NoneLeftError(Exception):
    """Every output of a reading has failed; `failure` of each says why."""


@dataclass(frozen=True)
class Encoded:
    """One band, written; its bytes by suffix wait for the hash."""

    content: dict[str, memoryview]
    subnormal: int = 0                             # values that lost bits below float16's normal range


@dataclass(frozen=True)
class Band:
    """Rows [rows) of a merged tensor, float32; base: those of `sampled` before the merge, space: of the delta's rows. Both None
    where nothing was merged."""

    key: str
    rows: Rows
    merged: torch.Tensor
    spare: torch.Tensor
    sampled: list[int]                             # row numbers within the band
    wanted: int                                    # how many sampled rows the tensor has
    base: torch.Tensor | None = None
    space: Space | None = None


def sampled_rows(numbers: list[int], rows: Rows) -> list[int]:
    """The seeded rows of a tensor that lie in a band, counted within it."""
    return [number - rows[0] for number in numbers if rows[0] <= number < rows[1]]


def noise_of(key: str, rows: Rows, band: torch.Tensor) -> torch.Tensor:
    """What rounds a band stochastically: seeded by the key, the same for any banding."""
    return uniform(zlib.crc32(key.encode()), rows[0], band.shape, band.device)


def quantize(form, band: Band, stats, *, noisy: bool, importance: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Suffix -> stored rows of a band; `band.spare` is overwritten. noisy: rounded stochastically, by a seed that is the key's;
    importance: of the input's columns, for formats that search."""
    noise = noise_of(band.key, band.rows, band.merged) if noisy else None
    return form.quantize(band.merged, stats, band.spare, importance=on(importance, band.merged), noise=noise)


def on(importance: torch.Tensor | None, band: torch.Tensor) -> torch.Tensor | None:
    """The importances where the band lies."""
    return None if importance is None else importance.to(band.device)


def subnormals(stored: torch.Tensor, merged: torch.Tensor) -> int:
    """Values of a float16 band that were rounded below its normal range: they kept fewer than 11 bits, or none."""
    if stored.dtype != torch.float16:
        return 0
    return int(((stored.abs() < SMALLEST_HALF) & (stored.float() != merged)).sum())


NOTHING = Survival()


class Output:
    """Takes encoded bands of one tensor after the other."""

    surveys = True                                 # it wants to know the space of a delta, to tell what it keeps of it

    def __init__(self, out: OutputPlan, expert: ExpertPlan, writer: PartWriter | None):
        self.plan, self.forms, self.specs, self.writer = out, out.forms, expert.specs, writer
        self.path, self.source = out.target.path, expert.source.name
        self.later: dict[str, list[memoryview]] = {}
        self.carried: set[str] = set()             # keys that this run wrote
        self.gathered = Gathered()
        self.sample, self.survival, self.subnormal = Sample(), NOTHING, 0
        self.failure: BaseException | None = None

    def has(self, key: str) -> bool:
        """True when `key` needs nothing of this output any more: it is in the part from an earlier run, or the output failed."""
        return self.failure is not None or key in self.writer.done

    def form(self, key: str):
        """The format of one tensor."""
        return self.forms.of(key, self.specs[key])

    def encode(self, band: Band, stats) -> Encoded | None:
        """Quantize and write one band; worker threads. None once this output has failed."""
        if self.failure is not None:
            return None
        try:
            with at(band.key, "quantize", self.source):
                return self._encode(band, stats)
        except FAILURES as cause:
            self.failure = self.failure or cause
            return None

    def _encode(self, band: Band, stats) -> Encoded:
        key, form = band.key, self.form(band.key)
        parts = quantize(form, band, stats, noisy=key in self.plan.noisy, importance=self.plan.importance.get(key))
        first = band.rows[0] if band.merged.dim() else 0
        content = {suffix: self.writer.write(key + suffix, first, tensor) for suffix, tensor in parts.items()}
        if band.sampled:
            self._gather(band, stats, parts)
        return Encoded(content, subnormals(parts[""], band.merged))

    def _gather(self, band: Band, stats, parts: dict[str, torch.Tensor]) -> None:
        """Keep the sampled rows; the band that brings the tensor's last ones tells what became of all."""
        key, form = band.key, self.form(band.key)
        decoded = form.dequantize(parts | form.constants(stats), band.sampled)[..., :self.specs[key].shape[-1]]
        numbers = [band.rows[0] + row for row in band.sampled]
        piece = Piece(numbers, band.base, band.merged[band.sampled], decoded, parts[""][band.sampled])
        rows = self.gathered.add(piece, band.wanted)
        if rows is not None:
            self.sample, self.survival = tell(rows, form, stats, on(self.plan.importance.get(key), rows.merged), band.space)

    def take(self, encoded: Encoded | None) -> None:
        """Next band of the tensor, in order: its first part goes into the hash at once, the others when that one is through."""
        if encoded is None or self.failure is not None:
            return
        first, *others = encoded.content
        self._hash([encoded.content[first]])
        for suffix in others:
            self.later.setdefault(suffix, []).append(encoded.content[suffix])
        self.subnormal += encoded.subnormal

    def _hash(self, contents: list[memoryview]) -> None:
        try:
            for content in contents:
                self.writer.hash(content)          # syncs a stretch now and then
        except FAILURES as cause:
            self.failure = cause

    def close_tensor(self, key: str, stats) -> None:
        """The tensor is through: hash what waited, keep its scales for `enter`."""
        if self.failure is not None:
            return
        self._hash([content for contents in self.later.values() for content in contents])
        self.last = key + next(reversed(self.later), "")
        self.sides = {key + suffix: tensor for suffix, tensor in self.form(key).constants(stats).items()}
        self.later = {}

    def enter(self, key: str, row: dict) -> None:
        """Enter the finished tensor, with its report row, into the job."""
        if self.failure is not None:
            return
        self.carried.add(key)
        told = {"sample": self.sample.to_json(), **({"survival": self.survival.to_json()} if self.survival.delta else {}),
                **({"subnormal": self.subnormal} if self.subnormal else {})}
        self.sample, self.survival, self.subnormal = Sample(), NOTHING, 0
        try:
            self.writer.finish_key(key, self.last, self.sides, {**row, **told})
        except FAILURES as cause:
            self.failure = cause
