"""Which Wan model a base is, decided as ComfyUI decides it, so that what is merged is what ComfyUI will run.

Order and rules (source: ComfyUI 0.33 comfy/model_detection.py detect_unet_config, branch "Wan 2.1"; comfy/supported_models.py,
the WAN classes in the order of `models`). Experts cannot be told apart by shapes: for those see `roles`.
"""
import re
from dataclasses import dataclass

from ..errors import SourceError
from .settings import COUNTS, read_settings
from .source import Source

HEAD_DIM = 128  # num_heads = dim // 128 in every Wan model
PATCH = 4  # the head predicts 1 x 2 x 2 pixels of every channel
BLOCK = re.compile(r"blocks\.(\d{1,6})\.")
# key -> least number of axes
NEEDED = {"head.modulation": 1, "head.head.weight": 1, "blocks.0.ffn.0.weight": 1, "patch_embedding.weight": 2}
# First telltale found wins.
TELLTALES = {
    "vace_patch_embedding.weight": "vace",
    "control_adapter.conv.weight": "camera",
    "casual_audio_encoder.encoder.final_linear.weight": "s2v",
    "audio_proj.audio_proj_glob_1.layer.bias": "humo",
    "face_adapter.fuser_blocks.0.k_norm.weight": "animate",
    "patch_embedding_mask.weight": "scail2",
    "patch_embedding_pose.weight": "scail",
    "patch_embedding_global.weight": "wandancer",
}
IMAGE_BRANCH = "img_emb.proj.0.bias"
# First class whose every setting agrees wins.
CLASSES = {
    "WAN22_T2V": {"model_type": "t2v", "out_dim": 48},
    "WAN21_CausalAR_T2V": {"model_type": "t2v", "causal_ar": True},
    "WAN21_T2V": {"model_type": "t2v"},
    "WAN21_I2V": {"model_type": "i2v", "in_dim": 36},
    "WAN21_FunControl2V": {"model_type": "i2v", "in_dim": 48},
    "WAN21_Vace": {"model_type": "vace"},
    "WAN21_Camera": {"model_type": "camera", "in_dim": 32},
    "WAN22_Camera": {"model_type": "camera_2.2", "in_dim": 36},
    "WAN22_S2V": {"model_type": "s2v"},
    "WAN21_HuMo": {"model_type": "humo"},
    "WAN22_Animate": {"model_type": "animate"},
    "WAN_Animate2": {"model_type": "animate2"},
    "WAN21_FlowRVS": {"model_type": "flow_rvs"},
    "WAN21_SCAIL": {"model_type": "scail"},
    "WAN21_SCAIL2": {"model_type": "scail2"},
    "WAN22_WanDancer": {"model_type": "wandancer", "in_dim": 36},
}
# comfy_class -> (task, title without the size); the classes that mean several models are told apart in _task.
TASKS = {
    "WAN22_T2V": ("ti2v", "Wan 2.2 TI2V"), "WAN21_CausalAR_T2V": ("t2v", "Wan 2.1 causal T2V"), "WAN21_I2V": ("i2v", "Wan 2.1 I2V"),
    "WAN21_FunControl2V": ("fun_control", "Wan 2.1 Fun-Control"), "WAN21_Vace": ("vace", "Wan 2.1/2.2 VACE"),
    "WAN21_Camera": ("camera", "Wan 2.1 Fun-Camera"), "WAN22_Camera": ("camera", "Wan 2.2 Fun-Camera"),
    "WAN22_S2V": ("s2v", "Wan 2.2 S2V"), "WAN21_HuMo": ("humo", "Wan 2.1 HuMo"), "WAN22_Animate": ("animate", "Wan 2.2 Animate"),
    "WAN_Animate2": ("animate", "Wan Animate 2"), "WAN21_FlowRVS": ("flow_rvs", "Wan 2.1 FlowRVS"),
    "WAN21_SCAIL": ("scail", "SCAIL"), "WAN21_SCAIL2": ("scail", "SCAIL 2"), "WAN22_WanDancer": ("wandancer", "WanDancer"),
}
# Size -> hidden and ffn width (wan_configs of Wan-Video/Wan2.2 and Wan2.1). HuMo is a 14B with audio layers.
WIDTHS = {"14B": (5120, 13824), "5B": (3072, 14336), "1.3B": (1536, 8960)}
GROWN = {("WAN21_HuMo", "14B"): "17B"}


@dataclass(frozen=True)
class Variant:
    """What ComfyUI will take the model for. `task` is a word for file names; `title` is for people."""

    model_type: str
    comfy_class: str
    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int
    out_dim: int
    task: str
    title: str

    @property
    def size(self) -> str:
        """`14B` and the like, from the width that each published size has; `d128` for any other."""
        return _published(self.comfy_class, self.dim) or f"d{self.dim}"


def detect(source: Source) -> Variant:
    """The variant of a base. Raises SourceError when ComfyUI would not load it: no Wan model, a block missing, no class fits."""
    keys = set(source.keys())
    for key, axes in NEEDED.items():
        if key not in keys or len(source.spec(key).shape) < axes:
            found = f"shape {source.spec(key).shape}" if key in keys else "no such tensor"
            raise SourceError(f"{source.path}: {key}: expected in every Wan model, found {found}; choose a complete Wan model")
    config = _shapes(source, keys)
    config["model_type"] = _model_type(keys)
    config.update(read_settings(source))
    name = next((name for name, wanted in CLASSES.items() if all(config.get(key) == value for key, value in wanted.items())), None)
    if name is None:
        found = f"model type {config['model_type']} with {config['in_dim']} input channels"
        raise SourceError(f"{source.path}: expected a model ComfyUI knows, found {found}; ComfyUI cannot load this file")
    task, title = _task(name, config["in_dim"])
    size = _published(name, config["dim"]) or f"dim {config['dim']}"
    taken = {field: config[field] for field in ("model_type", *COUNTS)}
    return Variant(comfy_class=name, task=task, title=f"{title} {size}", **taken)


def _published(comfy_class: str, dim: int) -> str | None:
    size = next((size for size, widths in WIDTHS.items() if widths[0] == dim), None)
    return GROWN.get((comfy_class, size), size)


def _shapes(source: Source, keys: set[str]) -> dict:
    dim = source.spec("head.modulation").shape[-1]
    return {
        "dim": dim,
        "out_dim": source.spec("head.head.weight").shape[0] // PATCH,
        "num_heads": dim // HEAD_DIM,
        "ffn_dim": source.spec("blocks.0.ffn.0.weight").shape[0],
        "num_layers": _block_count(source.path, keys),
        "in_dim": source.spec("patch_embedding.weight").shape[1],
    }


def _block_count(path: str, keys: set[str]) -> int:
    """Blocks 0 to N-1. ComfyUI stops counting at the first gap and drops what follows; here a gap is an incomplete file."""
    present = {int(found[1]) for found in map(BLOCK.match, keys) if found}
    first_missing = next(number for number in range(len(present) + 1) if number not in present)
    if first_missing < len(present):
        raise SourceError(f"{path}: expected blocks 0 to {max(present)}, found no blocks.{first_missing}; download it again")
    return len(present)


def _model_type(keys: set[str]) -> str:
    found = next((kind for key, kind in TELLTALES.items() if key in keys), None)
    if found == "camera" and IMAGE_BRANCH not in keys:
        return "camera_2.2"
    return found or ("i2v" if IMAGE_BRANCH in keys else "t2v")


def _task(name: str, in_dim: int) -> tuple[str, str]:
    """WAN21_T2V is four models, told apart by input channels: latent, + image and mask, + control, + reference."""
    if name != "WAN21_T2V":
        return TASKS[name]
    if in_dim == 36:
        return "i2v", "Wan 2.2 I2V"
    return ("t2v", "Wan 2.2/2.1 T2V") if in_dim == 16 else ("fun_control", "Wan 2.2 Fun-Control")
