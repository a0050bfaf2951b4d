"""What a preview shows: the format, plan or job whose file it stands for, and how that file's layers take their inputs."""
import json

from ..engine.errors import RecipeError
from ..engine.gguf_mix import MIXES
from ..engine.jobs.stored_as import input_scale
from ..engine.plans.as_output import as_output
from ..engine.plans.plan import PrecisionPlan
from ..engine.precision import GGUF, layer_of
from ..engine.preview import Preview
from ..engine.recipes.output import Output, parse_output
from ..quant.formats import QUANTIZED_FORMS
from ..quant.plain import PLAIN
from .block_layers import check_plan, layers_of
from .rounded_input import LayerActivations

# The first, bf16, is the default; GGUF's plain mixes show nothing that bf16 and fp16 do not.
SHOWN = (*PLAIN, *QUANTIZED_FORMS, *(name for name, mix in MIXES.items() if not mix.is_plain))


def shown_output(dit, role: str, saved_as: str, plan, job) -> Output:
    """The output of a recipe that is previewed: of the job, else of the plan, else in one format.

    plan, job: handles or None. Raises RecipeError for a plan or job of another model.
    """
    if job is not None:
        if job.dit != dit:
            raise RecipeError("merge preview: job is of another model or merge; connect the Quantize of this dit")
        mine = [output for output in job.outputs if role in output.experts]
        if not mine:
            raise RecipeError(f"merge preview: job saves nothing of {role}; choose another expert, or change experts in Quantize")
        return parse_output(mine[-1].as_json())
    if plan is None:
        return Output(saved_as)
    made = PrecisionPlan.from_json(json.loads(plan.text))
    check_plan(made, {role: layers_of(dict(dit.experts)[role])}, "merge preview")
    return as_output(made)


def stored_activations(preview: Preview) -> dict[str, LayerActivations]:
    """Layer -> how its file would take its input, of every layer that the preview quantizes; of none in a GGUF, where ComfyUI-GGUF
    multiplies in 16 bit."""
    if preview.output.container == GGUF:
        return {}
    forms, amax, found = preview.forms, preview.output.input_amax.get(preview.expert.role, {}), {}
    for key, spec in preview.expert.specs.items():
        if forms.name(key, spec) is None:
            continue
        form, layer = forms.of(key, spec), layer_of(key)
        scale, turned = input_scale(forms, key, spec, amax), form.comfy_quant(full_precision=False).get("convrot_groupsize", 0)
        found[layer] = LayerActivations(form.NAME, forms.is_full_precision(key), scale, turned)
    return found
