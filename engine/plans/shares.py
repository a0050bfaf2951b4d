"""Which share of an expert's multiply-adds runs in FP4, FP8, INT8, INT4 and 16 bit on a class of card, and what that promises.

    multiply-adds of a linear = out_features * in_features * tokens

tokens is the video's sequence for most; 512 for what reads the text (cross_attn.k and .v, text_embedding), 257 for what reads the
picture (k_img, v_img, img_emb: comfy/ldm/wan/model.py), 1 for the time (time_embedding, time_projection). The sequence is
((frames - 1) / 4 + 1) * (height / 16) * (width / 16): VAE 4x8x8, patch 1x2x2, so 81 frames of 832x480 are 32,760 tokens.
Attention's own products, QKᵀ and the sum over v, are left out: they run in 16 bit whatever the weights are stored in.

Speed: with shares s of units that are r times as fast as 16 bit, the linears are at most 1 / Σ(s / r) times as fast. r is the ratio
of the dense tensor-core peaks: NVIDIA's architecture papers (8 bit twice, 4 bit four times 16 bit), AMD's RDNA 3 ISA (WMMA: INT8 as
fast as 16 bit, INT4 twice), Intel's XMX (INT8 twice).
"""
import re
from collections import Counter
from collections.abc import Mapping

from ..specs import TensorSpec
from .cards import CARDS, FP4, FP8, INT4, INT8, NATIVE, SIXTEEN, UNITS, judge
from .plan import KEEP, Choice

TEXT_TOKENS, IMAGE_TOKENS = 512, 257               # umt5 padded to 512; CLIP ViT-H, 16 * 16 + 1
FEW = ((re.compile(r".*\.cross_attn\.(k|v)|text_embedding\..*"), TEXT_TOKENS),
       (re.compile(r".*\.(k_img|v_img)|img_emb\..*"), IMAGE_TOKENS), (re.compile(r"time_(embedding|projection)\..*"), 1))
RATES = {FP4: 4.0, FP8: 2.0, INT8: 2.0, INT4: 4.0, SIXTEEN: 1.0}
RDNA_RATES = {**RATES, INT8: 1.0, INT4: 2.0}       # RDNA 3; RDNA 4 doubles INT8
NO_RATES = dict.fromkeys(UNITS, 1.0)               # a processor: no promise
LITTLE = 1.5                                       # under this, attention and the rest leave too little to notice; chosen


def sequence(frames: int = 81, height: int = 480, width: int = 832, *, spatial: int = 8) -> int:
    """Tokens of a video. frames: 4n + 1; height, width: pixels; spatial: the VAE's, 8 of Wan 2.1 (14B), 16 of Wan 2.2 (5B)."""
    return ((frames - 1) // 4 + 1) * (height // (2 * spatial)) * (width // (2 * spatial))


SEQUENCE = sequence()                              # 32,760


def multiply_adds(model: Mapping[str, TensorSpec], tokens: int = SEQUENCE) -> dict[str, int]:
    """Layer -> multiply-adds of one forward pass, for every linear of a model. tokens: the video's sequence."""
    linears = {key.removesuffix(".weight"): spec for key, spec in model.items() if key.endswith(".weight") and len(spec.shape) == 2}
    return {layer: spec.numel * next((few for names, few in FEW if names.fullmatch(layer)), tokens)
            for layer, spec in linears.items()}


def shares(model: Mapping[str, TensorSpec], choices: Mapping[str, Choice], card: str, tokens: int = SEQUENCE) -> dict[str, float]:
    """Unit -> share of the multiply-adds, every unit of UNITS named; they add up to 1. A layer without a choice is in 16 bit."""
    found = Counter()
    for layer, count in multiply_adds(model, tokens).items():
        found[_verdict(layer, choices, card).unit] += count
    whole = found.total() or 1
    return {unit: found[unit] / whole for unit in UNITS}


def speed(found: Mapping[str, float], card: str) -> float:
    """How many times as fast as in 16 bit the linears are at most. found: from `shares`."""
    rates = {"rdna": RDNA_RATES, "cpu": NO_RATES}.get(card, RATES)
    return 1.0 / sum(share / rates[unit] for unit, share in found.items())


def headline(found: Mapping[str, float], card: str) -> str:
    """One line: `RTX 40: 62 % FP8, 38 % 16 bit: expect little speed over BF16`."""
    said = ", ".join(f"{percent(share)} {named(unit)}" for unit, share in found.items() if share)
    factor = speed(found, card)
    promise = "expect little speed over BF16" if factor < LITTLE else f"the linears up to {factor:.1f}x as fast as in BF16"
    return f"{CARDS[card]}: {said}: {promise}"


def lines(model: Mapping[str, TensorSpec], choices: Mapping[str, Choice], card: str, tokens: int = SEQUENCE) -> list[str]:
    """The headline, and a line for each cause: share, unit, what the layers are, and why they run there; the largest first."""
    counts = multiply_adds(model, tokens)
    groups: dict[tuple[str, str], Counter] = {}
    for layer, count in counts.items():
        verdict, form = _verdict(layer, choices, card), choices[layer].format if layer in choices else None
        how = "" if verdict.word == NATIVE else f", {verdict.word}"
        why = "never quantized" if form is None else f"{'kept' if form == KEEP else form}{how}: {verdict.reason}"
        groups.setdefault((verdict.unit, why), Counter())[_kind(layer)] += count
    whole = sum(counts.values()) or 1
    ordered = sorted(groups.items(), key=lambda item: -item[1].total())
    return [headline(shares(model, choices, card, tokens), card),
            *(f"{percent(kinds.total() / whole)} {named(unit)}: {_said(kinds)}: {why}" for (unit, why), kinds in ordered)]


def _verdict(layer: str, choices: Mapping[str, Choice], card: str):
    choice = choices.get(layer, Choice(KEEP))
    return judge(choice.format, card, full_precision=choice.full_precision)


def _kind(layer: str) -> str:
    """`blocks.3.ffn.2` -> `ffn.2`; another layer stays as it is."""
    return re.sub(r"^(vace_)?blocks\.\d+\.", r"\1", layer)


def _said(kinds: Counter) -> str:
    """Kinds of layers, those with the most multiply-adds first, at most five by name."""
    names = [name for name, _ in kinds.most_common()]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def percent(share: float) -> str:
    """`38 %`; what is not zero is never said to be zero."""
    return "under 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def named(unit: str) -> str:
    """A unit as people write it: `FP8`, `16 bit`."""
    return unit if unit == SIXTEEN else unit.upper()
