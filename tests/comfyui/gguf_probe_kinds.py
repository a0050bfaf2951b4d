"""Every Wan class that ComfyUI has through ComfyUI-GGUF's loader: the models of kinds_probe.py, each as Q4_K_M and as BF16.

Prints one JSON line: kind -> mix -> {"class", "log": what was complained of, "moved": tensors that are not the source's, "apart":
of the latent from that of the model itself}. Sampling gives no audio, face, pose or camera: what takes them is loaded, not run.
"""
import json

import in_process  # before anything of ComfyUI: it finds it
import kinds_probe  # running it writes the models
from gguf_probe_models import CHANNELS, GGUF_NODES, apart, installed, load, mm, sample
from in_process import Path, comfy, folder, load_file, plan_recipe, run, sys, torch

MIXES = ("Q4_K_M", "BF16")


def write_files(path: Path) -> dict[str, str]:
    """Mix -> name of a file."""
    wish = in_process.recipe({"model": str(path)}, [], outputs=[{"format": mix} for mix in MIXES])
    with plan_recipe(wish, folder / "reports") as plan:
        report = run(plan, reports=folder / "reports")
    return {out["label"]: Path(out["path"]).name for out in report["experts"][0]["outputs"]}


def moved(model, source: dict[str, torch.Tensor]) -> list[str]:
    """Tensors that ComfyUI computes with otherwise than the source has them; those in blocks of ggml are not compared."""
    dequant = sys.modules[str(GGUF_NODES).replace(".", "_x_") + ".dequant"]
    found = []
    module = model.model.diffusion_model
    for key, value in [*module.named_parameters(), *module.named_buffers()]:
        kind = getattr(getattr(value, "tensor_type", None), "name", "F32")
        if key in source and kind in {"F32", "F16", "BF16"}:
            now = torch.Tensor(dequant.dequantize_tensor(value, torch.float32, torch.float32))
            found += [] if torch.equal(now, source[key].float()) else [key]
    return found


def main() -> None:
    complaints, told = installed(), {}
    for kind in kinds_probe.kinds:
        path = folder / f"{kind.replace(' ', '_')}.safetensors"
        source, told[kind], base = load_file(path), {}, comfy.sd.load_diffusion_model(str(path))
        CHANNELS[kind] = base.model.latent_format.latent_channels
        plain = sample(base, kind)
        for mix, name in write_files(path).items():
            complaints.taken()
            model = load(name)
            told[kind][mix] = {"class": type(model.model.model_config).__name__, "moved": moved(model, source),
                               "apart": apart(sample(model, kind), plain), "log": complaints.taken()}
            mm.unload_all_models()
    sys.stdout.write(json.dumps(told) + "\n")


with torch.inference_mode():
    main()
