"""ComfyUI and our nodes in one process, without a server: for probes that look into a MODEL. Runs in ComfyUI's own Python.

Imported first by a probe, which is started as `python PROBE.py COMFYUI PACK FOLDER`.
"""
import hashlib
import logging
import sys
import types
from pathlib import Path

comfyui, root, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, comfyui)


def _stub(name: str, path: Path | None = None, **names) -> None:
    module = types.ModuleType(name)
    if path is not None:
        module.__path__ = [str(path)]
    vars(module).update(names)
    sys.modules[name] = module


_stub("wan22_master", root)
_stub("wan22_master.nodes", root / "nodes")        # single modules of it, not every node
_stub("server", PromptServer=types.SimpleNamespace(instance=None))

from comfy.cli_args import args  # noqa: E402 - must be set before anything looks for a GPU

args.cpu = True
import comfy.model_management as mm  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import LowVramPatch  # noqa: E402
from comfy.quant_ops import QuantizedTensor  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelSamplingSD3  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from wan22_master.engine.jobs.plan import plan_recipe  # noqa: E402
from wan22_master.engine.jobs.run import run  # noqa: E402
from wan22_master.engine.preview import settle  # noqa: E402
from wan22_master.engine.recipes.recipe import parse  # noqa: E402
from wan22_master.engine.synthetic import Sizes, write_lora, write_model  # noqa: E402

SIZES = {dtype: Sizes(dim=128, ffn=256, blocks=2, rank=8, dtype=dtype) for dtype in ("bf16", "fp16", "fp32")}
# format -> the layout by which ComfyUI holds it (comfy/quant_ops.py)
LAYOUTS = {"float8_e4m3fn": "TensorCoreFP8E4M3Layout", "float8_e5m2": "TensorCoreFP8E5M2Layout", "mxfp8": "TensorCoreMXFP8Layout",
           "nvfp4": "TensorCoreNVFP4Layout", "int8_tensorwise": "TensorWiseINT8Layout",
           "convrot_w4a4": "TensorCoreConvRotW4A4Layout", "asym_w4a8_int8": "AsymW4A8Int8Layout"}
PREFIX, CPU = "diffusion_model.", torch.device("cpu")
TOLD = ("left over", "not loaded", "unexpected", "missing", "unsupported", "falling back")   # said at level INFO, too


class Complaints(logging.Handler):
    """Keeps every warning, Python's own included, and every line with a word of TOLD."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING or any(word in text.lower() for word in TOLD):
            self.lines.append(f"{record.levelname}: {text}")

    def taken(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


def loaded(model):
    """The MODEL's weights as ComfyUI would sample them: key -> tensor."""
    mm.load_models_gpu([model])
    weights = {key: value for key, value in model.model.named_parameters() if key.startswith(PREFIX)}
    return {key.removeprefix(PREFIX): value.detach().clone() for key, value in weights.items()}


def different(weights: dict, file: dict) -> list[str]:
    """Keys whose values are not bit for bit those of a file, both taken as float32."""
    assert set(weights) == set(file), set(weights) ^ set(file)
    return [key for key in file if not torch.equal(weights[key].float(), file[key].float())]


def forward(model, dtype: torch.dtype = torch.float32) -> str:
    """Hash of what the MODEL answers to one fixed input, as it is loaded now."""
    draw = torch.Generator().manual_seed(7)
    latent, text = torch.randn(1, 16, 1, 8, 8, generator=draw), torch.randn(1, 6, 4096, generator=draw)
    with torch.inference_mode():
        out = model.model.diffusion_model(latent.to(dtype), torch.tensor([500.0]), text.to(dtype))
    return hashlib.sha256(out.float().contiguous().numpy().tobytes()).hexdigest()


def sampled(model) -> str:
    """`forward` after ComfyUI has loaded it."""
    mm.load_models_gpu([model])
    return forward(model)


def error_of(call, *arguments, **named) -> str:
    """Class and message of the error that a call must raise."""
    try:
        call(*arguments, **named)
    except Exception as error:  # noqa: BLE001 - a probe tells what came, the test judges
        return f"{type(error).__name__}: {error}"
    return "no error"


def recipe(experts: dict, passes: list, **more):
    """A recipe for the CPU; outputs go into `folder/out`."""
    return parse({"version": 1, "title": "probe", "experts": experts, "passes": passes, "device": "cpu",
                  "save": {"folder": str(folder / "out"), "on_exists": "overwrite"}, **more})


def baked(experts: dict, passes: list, name: str = "bf16") -> dict[str, str]:
    """Role -> file that the engine writes of a merge."""
    with plan_recipe(recipe(experts, passes, outputs=[{"format": name}]), folder / "reports") as plan:
        for role in experts:
            settle(plan, role, reports=folder / "reports")
        report = run(plan, reports=folder / "reports")
    return {each["role"]: each["outputs"][0]["path"] for each in report["experts"]}


__all__ = ["CPU", "PREFIX", "SIZES", "LowVramPatch", "ModelSamplingSD3", "Path", "QuantizedTensor", "baked", "comfy", "different",
           "error_of", "folder", "folder_paths", "forward", "load_file", "loaded", "mm", "plan_recipe", "recipe", "root", "run",
           "sampled", "save_file", "sys", "torch", "write_lora", "write_model"]
