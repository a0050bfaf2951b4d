"""An adaptive LoRA as an ordinary one: what its gate lets through on one base, at strength 1, in a file that any loader adds.

Factors come from the measuring step (adaptive/export.py), before the limiter, which belongs to a mix and not to a LoRA. Whole
differences pass as they are. What is neither (LoHa, DoRA, OFT ...) is added ungated in a merge and cannot stand in this file.
"""
import torch

from ..errors import LoraError, PlanError
from ..jobs.experts import ExpertPlan
from ..loras.modules import Diff
from ..merging.adaptive.export import gated_lora
from . import native
from .lora_writer import LoraWriter, check_target
from .low_rank import stored_fit
from .merge_plan import NEEDS_BASE
from .report import Report, Row, entry
from .wish import Save, Watch

CPU = torch.device("cpu")


def save_gated(expert: ExpertPlan, who: int, save: Save, watch: Watch) -> Report:
    """Write the gated form of one LoRA of a measured expert. who: its number among the expert's entries.

    Modules that cannot be stored are rows of `left_out`. Raises PlanError when the LoRA is not adaptive here or was not measured.
    """
    owned = {key: what for key, whats in expert.contributions.items() for number, what in whats if number == who}
    gated = next((what.gated for what in owned.values() if what.gated is not None), None)
    name = expert.matched[who][0].name
    if gated is None:
        raise PlanError(f"{name}: expected a LoRA of method adaptive, measured on {expert.source.name}; set its method to adaptive")
    check_target(save)
    shapes, report = {key: expert.specs[key].shape for key in owned}, Report()
    modules = {key: list(what.modules) for key, what in owned.items()}
    wholes = _sort(modules, shapes, report)
    rank = {key: sum(module.rank for module in own if module.form == "factors") for key, own in modules.items()}
    paired = [key for key, own in modules.items() if rank[key] and key not in wholes]
    dtype, lora = save.torch_dtype, expert.matched[who][0]
    specs = {key: native.pair_specs(key, shapes[key], rank[key], dtype) for key in paired}
    specs |= {key: native.whole_spec(key, shapes[key], dtype) for key in wholes}
    planned = {new: spec for each in specs.values() for new, spec in each.items()}
    watch.begin(sum(spec.nbytes for spec in planned.values()))
    with LoraWriter(save, planned, save.metadata) as writer:
        writer.require(watch.clock.total)
        factors = gated_lora(gated, lora, {key: modules[key] for key in paired}, shapes)
        for key in specs:
            if key in wholes:
                delta = sum(lora.read(module.key).double() * module.factor for module in modules[key]).view(shapes[key])
                report.add(key, native.add_whole(writer, key, delta), whole=True)
            else:
                _, up, down = next(factors)
                report.add(key, native.add_pair(writer, key, shapes[key], stored_fit(up.double(), down.double(), dtype)))
            watch.advance(sum(spec.nbytes for spec in specs[key].values()), key, "export")
        if not report.rows:
            raise LoraError(f"{name}: nothing of it can stand in a LoRA file; first: {report.left_out[0].why}")
        report.path, report.notice = writer.place(entry({"made_by": "gated", "lora": name, "base": expert.source.name,
                                                         "expert": expert.role, "error": report.error, "dtype": save.dtype}))
    return report


def _sort(modules: dict[str, list], shapes: dict[str, tuple[int, ...]], report: Report) -> list[str]:
    """Keys to be stored as whole differences. What cannot be stored goes into the report and out of `modules`."""
    wholes = []
    for key, own in list(modules.items()):
        diffs = [module for module in own if isinstance(module, Diff)]
        has_factors = any(module.form == "factors" for module in own)
        for module in own:
            if module.form != "factors" and (not isinstance(module, Diff) or has_factors):
                why = f"{module.kind} beside factors, of which ComfyUI applies one" if isinstance(module, Diff) \
                    else f"{module.kind} {NEEDS_BASE}"
                report.left_out.append(Row(key, None, None, why))
        if diffs and not has_factors:
            modules[key] = diffs
            wholes.append(key)
        elif not has_factors:
            del modules[key]
    return wholes
