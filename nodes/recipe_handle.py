"""Between the engine's recipe and the handle of one: the passes and options of a merge, without model and outputs."""
import dataclasses
import json

from .handles import Lora, MergePass, Recipe

# Options of the whole merge, with their defaults.
OPTIONS = {"compat": "correct", "normalize": False, "strict": False, "strict_share": 0.01, "allow_twice": False}
OWN = ("name", "method", "global_factor", "gate_distillation")


def handle_of(recipe) -> Recipe:
    """The passes of an engine's Recipe, with its options; files of `model` stand in high."""
    return Recipe(tuple(map(_pass_of, recipe.passes)), text({name: getattr(recipe, name) for name in OPTIONS}))


def json_of(handle: Recipe, roles: tuple[str, ...]) -> dict:
    """Passes and options of a recipe for a model with these roles, as `engine.recipe.parse` takes them."""
    return {"passes": [each.as_json(roles) for each in handle.passes], **json.loads(handle.options)}


def text(value: dict) -> str:
    """JSON of an object for a handle; equal objects give equal text."""
    return json.dumps(value, sort_keys=True)


def _pass_of(each) -> MergePass:
    """The handle of an engine's Pass."""
    plain = dataclasses.asdict(each)
    settings = text({name: value for name, value in plain.items() if name not in {*OWN, "classic", "loras"}})
    return MergePass(*(plain[name] for name in OWN), tuple(plain["classic"].items()), tuple(map(_lora_of, each.loras)), settings)


def _lora_of(entry) -> Lora:
    """The handle of an engine's LoraEntry."""
    high, low = (next(((entry.files[role], entry.strength.get(role, 1.0)) for role in roles if role in entry.files), (None, 1.0))
                 for roles in (("high_noise", "model"), ("low_noise",)))
    return Lora(high[0], low[0], high[1], low[1], entry.method, entry.resolved, scope=tuple(entry.scope.items()),
                rs_lora=entry.rs_lora, protected=entry.protected)
