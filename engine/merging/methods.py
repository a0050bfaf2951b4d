"""Which merge method each LoRA really gets, and which are protected: resolved here, once, and written down.

What `auto` became stays: a job is resumed by the method it was begun with, also by a later version. A distillation LoRA
(Lightning, lightx2v, ...) is one exact change of the sampler's path: gating or averaging it breaks it, so it is protected: added
exactly, even where a gate or another method was asked for, unless the recipe says otherwise (`protected`, `gate_distillation`).
"""
from dataclasses import replace

GATES = ("classic", "adaptive")
AUTO = "addition"                                  # for what is not protected; a better choice needs figures in docs/log.md


def resolve(asked: str, protected: str | None) -> tuple[str, str | None]:
    """(method, notice) for one LoRA. asked: auto, addition, classic or adaptive; protected: why it is, or None."""
    if asked in GATES and protected:
        return "addition", f"a distillation LoRA ({protected}) is added, not gated; protected or gate_distillation overrides this"
    return (("addition" if protected else AUTO) if asked == "auto" else asked), None


def protection(asked: str, evidence: str | None, *, said: bool | None, insist: bool) -> str | None:
    """Why a LoRA is added exactly, outside gates and methods; None when it is not.

    asked: method; evidence: of distillation; said: the entry's own `protected`; insist: the pass gates distillation LoRAs too.
    """
    if said is not None:
        return (evidence or "the recipe says so") if said else None
    return None if insist and asked in GATES else evidence


def resolve_recipe(recipe, distillation: dict[str, str | None]) -> tuple[object, list[str]]:
    """The recipe with every LoRA's `resolved` method and `protected` (true or false), and what the user should hear.

    distillation: LoRA path -> evidence or None; evidence on one half is for both.
    """
    notices, passes = [], []
    for each in recipe.passes:
        loras = []
        for lora in each.loras:
            asked = lora.method or each.method
            evidence = next((distillation[path] for path in lora.files.values() if distillation.get(path)), None)
            why = protection(asked, evidence, said=lora.protected, insist=each.gate_distillation)
            method, notice = resolve(asked, why)
            notices += [f"{each.name}: {_name(lora)}: {notice}"] if notice else []
            is_fixed = asked == "auto" and lora.resolved is not None
            loras.append(replace(lora, resolved=lora.resolved if is_fixed else method, protected=why is not None))
        passes.append(replace(each, loras=tuple(loras)))
    return replace(recipe, passes=tuple(passes)), notices


def _name(lora) -> str:
    return " + ".join(sorted({path.replace("\\", "/").rsplit("/", 1)[-1] for path in lora.files.values() if path}))
