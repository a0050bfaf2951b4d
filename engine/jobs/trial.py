"""What each format would cost each layer, tried on 256 seeded rows of the merge: the measuring step of a precision plan.

Two tiles of 128 rows of every block linear are read, merged by the very code that writes (or the whole tensor, where a gate or a
norm needs it), and given to tried.py: quantized by every candidate, decoded and compared. The result is kept by content, that of a
calibration with it, and nothing of it is decided again later.
"""
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from ...quant.formats import form_of
from ..bands import TILE_ROWS, Rows, Workers
from ..device import full_float32
from ..errors import at
from ..merging.adaptive.store import ensure
from ..merging.adaptive.store import wanted as unmeasured
from ..merging.merge import load_change
from ..precision import is_block_linear, layer_of
from ..system import write_json
from . import report
from .carry import Ride, stored_bytes
from .experts import ExpertPlan
from .line import Line, Step
from .survival import Space
from .targets import RECORD as VERSION
from .targets import recall
from .tried import NEAREST, STOCHASTIC, Trial, Wanted, try_formats

__all__ = ["NEAREST", "STOCHASTIC", "Trial", "Wanted", "measure", "readings", "tiles_of"]

TILES = 2                                          # of 128 rows: 256 rows of 5120 tell an error to 0.1 % of itself


def tiles_of(key: str, total: int) -> list[Rows]:
    """Up to two tiles of 128 rows of a tensor, ascending; the same for the same key and size, everywhere."""
    count = -(-total // TILE_ROWS)
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    first = seed % count
    chosen = {first, (first + 1 + seed // count % (count - 1)) % count} if count > 1 else {0}
    return [(tile * TILE_ROWS, min(total, (tile + 1) * TILE_ROWS)) for tile in sorted(chosen)][:TILES]


def measure(expert: ExpertPlan, wanted: Wanted, ride: Ride, layers: Iterable[str] | None = None) -> dict[str, Trial]:
    """Layer -> trial, in the model's order. layers: which; None: every block linear, kept by content in `ride.reports`. Adaptive
    LoRAs that were never measured on this base are measured first. Progress counts `readings`.

    Raises Stopped, SourceError, LoraError, TensorError.
    """
    chosen = None if layers is None else set(layers)
    keys = [key for key, spec in expert.specs.items()
            if is_block_linear(key, spec) and (chosen is None or layer_of(key) in chosen)]
    path = _path(ride.reports, expert, wanted)
    said = recall(path) if chosen is None else None
    if said is not None:
        ride.clock.skip(readings(expert, ride.reports, keys))
        return {layer: Trial.from_json(each) for layer, each in said["trials"].items()}
    ensure(expert, ride)
    found = {}
    with Workers(should_stop=ride.should_stop) as workers, full_float32():
        line = Line(expert.source, workers, ride.device.torch_device)
        simple = [key for key in keys if not _needs_whole(expert, key, line)]
        for key, trial in zip(simple, workers.each(lambda key: _try_tiles(expert, key, line, wanted), simple), strict=True):
            found[layer_of(key)] = trial
            ride.clock.advance(expert.source.nbytes(key), expert.role, key, "try")
        for key in (key for key in keys if layer_of(key) not in found):
            found[layer_of(key)] = _try_whole(expert, key, line, wanted)
            ride.clock.advance(expert.source.nbytes(key), expert.role, key, "try")
    found = {layer_of(key): found[layer_of(key)] for key in keys}
    if chosen is None:
        ride.reports.mkdir(parents=True, exist_ok=True)
        write_json(path, {"version": VERSION, "trials": {layer: asdict(each) for layer, each in found.items()}})
    return found


def readings(expert: ExpertPlan, reports: Path, keys: Iterable[str]) -> int:
    """Bytes that a trial of these tensors counts, and those of the measuring that adaptive LoRAs still need."""
    return stored_bytes(expert, [*unmeasured(expert, reports), *keys])


def _path(reports: Path, expert: ExpertPlan, wanted: Wanted) -> Path:
    content = [report.content_of(expert), *wanted.content, TILES, torch.__version__]
    return Path(reports) / f"trial-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.json"


def _change(expert: ExpertPlan, key: str, line: Line):
    whats = expert.contributions.get(key)
    if not whats:
        return None
    with at(key, "read LoRA", expert.source.name):
        return load_change(key, expert.specs[key], [what for _, what in whats], line.device, expert.rules)


def _needs_whole(expert: ExpertPlan, key: str, line: Line) -> bool:
    """Whether rows of this tensor cannot be merged alone: told without its LoRAs being read where it is plain addition."""
    whats = [what for _, what in expert.contributions.get(key, ())]
    plain = not expert.rules.normalize and expert.rules.compat == "correct" and all(
        what.method == "addition" and expert.rules.of(what.pass_number).combine == "sum" for what in whats)
    if plain and all(getattr(module, "form", "dense") == "factors" for what in whats for module in what.modules):
        return False
    change = _change(expert, key, line)
    return change is not None and change.needs_whole


def _read(expert: ExpertPlan, key: str, rows: Rows, device: torch.device) -> torch.Tensor:
    with at(key, "read", expert.source.name):
        band = expert.source.read(key, rows).to(device)
        if not torch.isfinite(band).all():
            raise ValueError("the base holds NaN or inf; get the file again, or choose another base")
        return band


def _try_tiles(expert: ExpertPlan, key: str, line: Line, wanted: Wanted) -> Trial:
    """A layer whose rows are merged one by one; any thread."""
    change, spec, found = _change(expert, key, line), expert.specs[key], []
    space = Space(change.row_space()) if change is not None else None
    for rows in tiles_of(key, spec.shape[0]):
        base = _read(expert, key, rows, line.device)
        merged = base.clone()
        if change is not None:
            with at(key, "merge", expert.source.name):
                change.add(merged, rows, torch.empty_like(merged))
        found.append((rows, base, merged))
    return try_formats(key, spec.shape[0], found, space, wanted)


def _try_whole(expert: ExpertPlan, key: str, line: Line, wanted: Wanted) -> Trial:
    """A layer that is merged as a whole, by the line."""
    change, spec = _change(expert, key, line), expert.specs[key]
    sink, space = _Tiles(tiles_of(key, spec.shape[0])), Space(change.row_space())
    line.carry(Step(key, spec, change, [sink]))
    found = [(rows, _read(expert, key, rows, line.device), merged) for rows, merged in sorted(sink.merged.items())]
    return try_formats(key, spec.shape[0], found, space, wanted)


class _Tiles:
    """An output of the line that keeps some rows of the merge; see `output.Output`."""

    surveys = False

    def __init__(self, tiles: list[Rows]):
        self.tiles, self.merged = tiles, {}

    def form(self, key: str):
        return form_of("fp32")

    def encode(self, band, stats) -> None:
        for first, stop in self.tiles:             # bands are of whole tiles
            if band.rows[0] <= first < band.rows[1]:
                self.merged[first, stop] = band.merged[first - band.rows[0]:stop - band.rows[0]].clone()

    def take(self, encoded: None) -> None:
        """Nothing is written."""

    def close_tensor(self, key: str, stats) -> None:
        """Nothing is written."""
