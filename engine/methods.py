"""Which merge method each LoRA really gets: `auto` is resolved here, once, and written down.

What `auto` became stays: a job is resumed by the method it was begun with, also by a later version. `auto` is addition until
adaptive injection exists. A distillation LoRA (Lightning, lightx2v, ...) is one exact change of the sampler's
path: gating it breaks it, so it is added even where a gate was asked for, unless the recipe insists by `gate_distillation`.
"""
from dataclasses import replace


def resolve(asked: str, distillation: str | None, *, insist: bool) -> tuple[str, str | None]:
    """(method, notice) for one LoRA. asked: auto, addition or classic; distillation: evidence that it is one, or None."""
    if asked == "classic" and distillation and not insist:
        return "addition", f"a distillation LoRA ({distillation}) is added, not gated; gate_distillation overrides this"
    return ("addition" if asked == "auto" else asked), None


def resolve_recipe(recipe, distillation: dict[str, str | None]) -> tuple[object, list[str]]:
    """The recipe with every LoRA's method resolved, and what the user should hear. distillation: LoRA path -> evidence or None."""
    notices, passes = [], []
    for each in recipe.passes:
        loras = []
        for lora in each.loras:
            evidence = next((distillation[path] for path in lora.files.values() if distillation.get(path)), None)
            method, notice = resolve(lora.method or each.method, evidence, insist=each.gate_distillation)
            notices += [f"{each.name}: {_name(lora)}: {notice}"] if notice else []
            is_fixed = (lora.method or each.method) == "auto" and lora.resolved is not None
            loras.append(lora if is_fixed else replace(lora, resolved=method))
        passes.append(replace(each, loras=tuple(loras)))
    return replace(recipe, passes=tuple(passes)), notices


def _name(lora) -> str:
    return " + ".join(sorted({path.replace("\\", "/").rsplit("/", 1)[-1] for path in lora.files.values() if path}))
