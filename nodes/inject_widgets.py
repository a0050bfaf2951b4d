"""The widgets of Inject beyond the method: how a pass's LoRAs become one change, options of the whole merge, adaptive's constants.

All are appended behind the first release's, because workflows store widgets by position, and optional, so that prompts saved by
it still run.
"""
import json

from comfy_api.latest import io

from ..engine.errors import RecipeError
from ..engine.recipes import scope
from ..engine.recipes.recipe_parts import COMBINES
from .handles import NOTHING, Dit
from .recipe_handle import OPTIONS, text
from .widgets import check_within

ADAPTIVE = "adaptive_"
RULES = {"combine": "sum", "density": 1.0, "gamma": 0.01, "slerp_t": 0.5, "drop_seed": 0, "dense_density": 1.0,
         "dense_mode": "magnitude", "blocks": ""}
NAMES = {"slerp_t": "t", "drop_seed": "seed", "blocks": "scope"}   # widget -> field of the recipe, where they differ
CONSTANTS = {
    "known_over_chance": (1.5, "a direction counts as known when the base uses it this many times more than chance would."),
    "refine_energy": (1.5, "a change is a refinement while its energy is below this many times that of the base there."),
    "share_floor": (0.2, "a refinement keeps at least this share of the sum of its singular values."),
    "share_ceiling": (0.4, "a refinement keeps at most this share of the sum of its singular values."),
    "share_over_mean": (1.8, "between the two it keeps what lies above this many times the mean singular value."),
    "new_over_mean": (0.4, "a new direction passes whole above this many times the mean singular value, else not at all."),
    "limit_new": (0.08, "the new changes of all LoRAs together, over the size of the layer, are held below this."),
    "limit_refine": (0.05, "the refinements of all LoRAs together, over the size of the layer, are held below this."),
}


def rule_inputs() -> list[io.Input]:
    """How the LoRAs of this pass become one change, and where it acts."""
    share = {"min": 0.0, "max": 1.0, "step": 0.01, "advanced": True, "optional": True}
    more = {"advanced": True, "optional": True}
    return [
        io.Combo.Input("combine", options=list(COMBINES), default=RULES["combine"], **more,
                       tooltip="How the changes of this pass's LoRAs become one. sum: added. ties: trimmed to density, then only "
                               "those of the stronger sign. dare_ties: the same with a seeded random thinning. breadcrumbs: "
                               "without the smallest and the very largest. slerp: between exactly two. orthogonal: without what "
                               "they share. Distillation LoRAs are always added as they are."),
        io.Float.Input("density", default=RULES["density"], **share,
                       tooltip="What ties, dare_ties and breadcrumbs keep of each LoRA's change."),
        io.Float.Input("gamma", default=RULES["gamma"], **share, tooltip="Share of the largest changes that breadcrumbs drops."),
        io.Float.Input("slerp_t", default=RULES["slerp_t"], **share, tooltip="slerp: from the first LoRA (0) to the second (1)."),
        io.Int.Input("drop_seed", default=RULES["drop_seed"], min=0, max=2**53 - 1, **more,
                     tooltip="Seed of random thinning; the same seed gives the same file."),
        io.Float.Input("dense_density", default=RULES["dense_density"], **share,
                       tooltip="What injection keeps of changes that are no product of two factors (LoHa, DoRA, full differences); "
                               "1: all of it."),
        io.Combo.Input("dense_mode", options=["magnitude", "dare"], default=RULES["dense_mode"], **more,
                       tooltip="magnitude: the largest stay. dare: a seeded random choice stays, enlarged to make up for it."),
        io.String.Input("blocks", default=RULES["blocks"], **more, placeholder="0-8: 0.5, ffn: 0.8",
                        tooltip="Strength by block and kind of layer: ranges such as 0-8, presets structure (0-8), motion (9-30), "
                                "aesthetic (31-39), kinds self_attn, cross_attn, ffn, other. What is not named keeps 1."),
    ]


def option_inputs() -> list[io.Input]:
    """Options of the whole merge; those of a chain of Inject nodes must agree."""
    more = {"advanced": True, "optional": True}
    return [
        io.Combo.Input("compat", options=["correct", "comfyui"], default=OPTIONS["compat"], **more,
                       tooltip="comfyui: compute every LoRA as ComfyUI 0.33 does, also where that differs from its paper (DoRA, "
                               "OFT, several spellings of one layer), to get an old merge again."),
        io.Boolean.Input("normalize", default=OPTIONS["normalize"], **more,
                         tooltip="Give every weight matrix the norm of its base back."),
        io.Boolean.Input("strict", default=OPTIONS["strict"], **more,
                         tooltip="Fail when more than strict_share of a LoRA cannot be applied to this model."),
        io.Float.Input("strict_share", default=OPTIONS["strict_share"], min=0.0, max=1.0, step=0.001, **more,
                       tooltip="For strict: the share of a LoRA's energy that may be lost."),
        io.Boolean.Input("allow_twice", default=OPTIONS["allow_twice"], **more,
                         tooltip="Let a LoRA in that is in the base already, or that is listed twice."),
    ]


def adaptive_inputs() -> list[io.Input]:
    """Constants of adaptive injection."""
    return [io.Float.Input(ADAPTIVE + name, default=value, min=0.0, max=100.0, step=0.01, advanced=True, optional=True,
                           tooltip=f"Of adaptive: {what}") for name, (value, what) in CONSTANTS.items()]


def settings_of(rules: dict, constants: dict[str, float]) -> str:
    """The fields of a pass as its handle keeps them. Raises RecipeError when a share or the blocks make no sense."""
    for name in ("density", "gamma", "slerp_t", "dense_density"):
        check_within(f"inject: {name}", rules[name], 0.0, 1.0)
    try:
        where = scope.parse(rules["blocks"])
    except ValueError as cause:
        raise RecipeError(f"inject: blocks: {cause}; correct it") from cause
    adaptive = {name.removeprefix(ADAPTIVE): value for name, value in constants.items() if name.startswith(ADAPTIVE)}
    return text({NAMES.get(name, name): value for name, value in rules.items()} | {"scope": where, "adaptive": adaptive})


def options_of(dit: Dit, asked: dict) -> str:
    """Options of the merge with one more node in the chain. Raises RecipeError when its compat differs from that before it."""
    before = json.loads(dit.options) if dit.options != NOTHING else None
    if before is None or not dit.passes:
        return text(asked)
    if before["compat"] != asked["compat"]:
        found = f"compat is {asked['compat']}, but {before['compat']} in the Inject before it"
        raise RecipeError(f"inject: {found}; choose one of them")
    strict = [each["strict_share"] for each in (before, asked) if each["strict"]]
    return text({"compat": asked["compat"], "normalize": before["normalize"] or asked["normalize"], "strict": bool(strict),
                 "strict_share": min(strict, default=asked["strict_share"]),
                 "allow_twice": before["allow_twice"] or asked["allow_twice"]})
