"""A LoRA out of two checkpoints: what `tuned` has more than `base`, layer by layer, as factors and whole differences.

    δ = tuned − base, float32;   matrices: the nearest product of few ranks (sketch.py);   vectors and modulation: δ itself
Memory: one dense difference (283 MB for the ffn of a 14B; 629 MB for its time_projection with layers="all") and a few row bands.
"""
import re
from dataclasses import dataclass, field

import torch

from ..bands import Workers, split
from ..bases.source import Source
from ..device import full_float32
from ..errors import LoraError, RecipeError, SourceError, at
from ..specs import TensorSpec
from . import native
from .lora_writer import LoraWriter, check_target
from .report import Report, Row, entry
from .sketch import Method, Run, fit_dense
from .wish import Ranks, Save, Watch

BLOCK = re.compile(r"(?:vace_)?blocks\.\d+\.")
LAYERS = ("blocks", "all")


@dataclass(frozen=True)
class Extraction:
    """What to take. layers: "blocks" = linears of the blocks, "all" = every weight with two axes or more. vectors: norms, biases
    and modulation as whole differences. method: of the dense SVD."""

    ranks: Ranks = field(default_factory=Ranks)
    layers: str = "blocks"
    vectors: bool = True
    method: Method = field(default_factory=Method)

    def __post_init__(self):
        if self.layers not in LAYERS:
            raise RecipeError(f"layers: expected one of {', '.join(LAYERS)}, found {self.layers!r}")

    def way_of(self, key: str, spec: TensorSpec) -> str:
        """"factors", "whole" or "out" for one tensor of the model."""
        if not key.endswith(".weight") or len(spec.shape) < 2:
            return "whole" if self.vectors else "out"
        if self.layers == "blocks" and not (BLOCK.match(key) and len(spec.shape) == 2):
            return "out"
        return "whole" if native.is_small(spec.shape, self.ranks.most) else "factors"


def extract(tuned: Source, base: Source, wish: Extraction, save: Save, watch: Watch) -> Report:
    """Write the LoRA; tuned and base are models of one shape. Raises SourceError when they are not, LoraError when they are equal.

    Keys that only one of them has are told in the report. Peak memory: see above. Raises Stopped; nothing is left then.
    """
    keys, report = _shared(tuned, base), Report()
    check_target(save)
    shared = set(keys)
    for name, source in (("the tuned model", tuned), ("the base", base)):
        alone = [key for key in source.keys() if key not in shared]  # noqa: SIM118 - a Source is no mapping
        report.left_out += [Row(key, None, None, f"only {name} has it") for key in alone]
    watch.begin(sum(tuned.nbytes(key) + base.nbytes(key) for key in keys))
    # All tensors of a LoRA have one dtype, so they stay aligned in any order.
    planned = {name: spec for key in keys for name, spec in _planned(key, tuned.spec(key), wish, save.torch_dtype).items()}
    with (LoraWriter(save, planned, save.metadata) as writer, Workers(should_stop=watch.should_stop) as workers,
          full_float32()):
        for key in keys:
            with at(key, "extract", tuned.name):
                _one(key, (tuned, base), wish, writer, Run(workers, wish.method), report)
            watch.advance(tuned.nbytes(key) + base.nbytes(key), key, "extract")
        if not report.rows:
            raise LoraError(f"{tuned.name} and {base.name}: nothing to extract: no layer that was asked for differs")
        report.path, report.notice = writer.place(entry({
            "made_by": "extract", "tuned": tuned.name, "base": base.name, "error": report.error, "dtype": save.dtype}))
    return report


def _shared(tuned: Source, base: Source) -> list[str]:
    """Keys of both, in the tuned model's order. Raises SourceError when a shape differs."""
    known = set(base.keys())
    keys = [key for key in tuned.keys() if key in known]  # noqa: SIM118 - a Source is no mapping
    if tuned.identity() == base.identity():
        raise SourceError(f"{tuned.path}: expected two models, found one file twice; choose the model it was trained from as base")
    for key in keys:
        if tuned.spec(key).shape != base.spec(key).shape:
            found = f"{tuned.spec(key).shape} in {tuned.name} and {base.spec(key).shape} in {base.name}"
            raise SourceError(f"{key}: expected one shape in both models, found {found}; choose the base that it was trained from")
    if not keys:
        raise SourceError(f"{tuned.name} and {base.name}: expected the same layers, found none in common; choose two Wan models")
    return keys


def _planned(key: str, spec: TensorSpec, wish: Extraction, dtype: torch.dtype) -> dict[str, TensorSpec]:
    way = wish.way_of(key, spec)
    if way == "out":
        return {}
    if way == "whole":
        return native.whole_spec(key, spec.shape, dtype)
    return native.pair_specs(key, spec.shape, wish.ranks.most, dtype)


def _one(key: str, sources: tuple[Source, Source], wish: Extraction, writer: LoraWriter, run: Run, report: Report) -> None:
    spec, dtype = sources[0].spec(key), writer.save.torch_dtype
    way, delta = wish.way_of(key, spec), _difference(key, sources, run.workers)
    total = sum(run.workers.map(lambda rows: _finite_square(delta, rows), _bands(delta)))
    if total == 0:
        report.unchanged.append(key)
    elif way == "out":
        report.left_out.append(Row(key, None, total, "not asked for"))
    elif way == "whole":
        report.add(key, native.add_whole(writer, key, delta.double()), whole=True)
    else:
        fit = fit_dense(key, delta.view(spec.shape[0], -1), wish.ranks, dtype, run)
        report.add(key, native.add_pair(writer, key, spec.shape, fit))


def _bands(delta: torch.Tensor) -> list[tuple[int, int]]:
    return split(tuple(delta.shape))


def _finite_square(delta: torch.Tensor, rows: tuple[int, int]) -> float:
    band = delta[rows[0]:rows[1]] if delta.dim() else delta
    found = torch.linalg.vector_norm(band, dtype=torch.float64).square().item()
    if not found < float("inf"):
        raise ValueError("expected finite numbers, found NaN or inf in one of the two models; replace it")
    return found


def _difference(key: str, sources: tuple[Source, Source], workers: Workers) -> torch.Tensor:
    """tuned − base, float32, contiguous; row bands of the base pass through a buffer of their own."""
    tuned, base = sources
    delta = torch.empty(tuned.spec(key).shape)
    if not delta.dim():
        return tuned.read(key) - base.read(key)

    def subtract(rows: tuple[int, int]) -> None:
        tuned.read(key, rows, out=delta[rows[0]:rows[1]])
        delta[rows[0]:rows[1]].sub_(base.read(key, rows))

    workers.map(subtract, split(tuple(delta.shape)))
    return delta
