"""The engine's request for a plan, from the values of Precision Plan's widgets."""
from ..engine.calibration.layer_errors import FACTOR
from ..engine.errors import RecipeError
from ..engine.plans.plan import one_format
from ..engine.plans.request import PlanRequest, parse
from ..engine.precision import GGUF, SAFETENSORS
from . import machine, plan_files
from .plan_files import NONE, PLANS
from .precision_plan_widgets import AUTO, SWITCHES, THIS, USUAL


def request_of(roles: tuple[str, ...], asked: dict) -> PlanRequest:
    """The engine's request from the widgets' values. roles: of the model. Raises RecipeError."""
    def files(high: str, low: str, path) -> dict[str, str]:
        chosen = {"high_noise": asked[high], "low_noise": asked[low], "model": asked[high]}
        return {role: path(chosen[role]) for role in roles if chosen[role] != NONE}

    def lines(name: str) -> list[str]:
        return [line.strip() for line in asked[name].splitlines() if line.strip()]

    def plans(name: str) -> str:
        return plan_files.path_of(PLANS, name)

    sensitivity = files("sensitivity_high", "sensitivity_low", plans)
    card = machine.card() if asked["card"] == THIS else asked["card"]
    found = {
        **_source_of(asked, files("gguf_high", "gguf_low", plan_files.gguf_path)), "card": card,
        "keep_edge_blocks": asked["keep_edge_blocks"], "min_ffn_fp8": asked["min_ffn_fp8"],
        "min_ffn2_16bit": asked["min_ffn2_16bit"], "sensitivity": sensitivity, "sensitivity_action": asked["sensitivity_action"],
        "sensitivity_threshold": asked["sensitivity_threshold"] if sensitivity else None,
        "exclude": lines("exclude"), "include": [_include(line) for line in lines("include")],
        "full_precision_lists": files("full_precision_high", "full_precision_low", plans),
        "full_precision_layers": lines("full_precision_layers"),
        "full_precision_switches": [name for name in SWITCHES if asked[name]],
        "promote_below": asked["promote_below"] if asked["promote"] else None,
        "kept_dtype": None if asked["kept_dtype"] == AUTO else asked["kept_dtype"],
        "full_precision_above": FACTOR if asked.get("full_precision_measured") else None,
        "container": asked.get("container") or SAFETENSORS}  # absent in workflows from before GGUF
    return parse({"version": 1, **found}, "precision plan")


def _source_of(asked: dict, ggufs: dict[str, str]) -> dict:
    source = asked["source"]
    if source == "preset":
        return {"preset": asked["preset"], "hardware": machine.hardware() if asked["hardware"] == THIS else asked["hardware"]}
    if source == "size budget":
        return {"budget_gb": asked["budget_gb"], "minimum_fast": asked["minimum_fast"]}
    if source == "one format":
        return {"format": (asked.get("gguf_format") or USUAL) if asked.get("container") == GGUF else asked["format"]}
    if source == "plan file":
        if asked["plan_file"] == NONE:
            raise RecipeError("precision plan: source is plan file, but plan_file names none; choose one, or another source")
        return {"plan": plan_files.path_of(PLANS, asked["plan_file"])}
    if not ggufs:
        raise RecipeError("precision plan: source is gguf, but gguf_high and gguf_low name none for this model; choose one")
    return {"gguf": ggufs, "gguf_nvfp4_max_bitdepth": asked["gguf_nvfp4_max_bitdepth"], "use_fp8": asked["use_fp8"]}


def _include(line: str) -> dict[str, str]:
    pattern, equals, form = (part.strip() for part in line.rpartition("="))
    if not equals or not pattern:
        raise RecipeError(f"precision plan: include: expected a line as ffn\\.0$ = nvfp4, found {line[:80]!r}; correct it")
    return {"pattern": pattern, "format": one_format(form, "precision plan: include")}
