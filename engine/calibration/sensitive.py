"""The original's rule for sensitive layers, for those who want its lists; and why a plan should not go by it.

    every layer of a cross-attention, and every other linear of a block with scale_cv = scale_std / scale_mean >= t

as its three published lists follow it, with t = 0.12 (14B high noise), 0.11 (14B low noise) and 0.16 (5B); kurtosis plays no part.
It is no measure of sensitivity. scale_cv says how much the largest input differs between calls, and once the scale covers the
largest of all that costs nothing: NVFP4's error of an activation with a scale 16 times too large is what it is with the right one
(gaussian 0.0952 and 0.0952, Student-t 0.0895 and 0.0895, outlier channels 0.0742 and 0.0742). That cross-attention is sensitive was
found by holding random text against scales of real text: in blocks without such scales the same layers have the usual 0.095.
What a format does to a layer is its output error on recorded inputs.
"""
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import RecipeError
from ..precision import BLOCK_LINEAR
from .summary import coefficient

THRESHOLD = 0.11                                   # the original's for the low-noise expert, the widest of its three
CROSS = ".cross_attn."
NUMBER = re.compile(r"(\d+)")
LABEL = ("# sensitive layers by the original's rule: all of cross-attention, and scale_cv at or above {:g}\n"
         "# no measure of sensitivity: a scale that covers the largest input costs nothing, however much calls differ\n")


@dataclass(frozen=True)
class Sensitive:
    """cross: layers of cross-attention; varying: other layers with scale_cv at or above the threshold; of: layers looked at."""

    cross: tuple[str, ...]
    varying: tuple[str, ...]
    of: int


def by_original_rule(rows: Sequence[Mapping], threshold: float = THRESHOLD) -> Sensitive:
    """What the original lists, from the rows of a summary, by block. Raises RecipeError for a threshold below 0 or NaN."""
    if not threshold >= 0.0:
        raise RecipeError(f"sensitive layers: threshold: expected a number, 0 or above, found {threshold}; {THRESHOLD} is usual")
    known = {layer: coefficient(row) for row in rows if BLOCK_LINEAR.fullmatch(f"{(layer := str(row['layer']))}.weight")}
    ordered = sorted(known, key=lambda layer: [int(part) if part.isdigit() else part for part in NUMBER.split(layer)])
    cross = tuple(layer for layer in ordered if CROSS in layer)
    varying = tuple(layer for layer in ordered if CROSS not in layer and known[layer] is not None and known[layer] >= threshold)
    return Sensitive(cross, varying, len(known))


def as_lines(found: Mapping[str, Sensitive], threshold: float) -> str:
    """A list for a plan: one layer a line, and lines with # that say what they are. found: role -> what its summary gave.

    Experts have layers of equal names: in a list for all experts, what one of them lists counts for both.
    """
    parts = [LABEL.format(threshold)]
    for role, layers in found.items():
        parts.append(f"# {role}: {len(layers.cross)} of cross-attention, {len(layers.varying)} more by scale_cv, of {layers.of}\n")
        parts += [f"{layer}\n" for layer in (*layers.varying, *layers.cross)]
    return "".join(parts)
