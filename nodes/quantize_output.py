"""What a Quantize node asks for, as an output of a recipe: its widgets, a plan, scales; and that in words."""
import json
from collections import Counter
from dataclasses import asdict, replace

from comfy_api.latest import io

from ..engine.errors import RecipeError
from ..engine.jobs.stored_as import SCALED
from ..engine.plans.as_output import as_output
from ..engine.plans.cards import newest
from ..engine.plans.plan import PrecisionPlan
from ..engine.precision import GGUF, KEEP, KEPT_DTYPES, SOURCE
from ..engine.recipes.output import ROUNDINGS, SIXTEEN, parse_output
from ..engine.recipes.output import Output as RecipeOutput
from ..quant.formats import INT8_SCALINGS, QUANTIZED, SEARCHES
from ..quant.gguf.block_type import SETTINGS
from . import plan_files, sockets
from .block_layers import check_plan, check_scales, layers_in, layers_of
from .handles import Output
from .machine import line
from .model_source import sources_of
from .weighed_columns import weighed_lines

UNCALIBRATED = "uncalibrated: the error of small activations is unknown, harmless above rms 0.03, 6 % at 0.01"
FP8 = "float8_e4m3fn"
EMPTY = RecipeOutput("bf16")                       # every field at its default
BY_ROLE = ("layers", "full_precision", "input_amax", "imatrix")
IMATRICES = ("imatrix_high", "imatrix_low")


def check_once(output: Output, earlier: tuple[Output, ...]) -> None:
    """Raise RecipeError when a Quantize before asks for the same format of the same expert."""
    for role in output.experts:
        if any(role in other.experts and label_of(other) == label_of(output) for other in earlier):
            whose = "" if role == "model" else f" of {role}"
            raise RecipeError(f"quantize: {label_of(output)}{whose} is asked for twice, here and by more; change format or "
                              "experts, or give one of them a suffix")


def asked(dit, output: Output, made_for: dict, settings: dict) -> Output:
    """The output with a plan's formats in place of its own, scales, and the other widgets' values.

    made_for: `plan`, `scales`, handles or None, and `weights`, role -> imatrix of a calibration. Raises RecipeError for a plan or
    scales of another model.
    """
    plan, scales = made_for["plan"], made_for["scales"]
    weights = {**_imatrices(output.experts, *(settings.get(name) or plan_files.NONE for name in IMATRICES)), **made_for["weights"]}
    told = {name: value for name, value in settings.items() if value is not None and name not in IMATRICES}
    found = parse_output({**output.as_json(), **told, "imatrix": weights})
    if plan is not None:
        made = PrecisionPlan.from_json(json.loads(plan.text))
        check_plan(made, _layers(dit, output.experts), "quantize")
        kept = {"kept_dtype": found.kept_dtype} if found.kept_dtype != SOURCE else {}
        found = replace(as_output(made, found), **kept)
    if scales is not None:
        found = replace(found, input_amax=json.loads(scales.text))
        check_scales(found.input_amax, _layers(dit, output.experts), "quantize")
    mine = {name: {role: getattr(found, name)[role] for role in output.experts if role in getattr(found, name)} for name in BY_ROLE}
    told = {name: value for name, value in asdict(replace(found, **mine)).items() if value != getattr(EMPTY, name)}
    for name in ("format", "activations", "experts"):
        told.pop(name, None)
    return Output(found.format, found.activations, output.experts, json.dumps(told, sort_keys=True))


def _imatrices(roles: tuple[str, ...], high: str, low: str) -> dict[str, str]:
    """Role -> path of its imatrix, of those that have one. Raises RecipeError for a name that is not in the folder."""
    names = {"high_noise": high, "low_noise": low, "model": high}
    return {role: plan_files.path_of(plan_files.CALIBRATION, names[role]) for role in roles if names[role] != plan_files.NONE}


def _layers(dit, roles: tuple[str, ...]) -> dict[str, list[str]]:
    """Role -> block linears of what a job carries, files or a MODEL."""
    models = sources_of(dit)
    return {role: layers_in(models[role]) if role in models else layers_of(path) for role, path in dit.experts if role in roles}


def label_of(output: Output) -> str:
    """What tells an output from others of its expert, as in file names."""
    return parse_output(output.as_json()).label


def more_inputs() -> list[io.Input]:
    """Appended later; workflows of before have none of them."""
    weights = [plan_files.NONE, *plan_files.names(plan_files.CALIBRATION, plan_files.IMATRIX)]
    return [
        sockets.Plan.Input("plan", optional=True, tooltip="From Precision Plan: formats layer by layer, in place of format."),
        sockets.Scales.Input("scales", optional=True,
                             tooltip="From Input Scales: for the layers whose inputs ComfyUI quantizes by a stored scale."),
        io.Combo.Input("search", options=list(SEARCHES), default=SEARCHES[0], optional=True, advanced=True,
                       tooltip="How long the 4-bit formats look for their scales. balanced: nvfp4 has 14 % less error than "
                               "rounding alone. fast: rounding alone, as other tools do. best: a little less error again."),
        io.Combo.Input("int8_scaling", options=list(INT8_SCALINGS), default=INT8_SCALINGS[0], optional=True, advanced=True,
                       tooltip="For int8_tensorwise. convrot: rotated, one scale a row: least error. row, tensor: not rotated."),
        io.Combo.Input("kept_dtype", options=list(KEPT_DTYPES), default=SOURCE, optional=True, advanced=True,
                       tooltip="What weights that are not quantized are stored in; norms, biases and modulation stay as they come. "
                               "With a plan, source means as the plan says."),
        io.Combo.Input("rounding", options=list(ROUNDINGS), default=ROUNDINGS[0], optional=True, advanced=True,
                       tooltip="auto: to nearest; stochastic, seeded, where LoRAs were merged onto a quantized base, as nearest "
                               "would round them away again."),
        io.String.Input("suffix", default="", optional=True, advanced=True,
                        tooltip="Added to the format in file names, to tell two of one format apart."),
        io.Combo.Input("gguf_setting", options=list(SETTINGS), default=SETTINGS[0], optional=True, advanced=True,
                       tooltip="How long GGUF's encoders look for their scales. best: less error than llama.cpp, at its cost. max: "
                               "a little less again, several times as long. reference: llama.cpp's own search."),
        io.Combo.Input("imatrix_high", options=weights, default=plan_files.NONE, optional=True, advanced=True,
                       tooltip="How much each input column counts where a format searches: an imatrix file of the high-noise "
                               "expert, or of a model of one file, from user/default/wan22_master/calibration."),
        io.Combo.Input("imatrix_low", options=weights, default=plan_files.NONE, optional=True, advanced=True,
                       tooltip="The same for the low-noise expert."),
        sockets.Calib.Input("calibration", optional=True,
                            tooltip="From Sensitivity: nvfp4 and GGUF types then search with the columns weighed by what the "
                                    "session saw, in the layers where that helped."),
    ]


def describe(dit, output: Output) -> list[str]:
    """One output in words: experts, formats, input scales, and what this machine makes of each format."""
    found = parse_output(output.as_json())
    name = found.label if output.experts == ("model",) else f"{found.label} for {' and '.join(output.experts)}"
    columns = [f"  {told}" for told in weighed_lines(found, _layers(dit, output.experts))] if found.imatrix else []
    if found.container == GGUF:
        return _of_gguf(found, name) + columns
    if found.format not in QUANTIZED:
        return [name, *columns]
    slow = found.activations == SIXTEEN and not found.input_amax
    others = {form for layers in found.layers.values() for form in layers.values()} - {KEEP}
    lines = [f"{name}{', 16-bit activations: smaller, not faster' if slow else ''}; needs {newest({found.format, *others})}"]
    lines += [f"  {line(form, full_precision=slow)}" for form in dict.fromkeys([found.format, *sorted(others)])] + columns
    if found.input_amax:
        for role, layers in _layers(dit, output.experts).items():
            lines += [f"  {told}" for told in _scaled(found, role, layers)]
        return lines
    return [*lines, f"  {FP8}: {UNCALIBRATED}"] if FP8 in {found.format, *others} and not slow else lines


def _of_gguf(found: RecipeOutput, name: str) -> list[str]:
    """A GGUF file, and what it needs."""
    lines = [f"{name}: a .gguf file for ComfyUI-GGUF, on any card: weights become 16 bit at every step, smaller, not faster; a "
             "LoRA put on it is added to them exactly"]
    if found.input_amax:
        lines.append("  input scales change nothing in it")
    return lines


def _scaled(found: RecipeOutput, role: str, layers: list[str]) -> list[str]:
    """How many layers of an expert get an input scale, and what becomes of the others that could have one."""
    forms = {layer: found.layers.get(role, {}).get(layer, found.format) for layer in layers}
    fit = {layer: form for layer, form in forms.items() if form in SCALED}
    bare = Counter(form for layer, form in fit.items() if layer not in found.input_amax.get(role, {}))
    who = "" if role == "model" else f" of {role}"
    lines = [f"input scales for {len(fit) - bare.total()} of the {len(fit)} layers{who} that can have one"]
    if found.activations == SIXTEEN:
        return lines + ([f"{bare.total()} layers{who} without one multiply in 16 bit"] if bare else [])
    return lines + ([f"{bare[FP8]} layers{who} in {FP8} without one are {UNCALIBRATED}"] if bare[FP8] else [])
