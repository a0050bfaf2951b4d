"""Every tensor of one expert through the line, in processing order, with read-ahead, progress and the wish to stop."""
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bands import take_one_thread
from ..device import Device
from ..errors import at
from ..memory import Peak
from ..merging.merge import Alteration, load_change
from ..progress import Clock, ReadAhead
from .experts import ExpertPlan
from .line import Line, Step
from .output import NoneLeftError, Output
from .survival import Space


@dataclass(frozen=True)
class Ride:
    """What a job carries along from expert to expert."""

    device: Device
    clock: Clock
    should_stop: Callable[[], bool]
    reports: Path


def carry_all(line: Line, expert: ExpertPlan, keys: list[str], sinks: list[Output], ride: Ride, peak: Peak) -> dict[str, dict]:
    """Carry `keys` into every sink that does not have them yet. Returns key -> report row, those of an earlier run included.

    Raises Stopped (see `Workers.each`), NoneLeftError when every sink has failed.
    """
    todo = [key for key in keys if not sinks or not all(sink.has(key) for sink in sinks)]
    rows = {key: sinks[0].writer.done[key] for key in keys if sinks and sinks[0].has(key)}
    ride.clock.skip(stored_bytes(expert, keys) - stored_bytes(expert, todo))
    with ReadAhead(expert.source, todo) as ahead, _loader() as loader:
        changes = [loader.submit(_change, line, expert, key, sinks) for key in todo[:1]]
        for number, key in enumerate(todo):
            ahead.now(number)
            wanting, (change, space) = [sink for sink in sinks if not sink.has(key)], changes.pop().result()
            changes += [loader.submit(_change, line, expert, after, sinks) for after in todo[number + 1:number + 2]]
            rows[key] = line.carry(Step(key, expert.specs[key], change, wanting, space))
            for sink in wanting:
                sink.enter(key, rows[key])
            if sinks and all(sink.failure is not None for sink in sinks):
                raise NoneLeftError
            peak.look()
            ride.clock.advance(expert.source.nbytes(key), expert.role, key, "write" if sinks else "measure")
    return rows


def _loader() -> ThreadPoolExecutor:
    """The thread that reads LoRAs. One torch thread, as the line's workers, whose end puts torch's count back: the products of
    loading (gates, limits, Gram matrices) are then the same bits in every process."""
    return ThreadPoolExecutor(1, "wan22-factors", initializer=take_one_thread)


def stored_bytes(expert: ExpertPlan, keys: list[str]) -> int:
    """Bytes of these tensors in the base's files."""
    return sum(expert.source.nbytes(key) for key in keys)


def _change(line: Line, expert: ExpertPlan, key: str, sinks: list[Output]) -> tuple[Alteration | None, Space | None]:
    """What the LoRAs do to `key`, and where an output quantizes it the space of that; read on a thread of its own while the tensor
    before it is computed."""
    whats = expert.contributions.get(key)
    if not whats:
        return None, None
    with at(key, "read LoRA", expert.source.name), torch.inference_mode():   # a thread does not inherit the caller's mode
        change = load_change(key, expert.specs[key], [what for _, what in whats], line.device, expert.rules)
        surveyed = any(sink.surveys and sink.forms.name(key, expert.specs[key]) for sink in sinks)
        return change, Space(change.row_space()) if surveyed else None
