"""The four target layers of cases.py as each dialect spells them, written out by hand; changes with the trainers."""

NATIVE = ("blocks.0.ffn.0", "patch_embedding", "blocks.0.norm3", "blocks.0.modulation")
# from diffusers' WanTransformer3DModel: its norm2 is the affine norm, Wan's norm3
DIFFUSERS = ("blocks.0.ffn.net.0.proj", "patch_embedding", "blocks.0.norm2", "blocks.0.scale_shift_table")
FLAT = tuple(name.replace(".", "_") for name in NATIVE)
FLAT_DIFFUSERS = tuple(name.replace(".", "_") for name in DIFFUSERS)
MIXED = ("blocks_0.ffn.0", "patch_embedding", "blocks_0.norm3", "blocks_0.modulation")
_SPELLED = {
    "native": ("diffusion_model.", NATIVE),
    "kohya": ("lora_unet_", FLAT),
    "kohya with dots": ("lora_unet_", MIXED),
    "VideoX-Fun": ("lora_unet__", FLAT),
    "bare": ("", NATIVE),
    "diffusers": ("transformer.", DIFFUSERS),
    "diffusers low": ("transformer_2.", DIFFUSERS),
    "transformer native": ("transformer.", NATIVE),
    "half converted": ("diffusion_model.", DIFFUSERS),
    "PEFT": ("base_model.model.", NATIVE),
    "DiffSynth": ("pipe.dit.", NATIVE),
    "LyCORIS": ("lycoris_", FLAT),
    "LyCORIS diffusers": ("lycoris_", FLAT_DIFFUSERS),
    "OneTrainer omi": ("diffusion_model_2.", NATIVE),
    "OneTrainer legacy": ("lora_transformer_", FLAT_DIFFUSERS),
    "ai-toolkit combined": ("diffusion_model.transformer_1.", NATIVE),
    "checkpoint": ("model.diffusion_model.", NATIVE),
}
LOW = ("diffusers low", "OneTrainer omi")  # their prefix says which expert
# dialect -> native layer -> module name in the file
DIALECTS = {
    dialect: {layer: prefix + name for layer, name in zip(NATIVE, own, strict=True)} for dialect, (prefix, own) in _SPELLED.items()
}
