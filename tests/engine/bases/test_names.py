"""Native and diffusers names of Wan layers. The pairs are those of diffusers' own conversion script, spelled out."""
import pytest
from wan22_master.engine.bases.names import find_prefix, is_diffusers, to_diffusers, to_native

LINEAR = ("weight", "bias")


def native_keys(blocks=40, *, image=False, vace=0):
    """Every key of a Wan model: 27 per block and 15 around them; the image branch adds 5 per block and 9 outside."""
    keys = [f"{layer}.{part}" for layer in ("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0",
                                            "time_embedding.2", "time_projection.1", "head.head") for part in LINEAR]
    keys.append("head.modulation")
    stacks = [f"blocks.{number}" for number in range(blocks)] + [f"vace_blocks.{number}" for number in range(vace)]
    for block in stacks:
        keys.append(f"{block}.modulation")
        for attention in ("self_attn", "cross_attn"):
            keys += [f"{block}.{attention}.{layer}.{part}" for layer in "qkvo" for part in LINEAR]
            keys += [f"{block}.{attention}.norm_q.weight", f"{block}.{attention}.norm_k.weight"]
        keys += [f"{block}.{layer}.{part}" for layer in ("norm3", "ffn.0", "ffn.2") for part in LINEAR]
        if image:
            keys += [f"{block}.cross_attn.{layer}.{part}" for layer in ("k_img", "v_img") for part in LINEAR]
            keys.append(f"{block}.cross_attn.norm_k_img.weight")
        if block.startswith("vace"):
            keys += [f"{block}.{layer}.{part}" for layer in ("before_proj", "after_proj") for part in LINEAR]
    if image:
        keys += [f"img_emb.proj.{number}.{part}" for number in (0, 1, 3, 4) for part in LINEAR] + ["img_emb.emb_pos"]
    return keys


FAMILIES = {
    "A14B": {"blocks": 40}, "5B": {"blocks": 30}, "2.1 I2V": {"blocks": 40, "image": True}, "VACE": {"blocks": 40, "vace": 8},
}
# native -> diffusers (huggingface/diffusers, scripts/convert_wan_to_diffusers.py)
PAIRS = {
    "text_embedding.0.weight": "condition_embedder.text_embedder.linear_1.weight",
    "text_embedding.2.bias": "condition_embedder.text_embedder.linear_2.bias",
    "time_embedding.0.weight": "condition_embedder.time_embedder.linear_1.weight",
    "time_embedding.2.weight": "condition_embedder.time_embedder.linear_2.weight",
    "time_projection.1.weight": "condition_embedder.time_proj.weight",
    "patch_embedding.weight": "patch_embedding.weight",
    "head.head.weight": "proj_out.weight",
    "head.modulation": "scale_shift_table",
    "blocks.3.modulation": "blocks.3.scale_shift_table",
    "blocks.3.self_attn.q.weight": "blocks.3.attn1.to_q.weight",
    "blocks.3.self_attn.k.bias": "blocks.3.attn1.to_k.bias",
    "blocks.3.self_attn.v.weight": "blocks.3.attn1.to_v.weight",
    "blocks.3.self_attn.o.weight": "blocks.3.attn1.to_out.0.weight",
    "blocks.3.self_attn.norm_q.weight": "blocks.3.attn1.norm_q.weight",
    "blocks.3.cross_attn.q.weight": "blocks.3.attn2.to_q.weight",
    "blocks.3.cross_attn.o.bias": "blocks.3.attn2.to_out.0.bias",
    "blocks.3.cross_attn.norm_k.weight": "blocks.3.attn2.norm_k.weight",
    "blocks.3.cross_attn.k_img.weight": "blocks.3.attn2.add_k_proj.weight",
    "blocks.3.cross_attn.v_img.weight": "blocks.3.attn2.add_v_proj.weight",
    "blocks.3.cross_attn.norm_k_img.weight": "blocks.3.attn2.norm_added_k.weight",
    "blocks.39.ffn.0.weight": "blocks.39.ffn.net.0.proj.weight",
    "blocks.39.ffn.2.weight": "blocks.39.ffn.net.2.weight",
    "blocks.39.norm3.weight": "blocks.39.norm2.weight",
    "img_emb.proj.0.weight": "condition_embedder.image_embedder.norm1.weight",
    "img_emb.proj.1.weight": "condition_embedder.image_embedder.ff.net.0.proj.weight",
    "img_emb.proj.3.weight": "condition_embedder.image_embedder.ff.net.2.weight",
    "img_emb.proj.4.bias": "condition_embedder.image_embedder.norm2.bias",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "vace_blocks.0.before_proj.weight": "vace_blocks.0.proj_in.weight",
    "vace_blocks.7.after_proj.weight": "vace_blocks.7.proj_out.weight",
    "vace_blocks.7.norm3.bias": "vace_blocks.7.norm2.bias",
}


@pytest.mark.parametrize(("native_key", "other"), PAIRS.items())
def test_the_table_is_that_of_the_conversion_script(native_key, other):
    assert to_diffusers(native_key) == other
    assert to_native(other) == native_key


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_key_survives_the_way_there_and_back(family):
    keys = native_keys(**family)
    there = [to_diffusers(key) for key in keys]
    assert len(set(there)) == len(keys)
    assert [to_native(key) for key in there] == keys


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_no_diffusers_key_keeps_a_native_word(family):
    left = {"self_attn", "cross_attn", "modulation", "norm3", "img_emb", "head", "text_embedding", "k_img", "after_proj"}
    assert not [key for key in native_keys(**family) if left & set(to_diffusers(key).split("."))]


def test_norm2_and_norm3_change_places():
    assert to_native("blocks.5.norm2.weight") == "blocks.5.norm3.weight"
    assert to_native("blocks.5.norm3.weight") == "blocks.5.norm2.weight"
    assert to_diffusers("blocks.5.norm3.weight") == "blocks.5.norm2.weight"
    assert to_native("blocks.5.attn2.norm_k") == "blocks.5.cross_attn.norm_k"


def test_proj_out_is_the_head_at_the_top_and_after_proj_in_a_vace_block():
    assert to_native("proj_out.bias") == "head.head.bias"
    assert to_native("vace_blocks.3.proj_out.bias") == "vace_blocks.3.after_proj.bias"
    assert to_native("blocks.3.proj_out.bias") == "blocks.3.proj_out.bias"


@pytest.mark.parametrize("key", [
    "blocks.3.attn1x.to_q.weight", "blocks.3.attn1", "blocks", "blocks.3", "proj_output.weight", "my_scale_shift_table",
    "xblocks.0.attn1.to_q.weight", "", "a.b.c", "blocks.3.attn1.to_out.1.weight",
])
def test_unknown_names_come_back_as_they_are(key):
    assert to_native(key) == key


def test_layers_map_like_their_keys():
    assert to_native("blocks.3.attn1.to_q") == "blocks.3.self_attn.q"
    assert to_native("blocks.3.attn1.to_q.weight_scale") == "blocks.3.self_attn.q.weight_scale"
    assert to_diffusers("blocks.12.ffn.0") == "blocks.12.ffn.net.0.proj"


@pytest.mark.parametrize("prefix", ["", "model.", "model.diffusion_model.", "diffusion_model."])
def test_the_prefix_is_found_in_either_spelling(prefix):
    keys = native_keys(1)
    assert find_prefix([prefix + key for key in keys]) == prefix
    assert find_prefix([prefix + to_diffusers(key) for key in keys]) == prefix
    assert find_prefix([prefix + key for key in keys if key != "head.modulation"]) is None


def test_the_spelling_of_a_whole_model_is_recognised():
    keys = native_keys(2)
    assert not is_diffusers(set(keys))
    assert is_diffusers({to_diffusers(key) for key in keys})
