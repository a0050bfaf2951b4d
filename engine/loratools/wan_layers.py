"""Every layer name of every Wan model, generated, so that a LoRA is converted without its base.

Names: Wan-Video/Wan2.1 and Wan2.2, wan/modules/model.py, and ComfyUI 0.33 comfy/ldm/wan/model.py for the variants (VACE, Camera,
Animate, S2V, HuMo, SCAIL, WanDancer). Their diffusers names come from names.py, by Index.
"""
import re
from collections import defaultdict
from collections.abc import Iterable

import torch

from ..errors import LoraError
from ..loras.dialects import Index
from ..specs import TensorSpec

LEAST_BLOCKS = 40                                  # of a 14B
MOST_BLOCKS = 1000                                 # far above any; a number in a broken name must not become a table
NUMBER = re.compile(r"blocks[._](\d{1,6})[._]")
ATTENTION = ("q", "k", "v", "o", "norm_q", "norm_k")
BLOCK = (*(f"{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in ATTENTION), "ffn.0", "ffn.2", "norm3",
         "cross_attn.k_img", "cross_attn.v_img", "cross_attn.norm_k_img",
         *(f"audio_cross_attn_wrapper.audio_cross_attn.{part}" for part in ATTENTION), "audio_cross_attn_wrapper.norm1_audio")
TOP = (
    "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1",
    "head.head", *(f"img_emb.proj.{number}" for number in (0, 1, 3, 4)), "ref_conv", "vace_patch_embedding", "control_adapter.conv",
    "pose_patch_embedding", "patch_embedding_pose", "patch_embedding_mask", "patch_embedding_global", "cond_encoder",
    "trainable_cond_mask", "frame_packer.proj", "frame_packer.proj_2x", "frame_packer.proj_4x", "head_global.head",
    *(f"img_emb_refimage.proj.{number}" for number in (0, 1, 3, 4)),
    *(f"control_adapter.residual_blocks.{number}.conv{which}" for number in range(2) for which in (1, 2)),
    *(f"audio_injector.injector.{number}.{part}" for number in range(12) for part in ATTENTION),
    *(f"audio_injector.injector_adain_layers.{number}.linear" for number in range(12)),
    *(f"music_injector.injector.{number}.{part}" for number in range(8) for part in ATTENTION),
    *(f"face_adapter.fuser_blocks.{number}.{part}" for number in range(8)
      for part in ("linear1_kv", "linear1_q", "linear2", "q_norm", "k_norm")),
    *(f"audio_proj.audio_proj_glob_{name}.layer" for name in ("1", "2", "3", "norm")),
)
BARE = ("head.modulation", "head_global.modulation", "img_emb.emb_pos")   # parameters that are no `.weight` of a layer
UNKNOWN = TensorSpec((), torch.float32)            # the table names layers; their shapes are the base's


def wan_keys(blocks: int) -> list[str]:
    """Weights and bare parameters of all variants, with this many blocks in every stack."""
    layers = list(TOP)
    for stack in ("blocks", "vace_blocks"):
        layers += [f"{stack}.{number}.{name}" for number in range(blocks) for name in BLOCK]
    layers += [f"vace_blocks.{number}.{name}" for number in range(blocks) for name in ("before_proj", "after_proj")]
    bare = [f"{stack}.{number}.modulation" for stack in ("blocks", "vace_blocks") for number in range(blocks)]
    return [f"{layer}.weight" for layer in layers] + [*bare, *BARE]


def is_bare(layer: str) -> bool:
    """Whether the layer is a parameter itself, without `.weight`: modulation and its kin."""
    return layer.endswith(".modulation") or layer in BARE


def wan_index(names: Iterable[str]) -> Index:
    """Index of all Wan layers, with as many blocks as `names`, keys or modules of a LoRA, speak of. Raises LoraError."""
    numbers = [int(found[1]) for name in names for found in NUMBER.finditer(name)]
    highest = max(numbers, default=0)
    if highest >= MOST_BLOCKS:
        raise LoraError(f"expected block numbers below {MOST_BLOCKS}, found {highest}; the file is no LoRA for Wan, or damaged")
    keys = wan_keys(max(LEAST_BLOCKS, highest + 1))
    check_unambiguous(keys)
    return Index(keys, dict.fromkeys(keys, UNKNOWN))


def check_unambiguous(keys: Iterable[str]) -> None:
    """Raise LoraError when two layers have one name once their dots are underscores."""
    flat = defaultdict(set)
    for key in keys:
        layer = key.removesuffix(".weight")
        flat[layer.replace(".", "_")].add(layer)
    for name, layers in flat.items():
        if len(layers) > 1:
            raise LoraError(f"lora_unet_{name}: expected one layer of that name, found {' and '.join(sorted(layers))}; use dots")
