"""What a file is when it is not the diffusion model a person meant to choose, and where it belongs."""
from collections.abc import Collection

# Of every adapter kind, one that each of its files has; adapters/spelling.py has them all, but must not be imported by a source.
LORA_ENDINGS = (
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora_A.default.weight", ".lora_B.default.weight",
    ".lora.down.weight", ".lora.up.weight", "_lora.down.weight", ".lora_linear_layer.down.weight", ".lora_A", ".lora_B", ".lokr_w1",
    ".lokr_w1_a", ".lokr_w2", ".hada_w1_a", ".oft_blocks", ".oft_R.weight", ".oft_R", ".diff", ".diff_b", ".diff_m", ".w_norm",
    ".set_weight", ".on_input", ".dora_scale", ".lora_magnitude_vector", "_loras.down.weight",
)
LORA = "a LoRA; add it with the LoRA node (it belongs in models/loras)"
VAE = "a VAE; it belongs in models/vae and is not merged"
T5 = "a T5 text encoder; it belongs in models/text_encoders and is not merged"
CLIP = "a CLIP model; it belongs in models/clip_vision or models/text_encoders and is not merged"
LANGUAGE = "a language model used as text encoder; it belongs in models/text_encoders and is not merged"
OTHER = "a diffusion model of another family; choose a Wan model"

# One key that only this kind has (source: ComfyUI comfy/sd.py detect_te_model and VAE.__init__, comfy/model_detection.py,
# comfy/clip_vision.py; the last of T5 and of CLIP are the spellings of the official Wan 2.1 repository).
TELLTALES = {
    "encoder.block.0.layer.0.SelfAttention.k.weight": T5,
    "blocks.0.pos_embedding.embedding.weight": T5,
    "decoder.middle.0.residual.0.gamma": VAE,
    "decoder.conv_in.weight": VAE,
    "decoder.conv1.weight": VAE,
    "first_stage_model.decoder.conv_in.weight": VAE,
    "text_model.encoder.layers.0.mlp.fc1.weight": CLIP,
    "vision_model.encoder.layers.0.layer_norm1.weight": CLIP,
    "visual.transformer.resblocks.0.attn.in_proj_weight": CLIP,
    "visual.transformer.0.attn.to_qkv.weight": CLIP,
    "model.layers.0.post_attention_layernorm.weight": LANGUAGE,
    "model.layers.0.self_attn.q_proj.weight": LANGUAGE,
    "input_blocks.0.0.weight": OTHER,
    "double_blocks.0.img_attn.norm.key_norm.scale": OTHER,
    "double_blocks.0.img_attn.qkv.weight": OTHER,
    "joint_blocks.0.context_block.attn.qkv.weight": OTHER,
    "transformer_blocks.0.attn.to_q.weight": OTHER,
    "transformer_blocks.0.attn1.to_q.weight": OTHER,
    "layers.0.attention.qkv.weight": OTHER,
}
WRAPPINGS = ("", "model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
# Companions in an all-in-one file (source: ComfyUI comfy/supported_models.py WAN21_T2V, comfy/supported_models_base.py).
COMPANIONS = {
    "vae.": "vae", "first_stage_model.": "vae", "text_encoders.": "text encoder", "cond_stage_model.": "text encoder",
    "conditioner.": "text encoder", "clip_vision.": "image encoder", "model_ema.": "averaged copy",
}


def recognise(keys: Collection[str]) -> str | None:
    """What a file with these keys is and where it belongs, in words; None when nothing is recognised."""
    if any(key.endswith(LORA_ENDINGS) for key in keys):
        return LORA
    known = set(keys)
    return next((kind for key, kind in TELLTALES.items() if any(wrapping + key in known for wrapping in WRAPPINGS)), None)


def companion(key: str, prefix: str) -> str | None:
    """A word for what `key` belongs to in a file whose diffusion model has `prefix`: None for the model itself."""
    for start, word in COMPANIONS.items():
        if key.startswith(start):
            return word
    return None if key.startswith(prefix) else "other"
