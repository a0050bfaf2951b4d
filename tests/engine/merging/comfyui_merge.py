"""Run by ComfyUI's own Python, from ComfyUI's folder: what its loader makes of lists of LoRAs, in float32 on the CPU.

argv: a JSON of {name: [[lora file, strength], ...]}, the base file, the folder for `<name>.safetensors`. Nothing of the pack is
used. A job that ComfyUI cannot load writes `<name>.txt` with its error instead.
"""

import json
import logging
import sys
from pathlib import Path

JOBS, BASE, OUT = (Path(argument) for argument in sys.argv[1:4])
sys.argv[1:] = ["--cpu"]  # read by comfy.cli_args

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


class Config:
    """Of a model without diffusers names, as Wan has none in ComfyUI."""

    unet_config = {}  # noqa: RUF012


class Model:
    """What `model_lora_keys_unet` asks: the keys, in the order of a torch module, weight before bias."""

    model_config = Config()

    def __init__(self, weights):
        self.weights = dict(sorted(weights.items(), key=lambda item: item[0].replace(".weight", ".0").replace(".bias", ".1")))

    def state_dict(self):
        return self.weights


def merge(model, loras):
    """As ModelPatcher: patches of every LoRA by key, then applied in order."""
    patches = {}
    for path, strength in loras:
        loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(path)), comfy.lora.model_lora_keys_unet(model, {}))
        for key, patch in loaded.items():
            if key in model.weights:
                patches.setdefault(key, []).append((strength, patch, 1.0, None, None))
    return {key: comfy.lora.calculate_weight(own, model.weights[key].clone(), key) for key, own in patches.items()}


with torch.inference_mode():
    logging.disable(logging.CRITICAL)
    model = Model({f"diffusion_model.{key}": tensor for key, tensor in load_file(BASE).items()})
    for name, loras in json.loads(JOBS.read_text()).items():
        try:
            merged = merge(model, loras)
        except Exception as error:  # noqa: BLE001 - whatever it is, ComfyUI cannot load this
            (OUT / f"{name}.txt").write_text(repr(error))
            continue
        bare = {key.removeprefix("diffusion_model."): tensor.contiguous() for key, tensor in merged.items()}
        save_file(bare, OUT / f"{name}.safetensors")
