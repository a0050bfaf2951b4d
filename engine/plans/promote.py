"""More bits for layers in which the LoRAs would drown: where the effect over the quantizer's noise is under a threshold.

effect over noise = ‖δV‖ / ‖(Ŵ - W')V‖ in the space of the merged delta's rows (jobs/survival.py): at 1, what a prompt that the LoRA
listens to gets from it is as large as what rounding adds there. A layer goes up its ladder, 4 bit (in a GGUF: under 8), 8 bit,
16 bit, to the first step that is enough, or to the last.
"""
from collections import Counter
from collections.abc import Mapping

from ...quant.formats import BLOCK_TYPES
from .names import some
from .plan import KEEP, Choice

FOUR_BITS = frozenset({"nvfp4", "convrot_w4a4", "asym_w4a8_int8"})
UNDER_EIGHT = FOUR_BITS | frozenset(BLOCK_TYPES) - {"Q8_0"}
Effects = Mapping[str, Mapping[str, float]]        # layer -> format -> effect over noise, of layers that something is merged into


def ladder(form: str, eight: str) -> tuple[str, ...]:
    """The formats above one. eight: which 8-bit format narrower layers go to."""
    return (eight, KEEP) if form in UNDER_EIGHT else () if form == KEEP else (KEEP,)


def wanted(forms: set[str], eight: str) -> tuple[str, ...]:
    """Every format that promoting from `forms` may ask about, and `forms`, for the measuring step."""
    return tuple(dict.fromkeys([*sorted(forms - {KEEP}), *([eight] if forms & UNDER_EIGHT else [])]))


def promote(choices: Mapping[str, Choice], effects: Effects, threshold: float, eight: str) -> tuple[dict[str, Choice], list[str]]:
    """(choices with the layers raised that need it, notices).

    threshold: least effect over noise, 0 raises nothing; eight: a format of 8 bits. A layer whose effect in a format is not in
    `effects` keeps it.
    """
    found, moves = dict(choices), Counter()
    for layer, choice in choices.items():
        told = effects.get(layer, {})
        if choice.format == KEEP or told.get(choice.format, threshold) >= threshold:
            continue
        steps = ladder(choice.format, eight)
        step = next((step for step in steps if step == KEEP or told.get(step, 0.0) >= threshold), KEEP)
        why = f"{choice.format} would drown the LoRAs: effect over noise {told[choice.format]:.2f}, under {threshold:g}"
        found[layer] = Choice(step, choice.full_precision and step != KEEP, why)
        moves[choice.format, step] += 1
    said = [f"{count} layers raised from {before} to {'16 bit' if after == KEEP else after}: the LoRAs would drown in its noise"
            for (before, after), count in moves.items()]
    drowned = [layer for layer, choice in found.items() if choice.format != KEEP
               and effects.get(layer, {}).get(choice.format, threshold) < threshold]
    return found, said + ([f"{len(drowned)} layers still under the threshold: {some(drowned)}"] if drowned else [])
