"""Runs in ComfyUI's own Python: a tiny model of every Wan class that ComfyUI has, through our engine, and back into ComfyUI.

    python kinds_probe.py COMFYUI PACK FOLDER

The models are ComfyUI's own modules, instantiated without memory, so that their keys and shapes are its word and not ours.
Prints one JSON line: kind -> {"before", "after": class as ComfyUI detects it, "log": what the loader complained about,
"moved": kept tensors that are not the source's, "quantized": count}.
"""
import json
import logging
import sys
import types
from pathlib import Path

comfyui, root, folder = sys.argv[1:4]
sys.path.insert(0, comfyui)
package = types.ModuleType("wan22_master")
package.__path__ = [root]
sys.modules["wan22_master"] = package

from comfy.cli_args import args  # noqa: E402 - must be set before anything looks for a GPU

args.cpu = True
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from wan22_master.engine.jobs.plan import plan_recipe  # noqa: E402
from wan22_master.engine.jobs.run import run  # noqa: E402
from wan22_master.engine.recipes.recipe import parse  # noqa: E402

TINY = {"dim": 256, "num_heads": 2, "ffn_dim": 512, "num_layers": 2, "freq_dim": 256, "in_dim": 16, "out_dim": 16,
        "patch_size": (1, 2, 2), "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6}
# What each class needs beyond its own config: widths of the published models (wan configs), and what only metadata can tell.
MORE = {"WAN22_T2V": {"in_dim": 48}, "WAN21_Vace": {"vace_layers": 1, "vace_in_dim": 96}, "WAN22_Animate": {"in_dim": 36},
        "WAN_Animate2": {"in_dim": 36}, "WAN21_HuMo": {"in_dim": 36}, "WAN21_SCAIL": {"in_dim": 20}, "WAN21_SCAIL2": {"in_dim": 20},
        "WAN22_S2V": {"num_layers": 40, "dim": 128, "num_heads": 1, "ffn_dim": 128},
        "first and last frame": {"flf_pos_embed_token_number": 514}, "fun control 2.2": {"in_dim": 52, "in_dim_ref_conv": 16}}
MORE["WAN22_Animate"]["num_layers"] = 5            # one face adapter block in five
OF_CLASS = {"first and last frame": "WAN21_I2V", "fun control 2.2": "WAN21_T2V"}   # kinds that share a class with another
METADATA = {"WAN21_CausalAR_T2V": {"causal_ar": True}, "WAN_Animate2": {"model_type": "animate2"},
            "WAN21_FlowRVS": {"model_type": "flow_rvs"}}


class Complaints(logging.Handler):
    """Keeps what the loader says about keys."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        text = record.getMessage()
        if any(word in text.lower() for word in ("unexpected", "missing", "not loaded", "left over")):
            self.lines.append(text)


def build(kind: str, cls, path: Path) -> None:
    """A tiny model of `kind` with random values."""
    config = cls({**TINY, **cls.unet_config, **MORE.get(kind, {})})
    model = config.get_model({}, device=torch.device("meta")).diffusion_model
    generator = torch.Generator().manual_seed(len(kind))
    weights = {key: (0.02 * torch.randn(value.shape, generator=generator)).to(torch.bfloat16)
               for key, value in model.state_dict().items() if value.is_floating_point()}
    said = METADATA.get(kind)
    save_file(weights, path, {"config": json.dumps({"transformer": said})} if said else None)


def detected(path: str) -> tuple[str, list[str]]:
    """ComfyUI's class for a file, and its complaints."""
    heard = Complaints()
    logging.getLogger().addHandler(heard)
    model = comfy.sd.load_diffusion_model(path)
    logging.getLogger().removeHandler(heard)
    return type(model.model.model_config).__name__, heard.lines


def convert(path: Path) -> str:
    """Load -> Save as FP8 through the engine; the finished file."""
    recipe = parse({"version": 1, "title": path.stem, "experts": {"model": str(path)}, "outputs": [{"format": "float8_e4m3fn"}],
                    "save": {"folder": str(path.parent / "out"), "name": "plain"}, "device": "cpu"})
    with plan_recipe(recipe, path.parent / "reports") as plan:
        return run(plan, reports=path.parent / "reports")["experts"][0]["outputs"][0]["path"]


def probe(kind: str, cls) -> dict:
    """One kind there and back."""
    path = Path(folder) / f"{kind.replace(' ', '_')}.safetensors"
    build(kind, cls, path)
    (before, _), saved = detected(str(path)), convert(path)
    after, complaints = detected(saved)
    source, result = load_file(path), load_file(saved)
    quantized = {key.removesuffix("_scale") for key in result if key.endswith(".weight_scale")}
    return {"before": before, "after": after, "log": complaints, "quantized": len(quantized),
            "moved": [key for key, value in source.items() if key not in quantized and not torch.equal(result[key], value)]}


classes = {cls.__name__: cls for cls in comfy.supported_models.models if cls.unet_config.get("image_model") == "wan2.1"}
kinds = classes | {kind: classes[name] for kind, name in OF_CLASS.items()}
sys.stdout.write(json.dumps({kind: probe(kind, cls) for kind, cls in kinds.items()}) + "\n")
