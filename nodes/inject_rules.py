"""What Inject's widgets mean together: fields of a pass, options of the merge, and what is told of them. Needs no ComfyUI."""
import json

from ..engine.errors import RecipeError
from ..engine.recipes import scope
from .handles import NOTHING, Dit
from .recipe_handle import OPTIONS, text
from .widgets import check_within

PREFIX = "classic_"                                # of the widgets
ADAPTIVE = "adaptive_"
RULES = {"combine": "sum", "density": 1.0, "gamma": 0.01, "slerp_t": 0.5, "drop_seed": 0, "dense_density": 1.0,
         "dense_mode": "magnitude", "blocks": ""}
# Values of the original Action-Master engine, and what each does in its formulas.
CLASSIC = {
    "novelty": (1.5, "a layer is new where the variance of its change is more than this many times that of the base."),
    "sensitivity_new": (0.4, "in a new layer, a change below this many times the mean size becomes zero; lower keeps more."),
    "sensitivity_refine": (1.8, "in a layer that is not new, a change below this many times the mean size becomes zero; lower "
                                "keeps more."),
    "limit_new": (0.08, "when the largest change of a new layer, before the strength, exceeds this weight value, the layer's whole "
                        "change is scaled down to it."),
    "limit_refine": (0.05, "when the largest change of a layer that is not new, before the strength, exceeds this weight value, "
                           "the layer's whole change is scaled down to it."),
}
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
NAMES = {"slerp_t": "t", "drop_seed": "seed", "blocks": "scope"}   # widget -> field of the recipe, where they differ
SHARES = ("density", "gamma", "slerp_t", "dense_density")
KEEPS = ("ties", "dare_ties", "breadcrumbs")       # methods that density is for
USUAL = {"method": "auto", "global_factor": 1.0, "pass_name": "", "gate_distillation": False, **RULES, **OPTIONS,
         **{PREFIX + name: value for name, (value, _) in CLASSIC.items()},
         **{ADAPTIVE + name: value for name, (value, _) in CONSTANTS.items()}}


def settings_of(rules: dict, constants: dict[str, float]) -> str:
    """The fields of a pass as its handle keeps them. Raises RecipeError when a share, the blocks or the constants make no sense."""
    for name in SHARES:
        check_within(f"inject: {name}", rules[name], 0.0, 1.0)
    if rules["combine"] in KEEPS and rules["density"] == 0.0:
        raise RecipeError(f"inject: density is 0, so {rules['combine']} would keep nothing; raise it")
    try:
        where = scope.parse(rules["blocks"])
    except ValueError as cause:
        raise RecipeError(f"inject: blocks: {cause}; correct it") from cause
    adaptive = {name.removeprefix(ADAPTIVE): value for name, value in constants.items() if name.startswith(ADAPTIVE)}
    whole = {name: value for name, (value, _) in CONSTANTS.items()} | adaptive
    if not whole["share_floor"] <= whole["share_ceiling"] <= 1.0:
        found = f"{whole['share_floor']:g} and {whole['share_ceiling']:g}"
        raise RecipeError(f"inject: expected adaptive_share_floor <= adaptive_share_ceiling <= 1, found {found}; correct them")
    return text({NAMES.get(name, name): value for name, value in rules.items()} | {"scope": where, "adaptive": adaptive})


def both_options(one: dict, other: dict) -> dict:
    """Options of a recipe with those of the node that puts it on a model: the stricter strict, either's allowance; its compat."""
    strict = [each["strict_share"] for each in (one, other) if each["strict"]]
    return {"compat": one["compat"], "normalize": one["normalize"] or other["normalize"], "strict": bool(strict),
            "strict_share": min(strict, default=other["strict_share"]), "allow_twice": one["allow_twice"] or other["allow_twice"]}


def options_of(dit: Dit, asked: dict) -> str:
    """Options of the merge with one more node in the chain. Raises RecipeError when its compat differs from that before it."""
    before = json.loads(dit.options) if dit.options != NOTHING else None
    if before is None or not dit.passes:
        return text(asked)
    if before["compat"] != asked["compat"]:
        found = f"compat is {asked['compat']}, but {before['compat']} in the Inject before it"
        raise RecipeError(f"inject: {found}; choose one of them")
    return text(both_options(before, asked))


def overruled(widgets: dict) -> list[str]:
    """What to tell of widgets that were set, and that a recipe overrules. widgets: name -> value."""
    named = [name for name, value in widgets.items() if value != USUAL[name]]
    return [f"note: the recipe says how its passes are merged; not used here: {', '.join(named)}"] if named else []


def describe_rules(recipe) -> list[str]:
    """A line for every pass that is more than a plain sum, and for the whole merge. recipe: the engine's."""
    lines = []
    for each in recipe.passes:
        told = [each.combine] * (each.combine != "sum") + [f"density {each.density:g}"] * (each.combine in KEEPS)
        told += [f"blocks {scope.write(each.scope)}"] if each.scope else []
        told += [f"dense density {each.dense_density:g} by {each.dense_mode}"] if each.dense_density < 1.0 else []
        lines += [f"{each.name}: {', '.join(told)}"] if told else []
    whole = [f"compat {recipe.compat}"] * (recipe.compat != "correct") + ["normalize"] * recipe.normalize
    whole += [f"strict above {recipe.strict_share:.1%}"] * recipe.strict
    return lines + ([f"whole merge: {', '.join(whole)}"] if whole else [])
