"""Every file of formats_cases.py through ComfyUI's own UNETLoader, KSamplerAdvanced and ModelSave; see in_process.py.

Prints one JSON line: case -> what ComfyUI logged, saved and sampled, beside a twin that comfy-kitchen quantized.
"""
import json
import logging

import in_process  # first of all: it finds ComfyUI
from comfy_extras.nodes_model_merging import ModelSave
from formats_cases import CASES, outputs, weights
from in_process import (
    LAYOUTS,
    Complaints,
    ModelSamplingSD3,
    Path,
    QuantizedTensor,
    folder,
    folder_paths,
    load_file,
    mm,
    save_file,
    sys,
    torch,
)

from nodes import KSamplerAdvanced, UNETLoader

FOUND: dict = {}


def write_files() -> dict[str, Path]:
    """Case -> file, all by one run of the engine; and a pair, of which the low half is BF16 alone."""
    paths = {"model": folder / "tiny.safetensors", "high_noise": folder / "tiny_high_noise.safetensors",
             "low_noise": folder / "tiny_low_noise.safetensors"}
    for seed, path in zip((1, 1, 2), paths.values(), strict=True):
        save_file(weights(seed), path)
    pair = [{"format": "nvfp4", "experts": ["high_noise"]}, {"format": "bf16"}]
    files = {}
    for roles, asked in ((["model"], outputs()), (["high_noise", "low_noise"], pair)):
        wish = in_process.recipe({role: str(paths[role]) for role in roles}, [], outputs=asked)
        with in_process.plan_recipe(wish, folder / "reports") as plan:
            report = in_process.run(plan, reports=folder / "reports")
        files |= {(each["role"], out["label"]): Path(out["path"]) for each in report["experts"] for out in each["outputs"]}
    numbered = {label.rpartition("_")[2]: path for (role, label), path in files.items() if role == "model"}
    lone = {name: numbered[str(number)] for number, name in enumerate(CASES)}
    return lone | {f"{role} {label}": path for (role, label), path in files.items() if role != "model"}


def settings(tensors: dict, layer: str) -> dict | None:
    """JSON of a layer's `comfy_quant`; None where it is not quantized."""
    entry = tensors.get(f"{layer}.comfy_quant")
    return None if entry is None else json.loads(entry.numpy().tobytes())


def twin(path: Path, source: dict) -> str:
    """The same file, but every layer that is quantized in it coded by comfy-kitchen from the source; its name."""
    ours = load_file(path)
    layers = {layer: set_to for key in source if (set_to := settings(ours, layer := key.removesuffix(".weight")))}
    theirs = {key: value for key, value in ours.items() if not any(key.startswith(f"{layer}.weight") for layer in layers)}
    for layer, set_to in layers.items():
        form, options = set_to["format"], {}
        if form == "int8_tensorwise":
            options = {"per_channel": ours[f"{layer}.weight_scale"].numel() > 1, "convrot": set_to.get("convrot", False)}
        elif form.startswith("float8"):
            options = {"scale": "recalculate"}
        coded = QuantizedTensor.from_float(source[f"{layer}.weight"].float(), LAYOUTS[form], **options)
        theirs |= coded.state_dict(f"{layer}.weight")
    save_file({key: value.contiguous() for key, value in theirs.items()}, path.with_name(f"twin-{path.name}"))
    return f"twin-{path.name}"


def load(name: str):
    return UNETLoader().load_unet(name, "default")[0]


def sample(first, second=None) -> torch.Tensor:
    """Latent of 4 steps; the last two by `second`, where it is given."""
    positive, negative = ([[torch.randn((1, 77, 4096), generator=torch.Generator().manual_seed(seed)), {}]] for seed in (1, 2))
    latent = {"samples": torch.zeros(1, 16, 2, 8, 8)}
    for model, start, end in [(first, 0, 10000)] if second is None else [(first, 0, 2), (second, 2, 10000)]:
        shifted = ModelSamplingSD3().patch(model, 5.0)[0]
        latent = KSamplerAdvanced().sample(
            shifted, "disable" if start else "enable", 42, 4, 1.0, "euler", "simple", positive, negative, latent, start, end,
            "enable" if end == 2 else "disable")[0]
    return latent["samples"].float()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def wrongly_saved(model, path: Path) -> dict[str, list[str]]:
    """What ModelSave makes of a file otherwise than it was: keys, tensors of quantized layers by their bits, others by value."""
    ModelSave().save(model, f"saved/{path.stem}")
    made = folder / "saved" / f"{path.stem}_00001_.safetensors"
    theirs = {key.removeprefix("model.diffusion_model."): value for key, value in load_file(made).items()}
    made.unlink()
    ours, wrong = load_file(path), {"keys": [], "bits": [], "values": []}
    wrong["keys"] = sorted(set(ours) ^ set(theirs))
    for key in set(ours) & set(theirs):
        layer, _, last = key.rpartition(".")
        if settings(ours, layer) is None or last == "bias":
            wrong["values"] += [] if torch.equal(ours[key].float(), theirs[key].float()) else [key]
        elif describe(ours[key], last) != describe(theirs[key], last):
            wrong["bits"].append(key)
    return wrong


def describe(tensor: torch.Tensor, last: str) -> tuple:
    """Dtype, shape and bytes; of a `comfy_quant` the text, which our writer pads with spaces so that what follows is aligned."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return ("text", content.rstrip(b" ")) if last == "comfy_quant" else (tensor.dtype, tuple(tensor.shape), content)


def layers_of(model) -> dict[str, list]:
    """Layer -> [format, full_precision flag of the file, input_scale's dtype, its value] as ComfyUI's modules hold them."""
    found = {}
    for name, module in model.model.diffusion_model.named_modules():
        if getattr(module, "quant_format", None):
            scale = getattr(module, "input_scale", None)
            told = [None, None] if scale is None else [str(scale.dtype), scale.item()]
            found[name] = [module.quant_format, module._full_precision_mm_config, *told]
    return found


def on_a_card_with_fp8(files: dict[str, Path]) -> dict[str, torch.Tensor]:
    """ComfyUI as on a card that multiplies FP8: E5M2 of ours, which stays in 16 bit, and of a file without that flag; FP8."""
    native_of, mm.SUPPORT_FP8_OPS = mm.SUPPORT_FP8_OPS, True
    bare, flagless = load_file(files["float8_e5m2"]), torch.tensor(list(b'{"format": "float8_e5m2"}'), dtype=torch.uint8)
    bare |= {key: flagless.clone() for key in bare if key.endswith("comfy_quant")}
    save_file(bare, folder / "out" / "bare.safetensors")
    found = {name: sample(load(files[name].name)) for name in ("float8_e5m2", "fp8 16-bit", "float8_e4m3fn", "fp8 scaled")}
    found["bare"] = sample(load("bare.safetensors"))
    mm.SUPPORT_FP8_OPS = native_of
    return found


def main() -> None:
    torch.set_num_threads(1)
    logging.captureWarnings(True)
    complaints, source = Complaints(), weights(1)
    files = write_files()
    logging.getLogger().addHandler(complaints)
    folder_paths.add_model_folder_path("diffusion_models", str(folder / "out"))
    folder_paths.set_output_directory(str(folder))
    want, latents = sample(load(files["bf16"].name)), {}
    complaints.taken()
    for name in CASES:
        model = load(files[name].name)
        latents[name], saved = sample(model), wrongly_saved(model, files[name])
        told = {"log": complaints.taken(), "saved": saved, "layers": layers_of(model), "apart": apart(latents[name], want)}
        FOUND[name] = told | {"twin": apart(sample(load(twin(files[name], source))), want)}
        complaints.taken()
    low = load(files["low_noise bf16"].name)
    pair = [sample(load(files[f"high_noise {label}"].name), low) for label in ("nvfp4", "bf16")]
    FOUND["pair"] = {"apart": apart(*pair), "log": complaints.taken()}
    native = on_a_card_with_fp8(files)
    FOUND["native"] = {name: apart(latent, want) for name, latent in native.items()}
    FOUND["native"] |= {"e5m2 same": torch.equal(native["float8_e5m2"], latents["float8_e5m2"])}
    complaints.taken()
    stray = load_file(files["nvfp4 fast"]) | {"blocks.0.ffn.0.stray_scale": torch.ones(())}
    save_file(stray, folder / "out" / "stray.safetensors")
    load("stray.safetensors")
    FOUND["stray"] = complaints.taken()
    FOUND["files"] = {name: str(path) for name, path in files.items()}
    sys.stdout.write(json.dumps(FOUND) + "\n")


with torch.inference_mode():                       # as the server runs every node
    main()
