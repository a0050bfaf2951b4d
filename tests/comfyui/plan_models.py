"""What the tests of plans and outputs are made of: a tiny pair of eight blocks, its LoRA, and what a saved file says of itself."""
import json
from pathlib import Path

from comfy_server import Server
from graphs import CLASSIC, lora_pair, node
from safetensors import safe_open
from wan22_master.engine.synthetic import Sizes, write_lora, write_model

SIZES = Sizes(dim=256, ffn=512, blocks=8, rank=8)
ROLES = ("high_noise", "low_noise")
LAYERS = 8 * 10                                    # block linears of an expert
HIGH, LOW = (f"eight_{role}.safetensors" for role in ROLES)
ALONE = "eight_alone.safetensors"                  # the high-noise expert again, under a name that tells no role
LORA = "eight_lora_high_noise.safetensors"
LOAD, PAIR, INJECT, PLAN, SCALES, QUANTIZE, SAVE = "1", "2", "3", "4", "5", "6", "7"


def write_eight(server: Server) -> list[Path]:
    """The pair and its LoRA into a server's folders; their paths."""
    paths = []
    for role in ROLES:
        paths += [server.models() / f"eight_{role}.safetensors", server.models("loras") / f"eight_lora_{role}.safetensors"]
        write_model(paths[-2], SIZES, role)
        write_lora(paths[-1], SIZES, "native", f"lora {role}")
    write_model(server.models() / ALONE, SIZES, ROLES[0])
    return [*paths, server.models() / ALONE]


def merged(strength: float = 1.0) -> dict:
    """Load, LoRA Pair, Inject."""
    return {
        LOAD: node("Wan22LoadDualDiT", high_noise=HIGH, low_noise=LOW, allow_quantized_source=False),
        PAIR: lora_pair(LORA, strength),
        INJECT: node("Wan22ActionMasterInject", dit=[LOAD, 0], stack=[PAIR, 0], method="auto", global_factor=1.0, pass_name="",
                     gate_distillation=False, on_mismatch="error", **CLASSIC)}


def user_folder(server: Server, kind: str) -> Path:
    """A folder of the pack's for the user's files: plans or calibration."""
    folder = server.base / "user" / "default" / "wan22_master" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def stored(path: Path) -> dict[str, tuple[str, bool, float | None]]:
    """Layer -> format, full precision, input scale, of every quantized layer of a saved file, read by the safetensors library."""
    found = {}
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        for layer in (key.removesuffix(".comfy_quant") for key in keys if key.endswith(".comfy_quant")):
            told = json.loads(file.get_tensor(f"{layer}.comfy_quant").numpy().tobytes())
            scale = file.get_tensor(f"{layer}.input_scale").item() if f"{layer}.input_scale" in keys else None
            found[layer] = told["format"], told.get("full_precision_matrix_mult", False), scale
    return found


def formats(path: Path) -> dict[str, str]:
    """Layer -> format of a saved file."""
    return {layer: form for layer, (form, _, _) in stored(path).items()}
