"""Spellings of LoRA keys: each resolves to the one layer of the base that it means, or is refused by its true reason.

What is expected is written by hand, from the trainers' sources and diffusers' WanTransformer3DModel, not from our tables.
"""
import pytest
import torch
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.dialects import Index, split
from wan22_master.engine.loras.file_dialect import read_dialect
from wan22_master.engine.specs import TensorSpec

HIGH, LOW = "high_noise", "low_noise"
LAYERS = (*(f"{kind}_attn.{name}" for kind in ("self", "cross") for name in "qkvo"), "ffn.0", "ffn.2")
TOP = ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1", "head.head",
       "patch_embedding")
DIFFUSERS = {
    "blocks.1.self_attn.q": "blocks.1.attn1.to_q", "blocks.1.self_attn.o": "blocks.1.attn1.to_out.0",
    "blocks.1.cross_attn.v": "blocks.1.attn2.to_v", "blocks.1.self_attn.norm_q": "blocks.1.attn1.norm_q",
    "blocks.1.ffn.0": "blocks.1.ffn.net.0.proj", "blocks.1.ffn.2": "blocks.1.ffn.net.2",
    "blocks.1.modulation": "blocks.1.scale_shift_table", "head.head": "proj_out", "head.modulation": "scale_shift_table",
    "time_projection.1": "condition_embedder.time_proj", "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
}
DOTTED = ("", "diffusion_model.", "transformer.", "transformer_1.", "transformer_2.", "diffusion_model_2.", "pipe.dit.",
          "model.diffusion_model.", "diffusion_model.transformer_1.", "diffusion_model.transformer_2.")
WRAPPED = tuple(f"base_model.model.{prefix}" for prefix in ("", "diffusion_model.", "transformer.", "transformer_2."))
FLAT = ("lora_unet_", "lora_unet__", "lycoris_", "lora_transformer_", "lora_transformer_2_")
LOWS = ("transformer_2.", "diffusion_model_2.", "diffusion_model.transformer_2.", "lora_transformer_2_")
# dialect -> (module, layer, expert, has ComfyUI 0.33 its own reading of it)
TABLE = {
    "1, 2 native": ("diffusion_model.blocks.0.self_attn.q", "blocks.0.self_attn.q", None, True),
    "3 kohya": ("lora_unet_blocks_0_cross_attn_k", "blocks.0.cross_attn.k", None, True),
    "4 kohya with dots": ("lora_unet_blocks_2.self_attn.k", "blocks.2.self_attn.k", None, False),
    "5 Fun": ("lora_unet__blocks_0_cross_attn_k", "blocks.0.cross_attn.k", None, False),
    "6 bare": ("blocks.0.ffn.2", "blocks.0.ffn.2", None, False),
    "6 bare diffusers": ("blocks.0.attn1.to_q", "blocks.0.self_attn.q", None, False),
    "7 diffusers": ("transformer.blocks.0.attn2.to_out.0", "blocks.0.cross_attn.o", None, False),
    "8 diffusers low": ("transformer_2.blocks.0.ffn.net.0.proj", "blocks.0.ffn.0", LOW, False),
    "9 transformer native": ("transformer.blocks.0.self_attn.q", "blocks.0.self_attn.q", None, False),
    "10 half-converted": ("diffusion_model.blocks.0.attn1.to_q", "blocks.0.self_attn.q", None, False),
    "11 PEFT": ("base_model.model.blocks.0.self_attn.q", "blocks.0.self_attn.q", None, False),
    "12 DiffSynth": ("pipe.dit.blocks.0.self_attn.q", "blocks.0.self_attn.q", None, False),
    "13 LyCORIS": ("lycoris_blocks_0_self_attn_q", "blocks.0.self_attn.q", None, False),
    "13 LyCORIS diffusers": ("lycoris_blocks_0_attn1_to_out_0", "blocks.0.self_attn.o", None, False),
    "14 OneTrainer omi": ("diffusion_model_2.blocks.0.self_attn.q", "blocks.0.self_attn.q", LOW, False),
    "14 OneTrainer legacy": ("lora_transformer_blocks_0_attn2_to_k", "blocks.0.cross_attn.k", None, False),
    "14 OneTrainer legacy low": ("lora_transformer_2_blocks_0_ffn_net_2", "blocks.0.ffn.2", LOW, False),
    "15 ai-toolkit high": ("diffusion_model.transformer_1.blocks.0.self_attn.q", "blocks.0.self_attn.q", HIGH, False),
    "15 ai-toolkit low": ("diffusion_model.transformer_2.blocks.0.self_attn.q", "blocks.0.self_attn.q", LOW, False),
    "16 checkpoint": ("model.diffusion_model.blocks.0.self_attn.q", "blocks.0.self_attn.q", None, False),
}


def keys():
    found = [f"{name}.{kind}" for name in TOP for kind in ("weight", "bias")] + ["head.modulation"]
    for block in range(3):
        found += [f"blocks.{block}.{layer}.{kind}" for layer in (*LAYERS, "norm3") for kind in ("weight", "bias")]
        found += [f"blocks.{block}.modulation", f"blocks.{block}.self_attn.norm_q.weight"]
    return found


@pytest.fixture(scope="module")
def index() -> Index:
    return Index(keys(), dict.fromkeys(keys(), TensorSpec((8, 8), torch.bfloat16)))


def place(index, module, *others):
    """Where `module` lies in a file that has these other modules too."""
    return index.place(module, read_dialect([module, *others]))


@pytest.mark.parametrize("dialect", TABLE)
def test_every_dialect_means_the_layer_and_the_expert_that_its_trainer_meant(index, dialect):
    module, layer, expert, is_loaded = TABLE[dialect]
    found = place(index, module)
    assert (found.layer, found.expert, found.is_converted) == (layer, expert, not is_loaded)


@pytest.mark.parametrize("prefix", DOTTED + WRAPPED + FLAT)
def test_every_layer_is_found_under_every_prefix_in_both_ways_of_naming(index, prefix):
    spelled = {layer: layer for layer in index.layers if not layer.endswith("norm3")}
    for names in (spelled, DIFFUSERS):
        for layer, name in names.items():
            found = place(index, prefix + (name.replace(".", "_") if prefix in FLAT else name))
            assert (found.layer, found.expert == LOW) == (layer, any(low in prefix for low in LOWS)), name


@pytest.mark.parametrize("prefix", DOTTED + WRAPPED + FLAT)
@pytest.mark.parametrize(("neighbour", "norm", "layer"), [
    ("blocks.1.self_attn.q", "norm3", "blocks.1.norm3"), ("blocks.1.self_attn.q", "norm2", None),
    ("blocks.1.attn1.to_q", "norm2", "blocks.1.norm3"), ("blocks.1.attn1.to_q", "norm3", None),
    ("blocks.0.ffn.net.2", "norm2", "blocks.1.norm3"), ("proj_out", "norm3", None), ("head.head", "norm3", "blocks.1.norm3"),
])
def test_the_other_names_decide_what_norm2_and_norm3_mean(index, prefix, neighbour, norm, layer):
    spell = (lambda name: name.replace(".", "_")) if prefix in FLAT else (lambda name: name)
    found = place(index, prefix + spell(f"blocks.1.{norm}"), prefix + spell(neighbour))
    assert (found and found.layer) == layer


def test_a_norm_is_decided_by_its_own_prefix_before_the_rest_of_the_file(index):
    native, other = "diffusion_model.blocks.0.self_attn.q", "transformer.blocks.0.attn1.to_q"
    assert place(index, "transformer.blocks.0.norm2", native, other).layer == "blocks.0.norm3"
    assert place(index, "diffusion_model.blocks.0.norm2", native, other) is None
    assert place(index, "pipe.dit.blocks.0.norm2", other).layer == "blocks.0.norm3"


def test_a_norm_of_the_other_way_of_naming_is_told_so(index):
    assert "this norm has no parameters" in index.why_not("diffusion_model.blocks.0.norm2")


def test_names_of_a_text_encoder_do_not_decide_a_norm(index):
    with pytest.raises(LoraError, match="change places"):
        place(index, "blocks.0.norm2", "lora_te_encoder_layers_0_self_attn_q_proj")


@pytest.mark.parametrize(("prefix", "others"), [
    ("transformer.", ()), ("lycoris_", ()),
    ("diffusion_model.", ("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.attn1.to_k"))])
def test_a_norm_that_nothing_decides_is_an_error_and_no_guess(index, prefix, others):
    with pytest.raises(LoraError, match=r"blocks[._]0[._]norm3: expected other names .* convert"):
        place(index, f"{prefix}blocks.0.norm3".replace("lycoris_blocks.0.", "lycoris_blocks_0_"), *others)


def test_a_norm_alone_under_comfyui_s_own_prefix_is_native(index):
    assert place(index, "diffusion_model.blocks.0.norm3", "diffusion_model.patch_embedding").layer == "blocks.0.norm3"


@pytest.mark.parametrize(("first", "second"), [
    ("diffusion_model.", "diffusion_model_2."), ("transformer.", "transformer_2."), ("lora_transformer_", "lora_transformer_2_"),
    ("diffusion_model.transformer_1.", "diffusion_model.transformer_2."), ("transformer_1.", "transformer_2."),
    ("base_model.model.transformer.", "base_model.model.transformer_2."), ("diffusion_model.", "transformer_2."),
])
def test_a_prefix_means_high_noise_only_beside_a_low_noise_half(index, first, second):
    name = "blocks_0_self_attn_q" if "lora_" in first else "blocks.0.self_attn.q"
    file = read_dialect([first + name, second + name])
    assert file.is_combined and file.experts == {HIGH, LOW}
    assert [index.place(prefix + name, file).expert for prefix in (first, second)] == [HIGH, LOW]
    alone = read_dialect([first + name])
    assert not alone.is_combined and alone.experts == ({HIGH} if "_1" in first else set())
    assert read_dialect([second + name]).experts == {LOW}


def test_keys_of_the_text_encoder_say_nothing_about_the_experts():
    assert not read_dialect(["transformer_2.blocks.0.attn1.to_q", "lora_te_blocks_0", "text_encoder.encoder.q"]).is_combined


def test_comfyui_reads_the_double_underscore_only_with_its_sentinel(index):
    module, sentinel = "lora_unet__blocks_1_ffn_0", "lora_unet__blocks_0_cross_attn_k.lora_down.weight"
    assert index.place(module, read_dialect([module], [sentinel])).is_converted is False
    assert index.place(module, read_dialect([module], [f"{module}.lora_down.weight"])).is_converted is True


def test_a_part_goes_to_weight_bias_or_bare_parameter(index):
    assert index.target("blocks.0.ffn.2", "up") == "blocks.0.ffn.2.weight"
    assert index.target("blocks.0.ffn.2", "diff_b") == "blocks.0.ffn.2.bias"
    assert index.target("blocks.0.modulation", "diff") == "blocks.0.modulation"
    assert index.target("blocks.0.modulation", "diff_b") is None


@pytest.mark.parametrize(("module", "reason"), [
    ("diffusion_model.blocks.0.cross_attn.k_img", "image branch"), ("lora_unet_blocks_0_cross_attn_v_img", "image branch"),
    ("transformer.blocks.0.attn2.add_k_proj", "image branch"), ("diffusion_model.img_emb.proj.1", "image branch"),
    ("transformer.condition_embedder.image_embedder.ff.net.2", "image branch"),
    ("diffusion_model.blocks.39.ffn.0", "block 39, but the model has 3 blocks"),
    ("lora_unet_blocks_3_ffn_0", "block 3, but the model has 3 blocks"),
    ("transformer_2.blocks.3.attn1.to_q", "block 3, but the model has 3 blocks"),
    ("diffusion_model.vace_blocks.0.after_proj", "only in VACE"), ("face_adapter.fuser_blocks.0.linear2", "only in Animate"),
    ("lora_te_text_model_encoder_layers_0_mlp_fc1", "text encoder"), ("lora_te1_x", "text encoder"),
    ("text_encoders.umt5xxl.block.0", "text encoder"), ("text_encoder.encoder.q", "text encoder"), ("t5.encoder.q", "text encoder"),
    ("base_model.model.text_encoder.q", "text encoder"), ("diffusion_model.double_blocks.0.img_attn", "no such layer"),
    ("lora_unet_blocks_0_self_attn", "no such layer in this model"), ("blocks.0.self_attn.q.q", "no such layer in this model"),
    ("diffusion_model.diffusion_model.blocks.0.ffn.0", "no such layer in this model"),
    ("diffusion_model_3.blocks.0.ffn.0", "no such layer in this model"), ("transformer_2_blocks.0.ffn.0", "no such layer"),
])
def test_a_name_that_means_no_layer_is_refused_by_its_reason(index, module, reason):
    assert place(index, module, "diffusion_model.blocks.0.self_attn.q") is None
    assert reason in index.why_not(module)


@pytest.mark.parametrize(("key", "expected"), [
    ("diffusion_model.blocks.0.ffn.0.lora_A.weight", ("diffusion_model.blocks.0.ffn.0", "A")),
    ("lora_unet_blocks_0_ffn_0.lora_up.weight", ("lora_unet_blocks_0_ffn_0", "up")),
    ("diffusion_model.blocks.0.norm3.diff_b", ("diffusion_model.blocks.0.norm3", "diff_b")),
    ("diffusion_model.blocks.0.diff_m", ("diffusion_model.blocks.0.modulation", "diff_m")),
    ("head.diff_m", ("head.modulation", "diff_m")), ("lora_unet_blocks_0.diff_m", ("lora_unet_blocks_0_modulation", "diff_m")),
    ("diffusion_model.blocks.0.self_attn.q_loras.down.weigh", None),
])
def test_a_key_is_split_at_its_suffix(key, expected):
    assert split(key) == expected
