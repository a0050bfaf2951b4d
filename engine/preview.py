"""The merge without a file: one tensor at a time, when somebody asks for it, as the writer would store it.

A tensor goes down the very line that writes it (carry.py, line.py), into memory instead of into a part; nothing is decided here.
"""
import os
import threading
import weakref
from pathlib import Path

import torch

from .bands import Workers
from .bases.gguf_header import is_gguf
from .bases.shards import find_files
from .device import full_float32
from .errors import SourceError
from .jobs.carry import Ride, carry_all, stored_bytes
from .jobs.importance import importances
from .jobs.line import Line
from .jobs.output import Band, quantize
from .jobs.plan import Plan
from .jobs.stored_as import forms_of, noisy_keys
from .kept import Kept, Stored
from .memory import Peak
from .merging.adaptive import store
from .progress import Clock, silent
from .recipes.recipe import Output

BF16 = Output("bf16")


def settle(plan: Plan, role: str, *, reports: Path, should_stop=bool, on_progress=silent) -> None:
    """Decide all gates that rest on a measurement of the base, once, before anything is merged on demand.

    reports: where decisions of earlier runs lie, and these are kept. Raises Stopped, SourceError, LoraError.
    """
    expert = next(expert for expert in plan.experts if expert.role == role)
    total = stored_bytes(expert, store.wanted(expert, reports))
    store.ensure(expert, Ride(plan.device, Clock(total, on_progress), should_stop, reports))


class Preview:
    """One expert of a plan, merged on demand. Holds the plan's files open until nobody holds the preview any more.

    plan: from `plan_recipe`, closed by this object; output: what the weights would be saved as; budget: bytes of finished tensors
    kept in memory, as they would be stored; should_stop: asked before every band. Raises PlanError for a tensor that its format
    cannot hold.
    """

    def __init__(self, plan: Plan, role: str, *, output: Output = BF16, budget: int = 0, should_stop=bool):
        self.plan, self.output, self.budget, self.should_stop = plan, output, budget, should_stop
        self.expert = next(expert for expert in plan.experts if expert.role == role)
        self.forms, self.noisy = forms_of(self.expert, output), noisy_keys(self.expert, output)
        self.importance, _ = importances(self.expert, output)
        self._stored = {key: self.forms.outputs(key, spec) for key, spec in self.expert.specs.items()}
        self.kept = Kept(budget)
        self._files = _states(plan, role)
        self._lock = threading.Lock()
        weakref.finalize(self, plan.__exit__).atexit = False

    @property
    def keys(self) -> list[str]:
        """Native keys whose saved tensor does not hold the base's values: merged, quantized, or of another dtype; in file order."""
        mix = self.plan.recipe.mix
        every = mix is not None and self.expert.role in mix.files   # then the base itself is a mixture
        return [key for key, spec in self.expert.specs.items()
                if every or key in self.expert.contributions or self.forms.name(key, spec) is not None
                or self._stored[key][""].dtype != spec.dtype]

    def merged(self, key: str) -> torch.Tensor:
        """The tensor as it would be read from the saved file, as float32: a new tensor each time, which the caller may change.

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
        spec = self.expert.specs[key]
        with torch.inference_mode():
            values = self.forms.of(key, spec).dequantize(stored)
            if spec.shape:                         # without the rows and columns that a format adds
                values = values[tuple(slice(size) for size in spec.shape)]
        return values.to(torch.float32, copy=True)  # outside of inference mode: else the caller could not change it

    def read_bytes(self, resident: int) -> int:
        """Bytes read from the disk for one pass over the model, at most, when the card holds `resident` bytes of its weights.

        The others are merged again at each use, unless they are kept within the budget.
        """
        sizes = [(self._host_bytes(key), self._source_bytes(key)) for key in self.keys]
        total, kept = sum(size for size, _ in sizes), sum(spec.nbytes for key in self.keys for spec in self._stored[key].values())
        missing = max(0, total - resident - self.budget * total // max(1, kept))   # a byte kept may stand for several on the card
        return int(sum(read for _, read in sizes) * missing / total) if total else 0

    def _host_bytes(self, key: str) -> int:
        """Bytes of the tensor in the MODEL: 16 bits of each value, as a bf16 or fp16 base is loaded, 32 where the base has them."""
        spec = self.expert.specs[key]
        return spec.numel * (4 if spec.dtype == torch.float32 else 2)

    def _source_bytes(self, key: str) -> int:
        whats = [what for _, what in self.expert.contributions.get(key, ())]
        names = [(what.lora, name) for what in whats for module in what.modules for name in module.keys]
        return self.expert.source.nbytes(key) + sum(lora.header.entries[name].nbytes for lora, name in names)

    def _compute(self, key: str) -> Stored:
        sink = _Memory(self, key)
        ride = Ride(self.plan.device, Clock(1, silent), self.should_stop, Path())
        with Workers(should_stop=self.should_stop) as workers, full_float32():
            carry_all(Line(self.expert.source, workers, self.plan.device.torch_device), self.expert, [key], [sink], ride, Peak())
        return sink.stored

    def _check_files(self) -> None:
        for path, state in self._files.items():
            if _state(path) != state:
                raise SourceError(f"{path}: expected as it was when the preview was made, found it changed; run the preview again")


class _Memory:
    """An output of the line that keeps the one tensor it is given; see `output.Output`."""

    failure, surveys = None, False

    def __init__(self, preview: Preview, key: str):
        self.forms, self.noisy, self.importance = preview.forms, key in preview.noisy, preview.importance.get(key)
        self._form, device = preview.forms.of(key, preview.expert.specs[key]), preview.plan.device.torch_device
        self.stored = {suffix: torch.empty(spec.shape, dtype=spec.dtype, device=device)
                       for suffix, spec in preview._stored[key].items()}

    def has(self, key: str) -> bool:
        return False

    def form(self, key: str):
        return self._form

    def encode(self, band: Band, stats) -> None:
        first = band.rows[0]
        for suffix, rows in quantize(self._form, band, stats, noisy=self.noisy, importance=self.importance).items():
            place = self.stored[suffix]
            (place[first:first + len(rows)] if place.dim() else place).copy_(rows)

    def take(self, encoded: None) -> None:
        """Each band lies where it belongs already."""

    def close_tensor(self, key: str, stats) -> None:
        for suffix, tensor in self._form.constants(stats).items():
            self.stored[suffix].copy_(tensor)

    def enter(self, key: str, row: dict) -> None:
        """Nothing to record."""


def _states(plan: Plan, role: str) -> dict[str, tuple[int, int]]:
    """Path -> size and time of every file that the merge of this role reads."""
    mix = plan.recipe.mix
    models = [plan.recipe.experts[role], *(mix.files.get(role, ()) if mix else ())]
    files = [path for model in models for path in ([model] if is_gguf(model) else find_files(model).files)]
    return {path: _state(path) for path in [*files, *(lora.path for lora in plan.loras)]}


def _state(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
