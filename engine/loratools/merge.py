"""Several LoRAs as one: exactly, by laying their factors side by side, or cut to a rank by SVD with its error stated.

    Σ s_k (α_k / r_k) B_k A_k = [s_1 (α_1 / r_1) B_1 ...] @ [A_1; ...]     rank Σ r_k, no cross terms (A and B are never added)
Whole differences (`.diff`, `.diff_b`, modulation) are summed in float64. A module that is no product (LoHa, a large LoKr, `.diff`
beside factors) enters through its dense delta, one tensor at a time, which only a cut to a rank can store. What needs the base's
own weights (DoRA, OFT, BOFT, GLoRA, IA3, set_weight) cannot become a LoRA here: merge it into the model and extract.
"""
import torch

from ..bands import Workers, split
from ..device import full_float32
from ..errors import LoraError, at
from ..loras.delta import flat_shape
from ..loras.factors import Factors, read_tensor
from ..loras.lora import LoraFile
from ..loras.modules import Module, Pair
from ..system import processors
from . import native
from .lora_writer import LoraWriter, check_target
from .low_rank import Fit, stored_fit, truncate
from .merge_plan import Job, Merging, Part, plan_jobs, planned_specs
from .report import Report, entry
from .sketch import Method, Run, fit_dense
from .wish import Save, Watch

__all__ = ["Merging", "Part", "merge"]
CPU = torch.device("cpu")
AT_ONCE = 2                                        # tensors in work; each holds its factors in float64


def merge(parts: list[Part], wish: Merging, save: Save, watch: Watch) -> Report:
    """Write the merge of `parts`. Raises LoraError when something of them cannot be stored, unless it may be left out."""
    parts = [part for part in parts if part.strength]
    if not parts:
        raise LoraError("merge LoRAs: expected a LoRA with a strength other than 0, found none")
    check_target(save)
    report = Report()
    jobs = plan_jobs(parts, wish, report)
    if report.left_out and wish.on_refused == "error":
        first = report.left_out[0]
        raise LoraError(f"{first.key}: {first.why} ({len(report.left_out)} keys in all); or allow such keys to be left out")
    if not jobs:
        raise LoraError(f"merge LoRAs: nothing is left to write: {report.left_out[0].why}")
    planned = {name: spec for job in jobs for name, spec in planned_specs(job, wish, save.torch_dtype).items()}
    watch.begin(sum(spec.nbytes for spec in planned.values()))
    with LoraWriter(save, planned, save.metadata) as writer:
        if wish.ranks.energy is None or wish.method == "exact":
            writer.require(watch.clock.total)
        with Workers(min(AT_ONCE, processors()), watch.should_stop) as workers, full_float32():
            _compute(jobs, wish, writer, Run(workers, Method(seed=wish.seed)), (report, watch))
        report.path, report.notice = writer.place(entry(
            {"made_by": "merge", "method": wish.method, "expert": wish.role, "error": report.error, "dtype": save.dtype,
             "loras": [{"name": part.lora.name, "strength": part.strength} for part in parts]}))
    return report


def _compute(jobs: list[Job], wish: Merging, writer: LoraWriter, run: Run, told: tuple[Report, Watch]) -> None:
    report, watch = told
    dtype = writer.save.torch_dtype
    side_by_side = [job for job in jobs if job.way == "factors"]
    fits = run.workers.each(lambda job: _fit(job, wish, dtype), side_by_side)
    for job in jobs:
        with at(job.key, "merge LoRAs"):
            if job.way == "factors":
                report.add(job.key, native.add_pair(writer, job.key, job.shape, next(fits)))
            elif job.way == "whole":
                report.add(job.key, native.add_whole(writer, job.key, _dense(job, run).double()), whole=True)
            else:
                fit = fit_dense(job.key, _dense(job, run), wish.ranks, dtype, run)
                report.add(job.key, native.add_pair(writer, job.key, job.shape, fit))
        watch.advance(sum(spec.nbytes for spec in planned_specs(job, wish, dtype).values()), job.key, "merge")


def _fit(job: Job, wish: Merging, dtype: torch.dtype) -> Fit:
    """One tensor whose parts are all products; worker threads."""
    factors = [wide_factors(part.lora, module, part.at(job.key), job.shape) for part, module in job.terms]
    up, down = torch.cat([up for up, _ in factors], 1), torch.cat([down for _, down in factors])
    return stored_fit(up, down, dtype) if wish.method == "exact" else truncate(up, down, wish.ranks, dtype)


def wide_factors(lora: LoraFile, module: Module, strength: float, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(up (out, r), down (r, in)) of one module, float64, strength and alpha / rank in up; a plain pair is not rounded."""
    rows, columns = flat_shape(shape)
    if isinstance(module, Pair) and module.mid is None:
        up, down = (read_tensor(lora, key).double() for key in (module.up, module.down))
        return up.reshape(rows, module.rank) * (strength * module.factor), down.reshape(module.rank, columns)
    factors: Factors = module.load(lora, shape, CPU).factors
    return factors.up.double() * strength, factors.down.double()


def _dense(job: Job, run: Run) -> torch.Tensor:
    """The sum of all parts of one tensor, (out, in) for a matrix, else the tensor's shape; float32, one band at a time."""
    flat = flat_shape(job.shape)
    total = torch.empty(flat)
    loaded = [(part.at(job.key), module.load(part.lora, job.shape, CPU)) for part, module in job.terms]

    def add(rows: tuple[int, int]) -> None:
        band, one = torch.zeros(rows[1] - rows[0], flat[1], dtype=torch.float64), torch.empty(rows[1] - rows[0], flat[1])
        for strength, delta in loaded:
            delta.write(rows, slice(0, flat[1]), None, one)
            band.add_(one, alpha=strength)
        total[rows[0]:rows[1]] = band

    run.workers.map(add, split(flat))
    return total if native.is_matrix(job.key, job.shape) and job.way == "dense" else total.view(job.shape)
