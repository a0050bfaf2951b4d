"""Runs in ComfyUI's own Python: what its own LoRA loader makes of files for a tiny Wan T2V with the widths of tests/engine/tiny.py.

    python lora_probe.py COMFYUI DIM FFN BLOCKS OUT FILE...

Writes OUT, a safetensors file of the weight that each file gives a weight of zeros, as `<number of the file>|<key>`, and prints one
JSON line: a list of {"keys": number of keys in the file, "not_loaded": [...]} in the order of the files.
"""
import json
import logging
import sys

comfyui, dim, ffn, blocks, out, *files = sys.argv[1:]
sys.path.insert(0, comfyui)

from comfy.cli_args import args  # noqa: E402 - must be set before anything looks for a GPU

args.cpu = True
import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.supported_models  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

CONFIG = {"dim": int(dim), "num_heads": 1, "ffn_dim": int(ffn), "num_layers": int(blocks), "freq_dim": 256, "in_dim": 16,
          "out_dim": 16, "patch_size": (1, 2, 2), "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6}
NOT_LOADED = "lora key not loaded: "


class Complaints(logging.Handler):
    """Keeps the names of keys that the loader did not use."""

    def __init__(self):
        super().__init__()
        self.keys = []

    def emit(self, record):
        text = record.getMessage()
        if text.startswith(NOT_LOADED):
            self.keys.append(text.removeprefix(NOT_LOADED))


cls = comfy.supported_models.WAN21_T2V
model = cls({**CONFIG, **cls.unet_config}).get_model({}, device=torch.device("meta"))
key_map, shapes = comfy.lora.model_lora_keys_unet(model, {}), {key: value.shape for key, value in model.state_dict().items()}
told, deltas = [], {}
for number, file in enumerate(files):
    tensors, heard = comfy.utils.load_torch_file(file), Complaints()
    logging.getLogger().addHandler(heard)
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), key_map)
    logging.getLogger().removeHandler(heard)
    for key, patch in patches.items():
        weight = torch.zeros(shapes[key])
        deltas[f"{number}|{key}"] = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight, key).contiguous()
    told.append({"keys": len(tensors), "not_loaded": heard.keys})
save_file(deltas, out)
sys.stdout.write(json.dumps(told) + "\n")
