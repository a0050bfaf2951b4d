"""How LoRA files spell the layers of a Wan model, and which spellings of a base are read: changes with the trainers.

Underscored names cannot be split back into dots (`blocks_0_cross_attn_k_img`), so nothing is parsed: the table runs forwards,
from every key the base really has to every spelling of it. Read are (x = native layer, y = its diffusers name):
`diffusion_model.x`, `lora_unet_x` with underscores for dots, `transformer.y`. Other known spellings only get their name told.
"""
import re
from collections.abc import Iterable, Mapping

from .names import to_diffusers
from .specs import TensorSpec

# What follows the layer's name. Longest first is not needed: none is the end of another.
PARTS = {
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_B.weight": "B", ".lora_A.weight": "A",
    ".alpha": "alpha", ".diff": "diff", ".diff_b": "diff_b",
}

# Marker of an adapter kind that is known but not merged, its name, whether plain factors of that layer are wrong without it.
UNSUPPORTED = (
    (".hada_", "LoHa", True), (".lokr_", "LoKr", True), (".dora_scale", "DoRA", True), (".lora_magnitude_vector", "DoRA", True),
    (".oft_", "OFT", True), (".lora_mid.", "LoCon with a Tucker core", True), (".reshape_weight", "reshape_weight", True),
    (".set_weight", "set_weight", True), (".diff_m", "diff_m", False), (".w_norm", "LyCORIS norm", False),
    (".b_norm", "LyCORIS norm", False), (".on_input", "IA3", True), (".lora_B.bias", "LoRA bias", False),
    (".lora_up.bias", "LoRA bias", False), (".lora_A.default.", "PEFT with an adapter name", False),
    (".lora_B.default.", "PEFT with an adapter name", False), ("_lora.", "old diffusers LoRA", False),
    (".lora.", "old diffusers LoRA", False), (".lora_linear_layer.", "old diffusers LoRA", False),
    ("_loras.", "Stand-In", False),
    (".a1.", "GLoRA", True), (".a2.", "GLoRA", True), (".b1.", "GLoRA", True), (".b2.", "GLoRA", True),
)

# Prefixes of spellings that are known but not read.
FOREIGN = (
    ("diffusion_model.transformer_1.", "one file for both experts (ai-toolkit), high-noise half"),
    ("diffusion_model.transformer_2.", "one file for both experts (ai-toolkit), low-noise half"),
    ("diffusion_model_2.", "one file for both experts (OneTrainer), low-noise half"),
    ("transformer_2.", "one file for both experts (diffusers), low-noise half"),
    ("lora_transformer_", "OneTrainer's old names"), ("base_model.model.", "PEFT's base_model.model. names"),
    ("lora_unet__", "VideoX-Fun's double underscore"), ("pipe.dit.", "DiffSynth's pipe.dit. names"),
    ("lycoris_", "LyCORIS's lycoris_ names"), ("model.diffusion_model.", "a checkpoint's model.diffusion_model. names"),
)
TEXT_ENCODER = re.compile(r"lora_te\d?_|text_encoders?[._]|t5|umt5|clip|conditioner[._]")
IMAGE_BRANCH = re.compile(r"[._](k_img|v_img|norm_k_img|add_k_proj|add_v_proj|norm_added_k)$|img_emb|image_embedder")
BLOCK = re.compile(r"(?:^|[._])blocks[._](\d+)[._]")
REMEDY = "convert the file to diffusion_model. names"


def split(key: str) -> tuple[str, str] | None:
    """`<module><suffix>` -> (module, part), part being a value of PARTS; None when no known suffix ends the key."""
    for suffix, part in PARTS.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), part
    return None


def unsupported(key: str) -> tuple[str, str, bool] | None:
    """(module, name of the adapter kind, spoils plain factors) when the key belongs to a kind that is known but not merged."""
    for marker, kind, spoils in UNSUPPORTED:
        if marker in key:
            return key[: key.index(marker)], kind, spoils
    return None


def _underscored(name: str) -> str:
    return name.replace(".", "_")


class Index:
    """Every spelling of every layer of one base, built once from the base's own keys.

    keys: native bare keys of the base. specs: key -> TensorSpec as stored.
    """

    def __init__(self, keys: Iterable[str], specs: Mapping[str, TensorSpec]):
        self.specs = {key: specs[key] for key in keys}
        self.layers = dict.fromkeys(key.removesuffix(".weight").removesuffix(".bias") for key in self.specs)
        self._diffusers = {to_diffusers(layer): layer for layer in self.layers}
        self._underscored = {_underscored(layer): layer for layer in self.layers}
        self._table = {f"diffusion_model.{layer}": layer for layer in self.layers}
        self._table |= {f"lora_unet_{name}": layer for name, layer in self._underscored.items()}
        self._table |= {f"transformer.{name}": layer for name, layer in self._diffusers.items()}
        numbers = [int(found[1]) for layer in self.layers if (found := re.match(r"blocks\.(\d+)\.", layer))]
        self.blocks = max(numbers, default=-1) + 1

    def layer(self, module: str) -> str | None:
        """The native layer that a LoRA's module name means, None when it is no spelling of any layer of this base."""
        return self._table.get(module)

    def target(self, layer: str, part: str) -> str | None:
        """Key of the base that a part of a LoRA is added to: the bias for `diff_b`, else the weight or the bare parameter."""
        candidates = (f"{layer}.bias",) if part == "diff_b" else (f"{layer}.weight", layer)
        return next((key for key in candidates if key in self.specs), None)

    def why_not(self, module: str) -> str:
        """Why `layer(module)` is None, in words for the user."""
        if TEXT_ENCODER.match(module):
            return "text encoder key: a diffusion model has no such layer"
        for prefix, title in FOREIGN:
            if module.startswith(prefix):
                return f"spelling not supported: {title}; {REMEDY}"
        if IMAGE_BRANCH.search(module):
            return "no such layer in this model: the image branch (k_img, v_img, img_emb) exists only in Wan 2.1 I2V and its kin"
        if "vace_blocks" in module:
            return "no such layer in this model: vace_blocks exists only in VACE models"
        found = BLOCK.search(module)
        if found and int(found[1]) >= self.blocks:
            return f"no such layer in this model: block {found[1]}, but the model has {self.blocks} blocks"
        return self._half_converted(module) or "no such layer in this model"

    def _half_converted(self, module: str) -> str | None:
        """Spellings that mix a known prefix with another dialect's names, or have no prefix at all."""
        for prefix in ("diffusion_model.", "transformer.", "lora_unet_", ""):
            name = module.removeprefix(prefix)
            layer = self._diffusers.get(name, self._underscored.get(_underscored(name), name))
            if module.startswith(prefix) and layer in self.layers:
                how = f"{prefix} with this kind of name" if prefix else "names without a prefix"
                return f"spelling not supported: {how}; {REMEDY} (here diffusion_model.{layer})"
        return None
