"""Where the module names of LoRA files lie in one base, in every known dialect: by table, from the base's own keys.

Underscored names cannot be split back into dots (`blocks_0_cross_attn_k_img`), so nothing is parsed: the tables run forwards, from
every key the base really has to its native and its diffusers name, dotted and underscored. Prefixes: prefixes.py; what only the
whole file can tell: file_dialect.py.
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..bases.names import to_diffusers
from ..bases.prefixes import DIFFUSERS, FUN, LOADED, NATIVE, take_apart
from ..errors import LoraError
from ..specs import TensorSpec
from .adapters import SUFFIXES
from .file_dialect import TEXT_ENCODER, FileDialect

IMAGE_BRANCH = re.compile(r"[._](k_img|v_img|norm_k_img|add_k_proj|add_v_proj|norm_added_k)$|img_emb|image_embedder")
BLOCK = re.compile(r"(?:^|[._])blocks[._](\d+)[._]")
NORM = re.compile(r"(?:vace_)?blocks[._]\d+[._]norm[23]")
FOREIGN = ("vace_blocks", "face_adapter", "motion_encoder", "audio_injector", "control_adapter", "ref_conv", "music_injector")
BIASES = {"diff_b", "b_norm"}
MODULATION = {False: ".modulation", True: "_modulation"}


def split(key: str) -> tuple[str, str] | None:
    """`<module><suffix>` -> (module, part), part being a value of adapters.SUFFIXES; None when no known suffix ends the key.

    `blocks.3.diff_m` is about the modulation of block 3, so its module is `blocks.3.modulation`.
    """
    for suffix, part in SUFFIXES.items():          # longest first
        if key.endswith(suffix):
            module = key.removesuffix(suffix)
            return (module + MODULATION[take_apart(module).prefix.is_flat] if part == "diff_m" else module), part
    return None


@dataclass(frozen=True)
class Place:
    """A native layer of the base; the expert that the key names, None when it does not; the dialect, in words for people.

    is_converted: ComfyUI 0.33 does not load the dialect as it is.
    """

    layer: str
    expert: str | None
    dialect: str
    is_converted: bool


class Index:
    """Every spelling of every layer of one base, built once from the base's own keys.

    keys: native bare keys of the base. specs: key -> TensorSpec as stored.
    """

    def __init__(self, keys: Iterable[str], specs: Mapping[str, TensorSpec]):
        self.specs = {key: specs[key] for key in keys}
        self.layers = dict.fromkeys(key.removesuffix(".weight").removesuffix(".bias") for key in self.specs)
        dotted = {NATIVE: {layer: layer for layer in self.layers}, DIFFUSERS: {to_diffusers(layer): layer for layer in self.layers}}
        flat = {style: {name.replace(".", "_"): layer for name, layer in table.items()} for style, table in dotted.items()}
        self._tables = {False: dotted, True: flat}
        numbers = [int(found[1]) for layer in self.layers if (found := re.match(r"blocks\.(\d+)\.", layer))]
        self.blocks = max(numbers, default=-1) + 1

    def place(self, module: str, file: FileDialect) -> Place | None:
        """The layer that a module of a file means; None when this base has none of that name (`why_not` says why).

        Raises LoraError when the name means two layers and nothing in the file tells which.
        """
        spelled = take_apart(module)
        readings = {style: table[spelled.name] for style, table in self._tables[spelled.prefix.is_flat].items()
                    if spelled.name in table}
        if not readings:
            return None
        style = file.style(spelled)
        if NORM.fullmatch(spelled.name) or len(set(readings.values())) > 1:
            if style is None:
                raise LoraError(f"{module}: expected other names that tell native from diffusers spelling, in which norm2 and "
                                "norm3 change places, found none; convert the file to diffusion_model. names")
        elif style not in readings:
            style = next(iter(readings))
        if style not in readings:
            return None
        dialect = spelled.dialects[0 if style == NATIVE else 1]
        is_loaded = dialect in LOADED or (dialect == FUN and file.has_sentinel)
        return Place(readings[style], file.expert(spelled), dialect, not is_loaded)

    def target(self, layer: str, part: str) -> str | None:
        """Key of the base that a part of a LoRA is added to: the bias for `diff_b`, else the weight or the bare parameter."""
        candidates = (f"{layer}.bias",) if part in BIASES else (f"{layer}.weight", layer)
        return next((key for key in candidates if key in self.specs), None)

    def why_not(self, module: str) -> str:
        """Why `place` found nothing, in words for the user."""
        if TEXT_ENCODER.match(module):
            return "text encoder key: a diffusion model has no such layer"
        name = take_apart(module).name
        if IMAGE_BRANCH.search(name):
            return "no such layer in this model: the image branch (k_img, v_img, img_emb) exists only in Wan 2.1 I2V and its kin"
        foreign = next((each for each in FOREIGN if each in name), None)
        if foreign:
            return f"no such layer in this model: {foreign} exists only in {_OWNERS[foreign]} models"
        found = BLOCK.search(name)
        if found and int(found[1]) >= self.blocks:
            return f"no such layer in this model: block {found[1]}, but the model has {self.blocks} blocks"
        if NORM.fullmatch(name):
            return "no such layer in this model: in the file's way of naming (native or diffusers) this norm has no parameters"
        return "no such layer in this model"


# Parts that only one family has (ComfyUI 0.33 comfy/ldm/wan/model.py).
_OWNERS = {"vace_blocks": "VACE", "face_adapter": "Animate", "motion_encoder": "Animate", "audio_injector": "S2V",
           "control_adapter": "Fun-Camera", "ref_conv": "Fun-Control", "music_injector": "WanDancer"}
