"""The measuring step of adaptive injection: what is missing in the reports folder is measured, in one reading of each base.

One file per (base, LoRA, constants but the limits, version of the method, torch), `adaptive-<hash>.safetensors`. An entry belongs
to a tensor and to the modules that act on it, so another alpha or another name rule finds no old one.
"""
import hashlib
import json
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...bands import Workers
from ...device import full_float32
from ...errors import at
from ...progress import ReadAhead
from .constants import AdaptiveConstants
from .entry import Entry, entry_name, factor_modules
from .file import StoreFile, StoreWriter
from .measure import Bench, Want

if TYPE_CHECKING:
    from ...jobs.carry import Ride
    from ...jobs.experts import ExpertPlan
    from ..contribution import Contribution

ADAPTIVE = 1  # version of the method: a changed rule is a new method, a mended fault a new number


@dataclass(frozen=True)
class GatedLora:
    """What the measuring step left of one LoRA on one base; a `Contribution` carries it as `gated`."""

    file: StoreFile
    sha256: str
    constants: AdaptiveConstants

    def entry(self, key: str, shape: tuple[int, ...], modules: list) -> Entry:
        """Raises RuntimeError when it was not measured."""
        name = entry_name(key, shape, modules)
        if name not in self.file.figures:
            raise RuntimeError(f"{self.file.path}: {key} was not measured with these modules")
        return self.file.read(name)


@dataclass(frozen=True)
class _Todo:
    """What one store file lacks. names: key of the base -> its entries' names and what to measure for them."""

    gated: GatedLora
    names: dict[str, dict[str, Want]]


def ensure(expert: "ExpertPlan", ride: "Ride") -> None:
    """Measure what the adaptive LoRAs of `expert` need and the reports folder lacks; set `gated` on their contributions.

    Contributions are replaced in `expert.contributions`. Progress counts the bytes of `wanted`. Raises Stopped, with what was
    measured until then kept; SourceError and LoraError as reading does; TensorError for a base that is not finite.
    """
    todos = _todos(expert, ride.reports)
    keys = _keys(expert, todos)
    done = {path: todo.gated for path, todo in todos.items()}
    if keys:
        done |= _measure_all(expert, ride, todos, keys)
    for key, whats in expert.contributions.items():
        expert.contributions[key] = [(who, _with_gated(expert, who, what, ride.reports, done)) for who, what in whats]


def wanted(expert: "ExpertPlan", reports: Path) -> list[str]:
    """Keys whose base `ensure` will read: their `carry.stored_bytes` belong to the total of the job's clock."""
    return _keys(expert, _todos(expert, reports))


def is_adaptive(what: "Contribution") -> bool:
    """Whether a contribution has anything that adaptive gates: a module in factor form."""
    return what.method == "adaptive" and bool(factor_modules(what.modules))


def _with_gated(expert: "ExpertPlan", who: int, what: "Contribution", reports: Path, done: dict[Path, GatedLora]) -> "Contribution":
    if not is_adaptive(what):
        return what
    found = done[_path(reports, _identity(expert, who, what))]
    return replace(what, gated=replace(found, constants=what.constants))   # the limits are this pass's own


def _measure_all(expert: "ExpertPlan", ride: "Ride", todos: dict[Path, _Todo], keys: list[str]) -> dict[Path, GatedLora]:
    with ExitStack() as opened:                    # whichever of them cannot be begun or sealed, none stays open
        wanting = {path: [name for names in todo.names.values() for name in names] for path, todo in todos.items() if todo.names}
        writers = {path: opened.enter_context(closing(todos[path].gated.file.writer(names))) for path, names in wanting.items()}
        try:
            with Workers(should_stop=ride.should_stop) as workers, full_float32(), ReadAhead(expert.source, keys) as ahead:
                bench = Bench(expert.source, workers)
                for number, key in enumerate(keys):
                    ahead.now(number)
                    _measure_key(expert, key, {path: todos[path].names[key] for path in writers if key in todos[path].names},
                                 (bench, writers))
                    ride.clock.advance(expert.source.nbytes(key), expert.role, key, "measure")
        finally:                                   # stopped or failed: what is whole is kept
            files = {path: writer.seal() for path, writer in writers.items()}
    return {path: replace(todos[path].gated, file=file) for path, file in files.items()}


def _measure_key(expert: "ExpertPlan", key: str, missing: dict[Path, dict[str, Want]], tools: tuple[Bench, dict]) -> None:
    bench, writers = tools
    whats: list[tuple[StoreWriter, str, Want]] = [
        (writers[path], name, want) for path, names in missing.items() for name, want in names.items()]
    with at(key, "measure", expert.source.name), torch.inference_mode():
        entries = bench.measure(key, expert.specs[key], [want for _, _, want in whats])
        for (writer, name, _), entry in zip(whats, entries, strict=True):
            writer.put(name, entry)


def _todos(expert: "ExpertPlan", reports: Path) -> dict[Path, _Todo]:
    """Store file -> what it lacks; files that lack nothing are there too."""
    found: dict[Path, _Todo] = {}
    for key, whats in expert.contributions.items():
        for who, what in whats:
            if is_adaptive(what):
                identity = _identity(expert, who, what)
                path = _path(reports, identity)
                if path not in found:
                    gated = GatedLora(StoreFile(path, identity), expert.ledgers[who]["sha256"], what.constants)
                    found[path] = _Todo(gated, {})
                name = entry_name(key, expert.specs[key].shape, what.modules)
                if name not in found[path].gated.file.figures:
                    found[path].names.setdefault(key, {})[name] = Want(what.lora, what.modules, what.constants)
    return found


def _keys(expert: "ExpertPlan", todos: dict[Path, _Todo]) -> list[str]:
    """In processing order."""
    missing = {key for todo in todos.values() for key in todo.names}
    return [key for key in expert.order if key in missing]


def _identity(expert: "ExpertPlan", who: int, what: "Contribution") -> dict:
    return {"adaptive": ADAPTIVE, "torch": torch.__version__, "base": expert.source.identity(),
            "lora": expert.ledgers[who]["sha256"], "constants": what.constants.measured()}


def _path(reports: Path, identity: dict) -> Path:
    return Path(reports) / f"adaptive-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()}.safetensors"
