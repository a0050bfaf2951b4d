"""What the inputs of one expert's layers tell, added up where they are, and brought to the CPU once a step.

    amax of a call = max |x| = max(max x, -min x)             exact: nothing is rounded
    rms of a channel = sqrt(Σ x² / n)                         n = input vectors
    bin of |x| = its exponent and two bits of its mantissa    of a seeded subsample of vectors

Largest values and squares are taken along the vectors, so that those of every channel come along. Squares are float32 from the
first multiplication on: 60000² is beyond float16. An input with inf or NaN in it, or with squares beyond float32, is left out of
sums, largest values by channel, histogram and tokens, without a question to the device: zeros are added in its place, and the
record tells. A few whole vectors of each call are kept as tokens.
"""
import random
from collections.abc import Iterable, Mapping, Sequence

import torch

from .bins import BIN_EDGES, histogram
from .fetch import fetch
from .records import PARTS, Call, StepRecord
from .seen import Seen, measure

__all__ = ["BIN_EDGES", "PARTS", "Recorder"]

SAMPLE = 32  # vectors of a call in the histogram: 32 * 5120 values a call, 10^8 in 32 prompts of 20 steps


class Recorder:
    """Adds up what the points of one expert see. One for a run; no question to the device until `take`."""

    def __init__(self, points: Iterable[str], *, seed: int, tokens: Mapping[str, int] | int):
        """points: names, or what `points_of` gives. seed: of the subsample, the same on every device. tokens: vectors that are kept
        of each point of each call, by point or one number for all."""
        self.points = tuple(points)
        self._tokens = {point: tokens if isinstance(tokens, int) else tokens.get(point, 0) for point in self.points}
        self._seed, self._begun = seed, 0
        self._clear()

    def begin(self, sigma: torch.Tensor | float, parts: Sequence[str]) -> None:
        """A forward pass starts. sigma: one number, or a tensor of which the first is taken, later, on `take`.

        parts: "cond" or "uncond" of each of the equal chunks along dim 0 of the inputs to come. Raises ValueError for others.
        """
        if not parts or set(parts) - set(PARTS):
            raise ValueError(f"calibration: expected parts among {', '.join(PARTS)}, found {list(parts)}")
        self._first = len(self._calls)
        if isinstance(sigma, torch.Tensor):
            sigma = sigma.detach().reshape(-1)[:1].clone()   # a sampler may write into its own
        else:
            sigma = torch.tensor(sigma, dtype=torch.float64)
        self._calls += [(sigma, part) for part in parts]
        self._places: dict[tuple[int, torch.device], torch.Tensor] = {}
        self._begun += 1

    def see(self, point: str, x: torch.Tensor) -> None:
        """The input of a point in the pass that has begun; a second one of the same pass is taken together with the first.

        x: (batch, ..., in_features), any float dtype and device; not modified. Extra memory: a band of x, never all of it.
        Raises ValueError without `begin`, for an unknown point, and for a batch that does not fall into the parts.
        """
        count = len(self._calls) - self._first
        if not count or point not in self._tokens:
            raise ValueError(f"calibration: {point}: expected a point of this recorder in a pass that has begun, found "
                             f"{'no pass' if not count else 'another name'}")
        if x.ndim < 2 or not x.is_floating_point() or x.shape[0] % count:
            raise ValueError(f"calibration: {point}: expected floats of (batch, ..., in_features) in {count} equal parts, found "
                             f"{x.dtype} {tuple(x.shape)}")
        with torch.no_grad():
            for place, chunk in enumerate(x.detach().chunk(count)):
                rows = chunk.reshape(-1, x.shape[-1])
                if len(rows):
                    self._add(point, self._first + place, rows)

    def take(self, step: int) -> StepRecord:
        """What was seen since the last `take`, as `step`; the one time the device is asked. The recorder is empty after it."""
        sigmas = [sigma for sigma, _ in self._calls]
        brought = fetch([*sigmas, *(tensor for seen in self._seen.values() for tensor in seen.tensors())])
        left = iter(brought)
        calls = tuple(Call(float(next(left)), part) for _, part in self._calls)
        told = {point: seen.tell(left, len(calls)) for point, seen in self._seen.items()}
        record = StepRecord.from_told(step, calls, self.points, told)
        self._clear()
        return record

    def _clear(self) -> None:
        self._calls: list[tuple[torch.Tensor, str]] = []
        self._first = 0
        self._seen: dict[str, Seen] = {}

    def _add(self, point: str, call: int, rows: torch.Tensor) -> None:
        seen = self._seen.setdefault(point, Seen())
        found = measure(rows)
        sample = rows.index_select(0, self._chosen(rows))
        seen.add(call, len(rows), found, histogram(sample, found.is_finite), sample[:self._tokens[point]].clone())

    def _chosen(self, rows: torch.Tensor) -> torch.Tensor:
        """Places of the subsample, in random order: the same for all inputs of this many vectors in one pass."""
        wanted = min(len(rows), max([SAMPLE, *self._tokens.values()]))
        key = len(rows), rows.device
        if key not in self._places:
            drawn = random.Random(f"{self._seed} {self._begun} {len(rows)}").sample(range(len(rows)), wanted)
            self._places[key] = torch.tensor(drawn).to(rows.device, non_blocking=True)
        return self._places[key]
