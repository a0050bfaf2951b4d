"""What a precision plan begins with: the formats that its one source gives the layers, and what the plan is called after it."""
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath

from ..errors import RecipeError, SourceError
from ..gguf_mix import MIXES, mix_types
from ..precision import GGUF
from ..specs import TensorSpec
from . import gguf_map, presets
from .moves import TO_SOLVE, Choices
from .names import some
from .plan import KEEP, Choice, PrecisionPlan, block_linears
from .request import BOTH, PlanRequest, file_for

Model = Mapping[str, TensorSpec]
IN_A_NAME = re.compile(r"(?:IQ|TQ|Q)\d(?:_\w+?)?(?=[.-]|$)|BF16|F16", re.IGNORECASE)  # Q5_K_M in Wan2.2-I2V-HighNoise-Q5_K_M.gguf


def gguf_of(request: PlanRequest, role: str) -> str:
    """The map of an expert. Raises RecipeError when there is none."""
    path = file_for(request.gguf, role)
    if path is None:
        raise RecipeError(f"plan request.gguf: expected a file for {role} or for {BOTH}, found {', '.join(request.gguf)}, add one")
    return path


def formats_of(model: Model, role: str, request: PlanRequest, loaded: PrecisionPlan | None,
               types: Mapping[str, str] | None) -> tuple[Choices, list[str]]:
    """The choice of each block linear of one expert, and notices. loaded: the plan file, types: the GGUF map's, where the request
    names one. Raises RecipeError, SourceError."""
    if loaded:
        return _from_plan(model, role, loaded)
    if types is not None:
        try:
            if request.container == GGUF:
                found = gguf_map.copied(model, types)
                return found, gguf_map.oddities(model, types, found)
            found = gguf_map.from_gguf(model, types, nvfp4_max_bitdepth=request.gguf_nvfp4_max_bitdepth, use_fp8=request.use_fp8)
        except SourceError as cause:
            raise SourceError(f"{gguf_of(request, role)}: {cause}") from cause
        return found, gguf_map.oddities(model, types)
    if request.preset:
        return presets.choices(model, request.preset, request.hardware)
    if request.budget_gb:
        return {layer: Choice(KEEP, reason=TO_SOLVE) for layer in block_linears(model)}, []
    if request.format in MIXES:
        return _mixed(model, request.format), []
    return {layer: Choice(request.format, reason="all linears of the blocks") for layer in block_linears(model)}, []


def _mixed(model: Model, name: str) -> Choices:
    """By the rules of a mix of GGUF types."""
    types = mix_types(name, [f"{layer}.weight" for layer in block_linears(model)])
    common = MIXES[name].default
    return {key.removesuffix(".weight"): Choice(each, reason=name if each == common else f"{name}: more bits for v and ffn.2")
            for key, each in types.items()}


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


def title_of(request: PlanRequest, loaded: PrecisionPlan | None, maps: Mapping[str, Mapping[str, str]]) -> str:
    """A short word for file names. maps: role -> types of the GGUF maps."""
    if loaded:
        return loaded.title
    if maps:
        named = IN_A_NAME.findall(PurePath(gguf_of(request, next(iter(maps)))).name)
        common = Counter(name for types in maps.values() for name in types.values() if name != "F32").most_common(1)
        return f"gguf-{named[-1] if named else common[0][0]}".lower() if named or common else "gguf"
    if request.budget_gb:
        return f"{request.budget_gb:g}gb"
    return f"{request.preset}-{request.hardware}" if request.preset else request.format
