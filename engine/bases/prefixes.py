"""What stands before a layer's name in a LoRA's keys, which dialect that is, and which expert it speaks of: changes with trainers.

`base_model.model.` (PEFT) may stand before any of the others. An underscored prefix is followed by a name with underscores for
dots; a dot that is left in it, or a second underscore, means the same (seen in files for WanVideoWrapper and of VideoX-Fun).
"""
import re
from dataclasses import dataclass

HIGH, LOW = "high_noise", "low_noise"
NATIVE, DIFFUSERS = "native", "diffusers"          # the two ways to name a layer (names.py)
PEFT = "base_model.model."
PEFT_DIALECT = "PEFT (base_model.model.)"
KOHYA, FUN, KOHYA_DOTS = "kohya (lora_unet_)", "VideoX-Fun (lora_unet__)", "kohya with dots"
PLAIN = "native (diffusion_model.)"
# What ComfyUI 0.33 loads as it is (comfy/lora.py model_lora_keys_unet); FUN only in a file that has SENTINEL (lora_convert.py).
LOADED = {PLAIN, KOHYA}
SENTINEL = "lora_unet__blocks_0_cross_attn_k.lora_down.weight"


@dataclass(frozen=True)
class Prefix:
    """expert: whose layers follow, None where the prefix does not say; opens: they are the high-noise expert's in a file that has
    a low-noise half as well; is_flat: names have underscores for dots. dialects: with native, with diffusers names."""

    text: str
    dialects: tuple[str, str]
    expert: str | None = None
    opens: bool = False
    is_flat: bool = False


def _one(dialect: str) -> tuple[str, str]:
    return dialect, f"{dialect}, diffusers names"


_COMBINED = _one("ai-toolkit, both experts in one file (diffusion_model.transformer_1., _2.)")
_OMI, _LEGACY = _one("OneTrainer (diffusion_model_2.)"), ("OneTrainer (lora_transformer_), native names",
                                                          "OneTrainer (lora_transformer_)")
_TRANSFORMER = ("transformer. with native names", "diffusers (transformer.)")
PREFIXES = (
    Prefix("model.diffusion_model.", _one("checkpoint (model.diffusion_model.)")),
    Prefix("diffusion_model.transformer_1.", _COMBINED, HIGH), Prefix("diffusion_model.transformer_2.", _COMBINED, LOW),
    Prefix("diffusion_model_2.", _OMI, LOW),
    Prefix("diffusion_model.", (PLAIN, "diffusion_model. with diffusers names"), opens=True),
    Prefix("transformer_1.", _TRANSFORMER, HIGH), Prefix("transformer_2.", _TRANSFORMER, LOW),
    Prefix("transformer.", _TRANSFORMER, opens=True),
    Prefix("lora_transformer_2_", _LEGACY, LOW, is_flat=True), Prefix("lora_transformer_2.", _LEGACY, LOW, is_flat=True),
    Prefix("lora_transformer_", _LEGACY, opens=True, is_flat=True), Prefix("lora_transformer.", _LEGACY, opens=True, is_flat=True),
    Prefix("lora_unet_", _one(KOHYA), is_flat=True), Prefix("lycoris_", _one("LyCORIS (lycoris_)"), is_flat=True),
    Prefix("pipe.dit.", _one("DiffSynth (pipe.dit.)")), Prefix("", ("bare native names", "bare diffusers names")),
)


@dataclass(frozen=True)
class Spelled:
    """A module's name taken apart. name: dotted, or with single underscores after a flat prefix."""

    prefix: Prefix
    name: str
    dialects: tuple[str, str]


def take_apart(module: str) -> Spelled:
    """Prefix and name of a module; a name without a known prefix has the empty one."""
    inner = module
    while inner.startswith(PEFT):
        inner = inner.removeprefix(PEFT)
    prefix = next(each for each in PREFIXES if inner.startswith(each.text))
    name, dialects = inner.removeprefix(prefix.text), prefix.dialects
    if prefix.text == "lora_unet_" and (name.startswith("_") or "." in name):
        dialects = _one(FUN if name.startswith("_") else KOHYA_DOTS)
    if prefix.is_flat:
        name = re.sub(r"[._]+", "_", name).strip("_")
    return Spelled(prefix, name, _one(PEFT_DIALECT) if inner != module else dialects)
