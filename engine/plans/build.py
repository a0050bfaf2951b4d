"""A precision plan from all its sources: what is asked for, applied step by step to each expert.

Order, as jorismak/convert_nvfp4 has it (its own steps marked *), each step on what the one before left:
    source: format, preset, GGUF map *, plan file, budget    edge blocks *    min-ffn-fp8 *    min-ffn2 *    sensitivity *
    exclude, include    full-precision lists and switches *    shapes that a format cannot hold
There patterns choose formats before all this, and not beside a GGUF; here a person who names a layer has the last word.
"""
from collections.abc import Callable, Mapping
from pathlib import PurePath

from ..errors import RecipeError
from ..precision import GGUF, SOURCE
from ..specs import TensorSpec
from . import gguf_map, layer_lists, patterns, sensitivity
from .cards import INTS
from .moves import Choices, fitted, keep_edges
from .names import PREFIX, bare
from .plan import KEEP, PrecisionPlan, block_linears, read_object, read_text
from .request import BOTH, PlanRequest, file_for
from .sources import formats_of, gguf_of, title_of

Model = Mapping[str, TensorSpec]
Read = Callable[[str], Mapping[str, str]]


def build(model_by_role: Mapping[str, Model], request: PlanRequest, *, read: Read = gguf_map.types_of) -> PrecisionPlan:
    """The plan for the experts in `model_by_role`, every block linear of each named.

    read: path of a GGUF -> key -> type; replace it to remember headers. Raises RecipeError, SourceError, HeaderError.
    """
    loaded = PrecisionPlan.load(request.plan) if request.plan else None
    maps = {role: read(gguf_of(request, role)) for role in model_by_role} if request.gguf else {}
    experts, notices = {}, _unused_files(request, tuple(model_by_role)) + list(loaded.notices if loaded else ())
    for role, given in model_by_role.items():
        model = {bare(key): spec for key, spec in given.items()}
        choices, told = formats_of(model, role, request, loaded, maps.get(role))
        if model.keys() != given.keys():
            told.append(f"{PREFIX} before the names of the model was ignored")
        for step in (_switches, _sensitivity, _patterns):
            choices, more = step(choices, model, role, request)
            told += more
        experts[role], more = fitted(choices, block_linears(model))
        if not request.budget_gb:                  # else it is the caller's, when the budget is solved
            experts[role], last = finish(experts[role], model, role, request)
            more += last
        notices += [f"{role}: {each}" for each in told + more]
    names = tuple(dict.fromkeys(name for types in maps.values() for name in gguf_map.fp32_names(types))) if maps else None
    return _of_its_kind(PrecisionPlan(
        title=title_of(request, loaded, maps), experts=experts, notices=tuple(dict.fromkeys(notices)),
        kept_dtype=request.kept_dtype or (loaded.kept_dtype if loaded else SOURCE),
        fp32_names=loaded.fp32_names if loaded else names), request)


def _of_its_kind(plan: PrecisionPlan, request: PlanRequest) -> PrecisionPlan:
    """The plan. Raises RecipeError where a plan file was made for another kind of file than is asked for."""
    quantized = any(each.format != KEEP for choices in plan.experts.values() for each in choices.values())
    if quantized and plan.container != request.container:
        raise RecipeError(f"plan {plan.title}: expected formats of a {request.container} file, found those of a {plan.container} "
                          f"file; choose another plan, or {plan.container} as container")
    return plan


def _unused_files(request: PlanRequest, roles: tuple[str, ...]) -> list[str]:
    """Notices of files that are for an expert which is not there, and of fields that change nothing in a GGUF."""
    given = {"gguf": request.gguf, "sensitivity": request.sensitivity, "full_precision_lists": request.full_precision_lists}
    idle = request.full_precision if request.container == GGUF else ()
    return [f"{field}: the file for {role} is not used, as there is no such expert" for field, files in given.items()
            for role in files if role != BOTH and role not in roles] + [
        f"{field}: changes nothing in a GGUF, whose layers are all multiplied in 16 bit" for field in idle]


def _switches(choices: Choices, model: Model, role: str, request: PlanRequest) -> tuple[Choices, list[str]]:
    for is_asked, step in ((request.keep_edge_blocks, keep_edges), (request.min_ffn_fp8, sensitivity.min_ffn_fp8),
                           (request.min_ffn2_16bit, sensitivity.min_ffn2_16bit)):
        choices = step(choices) if is_asked else choices
    return choices, []


def _sensitivity(choices: Choices, model: Model, role: str, request: PlanRequest) -> tuple[Choices, list[str]]:
    path = file_for(request.sensitivity, role)
    if path is None:
        return choices, []
    found, limit = read_object(path, "a sensitivity JSON"), request.sensitivity_threshold
    over, notices = sensitivity.flagged(found, limit, model, PurePath(path).name)
    if request.sensitivity_action != KEEP and (request.budget_gb or request.container == GGUF):
        return choices, notices                    # `finish` does it, when there are formats to multiply in 16 bit
    return sensitivity.apply(choices, over, limit, request.sensitivity_action), notices


def _patterns(choices: Choices, model: Model, role: str, request: PlanRequest) -> tuple[Choices, list[str]]:
    return patterns.apply(choices, [(each.pattern, each.format) for each in request.include], request.exclude)


def _full_precision(choices: Choices, model: Model, role: str, request: PlanRequest) -> tuple[Choices, list[str]]:
    path = file_for(request.full_precision_lists, role)
    where = PurePath(path).name if path else "list"
    text = "\n".join([*([read_text(path, "a list of layers")] if path else []), *request.full_precision_layers])
    listed, notices = layer_lists.parse(text, model, where) if text else ([], [])
    found, idle = layer_lists.apply(choices, listed, request.full_precision_switches, where)
    return found, notices + idle


def finish(choices: Choices, model: Model, role: str, request: PlanRequest) -> tuple[Choices, list[str]]:
    """The last step, full precision, on formats that are decided; after a budget that of a sensitivity file too. Raises
    RecipeError."""
    if request.container == GGUF:
        return choices, []
    if request.budget_gb and request.sensitivity_action != KEEP and file_for(request.sensitivity, role):
        path, limit = file_for(request.sensitivity, role), request.sensitivity_threshold
        over, _ = sensitivity.flagged(read_object(path, "a sensitivity JSON"), limit, model, PurePath(path).name)
        choices = sensitivity.apply(choices, over, limit, request.sensitivity_action)
    found, told = _full_precision(choices, model, role, request)
    return found, told + _without_effect(found)


def _without_effect(choices: Choices) -> list[str]:
    """A notice where ComfyUI multiplies otherwise than the plan says."""
    deaf = [layer for layer, choice in choices.items() if choice.full_precision and choice.format in INTS]
    return [f"{len(deaf)} layers in INT formats multiply in int8 all the same: ComfyUI 0.33 hands them to comfy-kitchen, which "
            "does not look at full_precision_matrix_mult"] if deaf else []
