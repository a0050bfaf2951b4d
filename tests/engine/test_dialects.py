"""Spellings of LoRA keys: each resolves to the one layer of the base that it means, or is refused by its true reason."""
import pytest
import torch
from wan22_master.engine.dialects import Index, split, unsupported
from wan22_master.engine.specs import TensorSpec

LAYERS = (*(f"{kind}_attn.{name}" for kind in ("self", "cross") for name in "qkvo"), "ffn.0", "ffn.2")
TOP = ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1", "head.head",
       "patch_embedding")
# Written out by hand from diffusers' WanTransformer3DModel, not from our table.
DIFFUSERS = {
    "blocks.1.self_attn.q": "blocks.1.attn1.to_q", "blocks.1.self_attn.o": "blocks.1.attn1.to_out.0",
    "blocks.1.cross_attn.v": "blocks.1.attn2.to_v",
    "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj", "blocks.1.ffn.2": "blocks.1.ffn.net.2",
    "blocks.1.norm3": "blocks.1.norm2", "blocks.1.modulation": "blocks.1.scale_shift_table", "head.head": "proj_out",
    "head.modulation": "scale_shift_table", "time_projection.1": "condition_embedder.time_proj",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2", "patch_embedding": "patch_embedding",
}


@pytest.fixture(scope="module")
def index() -> Index:
    keys = [f"{name}.{kind}" for name in TOP for kind in ("weight", "bias")] + ["head.modulation"]
    for block in range(3):
        keys += [f"blocks.{block}.{layer}.{kind}" for layer in (*LAYERS, "norm3") for kind in ("weight", "bias")]
        keys += [f"blocks.{block}.modulation", f"blocks.{block}.self_attn.norm_q.weight"]
    return Index(keys, dict.fromkeys(keys, TensorSpec((8, 8), torch.bfloat16)))


def test_native_and_underscored_names_of_every_layer_mean_that_layer(index):
    for layer in index.layers:
        assert index.layer(f"diffusion_model.{layer}") == layer
        assert index.layer("lora_unet_" + layer.replace(".", "_")) == layer


@pytest.mark.parametrize("native", DIFFUSERS)
def test_diffusers_names_mean_the_native_layer(index, native):
    assert index.layer(f"transformer.{DIFFUSERS[native]}") == native


def test_a_part_goes_to_weight_bias_or_bare_parameter(index):
    assert index.target("blocks.0.ffn.2", "up") == "blocks.0.ffn.2.weight"
    assert index.target("blocks.0.ffn.2", "diff_b") == "blocks.0.ffn.2.bias"
    assert index.target("blocks.0.modulation", "diff") == "blocks.0.modulation"
    assert index.target("blocks.0.modulation", "diff_b") is None


@pytest.mark.parametrize(("module", "reason"), [
    ("diffusion_model.blocks.0.cross_attn.k_img", "image branch"),
    ("lora_unet_blocks_0_cross_attn_v_img", "image branch"),
    ("transformer.blocks.0.attn2.add_k_proj", "image branch"),
    ("diffusion_model.img_emb.proj.1", "image branch"),
    ("diffusion_model.blocks.39.ffn.0", "block 39, but the model has 3 blocks"),
    ("lora_unet_blocks_3_ffn_0", "block 3, but the model has 3 blocks"),
    ("diffusion_model.vace_blocks.0.after_proj", "VACE"),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text encoder"),
    ("text_encoders.umt5xxl.block.0", "text encoder"),
    ("transformer_2.blocks.0.attn1.to_q", "low-noise half"),
    ("diffusion_model.transformer_1.blocks.0.self_attn.q", "high-noise half"),
    ("base_model.model.blocks.0.self_attn.q", "PEFT"),
    ("lora_unet__blocks_0_self_attn_q", "double underscore"),
    ("pipe.dit.blocks.0.self_attn.q", "DiffSynth"),
    ("lycoris_blocks_0_self_attn_q", "LyCORIS"),
    ("blocks.0.self_attn.q", "names without a prefix"),
    ("blocks.0.attn1.to_q", "names without a prefix"),
    ("transformer.blocks.0.self_attn.q", "transformer. with this kind of name"),
    ("diffusion_model.blocks.0.attn1.to_q", "diffusion_model. with this kind of name"),
    ("lora_unet_blocks_2.self_attn.k", "lora_unet_ with this kind of name"),
    ("diffusion_model.double_blocks.0.img_attn", "no such layer in this model"),
])
def test_a_name_that_means_no_layer_is_refused_by_its_reason(index, module, reason):
    assert index.layer(module) is None
    assert reason in index.why_not(module)


def test_a_half_converted_name_is_told_how_it_should_be_spelled(index):
    assert "diffusion_model.blocks.2.self_attn.k" in index.why_not("lora_unet_blocks_2.self_attn.k")


@pytest.mark.parametrize(("key", "expected"), [
    ("diffusion_model.blocks.0.ffn.0.lora_A.weight", ("diffusion_model.blocks.0.ffn.0", "A")),
    ("lora_unet_blocks_0_ffn_0.lora_up.weight", ("lora_unet_blocks_0_ffn_0", "up")),
    ("diffusion_model.blocks.0.norm3.diff_b", ("diffusion_model.blocks.0.norm3", "diff_b")),
    ("diffusion_model.blocks.0.ffn.0.weight", None),
])
def test_a_key_is_split_at_its_suffix(key, expected):
    assert split(key) == expected


@pytest.mark.parametrize(("suffix", "kind"), [
    (".hada_w1_a", "LoHa"), (".lokr_w1", "LoKr"), (".dora_scale", "DoRA"), (".oft_blocks", "OFT"), (".diff_m", "diff_m"),
    (".set_weight", "set_weight"), (".lora_mid.weight", "Tucker"), (".lora_B.bias", "LoRA bias"), (".w_norm", "LyCORIS norm"),
    (".lora_A.default.weight", "PEFT"), (".a1.weight", "GLoRA"), (".lora.up.weight", "old diffusers"),
    ("_lora.down.weight", "old diffusers"),
])
def test_other_adapter_kinds_are_known_by_name(suffix, kind):
    module, named, _ = unsupported("diffusion_model.blocks.0.ffn.0" + suffix)
    assert module == "diffusion_model.blocks.0.ffn.0"
    assert kind in named
