"""What `inspect` tells of GGUF files: the model, the mix, types by kind of layer, and what ComfyUI-GGUF would stumble over."""
import json

import pytest
import torch
from wan22_master.engine.inspection import inspect, lines
from wan22_master.engine.synthetic import Sizes, model_shapes
from wan22_master.tests.engine.gguf_base import blocks, written

SHAPES = model_shapes(Sizes(dim=256, ffn=512, blocks=2, rank=4))
VALUES = ("self_attn.v.weight", "cross_attn.v.weight", "ffn.2.weight")
MIX = {"general.file_type": 15, "general.quantization_version": 2}


def model(**changes) -> dict:
    """A Q4_K_M as city96's tools make it; changes: key, with _ for every dot, -> type."""
    tensors: dict = {key: torch.zeros(shape) for key, shape in SHAPES.items()}
    for key, shape in SHAPES.items():
        name = changes.get(key.replace(".", "_"))
        if name or (key.startswith("blocks.") and len(shape) == 2 and key.endswith("weight")):
            name = name or ("Q6_K" if key.endswith(VALUES) else "Q4_K")
            tensors[key] = blocks(name, shape), name
    return tensors


def test_a_wan_gguf_is_told_with_variant_mix_role_and_types_by_kind(tmp_path):
    found = inspect(written(tmp_path / "Wan2.2-T2V-A14B-HighNoise-Q4_K_M.gguf", model(), fields=MIX))
    assert found["what"] == "Wan 2.2/2.1 T2V dim 256, GGUF Q4_K_M, lossy source: 14 Q4_K, 6 Q6_K"
    assert (found["role"], found["file_type"], found["quantization_version"]) == ("high_noise", "Q4_K_M", 2)
    assert found["quantized"] == {"Q4_K": 14, "Q6_K": 6} and found["problems"] == []
    assert set(found["kept"]) == {"F32"} and found["kept"]["F32"]["tensors"] == len(SHAPES) - 20
    others = "self_attn.q, self_attn.k, self_attn.o, cross_attn.q, cross_attn.k, cross_attn.o, ffn.0"
    assert found["types"] == [f"types: {others}: 2 Q4_K each", "types: self_attn.v, cross_attn.v, ffn.2: 2 Q6_K each"]
    text = lines(found)
    assert "  " + found["types"][1] in text and "  opens in: ComfyUI with ComfyUI-GGUF (architecture wan)" in text
    json.dumps(found, allow_nan=False)


def test_the_recipe_and_every_text_of_ours_are_shown(tmp_path):
    recipe = {"version": 1, "title": "Mix", "title_version": "3", "date": "2026-11-21", "save": {}, "experts": {"high_noise": "b"},
              "outputs": [{"format": "bf16", "experts": ["high_noise"]}], "passes": []}
    told = {"recipe": recipe, "expert": "high_noise", "base": {"name": "b"}, "engine": "0.1.0", "merge": 2, "format": "Q4_K_M"}
    fields = {"wan22_master": json.dumps(told), "modelspec.title": "Mix"}
    found = inspect(written(tmp_path / "x.gguf", model(), fields=fields))
    assert found["recipe"]["format"] == "Q4_K_M" and found["file_type"] is None and found["metadata"]["modelspec.title"] == "Mix"
    assert "  recipe inside: high_noise of b, 0 LoRA(s), as Q4_K_M, by version 0.1.0" in lines(found)


@pytest.mark.parametrize(("key", "name"), [("blocks.1.modulation", "Q8_0"), ("patch_embedding.weight", "BF16")])
def test_what_comfyui_gguf_cannot_use_is_named_and_nothing_opens_it(tmp_path, key, name):
    found = inspect(written(tmp_path / "x.gguf", model(**{key.replace(".", "_"): name})))
    text = f"expected F32 or F16, all that ComfyUI-GGUF can use here, found {name}"
    assert [(each["key"], each["text"], each["severity"]) for each in found["problems"]] == [(key, text, "error")]
    assert found["opens_in"] == [{"program": "none", "version": None, "why": f"{key}: {text}"}]


def test_a_weight_of_five_axes_that_is_missing_is_told(tmp_path):
    tensors = {key: value for key, value in model().items() if key != "patch_embedding.weight"}
    found = inspect(written(tmp_path / "x.gguf", tensors))
    [problem] = found["problems"]
    assert problem["key"] == "patch_embedding.weight" and "found no such tensor; llama.cpp leaves out" in problem["text"]
    assert found["what"].startswith("GGUF of architecture wan, 2 blocks, not usable as a base: ")
    assert "make the GGUF again" in found["what"]


def test_types_that_are_slow_or_unknown_are_told(tmp_path):
    path = written(tmp_path / "x.gguf", model(blocks_0_self_attn_q_weight="IQ2_XXS"))
    found = inspect(path)
    [problem] = found["problems"]
    assert problem["severity"] == "warning" and "on the processor, slowly" in problem["text"]
    assert "IQ2_XXS" in found["opens_in"][0]["why"] and found["opens_in"][0]["program"] != "none"
    assert "found IQ2_XXS, which is not read back" in found["what"]
    name, body = b"blocks.0.self_attn.q.weight", bytearray(path.read_bytes())
    place = body.index(name) + len(name) + 4 + 2 * 8                           # behind the number of axes, and the two
    body[place:place + 4] = (99).to_bytes(4, "little")
    path.write_bytes(body)
    found = inspect(path)
    assert found["problems"][0]["text"] == "expected a type that is known, found type 99; ComfyUI-GGUF stops here"
    assert found["dtypes"]["type 99"]["tensors"] == 1 and found["opens_in"][0]["program"] == "none"


@pytest.mark.parametrize(("prefix", "count"), [("model.diffusion_model.", 0), ("diffusion_model.", 1)])
def test_a_prefix_that_comfyui_gguf_does_not_take_off_is_an_error(tmp_path, prefix, count):
    found = inspect(written(tmp_path / "x.gguf", model(), prefix=prefix))
    assert len(found["problems"]) == count and ("found diffusion_model.blocks.0" in str(found["problems"])) == bool(count)


@pytest.mark.parametrize("architecture", [None, "pig"])
def test_an_architecture_told_by_names_opens_when_the_names_are_wans(tmp_path, architecture):
    assert inspect(written(tmp_path / "x.gguf", model(), architecture=architecture))["opens_in"][0]["program"] != "none"
    other = inspect(written(tmp_path / "y.gguf", {"x.weight": torch.ones(2)}, architecture=architecture))
    assert other["opens_in"][0]["program"] == "none" and other["what"].startswith("GGUF of architecture")
