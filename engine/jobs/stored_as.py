"""What an output asks for, on the tensors of one expert: formats, full precision, input scales, rounding."""
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch

from ...quant.formats import BLOCK_TYPES, FORMATS
from .. import gguf_mix, precision
from ..errors import PlanError
from ..precision import GGUF, Forms
from ..recipes.output import FAST, Output
from ..specs import TensorSpec
from .experts import ExpertPlan

# The format for which ComfyUI takes an input scale of 1.0 in silence where there is none (comfy/quant_ops.py): it is written out.
SCALE_OF_ONE = "float8_e4m3fn"
# CUDA has no product of two E5M2 matrices, and ComfyUI would quantize the input to E5M2 too: such a file would stop at its first
# step, so its layers are always multiplied in 16 bit.
SLOW = "float8_e5m2"
# Formats whose grid holds every point of a base's: its own, and what has more bits of mantissa at scales a power of two apart.
ON_ITS_GRID = {"float8_e5m2": {"float8_e5m2", "float8_e4m3fn"}}
# Formats whose product takes a stored input scale.
SCALED = frozenset(name for name, form in FORMATS.items() if form.INPUT_AMAX is not None and name != SLOW)


def check_layers(expert: ExpertPlan, output: Output) -> None:
    """Raise PlanError for a layer that this expert does not have, or a plan that says nothing of it: of another model, most
    likely."""
    linears, role = {precision.layer_of(key) for key in expert.block_linears}, expert.role
    for name in ("layers", "full_precision", "input_amax"):
        found = getattr(output, name)
        strange = [layer for layer in found.get(role, ()) if layer not in linears]
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise PlanError(f"{expert.source.name}: {output.label}: {name}: expected linears of this model's blocks, found "
                            f"{strange[0]}{more}; make the plan or scales of this model")
    if output.plan and role not in output.layers:
        raise PlanError(f"{expert.source.name}: {output.label}: expected the plan to name {role}, found "
                        f"{' and '.join(output.layers) or 'no expert'}; make a plan for {role} too, or leave it out of this output")


def input_scale(forms: Forms, key: str, spec: TensorSpec, amax: Mapping[str, float]) -> float | None:
    """`input_scale` of the layer of a weight, a float32; None: none is stored. amax: layer -> largest activation."""
    form, layer = forms.of(key, spec), precision.layer_of(key)
    if forms.name(key, spec) is None or form.NAME not in SCALED:
        return None
    if layer in amax:
        return torch.tensor(amax[layer] / form.INPUT_AMAX, dtype=torch.float32).item()
    return 1.0 if form.NAME == SCALE_OF_ONE and not forms.is_full_precision(key) else None


def forms_of(expert: ExpertPlan, output: Output) -> Forms:
    """What each tensor of this expert is stored as. A quantized layer without an input scale follows `activations`."""
    forms, scaled = output.forms(expert.role), output.input_amax.get(expert.role, {})
    if forms.container == GGUF:                    # ComfyUI-GGUF multiplies in 16 bit whatever a layer is stored in
        return replace(forms, layers={**_of_mix(expert, output), **forms.layers})
    names = {key: name for key, spec in expert.specs.items() if (name := forms.name(key, spec))}
    slow = {precision.layer_of(key) for key, name in names.items()
            if name == SLOW or (output.activations != FAST and not (
                precision.layer_of(key) in scaled and forms.of(key, expert.specs[key]).INPUT_AMAX))}
    return replace(forms, full_precision=forms.full_precision | slow)


def _of_mix(expert: ExpertPlan, output: Output) -> dict[str, str]:
    """Layer -> type, by the rules of a mix; none where a plan names the layers, or the format is one type for all."""
    if output.plan or output.format not in gguf_mix.MIXES:
        return {}
    linears = [key for key in expert.order if key in expert.block_linears]
    return {precision.layer_of(key): name for key, name in gguf_mix.mix_types(output.format, linears).items()}


def gguf_notices(expert: ExpertPlan, output: Output) -> list[str]:
    """What of the wish a GGUF does not hold: other types where the columns are no multiple of the blocks; input scales and full
    precision, as all is multiplied in 16 bit."""
    forms, moved, role = forms_of(expert, output), Counter(), expert.role
    if forms.container != GGUF:
        return []
    unused = [words for words, found in (("input scales", output.input_amax), ("layers in full precision", output.full_precision))
              if found.get(role)]
    for key in expert.block_linears:
        asked, columns = forms.layers.get(precision.layer_of(key), forms.default), expert.specs[key].shape[1]
        if asked in BLOCK_TYPES and gguf_mix.fallback(asked, columns) != asked:
            moved[asked, forms.name(key, expert.specs[key]) or "16 bit", columns] += 1
    told = [f"{output.label}: {' and '.join(unused)} change nothing in a GGUF: all is multiplied in 16 bit"] if unused else []
    return told + [f"{expert.source.name}: {output.label}: {count} layers of {columns} columns cannot be {asked} and become {got}, "
                   "of smaller blocks" for (asked, got, columns), count in moved.items()]


def noisy_keys(expert: ExpertPlan, output: Output) -> frozenset[str]:
    """Keys whose codes are rounded stochastically: a delta was added to a weight that lies on the output's own grid already, where
    rounding to nearest would put most of it back. Anywhere else nearest loses nothing of it, at a smaller error."""
    grids, forms = expert.source.formats, forms_of(expert, output)
    if output.rounding != "auto":
        return frozenset()
    moved = {*expert.contributions, *expert.source.moved}
    names = {key: forms.name(key, expert.specs[key]) for key in moved if key in grids}
    return frozenset(key for key, name in names.items() if name in ON_ITS_GRID.get(grids[key], {grids[key]})
                     and forms.of(key, expert.specs[key]).STOCHASTIC)
