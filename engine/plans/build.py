"""A precision plan from all its sources: what is asked for, applied step by step to each expert.

Order, as jorismak/convert_nvfp4 has it (its own steps marked *), each step on what the one before left:
    source: format, preset, GGUF map *, plan file, budget    edge blocks *    min-ffn-fp8 *    min-ffn2 *    sensitivity *
    exclude, include    full-precision lists and switches *    shapes that a format cannot hold
There patterns choose formats before all this, and not beside a GGUF; here a person who names a layer has the last word.
"""
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePath

from ..errors import RecipeError, SourceError
from ..precision import SOURCE
from ..specs import TensorSpec
from . import gguf_map, layer_lists, patterns, presets, sensitivity
from .cards import INTS
from .moves import TO_SOLVE, Choices, fitted, keep_edges
from .names import PREFIX, bare, some
from .plan import KEEP, Choice, PrecisionPlan, block_linears, read_object, read_text
from .request import BOTH, PlanRequest, file_for

Model = Mapping[str, TensorSpec]
Read = Callable[[str], Mapping[str, str]]
IN_A_NAME = re.compile(r"(?:IQ|TQ|Q)\d(?:_\w+?)?(?=[.-]|$)|BF16|F16", re.IGNORECASE)  # Q5_K_M in Wan2.2-I2V-HighNoise-Q5_K_M.gguf


def build(model_by_role: Mapping[str, Model], request: PlanRequest, *, read: Read = gguf_map.types_of) -> PrecisionPlan:
    """The plan for the experts in `model_by_role`, every block linear of each named.

    read: path of a GGUF -> key -> type; replace it to remember headers. Raises RecipeError, SourceError, HeaderError.
    """
    loaded = PrecisionPlan.load(request.plan) if request.plan else None
    maps = {role: read(_gguf_of(request, role)) for role in model_by_role} if request.gguf else {}
    experts, notices = {}, _unused_files(request, tuple(model_by_role)) + list(loaded.notices if loaded else ())
    for role, given in model_by_role.items():
        model = {bare(key): spec for key, spec in given.items()}
        choices, told = _source(model, role, request, loaded, maps.get(role))
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
    return PrecisionPlan(
        title=_title(request, loaded, maps), experts=experts, notices=tuple(dict.fromkeys(notices)),
        kept_dtype=request.kept_dtype or (loaded.kept_dtype if loaded else SOURCE),
        fp32_names=loaded.fp32_names if loaded else names)


def _gguf_of(request: PlanRequest, role: str) -> str:
    path = file_for(request.gguf, role)
    if path is None:
        raise RecipeError(f"plan request.gguf: expected a file for {role} or for {BOTH}, found {', '.join(request.gguf)}, add one")
    return path


def _unused_files(request: PlanRequest, roles: tuple[str, ...]) -> list[str]:
    """Notices of files that are for an expert which is not there."""
    given = {"gguf": request.gguf, "sensitivity": request.sensitivity, "full_precision_lists": request.full_precision_lists}
    return [f"{field}: the file for {role} is not used, as there is no such expert" for field, files in given.items()
            for role in files if role != BOTH and role not in roles]


def _source(model: Model, role: str, request: PlanRequest, loaded: PrecisionPlan | None,
            types: Mapping[str, str] | None) -> tuple[Choices, list[str]]:
    if loaded:
        return _from_plan(model, role, loaded)
    if types is not None:
        try:
            found = gguf_map.from_gguf(model, types, nvfp4_max_bitdepth=request.gguf_nvfp4_max_bitdepth, use_fp8=request.use_fp8)
        except SourceError as cause:
            raise SourceError(f"{_gguf_of(request, role)}: {cause}") from cause
        return found, gguf_map.oddities(model, types)
    if request.preset:
        return presets.choices(model, request.preset, request.hardware)
    if request.budget_gb:
        return {layer: Choice(KEEP, reason=TO_SOLVE) for layer in block_linears(model)}, []
    return {layer: Choice(request.format, reason="all linears of the blocks") for layer in block_linears(model)}, []


def _from_plan(model: Model, role: str, loaded: PrecisionPlan) -> tuple[Choices, list[str]]:
    """The expert of that role in a loaded plan, or its only expert; layers it does not name are kept."""
    told, named, linears = [], loaded.experts.get(role), block_linears(model)
    if named is None:
        if len(loaded.experts) != 1:
            raise RecipeError(f"plan {loaded.title}: expected a plan for {role}, "
                              f"found one for {' and '.join(loaded.experts) or 'none'}, choose another plan")
        (other, named), = loaded.experts.items()
        told.append(f"plan {loaded.title}: made for {other}, used for {role}")
    missing, extra = [layer for layer in linears if layer not in named], [layer for layer in named if layer not in linears]
    if missing:
        told.append(f"plan {loaded.title}: {len(missing)} layers are not in it and stay unquantized: {some(missing)}")
    if extra:
        told.append(f"plan {loaded.title}: {len(extra)} of its layers are not linears of this model's blocks: {some(extra)}")
    return {layer: named.get(layer, Choice(KEEP, reason="not in the plan file")) for layer in linears}, told


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
    if request.budget_gb and request.sensitivity_action != KEEP:
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


def _title(request: PlanRequest, loaded: PrecisionPlan | None, maps: Mapping[str, Mapping[str, str]]) -> str:
    if loaded:
        return loaded.title
    if maps:
        named = IN_A_NAME.findall(PurePath(_gguf_of(request, next(iter(maps)))).name)
        common = Counter(name for types in maps.values() for name in types.values() if name != "F32").most_common(1)
        return f"gguf-{named[-1] if named else common[0][0]}".lower() if named or common else "gguf"
    if request.budget_gb:
        return f"{request.budget_gb:g}gb"
    return f"{request.preset}-{request.hardware}" if request.preset else request.format
