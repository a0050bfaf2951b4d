"""Saved files, sound and broken, as the check after saving sees them; see in_process.py. Prints one JSON line."""
import json
import logging
import threading
import weakref

from in_process import QuantizedTensor, comfy, error_of, folder, load_file, mm, sampled, save_file, sys, torch, write_model
from wan22_master.engine.synthetic import Sizes
from wan22_master.nodes import after_save
from wan22_master.nodes.after_save import check

FOUND: dict = {}
NVFP4 = "TensorCoreNVFP4Layout"


def kept(weights: dict, name: str) -> str:
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / name)
    return str(folder / name)


def base(kind: str) -> dict:
    """Tensors of a tiny model. ti2v: as T2V, with the 48 channels of the 5B on both sides."""
    write_model(folder / f"{kind}.safetensors", Sizes(dim=128, ffn=256, blocks=2, kind="i2v" if kind == "i2v" else "t2v"), kind)
    weights = load_file(folder / f"{kind}.safetensors")
    if kind == "ti2v":
        weights["patch_embedding.weight"] = weights["patch_embedding.weight"].repeat(1, 3, 1, 1, 1)
        weights["head.head.weight"], weights["head.head.bias"] = (weights[f"head.head.{part}"].repeat(3, *more) for part, more in
                                                                 (("weight", (1,)), ("bias", ())))
    kept(weights, f"{kind}.safetensors")
    return weights


def nvfp4(source: dict) -> dict:
    """Every block linear as NVFP4, coded by comfy-kitchen."""
    weights = {}
    for key, weight in source.items():
        if not (key.startswith("blocks.") and weight.dim() == 2):
            weights[key] = weight
            continue
        weights |= QuantizedTensor.from_float(weight.float(), NVFP4).state_dict(key)
        conf = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
        weights[key.removesuffix("weight") + "comfy_quant"] = conf
    return weights


def load(path: str):
    return comfy.sd.load_diffusion_model(path)


def kinds() -> None:
    for kind, role in (("t2v", "high_noise"), ("t2v", "low_noise"), ("i2v", "high_noise"), ("ti2v", "model")):
        source = base(kind)
        file, path = kept(nvfp4(source), f"{kind}_nvfp4.safetensors"), str(folder / f"{kind}.safetensors")
        same, other = check(path, load(path), role=role), check(file, load(path), role=role)
        FOUND[f"{kind} {role}"] = {"same": same, "nvfp4": other, "alone": check(file, role=role)}


def broken(source: dict, sound: dict) -> None:
    reference = load(kept(source, "reference.safetensors"))
    scale = "blocks.1.ffn.2.weight_scale_2"
    FOUND["scale x100"] = check(kept(sound | {scale: sound[scale] * 100}, "x100.safetensors"), reference)
    for name, value in (("nan", float("nan")), ("inf", float("inf"))):
        FOUND[name] = error_of(check, kept(sound | {scale: torch.tensor(value)}, f"{name}.safetensors"))
    FOUND["overflow"] = error_of(check, kept(source | {"blocks.1.ffn.2.bias": source["blocks.1.ffn.2.bias"] * 1e38},
                                             "overflow.safetensors"), reference)
    bad = load(kept(source | {"head.head.bias": source["head.head.bias"] * float("nan")}, "bad.safetensors"))
    FOUND["reference"] = check(str(folder / "x100.safetensors"), bad)
    without = {key: value for key, value in sound.items() if key != "blocks.0.ffn.0.bias"}
    answers, after_save._answers = after_save._answers, lambda model, sigmas: [torch.zeros(1)] * 2    # that bias is never set
    FOUND["missing"] = check(kept(without | {"blocks.0.odd": torch.zeros(2)}, "missing.safetensors"))[1]["problems"]
    after_save._answers = answers
    both = sound | {scale: torch.tensor(float("nan")), "blocks.0.odd": torch.zeros(2)}
    FOUND["nan and odd"] = error_of(check, kept(both, "both.safetensors"))
    plain = {key: value for key, value in sound.items() if not key.endswith("comfy_quant")}
    FOUND["no comfy_quant"] = error_of(check, kept(plain, "plain.safetensors"))
    odd = torch.tensor(list(b'{"format": "nvfp5"}'), dtype=torch.uint8)
    FOUND["unknown format"] = error_of(check, kept(sound | {"blocks.0.ffn.0.comfy_quant": odd}, "odd.safetensors"))
    FOUND["no model"] = error_of(check, kept({"a": torch.zeros(3)}, "no_model.safetensors"))


def leaves_nothing(source: dict, sound: dict) -> None:
    """What is loaded before and after; another MODEL that was loaded stays so."""
    path, made = kept(sound, "sound.safetensors"), []
    mm.unload_all_models()
    reference, other = load(kept(source, "reference.safetensors")), load(kept(source, "other.safetensors"))
    before = sampled(reference)
    sampled(other)
    real = comfy.sd.load_diffusion_model
    comfy.sd.load_diffusion_model = lambda *args: made.append(weakref.ref(model := real(*args))) or model
    for arguments in ((path, reference), (str(folder / "nan.safetensors"),)):
        error_of(check, *arguments)
    comfy.sd.load_diffusion_model = real
    alive = sum(each() is not None for each in made)
    FOUND["left"] = [len(made), alive, [each.model is other for each in mm.current_loaded_models], sampled(reference) == before]


def other_threads(sound: dict) -> None:
    """A warning of the server's while a file is checked, and one of the file's."""
    answer = after_save._answers

    def noisy(model, sigmas):
        thread = threading.Thread(target=logging.warning, args=("somebody else",))
        thread.start()
        thread.join()
        logging.warning("unet says %s", "x" * 1000)
        return answer(model, sigmas)

    after_save._answers = noisy
    FOUND["other threads"] = check(kept(sound, "sound.safetensors"))[1]["problems"]
    after_save._answers = answer


def main() -> None:
    torch.set_num_threads(1)
    handlers = len(logging.getLogger().handlers)
    kinds()
    source = load_file(folder / "t2v.safetensors")
    sound = nvfp4(source)
    broken(source, sound)
    with torch.inference_mode():                   # as ComfyUI runs every node
        leaves_nothing(source, sound)
        other_threads(sound)
    FOUND["handlers"] = len(logging.getLogger().handlers) == handlers
    sys.stdout.write(json.dumps(FOUND) + "\n")


main()
