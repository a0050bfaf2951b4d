"""A LoRA told from its header: size, blocks, image branch, coverage by the published sizes of the real models."""
import pytest
import torch
from wan22_master.engine.inspection import inspect, lines
from wan22_master.engine.loras.classify import classify, family
from wan22_master.engine.loras.lora import open_lora
from wan22_master.tests.engine import tiny, trainers

LAYERS = ["blocks.0.self_attn.q", "blocks.1.ffn.0"]
# dim, ffn, blocks of the published models (Wan2.2 configs t2v_A14B, ti2v_5B; Wan2.1 t2v_1_3B)
PUBLISHED = {"14B": (5120, 13824, 40), "5B": (3072, 14336, 30), "1.3B": (1536, 8960, 30)}


def whole_lora(path, size, *, images=False, skip=None, prefixes=("diffusion_model.",)):
    """Rank 1 on every block linear of a real size, zeros of one byte."""
    dim, ffn, blocks = PUBLISHED[size]
    linears = {f"{kind}_attn.{name}": (dim, dim) for kind in ("self", "cross") for name in "qkvo"}
    linears |= {"ffn.0": (ffn, dim), "ffn.2": (dim, ffn)}
    linears |= {"cross_attn.k_img": (dim, dim), "cross_attn.v_img": (dim, dim)} if images else {}
    tensors = {}
    for prefix in prefixes:
        for name, (out, into) in linears.items():
            for number in range(blocks):
                if name != skip:
                    stem = f"{prefix}blocks.{number}.{name}.lora_"
                    tensors[f"{stem}A.weight"] = torch.zeros(1, into, dtype=torch.float8_e4m3fn)
                    tensors[f"{stem}B.weight"] = torch.zeros(out, 1, dtype=torch.float8_e4m3fn)
    return open_lora(tiny.save(path, tensors))


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_lora_on_every_block_linear_of_a_published_model_is_full(tmp_path, size):
    with whole_lora(tmp_path / "a.safetensors", size) as lora:
        found = classify(lora)
    assert (found["size"], found["rank_by_size"], found["coverage"], found["image_branch"]) == (size, 1.0, "full", False)
    assert found["blocks"] == PUBLISHED[size][2] and size in family(found)


def test_the_image_branch_a_gap_and_both_experts_are_seen(tmp_path):
    with whole_lora(tmp_path / "a.safetensors", "14B", images=True) as lora:
        found = classify(lora)
        assert (found["rank_by_size"], found["coverage"], found["image_branch"]) == (1.0, "full", True)
        assert "image branch" in family(found)
    with whole_lora(tmp_path / "b.safetensors", "14B", skip="ffn.0") as lora:
        assert classify(lora)["coverage"] == "partial"
    with whole_lora(tmp_path / "c.safetensors", "1.3B", prefixes=("transformer.", "transformer_2.")) as lora:
        found = classify(lora)
        assert (found["combined"], found["coverage"]) == (True, "full")


@pytest.mark.parametrize(("write", "options", "dialects", "kinds"), [
    (trainers.write_ai_toolkit, {}, {"native (diffusion_model.)": 4}, {"lora": 4}),
    (trainers.write_diffusers, {}, {"diffusers (transformer.)": 4}, {"lora": 4}),
    (trainers.write_onetrainer, {"omi": False}, {"OneTrainer (lora_transformer_)": 12}, {"lora": 8}),
    (trainers.write_lokr, {}, {"LyCORIS (lycoris_)": 6}, {"lokr": 4}),
])
def test_dialect_and_adapter_kinds_are_told(tmp_path, write, options, dialects, kinds):
    path = write(tmp_path, LAYERS, **options)[0]
    with open_lora(path) as lora:
        found = classify(lora)
    assert (found["dialects"], found["kinds"], found["size"], found["coverage"]) == (dialects, kinds, found["size"], None)
    assert found["blocks"] == 2


def test_channels_vace_text_encoders_and_strangers_are_told(tmp_path):
    tensors = tiny.lora(layers=LAYERS) | {"diffusion_model.patch_embedding.lora_A.weight": torch.ones(4, 36, 1, 2, 2)}
    tensors |= {"lora_te_q.lora_down.weight": torch.ones(4, 8), "diffusion_model.vace_blocks.0.after_proj.diff": torch.ones(8)}
    with open_lora(tiny.save(tmp_path / "a.safetensors", tensors)) as lora:
        found = classify(lora)
    assert (found["channels"], found["vace"], found["dialects"]["text encoder"], found["stranger"]) == (36, True, 1, None)
    tensors["diffusion_model.blocks.0.self_attn.q_loras.down.weight"] = torch.ones(4, 8)
    with open_lora(tiny.save(tmp_path / "b.safetensors", tensors)) as lora:
        assert "Stand-In" in family(classify(lora))


def test_inspect_tells_all_of_it(tmp_path):
    found = inspect(trainers.write_lightx2v(tmp_path, LAYERS)[1])
    told = "\n".join(lines(found))
    assert (found["lora"]["expert"], found["lora"]["task"], found["lora"]["rank"]) == ("low", "t2v", "4")
    for text in ("dialect: native (diffusion_model.) (", "adapters: ", "diff_b (", "diff_m (", "expert: low (file name",
                 "task: t2v (file name", "distillation LoRA: file name says", "family: width 128, 2 blocks"):
        assert text in told, told
    combined = inspect(trainers.write_onetrainer(tmp_path / "one", LAYERS)[0])
    assert combined["lora"]["expert"] == "split" and "expert: split (keys of both experts" in "\n".join(lines(combined))
    assert inspect(tiny.save(tmp_path / "model.safetensors", tiny.base()))["lora"] is None
