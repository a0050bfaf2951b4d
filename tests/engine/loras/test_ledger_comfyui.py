"""Against ComfyUI's own key map and loader: what it patches, we apply to the same tensors; what it does not load is `converted`."""
import json
import subprocess

import pytest
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.loras.lora import Index, match, open_lora
from wan22_master.engine.synthetic import Sizes, model_shapes, write_model
from wan22_master.tests.engine import tiny, trainers

# A real Wan model (dim 128, two blocks) gives the key map; then every file is loaded as ComfyUI's loader node does.
COMFYUI = """
import json, sys
sys.argv = sys.argv[:1] + ["--cpu"] + sys.argv[1:]
import comfy.options
paths = sys.argv[2:]
sys.argv = sys.argv[:2]
comfy.options.enable_args_parsing()
import comfy.lora, comfy.lora_convert, comfy.sd, comfy.utils
model = comfy.sd.load_diffusion_model(paths[0]).model
keys = comfy.lora.model_lora_keys_unet(model, {})
told = {}
for path in paths[1:]:
    tensors = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
    told[path] = sorted(key.removeprefix("diffusion_model.") for key in comfy.lora.load_lora(tensors, keys, log_missing=False))
print(json.dumps(told))
"""
SIZES = Sizes(dim=tiny.DIM, ffn=tiny.FFN, blocks=tiny.BLOCKS)
LAYERS = ["blocks.0.self_attn.q", "blocks.0.cross_attn.k", "blocks.1.ffn.0", "blocks.1.ffn.2"]


def write_all(folder):
    """Files of every trainer, each with the expert it is to be laid on."""
    found = []
    for name in ("ai_toolkit", "onetrainer", "musubi", "seko", "lightx2v", "diffusion_pipe", "diffusers", "fun", "peft", "lokr"):
        write = getattr(trainers, f"write_{name}")
        found += [(path, trainers.HIGH) for path in write(folder / name, LAYERS)]
    found += [(path, trainers.HIGH) for path in trainers.write_seko(folder / "seko_prefixed", LAYERS, prefixed=True)]
    found += [(path, trainers.LOW) for path in trainers.write_onetrainer(folder / "legacy", LAYERS, omi=False)]
    found += [(path, trainers.LOW) for path in trainers.write_ai_toolkit(folder / "combined", LAYERS, split=False)]
    found += [(path, trainers.HIGH) for path in trainers.write_fun(folder / "fun_without_sentinel", LAYERS[:1])]
    return found


@pytest.mark.comfyui
def test_what_comfyui_patches_we_apply_and_what_it_does_not_load_we_convert(tmp_path, comfyui_path):
    python = comfyui_path / ".venv" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no Python environment in {comfyui_path / '.venv'}")
    base = tmp_path / "wan.safetensors"
    write_model(base, SIZES)
    files = write_all(tmp_path)
    done = subprocess.run([python, "-c", COMFYUI, str(base), *(str(path) for path, _ in files)], cwd=comfyui_path, check=True,
                          capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    with open_source(base) as source:
        keys = source.keys()
        index = Index(keys, {key: source.spec(key) for key in keys})
    assert set(index.specs) == set(model_shapes(SIZES))
    loaded = 0
    for path, role in files:
        with open_lora(path) as lora:
            ledger = match(lora, index, role)
        native = {key for key, modules in ledger.applied.items()
                  if not any(used in ledger.converted for module in modules for used in module.keys)}
        # load_lora of comfy/lora.py does not read .diff_m
        ours = native - {key for key in native if key.endswith("modulation")}
        assert ours == set(told[str(path)]), path
        loaded += len(ours)
    assert loaded > 100
