"""How each dialect that can be written names a module and its parts, and which kinds of adapter it knows.

native: `diffusion_model.`, what ComfyUI loads of every kind; kohya: `lora_unet_` (musubi-tuner, sd-scripts), which ComfyUI loads
for whatever is a `.weight` (comfy/lora.py model_lora_keys_unet); diffusers: PEFT's LoRA and DoRA only, alphas in the metadata;
omi: OneTrainer's, the high-noise half as `diffusion_model.`, the low-noise half as `diffusion_model_2.`.
"""
from dataclasses import dataclass

from ..bases.names import to_diffusers
from ..bases.prefixes import LOW
from ..errors import RecipeError
from .reading import FileModule
from .suffixes import ending, kind_of
from .wan_layers import is_bare

KOHYA_PAIR = {"up": ".lora_up.weight", "down": ".lora_down.weight", "mid": ".lora_mid.weight"}
PEFT_PAIR = {"up": ".lora_B.weight", "down": ".lora_A.weight"}
PEFT_PARTS = {"up", "down", "alpha", "bias", "magnitude", "dora_scale"}
DIFFERENCES = {"diff", "diff_b", "w_norm", "b_norm"}
EXPAND = "expand it to plain factors by Merge LoRAs with method svd"


@dataclass(frozen=True)
class Dialect:
    """title: for people. prefixes: of the only or the high-noise half, and of the low-noise half in a combined file (None: the
    dialect has no combined files). pair: suffixes of factors."""

    name: str
    title: str
    prefixes: tuple[str, str | None]
    pair: dict[str, str]
    is_flat: bool = False
    is_peft: bool = False

    @property
    def holds_both(self) -> bool:
        """Whether one file can hold both experts."""
        return self.prefixes[1] is not None

    def module(self, layer: str, role: str | None) -> str:
        """Module name of a native layer. role: whose half it is in a combined file, None in a file of one expert."""
        prefix = self.prefixes[1] if role == LOW else self.prefixes[0]
        name = to_diffusers(layer) if self.is_peft else layer
        return prefix + (name.replace(".", "_") if self.is_flat else name)

    def suffix(self, module: FileModule, part: str) -> str:
        """Suffix of one part. A Tucker core makes all three parts down, mid and up: ComfyUI knows it in that spelling only."""
        pair = KOHYA_PAIR if "mid" in module.parts else self.pair
        fixed = {**pair, "bias": ".lora_B.bias" if self.is_peft else ".diff_b",
                 "magnitude": ".lora_magnitude_vector.weight" if self.is_peft else ".dora_scale",
                 "dora_scale": ".lora_magnitude_vector.weight" if self.is_peft else ".dora_scale"}
        return fixed.get(part) or ending(part)

    def why_not(self, module: FileModule, part: str) -> str | None:
        """Why this dialect cannot hold a part, with the way out; None when it can."""
        if self.is_flat and is_bare(module.layer):
            return f"{self.title} has no name for a parameter such as modulation; convert to native instead"
        if not self.is_peft:
            return None
        if part in DIFFERENCES:
            return f"{self.title} holds factors only, no whole differences; convert to native instead"
        foreign = next((each for each in module.parts if each not in PEFT_PARTS | DIFFERENCES), None)
        if foreign is None:
            return None
        return f"{self.title} does not know {kind_of(foreign)}; {EXPAND}, or convert to native instead"


DIALECTS = {each.name: each for each in (
    Dialect("native", "native", ("diffusion_model.", None), PEFT_PAIR),
    Dialect("native_down_up", "native with down and up", ("diffusion_model.", None), KOHYA_PAIR),
    Dialect("kohya", "kohya", ("lora_unet_", None), KOHYA_PAIR, is_flat=True),
    Dialect("diffusers", "diffusers", ("transformer.", "transformer_2."), PEFT_PAIR, is_peft=True),
    Dialect("omi", "OneTrainer omi", ("diffusion_model.", "diffusion_model_2."), KOHYA_PAIR),
)}


def dialect(name: str) -> Dialect:
    """Raises RecipeError for a name that is none."""
    if name not in DIALECTS:
        raise RecipeError(f"dialect: expected one of {', '.join(DIALECTS)}, found {name!r}")
    return DIALECTS[name]
