"""What a LoRA file is, told from its header: dialect, family, kinds of adapter, rank, how much of the model it covers.

T2V and I2V, high and low noise cannot be told from shapes: see task.py and routing.py.
"""
import math
import re
from collections import Counter
from typing import TYPE_CHECKING

from ..bases.names import to_native
from ..bases.prefixes import DIFFUSERS, take_apart
from ..bases.variant import WIDTHS
from .dialects import BLOCK, IMAGE_BRANCH, split
from .file_dialect import TEXT_ENCODER
from .strangers import patch_channels, stranger

if TYPE_CHECKING:
    from .lora import LoraFile

# Numbers per rank of a LoRA on every block linear: Σ (in + out) over the layers of each family (Wan 2.2, wan/configs).
# A14B: 40 * (8 * (5120 + 5120) + 2 * (5120 + 13824)) = 4,792,320; the 2.1 image branch adds 40 * 2 * 10240.
PER_RANK = {"14B": 4_792_320, "14B with image branch": 5_611_520, "5B": 2_519_040, "1.3B": 1_367_040}
KINDS = (("loha", "hada_"), ("lokr", "lokr_"), ("oft", "oft_"), ("dora", "dora_scale"), ("dora", "lora_magnitude_vector"),
         ("set", "set_weight"), ("ia3", "on_input"), ("glora", ".a1.weight"), ("tucker", "lora_mid"), ("diff_m", ".diff_m"),
         ("diff_b", ".diff_b"), ("diff", ".diff"), ("norm", "w_norm"), ("bias", ".bias"), ("lora", "lora"))
DOWN = re.compile(r"(?:lora_A(?:\.default)?\.weight|lora_A|lora_down\.weight|lora\.down\.weight)$")
UP = re.compile(r"(?:lora_B(?:\.default)?\.weight|lora_B|lora_up\.weight|lora\.up\.weight)$")


def classify(lora: "LoraFile") -> dict:
    """Facts for JSON: dialects and kinds with their number of keys, size, blocks, image branch, VACE, rank, coverage, stranger.

    rank_by_size: parameters over the family's parameters per rank, a whole number for a LoRA on every block linear.
    coverage: "full", "partial" or None where the family is not known.
    """
    dialects, kinds, names = Counter(), Counter(), []
    for key in lora.header.entries:
        module = (split(key) or (key, ""))[0]
        if TEXT_ENCODER.match(module):
            dialects["text encoder"] += 1
            continue
        spelled = take_apart(module)
        dialects[spelled.dialects[lora.dialect.style(spelled) == DIFFUSERS]] += 1
        kinds[next((kind for kind, mark in KINDS if mark in key), "other")] += not key.endswith(".alpha")
        names.append(spelled.name)
    size, has_images = _size(lora), any(IMAGE_BRANCH.search(name) for name in names)
    blocks = [int(found[1]) for name in names if (found := BLOCK.search(name))]
    rank = _rank_by_size(lora, size, has_images=has_images)
    return {
        "dialects": dict(dialects.most_common()), "kinds": {kind: count for kind, count in kinds.most_common() if count},
        "size": size, "blocks": max(blocks) + 1 if blocks else 0, "image_branch": has_images,
        "vace": any(name.startswith("vace_") for name in names), "channels": patch_channels(lora.specs),
        "combined": lora.dialect.is_combined, "rank_by_size": rank,
        "coverage": None if rank is None else "full" if rank == int(rank) and lora.rank == str(int(rank)) else "partial",
        "stranger": stranger(lora.specs, None),
    }


def family(found: dict) -> str:
    """One line for people, from what `classify` found."""
    if found["stranger"]:
        return found["stranger"]
    size = {"14B": "14B (Wan 2.2 A14B, Wan 2.1 14B)", "5B": "Wan 2.2 TI2V 5B", "1.3B": "Wan 2.1 1.3B"}.get(found["size"])
    images = ["with the image branch of Wan 2.1 I2V"] if found["image_branch"] else []
    return ", ".join([size or found["size"] or "of unknown size", *images, *(["VACE"] if found["vace"] else [])])


def _size(lora: "LoraFile") -> str | None:
    """14B, 5B or 1.3B by the width that self_attn.q takes in; None when it is not trained, or of another width."""
    for key, spec in lora.specs.items():
        found = split(key)
        if found and DOWN.search(key) and re.search(r"(?:self_attn|attn1)[._](?:to_)?q$", found[0]) and len(spec.shape) == 2:
            return next((size for size, widths in WIDTHS.items() if widths[0] == spec.shape[1]), f"width {spec.shape[1]}")
    return None


def _rank_by_size(lora: "LoraFile", size: str | None, *, has_images: bool) -> float | None:
    """Parameters of the block linears' factors, per expert, over the family's parameters per rank."""
    per_rank = PER_RANK.get(f"{size} with image branch" if has_images else size)
    if per_rank is None:
        return None
    total = 0
    for key, spec in lora.specs.items():
        found = split(key)
        if found and (DOWN.search(key) or UP.search(key)) and not TEXT_ENCODER.match(found[0]):
            name = to_native(take_apart(found[0]).name)
            total += math.prod(spec.shape) if BLOCK.search(name) and len(spec.shape) == 2 else 0
    return total / (2 if lora.dialect.is_combined else 1) / per_rank
