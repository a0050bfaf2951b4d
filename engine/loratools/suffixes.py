"""Which part of an adapter a tensor of a LoRA is, with the spellings of one part taken together; from adapters/spelling.py."""
from ..loras.adapters.spelling import BIASES, ENDINGS, GLORA, MAGNITUDES, PAIR_PARTS, ROTATIONS

_ALIKE = {
    **{up: "up" for up, _ in PAIR_PARTS.values()}, **{down: "down" for _, down in PAIR_PARTS.values()},
    **dict.fromkeys(BIASES, "bias"), **dict.fromkeys(set(MAGNITUDES) - {"dora_scale"}, "magnitude"),
    "diff_m": "diff",                              # of a module whose name has got its `modulation` already (dialects.split)
}
_KINDS = {"mid": "a Tucker core", "dora_scale": "DoRA", "magnitude": "DoRA", "bias": "LoRA bias",
          "weight": "IA3", "on_input": "IA3", "oft_blocks": "OFT", "rescale": "OFT",
          **dict.fromkeys(ROTATIONS, "OFT"), **dict.fromkeys(GLORA, "GLoRA")}
_FAMILIES = {"hada_": "LoHa", "lokr_": "LoKr"}


def alike(part: str) -> str:
    """`up`, `down`, `bias`, `magnitude` and `diff` for every spelling of these; any other part of adapters.SUFFIXES as it is."""
    return _ALIKE.get(part, part)


def ending(part: str) -> str:
    """The suffix of a part that has one spelling."""
    return ENDINGS[part]


def kind_of(part: str) -> str:
    """In words for people: which adapter kind a part belongs to."""
    family = next((name for start, name in _FAMILIES.items() if part.startswith(start)), None)
    return family or _KINDS.get(part, part if part in ENDINGS else "LoRA")
