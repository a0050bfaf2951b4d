"""LoRA in all spellings, LoCon with a Tucker core, and what PEFT puts beside them: DoRA's magnitude, a bias.

    delta = alpha / rank * up @ down                         Hu et al. 2021, arXiv 2106.09685
    delta = alpha / rank * einsum(core, up, down)            LyCORIS, arXiv 2309.14859, section 3.2; core (r, r, kernel...)
    bias delta = alpha / rank * lora_B.bias                  PEFT, LoraConfig.lora_bias: up(down(x)) + bias, scaled together
"""
from ..fit import core_problem, pair_problem
from ..modules import Diff, Pair, Refused
from .dora import decompose
from .layer import Layer, Result
from .spelling import BIASES, MAGNITUDES, PAIR_PARTS

BIAS_OF = {"up bias": "lora", "B bias": "peft", "default up bias": "default"}
OWN = (*(part for pair in PAIR_PARTS.values() for part in pair), "mid", *BIASES)


def build(layer: Layer) -> list[Result]:
    """Every pair of the module, each with its core and bias; a magnitude belongs to the only product there is."""
    present = {name: pair for name, pair in PAIR_PARTS.items() if any(part in layer.parts for part in pair)}
    results: list[Result] = []
    for name, pair in present.items():
        core = ("mid",) if name == "lora" else ()
        own = (*pair, *core, *(part for part, whose in BIAS_OF.items() if whose == name))
        problem = _problem(layer, pair, name)
        results += layer.refuse(own, problem) if problem else _product(layer, pair, name)
    if "lora" not in present:
        results += layer.refuse(["mid"], "core without factors")
    orphans = [part for part, whose in BIAS_OF.items() if whose not in present]
    return results + layer.refuse(orphans, "bias of a LoRA without its factors")


def _problem(layer: Layer, pair: tuple[str, str], name: str) -> str | None:
    if not all(part in layer.parts for part in pair):
        return "partner factor missing"
    if layer.weight is None:
        return layer.missing()
    shapes, target = [layer.shape(part) for part in pair], layer.target(layer.weight)
    if name == "lora" and "mid" in layer.parts:
        return core_problem(shapes[0], layer.shape("mid"), shapes[1], target)
    return pair_problem(*shapes, target)


def _product(layer: Layer, pair: tuple[str, str], name: str) -> list[Result]:
    up, down = (layer.parts[part] for part in pair)
    mid = layer.parts.get("mid") if name == "lora" else None
    value, told = layer.lora_factor(pair[1], layer.shape(pair[1])[0])
    module = Pair(up, down, layer.parts.get("alpha"), layer.shape(pair[0])[1], value, told, mid)
    results = decompose(layer, module) if any(part in layer.parts for part in MAGNITUDES) else [(layer.weight, module)]
    for part in (part for part, whose in BIAS_OF.items() if whose == name and part in layer.parts):
        if isinstance(results[0], Refused):
            results += layer.refuse([part], results[0].reason)
        elif layer.bias is None:
            results += layer.refuse([part], layer.missing("bias"))
        elif layer.shape(part) != layer.target(layer.bias):
            results += layer.refuse([part], f"shape {layer.shape(part)} does not fit {layer.target(layer.bias)}")
        else:
            results.append((layer.bias, Diff(layer.parts[part], "bias", value, told)))
    return results
