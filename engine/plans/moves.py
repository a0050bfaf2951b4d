"""How a choice is changed after it was made, with the whole story left in its reason, and what a format cannot hold."""
import dataclasses
from collections.abc import Iterable, Mapping

from ...quant.formats import BLOCK_TYPES, FORMATS
from ..gguf_mix import fallback
from ..precision import block_of, stored
from ..specs import TensorSpec
from .names import some
from .plan import KEEP, Choice

Choices = dict[str, Choice]  # layer -> choice, of one expert
TO_SOLVE = "left to the size budget"                # reason of a choice that the measuring step still has to make


def moved(choice: Choice, name: str, why: str) -> Choice:
    """`choice` in format `name`, with why at the end of its reason; as it is when it has that format already. What a size budget
    would have decided is decided with it."""
    if choice.reason == TO_SOLVE:
        return Choice(name, reason=f"{why}: {name}")
    if choice.format == name:
        return choice
    return Choice(name, choice.full_precision and name != KEEP, "; ".join(filter(None, (choice.reason, f"{why}: {name}"))))


def in_full_precision(choice: Choice, why: str) -> Choice:
    """`choice` with products in 16 bit; as it is when it has them already. A kept layer has them anyway."""
    if choice.format == KEEP or choice.full_precision:
        return choice
    told = "; ".join(filter(None, (choice.reason, f"{why}: products in 16 bit")))
    return dataclasses.replace(choice, full_precision=True, reason=told)


def edge_layers(layers: Iterable[str], width: int) -> dict[str, int]:
    """Layer -> block number of what lies in the first and the last `width` main blocks."""
    numbers = {layer: found[0] for layer in layers if (found := block_of(f"{layer}.weight"))}
    last = max(numbers.values(), default=0)
    return {layer: number for layer, number in numbers.items() if number < width or number > last - width}


def keep_edges(choices: Mapping[str, Choice], width: int = 2) -> Choices:
    """The first and the last two blocks unquantized: `--gguf-keep-edge-blocks-fp16` of the original converter."""
    edges = edge_layers(choices, width)
    return {layer: moved(choice, KEEP, f"edge block {edges[layer]}") if layer in edges else choice
            for layer, choice in choices.items()}


def fitted(choices: Mapping[str, Choice], linears: Mapping[str, TensorSpec]) -> tuple[Choices, list[str]]:
    """`choices` with KEEP for each layer whose shape its format cannot hold, or what llama.cpp takes for a type of GGUF, and a
    notice per format of how many these are."""
    found, misfits, fallen = {}, {}, {}
    for layer, choice in choices.items():
        found[layer], columns = choice, linears[layer].shape[1]
        if choice.format in BLOCK_TYPES:
            name = fallback(choice.format, columns)
            if name != choice.format:
                found[layer] = moved(choice, name if name in BLOCK_TYPES else KEEP, f"{columns} columns")
                fallen.setdefault((choice.format, found[layer].format), []).append(layer)
        elif choice.format != KEEP:
            try:
                stored(FORMATS[choice.format], linears[layer].shape)
            except ValueError as cause:
                found[layer] = moved(choice, KEEP, f"{cause}")
                misfits.setdefault(choice.format, []).append((layer, cause))
    told = [f"{len(each)} layers stay unquantized, as {name} cannot hold them: {each[0][0]}: {each[0][1]}"
            for name, each in misfits.items()]
    return found, told + [f"{len(each)} layers {'stay unquantized' if name == KEEP else f'become {name}'}, as their columns are no "
                          f"multiple of the block of {asked}: {some(each)}" for (asked, name), each in fallen.items()]
