"""The merge without a file: one tensor at a time, when somebody asks for it, as the writer would store it.

A tensor goes down the very line that writes it (carry.py, line.py), into memory instead of into a part; nothing is decided here.
"""
import os
import threading
import weakref
from pathlib import Path

import torch

from .bands import Rows, Workers
from .bases.shards import find_files
from .device import full_float32
from .errors import PlanError, SourceError
from .jobs.carry import Ride, carry_all, stored_bytes
from .jobs.line import Line
from .jobs.plan import Plan
from .kept import Kept
from .memory import Peak
from .merging.adaptive import store
from .precision import choose
from .progress import Clock, silent
from .specs import TensorSpec

FORMATS = ("bf16", "fp16", "fp32")                 # those whose tensors are what a layer multiplies by


def settle(plan: Plan, role: str, *, reports: Path, should_stop=bool, on_progress=silent) -> None:
    """Decide all gates that rest on a measurement of the base, once, before anything is merged on demand.

    reports: where decisions of earlier runs lie, and these are kept. Raises Stopped, SourceError, LoraError.
    """
    expert = next(expert for expert in plan.experts if expert.role == role)
    total = stored_bytes(expert, store.wanted(expert, reports))
    store.ensure(expert, Ride(plan.device, Clock(total, on_progress), should_stop, reports))


class Preview:
    """One expert of a plan, merged on demand. Holds the plan's files open until nobody holds the preview any more.

    plan: from `plan_recipe`, closed by this object; format_name: what the weights would be saved in; budget: bytes of finished
    tensors kept in memory; should_stop: asked before every band. Raises PlanError for a quantized format.
    """

    def __init__(self, plan: Plan, role: str, *, format_name: str = "bf16", budget: int = 0, should_stop=bool):
        if format_name not in FORMATS:
            raise PlanError(f"preview: expected {', '.join(FORMATS)}, found {format_name}; choose one of them")
        self.plan, self.format_name, self.budget, self.should_stop = plan, format_name, budget, should_stop
        self.expert = next(expert for expert in plan.experts if expert.role == role)
        self.kept = Kept(budget)
        self._files = _states(plan, role)
        self._lock = threading.Lock()
        weakref.finalize(self, plan.__exit__).atexit = False

    @property
    def keys(self) -> list[str]:
        """Native keys whose saved tensor is not the base's: merged, or of another dtype than the base stores; in file order."""
        mix = self.plan.recipe.mix
        every = mix is not None and self.expert.role in mix.files   # then the base itself is a mixture
        return [key for key, spec in self.expert.specs.items()
                if every or key in self.expert.contributions or self.stored_dtype(key) != spec.dtype]

    def stored_dtype(self, key: str) -> torch.dtype:
        """Dtype that this tensor would be saved in."""
        return self._form(key).STORED

    def _form(self, key: str):
        return choose(key, self.expert.specs[key], self.format_name)

    def merged(self, key: str) -> torch.Tensor:
        """The tensor as it would be saved, as float32: a new tensor each time, which the caller may change.

        On the plan's device, or on the CPU where it was kept. Any thread may call. Raises SourceError when a file changed since the
        plan was made, TensorError when the tensor cannot be merged, Stopped.
        """
        with self._lock:
            stored = self.kept.find(key)
            if stored is None:
                self._check_files()
                with torch.inference_mode():
                    stored = self._compute(key)
                    self.kept.offer(key, stored)
        return stored.to(torch.float32, copy=True)  # outside of inference mode: else the caller could not change it

    def read_bytes(self, resident: int) -> int:
        """Bytes read from the disk for one pass over the model, at most, when the card holds `resident` bytes of its weights.

        The others are merged again at each use, unless they are kept within the budget.
        """
        sizes = [(self.expert.specs[key].numel * self.stored_dtype(key).itemsize, self._source_bytes(key)) for key in self.keys]
        total = sum(size for size, _ in sizes)
        missing = max(0, total - resident - self.budget)
        return int(sum(read for _, read in sizes) * missing / total) if total else 0

    def _source_bytes(self, key: str) -> int:
        whats = [what for _, what in self.expert.contributions.get(key, ())]
        names = [(what.lora, name) for what in whats for module in what.modules for name in module.keys]
        return self.expert.source.nbytes(key) + sum(lora.header.entries[name].nbytes for lora, name in names)

    def _compute(self, key: str) -> torch.Tensor:
        form, device = self._form(key), self.plan.device.torch_device
        sink = _Memory(form, self.expert.specs[key], device)
        ride = Ride(self.plan.device, Clock(1, silent), self.should_stop, Path())
        with Workers(should_stop=self.should_stop) as workers, full_float32():
            carry_all(Line(self.expert.source, workers, device), self.expert, [key], [sink], ride, Peak())
        return sink.stored

    def _check_files(self) -> None:
        for path, state in self._files.items():
            if _state(path) != state:
                raise SourceError(f"{path}: expected as it was when the preview was made, found it changed; run the preview again")


class _Memory:
    """An output of the line that keeps the one tensor it is given; see `output.Output`."""

    def __init__(self, form, spec: TensorSpec, device: torch.device):
        self._form, self.stored = form, torch.empty(spec.shape, dtype=form.STORED, device=device)

    def has(self, key: str) -> bool:
        return False

    def form(self, key: str):
        return self._form

    def encode(self, key: str, band: torch.Tensor, rows: Rows, stats, spare: torch.Tensor) -> None:
        rounded = self._form.quantize(band, stats, spare)[""]
        (self.stored[rows[0]:rows[1]] if self.stored.dim() else self.stored).copy_(rounded)

    def take(self, encoded: None) -> None:
        """Each band lies where it belongs already."""

    def close_tensor(self, key: str, stats) -> None:
        """No scales to keep."""

    def enter(self, key: str, row: dict) -> None:
        """Nothing to record."""


def _states(plan: Plan, role: str) -> dict[str, tuple[int, int]]:
    """Path -> size and time of every file that the merge of this role reads."""
    mix = plan.recipe.mix
    models = [plan.recipe.experts[role], *(mix.files.get(role, ()) if mix else ())]
    files = [path for model in models for path in find_files(model).files]
    return {path: _state(path) for path in [*files, *(lora.path for lora in plan.loras)]}


def _state(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
