"""Variants: the same class and numbers as ComfyUI's own detection, for every kind of Wan model there is.

The shapes are those of the models (ComfyUI comfy/ldm/wan/model.py, instantiated without memory), reduced to what tells them apart.
The expected classes stand here as a table, so that the tests run without ComfyUI; where a checkout lies, it is asked as well.
"""
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from wan22_master.engine.bases.variant import detect
from wan22_master.engine.errors import SourceError
from wan22_master.engine.specs import TensorSpec

COMFYUI = Path(os.environ.get("COMFYUI_PATH", Path.home() / "comfy" / "ComfyUI"))
IMAGE = {"img_emb.proj.0.bias": (1280,)}
TOLD_BY = {
    "vace": {"vace_patch_embedding.weight": (5120, 96, 1, 2, 2), "vace_blocks.0.after_proj.weight": (5120, 5120)},
    "camera": {"control_adapter.conv.weight": (5120, 1536, 2, 2)},
    "s2v": {"casual_audio_encoder.encoder.final_linear.weight": (5120, 1024)},
    "humo": {"audio_proj.audio_proj_glob_1.layer.bias": (512,)},
    "animate": {"face_adapter.fuser_blocks.0.k_norm.weight": (128,)},
    "pose": {"patch_embedding_pose.weight": (5120, 20, 1, 2, 2)},
    "mask": {"patch_embedding_mask.weight": (5120, 28, 1, 2, 2)},
    "global": {"patch_embedding_global.weight": (5120, 36, 1, 2, 2)},
    "ref": {"ref_conv.weight": (5120, 16, 2, 2)},
    "flf": {"img_emb.emb_pos": (1, 514, 1280)},
}


class Shapes:
    """A base that has shapes and no bytes."""

    def __init__(self, shapes, metadata=None):
        self.path, self.shapes, self.metadata = "base.safetensors", shapes, metadata or {}

    def keys(self):
        return list(self.shapes)

    def spec(self, key):
        return TensorSpec(tuple(self.shapes[key]), torch.bfloat16)


def wan(dim=5120, ffn=13824, layers=40, in_dim=16, out_dim=16, *extra, config=None):
    shapes = {"patch_embedding.weight": (dim, in_dim, 1, 2, 2), "head.modulation": (1, 2, dim)}
    shapes["head.head.weight"] = (4 * out_dim, dim)
    for number in range(layers):
        shapes |= {f"blocks.{number}.ffn.0.weight": (ffn, dim), f"blocks.{number}.self_attn.q.weight": (dim, dim)}
    for more in extra:
        shapes |= more
    return Shapes(shapes, {"format": "pt"} | ({} if config is None else {"config": json.dumps({"transformer": config})}))


A14B, B5, B1 = (5120, 13824, 40), (3072, 14336, 30), (1536, 8960, 30)
ANIMATE2 = {"model_type": "animate2"}
# name -> (base, model type, ComfyUI's class, task, title)
KINDS = {
    "T2V-A14B": (wan(*A14B), "t2v", "WAN21_T2V", "t2v", "Wan 2.2/2.1 T2V 14B"),
    "I2V-A14B": (wan(*A14B, 36), "t2v", "WAN21_T2V", "i2v", "Wan 2.2 I2V 14B"),
    "2.1 I2V-14B": (wan(*A14B, 36, 16, IMAGE), "i2v", "WAN21_I2V", "i2v", "Wan 2.1 I2V 14B"),
    "FLF2V-14B": (wan(*A14B, 36, 16, IMAGE, TOLD_BY["flf"]), "i2v", "WAN21_I2V", "i2v", "Wan 2.1 I2V 14B"),
    "TI2V-5B": (wan(*B5, 48, 48), "t2v", "WAN22_T2V", "ti2v", "Wan 2.2 TI2V 5B"),
    "T2V-1.3B": (wan(*B1), "t2v", "WAN21_T2V", "t2v", "Wan 2.2/2.1 T2V 1.3B"),
    "Fun-InP 1.3B": (wan(*B1, 36, 16, IMAGE), "i2v", "WAN21_I2V", "i2v", "Wan 2.1 I2V 1.3B"),
    "Fun-Control 14B": (wan(*A14B, 48, 16, IMAGE), "i2v", "WAN21_FunControl2V", "fun_control", "Wan 2.1 Fun-Control 14B"),
    "Fun-Control A14B": (wan(*A14B, 52, 16, TOLD_BY["ref"]), "t2v", "WAN21_T2V", "fun_control", "Wan 2.2 Fun-Control 14B"),
    "VACE-14B": (wan(*A14B, 16, 16, TOLD_BY["vace"]), "vace", "WAN21_Vace", "vace", "Wan 2.1/2.2 VACE 14B"),
    "VACE-1.3B": (wan(*B1, 16, 16, TOLD_BY["vace"]), "vace", "WAN21_Vace", "vace", "Wan 2.1/2.2 VACE 1.3B"),
    "Fun-Camera": (wan(*A14B, 32, 16, IMAGE, TOLD_BY["camera"]), "camera", "WAN21_Camera", "camera", "Wan 2.1 Fun-Camera 14B"),
    "Fun-Camera A14B": (wan(*A14B, 36, 16, TOLD_BY["camera"]), "camera_2.2", "WAN22_Camera", "camera", "Wan 2.2 Fun-Camera 14B"),
    "S2V": (wan(*A14B, 16, 16, TOLD_BY["s2v"]), "s2v", "WAN22_S2V", "s2v", "Wan 2.2 S2V 14B"),
    "HuMo": (wan(*A14B, 36, 16, TOLD_BY["humo"]), "humo", "WAN21_HuMo", "humo", "Wan 2.1 HuMo 17B"),
    "Animate": (wan(*A14B, 36, 16, IMAGE, TOLD_BY["animate"]), "animate", "WAN22_Animate", "animate", "Wan 2.2 Animate 14B"),
    "Animate2": (wan(*A14B, 36, 16, IMAGE, config=ANIMATE2), "animate2", "WAN_Animate2", "animate", "Wan Animate 2 14B"),
    "SCAIL": (wan(*A14B, 20, 16, IMAGE, TOLD_BY["pose"]), "scail", "WAN21_SCAIL", "scail", "SCAIL 14B"),
    "SCAIL2": (wan(*A14B, 20, 16, IMAGE, TOLD_BY["pose"], TOLD_BY["mask"]), "scail2", "WAN21_SCAIL2", "scail", "SCAIL 2 14B"),
    "WanDancer": (wan(*A14B, 36, 16, IMAGE, TOLD_BY["global"]), "wandancer", "WAN22_WanDancer", "wandancer", "WanDancer 14B"),
    "Causal AR": (wan(*B1, config={"causal_ar": True}), "t2v", "WAN21_CausalAR_T2V", "t2v", "Wan 2.1 causal T2V 1.3B"),
    "FlowRVS": (wan(*B1, config={"model_type": "flow_rvs"}), "flow_rvs", "WAN21_FlowRVS", "flow_rvs", "Wan 2.1 FlowRVS 1.3B"),
    "config of dims": (wan(*B1, config={"in_dim": 36, "num_layers": 7}), "t2v", "WAN21_T2V", "i2v", "Wan 2.2 I2V 1.3B"),
    "tiny": (wan(256, 512, 2), "t2v", "WAN21_T2V", "t2v", "Wan 2.2/2.1 T2V dim 256"),
    # Telltales of two kinds in one file: the order decides.
    "VACE first": (wan(*B1, 36, 16, TOLD_BY["vace"], TOLD_BY["camera"]), "vace", "WAN21_Vace", "vace", "Wan 2.1/2.2 VACE 1.3B"),
    "S2V second": (wan(*B1, 16, 16, TOLD_BY["s2v"], TOLD_BY["humo"]), "s2v", "WAN22_S2V", "s2v", "Wan 2.2 S2V 1.3B"),
    "pose third": (wan(*B1, 16, 16, TOLD_BY["pose"], TOLD_BY["global"]), "scail", "WAN21_SCAIL", "scail", "SCAIL 1.3B"),
}
# What ComfyUI has no class for.
UNKNOWN = {
    "i2v with 16 channels": wan(*B1, 16, 16, IMAGE),
    "i2v with 40 channels": wan(*B1, 40, 16, IMAGE),
    "2.1 camera with 36 channels": wan(*B1, 36, 16, IMAGE, TOLD_BY["camera"]),
    "2.2 camera with 32 channels": wan(*B1, 32, 16, TOLD_BY["camera"]),
    "dancer with 16 channels": wan(*B1, 16, 16, TOLD_BY["global"]),
    "config of an unknown type": wan(*B1, config={"model_type": "of tomorrow"}),
}


@pytest.mark.parametrize(("base", "model_type", "comfy_class", "task", "title"), KINDS.values(), ids=KINDS)
def test_every_kind_of_model_is_told_apart(base, model_type, comfy_class, task, title):
    found = detect(base)
    assert (found.model_type, found.comfy_class, found.task, found.title) == (model_type, comfy_class, task, title)


@pytest.mark.parametrize("base", [kind[0] for kind in KINDS.values()], ids=KINDS)
def test_the_size_in_a_files_name_is_that_of_the_title(base):
    found = detect(base)
    assert found.size == found.title.rsplit(" ", 1)[1] or (found.size, found.title[-8:]) == ("d256", " dim 256")


@pytest.mark.parametrize("base", UNKNOWN.values(), ids=UNKNOWN)
def test_what_comfyui_has_no_class_for_is_refused(base):
    with pytest.raises(SourceError, match="expected a model ComfyUI knows"):
        detect(base)


def test_numbers_come_from_the_shapes_and_the_metadata_goes_before_them():
    found = detect(KINDS["TI2V-5B"][0])
    numbers = (found.dim, found.ffn_dim, found.num_heads, found.num_layers, found.in_dim, found.out_dim)
    assert numbers == (3072, 14336, 24, 30, 48, 48)
    found = detect(KINDS["config of dims"][0])
    assert (found.in_dim, found.num_layers) == (36, 7)


@pytest.mark.parametrize("key", ["head.modulation", "head.head.weight", "blocks.0.ffn.0.weight", "patch_embedding.weight"])
def test_a_tensor_detection_needs_is_named_when_it_is_missing_or_flat(key):
    base = wan(256, 512, 2)
    base.shapes[key] = ()
    with pytest.raises(SourceError, match=rf"{key}: expected in every Wan model, found shape \(\)"):
        detect(base)
    del base.shapes[key]
    with pytest.raises(SourceError, match=f"{key}: expected in every Wan model, found no such tensor"):
        detect(base)


def test_a_block_missing_in_the_middle_is_refused_where_comfyui_would_drop_the_rest():
    base = wan(256, 512, 5)
    base.shapes = {key: shape for key, shape in base.shapes.items() if not key.startswith("blocks.2.")}
    with pytest.raises(SourceError, match=r"expected blocks 0 to 4, found no blocks\.2"):
        detect(base)


@pytest.mark.parametrize("text", ["{", "[]", '{"transformer": 3}', '{"transformer": {}, "transformer": {}}'])
def test_metadata_that_comfyui_could_not_read_is_refused(text):
    base = wan(256, 512, 2)
    base.metadata["config"] = text
    with pytest.raises(SourceError, match="metadata config"):
        detect(base)


ASK = """
import json, sys
sys.path.insert(0, ".")
sys.argv = sys.argv[:1]
import comfy.options
from comfy.cli_args import args
args.cpu = True
import torch
from comfy import model_detection
answers = {}
for name, (shapes, metadata) in json.load(sys.stdin).items():
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    found = model_detection.model_config_from_unet(weights, "", metadata=metadata)
    fields = ("model_type", "dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
    answers[name] = found and {"comfy_class": type(found).__name__} | {
        field: model_detection.detect_unet_config(weights, "", metadata)[field] for field in fields}
print(json.dumps(answers))
"""


@pytest.mark.comfyui
def test_comfyui_itself_decides_the_same():
    python = COMFYUI / ".venv" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no ComfyUI with its own Python in {COMFYUI}; set COMFYUI_PATH")
    bases = {name: kind[0] for name, kind in KINDS.items()} | UNKNOWN
    asked = json.dumps({name: (base.shapes, base.metadata) for name, base in bases.items()})
    command = [str(python), "-c", ASK]
    done = subprocess.run(command, input=asked, cwd=COMFYUI, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(bases)
    for name, answer in answers.items():
        if name in UNKNOWN:
            assert answer is None, name
        else:
            assert {field: getattr(detect(bases[name]), field) for field in answer} == answer, name
