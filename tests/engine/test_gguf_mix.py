"""Claims about engine/gguf_mix.py. Oracle for numbers and blocks: the gguf library; for the rules: city96's table, by hand."""
import gguf
import pytest
import torch
from wan22_master.engine.gguf_mix import MIXES, SUPER, fallback, file_type, kept_type, mix_types
from wan22_master.engine.precision import is_block_linear
from wan22_master.engine.specs import TensorSpec

from .plans.models import model

KEYS = [key for key, spec in model(dim=256, ffn=512, blocks=4).items() if is_block_linear(key, spec)]
# lcpp.patch, img_tensor_get_type: mix -> (default, v in the order of the file, ffn.2); four blocks have eight v.
RULES = {
    "Q2_K": ("Q2_K", ["Q3_K"] * 8, "Q2_K"), "Q3_K_S": ("Q3_K", ["Q3_K"] * 8, "Q3_K"),
    "Q3_K_M": ("Q3_K", ["Q5_K"] * 2 + ["Q4_K"] * 6, "Q4_K"), "Q3_K_L": ("Q3_K", ["Q5_K"] * 8, "Q5_K"),
    "Q4_K_S": ("Q4_K", ["Q5_K"] * 4 + ["Q4_K"] * 4, "Q5_K"), "Q4_K_M": ("Q4_K", ["Q6_K"] * 8, "Q6_K"),
    "Q5_K_S": ("Q5_K", ["Q5_K"] * 8, "Q5_K"), "Q5_K_M": ("Q5_K", ["Q6_K"] * 8, "Q6_K"),
    "Q4_0": ("Q4_0", ["Q4_0"] * 8, "Q4_1"), "Q5_0": ("Q5_0", ["Q5_0"] * 8, "Q5_1"),
    **{name: (name, [name] * 8, name) for name in ("Q4_1", "Q5_1", "Q6_K", "Q8_0", "IQ4_NL", "IQ4_XS", "BF16", "F16", "F32")},
}


@pytest.mark.parametrize("name", MIXES)
def test_a_mix_moves_v_and_ffn_2_as_the_patch_does(name):
    found = mix_types(name, KEYS)
    default, values, down = RULES[name]
    assert list(found) == KEYS
    assert [found[key] for key in KEYS if key.endswith(".v.weight")] == values
    assert {found[key] for key in KEYS if key.endswith(".ffn.2.weight")} == {down}
    assert {found[key] for key in KEYS if not key.endswith((".v.weight", ".ffn.2.weight"))} == {default}


def test_v_is_counted_over_both_attentions_in_the_order_of_the_file():
    values = [key for key in KEYS if key.endswith(".v.weight")]
    back = mix_types("Q3_K_M", list(reversed(KEYS)))
    assert [key for key in values if back[key] == "Q5_K"] == values[-2:]
    assert {key.split(".")[2] for key in values[:2]} == {"self_attn", "cross_attn"}


def test_v_img_has_no_rule_and_a_vace_block_has_the_same():
    keys = ["blocks.0.cross_attn.v_img.weight", "vace_blocks.0.ffn.2.weight", "vace_blocks.0.self_attn.v.weight"]
    assert mix_types("Q4_K_M", keys) == dict(zip(keys, ["Q4_K", "Q6_K", "Q6_K"], strict=True))


@pytest.mark.parametrize("name", MIXES)
def test_the_file_type_is_llama_cpps_number(name):
    assert file_type(name) == gguf.LlamaFileType["ALL_F32" if name == "F32" else f"MOSTLY_{name}"].value


def test_a_type_has_the_number_of_its_smallest_mix():
    assert [file_type(name) for name in ("Q3_K", "Q4_K", "Q5_K", "Q2_K")] == [
        gguf.LlamaFileType[f"MOSTLY_{name}"].value for name in ("Q3_K_S", "Q4_K_S", "Q5_K_S", "Q2_K")]


@pytest.mark.parametrize("name", sorted({each for mix in MIXES for each in mix_types(mix, KEYS).values()}))
def test_a_type_falls_back_exactly_where_its_blocks_do_not_divide_the_columns(name):
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][0]
    assert (name in SUPER) is (block == 256)
    for columns in (5120, 13824, 256, 288, 32, 48, 1):
        assert (fallback(name, columns) == name) is (columns % block == 0)
        taken = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[fallback(name, columns)]][0]
        assert columns % taken == 0


def test_a_fallback_is_the_type_that_llama_cpp_names():
    assert {name: fallback(name, 288) for name in sorted(SUPER)} == {
        "IQ4_XS": "IQ4_NL", "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
    assert {fallback(name, 72) for name in SUPER} == {"F16"} and fallback("Q8_0", 72) == "F16" and fallback("F32", 72) == "F32"


@pytest.mark.parametrize(("key", "shape", "dtype", "expected"), [
    ("blocks.0.norm3.weight", (5120,), torch.bfloat16, "F32"),
    ("blocks.0.modulation", (1, 6, 5120), torch.bfloat16, "F32"),
    ("head.modulation", (1, 2, 5120), torch.float16, "F32"),
    ("patch_embedding.weight", (5120, 36, 1, 2, 2), torch.bfloat16, "F32"),
    ("vace_patch_embedding.weight", (5120, 96, 1, 2, 2), torch.float16, "F32"),
    ("ref_conv.weight", (5120, 16, 2, 2), torch.bfloat16, "F32"),
    ("img_emb.emb_pos", (1, 514, 1280), torch.bfloat16, "F32"),
    ("head.head.weight", (64, 5120), torch.bfloat16, "BF16"),
    ("head.head.weight", (8, 128), torch.bfloat16, "F32"),                  # 1024 elements
    ("text_embedding.0.weight", (5120, 4096), torch.bfloat16, "BF16"),
    ("text_embedding.0.weight", (5120, 4096), torch.float8_e4m3fn, "BF16"),
    ("text_embedding.0.weight", (5120, 4096), torch.float16, "F16"),
    ("text_embedding.0.weight", (5120, 4096), torch.float32, "F16"),
    ("motion_encoder.dec.direction.weight", (512, 20), torch.bfloat16, "F32"),
    ("motion_encoder.enc.fc.4.weight", (20, 512), torch.bfloat16, "F32"),
    ("trainable_cond_mask.weight", (3, 5120), torch.bfloat16, "F32"),
    ("blocks.0.self_attn.scale", (64, 64), torch.bfloat16, "F32"),
])
def test_what_is_not_quantized_is_stored_so_that_comfyui_gguf_can_use_it(key, shape, dtype, expected):
    assert kept_type(key, TensorSpec(shape, dtype)) == expected


def test_a_type_that_is_asked_for_is_taken_by_linears_and_f32_by_all():
    linear, norm = TensorSpec((64, 64), torch.float32), TensorSpec((64,), torch.bfloat16)
    assert [kept_type("text_embedding.0.weight", linear, name) for name in ("BF16", "F16", "F32")] == ["BF16", "F16", "F32"]
    assert {kept_type("blocks.0.norm3.weight", norm, name) for name in ("BF16", "F16", "F32")} == {"F32"}
