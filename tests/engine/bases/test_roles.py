"""Roles of experts: the names found in the wild, the traps among them, and pairs that are none."""
import os
from itertools import product

import pytest
import torch
from safetensors.torch import save_file
from wan22_master.engine.bases.roles import check_pair, partner, role_of
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.errors import SourceError

HIGH, LOW = "high_noise", "low_noise"
SAYS_HIGH = [
    "high_noise", "high-noise", "highnoise", "HighNoise", "HIGHNOISE", "highNoise", "HIGH", "High", "wan_high", "i2vHigh",
    "i2vhigh", "T2V_HN_v2", "wan-hn", "high_noise_model", "wan2.2_t2v_high_noise_14B_fp16", "A14B-HIGH_fp8", "wan22high14b",
    "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise", "Wan_2_2_I2V_A14B_HIGH_lightx2v_4step_lora_v1030_rank_64_bf16",
    "Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "T2V_14b_HighNoise_v2", "my_wan2.2_lora_000001500_high_noise",
    "wan22_Seko_high-noise_V1", "DR34ML4Y_I2V_14B_HIGH", "wan2.2_i2v_HIGH_rank64", "HIGH_4steps", "style.HighNoise.v3",
    "high_noise_low_rank", "low_vram_high_noise", "slow_motion_high_noise", "HighRes_HighNoise", "flow_HIGH", "HIGHnoise",
    "style_transformer_1", "Transformer-1", "low_style_high_noise", "low_grand_high_noise", "land_high_noise",
    "high_noise_and_sound",
]
SAYS_NOTHING = [
    "slow", "slow_motion", "slowMotion", "flow", "optical-flow", "highlight", "HighLight", "highlights_v2", "low_rank", "lowrank",
    "low_vram", "lowvram", "LowVRAM", "HighRes", "high-res", "high_resolution", "high_quality", "HighQuality", "glow", "Below",
    "allow", "thigh", "sigh", "yellow", "hollow", "slownoise", "wan2.1_t2v", "low_light", "high_speed", "LoRA", "model",
    "highway", "transformer", "transformer_3", "transformer_12", "mytransformer_1", "lowpoly", "Low-Poly", "knight",
]
SAYS_BOTH = [
    "high_low_pair", "HighNoise_LowNoise_merged", "wan_HIGH-LOW", "hn_ln", "high_and_low_noise_both", "low-and-high-noise",
    "HighAndLowNoise", "high and lownoise", "high_noise_and_low_noise",
]


def nothing_exists(_):
    return False


def lowered(name):
    """The low-noise twin of a name, by the plainest rule: every role word of these lists spelled the other way."""
    pairs = [("high_noise", "low_noise"), ("high-noise", "low-noise"), ("highnoise", "lownoise"), ("HighNoise", "LowNoise"),
             ("HIGHNOISE", "LOWNOISE"), ("highNoise", "lowNoise"), ("HIGHnoise", "LOWnoise"), ("i2vHigh", "i2vLow"),
             ("HIGH", "LOW"), ("_HN_", "_LN_"), ("-hn", "-ln"), ("i2vhigh", "i2vlow"), ("wan22high", "wan22low"),
             ("transformer_1", "transformer_2"), ("Transformer-1", "Transformer-2"), ("wan_high", "wan_low"), ("High", "Low")]
    word, other = next(pair for pair in pairs if pair[0] in name)
    return name.replace(word, other)


@pytest.mark.parametrize("name", SAYS_HIGH)
def test_names_found_in_the_wild_say_high_and_their_mirror_says_low(name):
    found = role_of(f"/models/{name}.safetensors", {}, nothing_exists)
    assert (found.role, name in found.evidence) == (HIGH, True)
    assert role_of(f"/models/{lowered(name)}.safetensors", {}, nothing_exists).role == LOW


@pytest.mark.parametrize("name", SAYS_NOTHING)
def test_words_that_only_contain_high_or_low_say_nothing(name):
    assert role_of(f"/models/{name}.safetensors", {}, nothing_exists).role is None
    assert partner(f"/models/{name}.safetensors", lambda _: True) is None


@pytest.mark.parametrize("name", SAYS_BOTH)
def test_a_name_that_says_both_is_not_guessed(name):
    found = role_of(f"/models/high_noise_model/{name}.safetensors", {}, nothing_exists)
    assert (found.role, "both" in found.evidence) == (None, True)


@pytest.mark.parametrize(("text", "role"), [
    ("900,1000", HIGH), ("875,1000", HIGH), ("0,900", LOW), ("0,875", LOW), (" 0, 875 ", LOW), ("900.0,1000.0", HIGH),
    ("0,1000", None), ("", None), ("900", None), ("a,b", None), ("0,1", None), ("1000,900", None), ("400,600", None),
])
def test_the_timestep_range_goes_before_every_name(text, role):
    wanted = role or LOW
    found = role_of("/models/wan_low_noise.safetensors", {"modelspec.timestep_range": text}, nothing_exists)
    assert found.role == wanted
    assert ("timestep_range" in found.evidence) == (role is not None)


@pytest.mark.parametrize(("path", "role"), [
    ("/models/high_noise_model/diffusion_pytorch_model-00001-of-00006.safetensors", HIGH),
    ("/models/low_noise_model/diffusion_pytorch_model.safetensors.index.json", LOW),
    ("/models/low_noise_model", LOW), ("/models/low_noise_model/", LOW), ("/out/wan_HIGH/epoch20/adapter_model.safetensors", HIGH),
    ("/models/Wan2.2-I2V-LowNoise/high_noise.safetensors", HIGH), ("/high/a/b/c/model.safetensors", None),
    ("/models/high_quality/slow.safetensors", None), ("/models/low_vram/HIGH/model.safetensors", HIGH),
])
def test_the_folder_speaks_only_where_the_file_is_silent(path, role):
    assert role_of(path, {}, nothing_exists).role == role


@pytest.mark.parametrize(("name", "other"), [("wan_H", "wan_L"), ("wan-h-v2", "wan-l-v2"), ("L.i2v", "H.i2v")])
def test_a_bare_letter_counts_only_beside_its_opposite(name, other):
    role = HIGH if "h" in name.lower().split("wan")[-1] else LOW
    path, twin = os.path.normpath(f"/models/{name}.safetensors"), os.path.normpath(f"/models/{other}.safetensors")
    assert role_of(path, {}, nothing_exists).role is None
    assert partner(path, nothing_exists) is None
    assert role_of(path, {}, {twin}.__contains__).role == role
    assert partner(path, {twin}.__contains__) == twin


@pytest.mark.parametrize("name", SAYS_HIGH)
def test_the_partner_keeps_the_spelling_in_both_directions(name):
    high, low = (os.path.normpath(f"/models/{each}.safetensors") for each in (name, lowered(name)))
    there = {high, low}
    assert partner(high, there.__contains__) == low
    assert partner(low, there.__contains__) == high
    assert partner(high, {high}.__contains__) is None


@pytest.mark.parametrize(("path", "other"), [
    ("/m/high_noise_model/model-00001-of-00006.safetensors", "/m/low_noise_model/model-00001-of-00006.safetensors"),
    ("/m/high_noise_model", "/m/low_noise_model"),
    ("/m/high/wan_high_noise.safetensors", "/m/low/wan_low_noise.safetensors"),
    ("/m/HIGH/step20/adapter_model.safetensors", "/m/LOW/step20/adapter_model.safetensors"),
    ("/m/x/HN.gguf", "/m/x/LN.gguf"),
])
def test_the_partner_is_also_found_in_the_opposite_folder(path, other):
    path, other = os.path.normpath(path), os.path.normpath(other)
    assert partner(path, {path, other}.__contains__) == other
    assert partner(other, {path, other}.__contains__) == path


def test_the_name_is_swapped_before_the_folder():
    path = os.path.normpath("/m/high/wan_high.safetensors")
    beside, across = os.path.normpath("/m/high/wan_low.safetensors"), os.path.normpath("/m/low/wan_low.safetensors")
    assert partner(path, {beside, across}.__contains__) == beside


def test_the_two_folders_of_a_diffusers_repository_are_a_pair():
    first, second = (os.path.normpath(f"/repo/{name}") for name in ("transformer", "transformer_2"))
    there = {first, second, os.path.join(first, "a.safetensors"), os.path.join(second, "a.safetensors")}
    assert role_of(os.path.join(first, "a.safetensors"), {}, there.__contains__).role == HIGH
    assert role_of(os.path.join(second, "a.safetensors"), {}, there.__contains__).role == LOW
    assert partner(os.path.join(first, "a.safetensors"), there.__contains__) == os.path.join(second, "a.safetensors")
    assert role_of(os.path.join(first, "a.safetensors"), {}, nothing_exists).role is None


def base(path, *, dim=128, in_dim=16, blocks=1, fill=0.0, metadata=None):
    tensors = {"head.modulation": torch.zeros(1, 2, dim), "head.head.weight": torch.zeros(64, dim),
               "patch_embedding.weight": torch.full((dim, in_dim, 1, 2, 2), fill)}
    save_file(tensors | {f"blocks.{number}.ffn.0.weight": torch.zeros(256, dim) for number in range(blocks)}, path, metadata)
    return open_source(path)


def test_two_experts_of_one_model_are_a_pair_whatever_their_names_keep_quiet(tmp_path):
    for names in product(("a", "x_high_noise"), ("b", "x_low_noise")):
        with base(tmp_path / f"{names[0]}.safetensors") as high, base(tmp_path / f"{names[1]}.safetensors", fill=1.0) as low:
            check_pair(high, low)


def test_one_file_twice_is_no_pair_not_even_through_a_link(tmp_path):
    with base(tmp_path / "high.safetensors") as high:
        with pytest.raises(SourceError, match="same file twice"):
            check_pair(high, high)
        os.link(tmp_path / "high.safetensors", tmp_path / "same.safetensors")
        with open_source(tmp_path / "same.safetensors") as low, pytest.raises(SourceError, match="same file twice"):
            check_pair(high, low)
        try:
            (tmp_path / "low.safetensors").symlink_to(tmp_path / "high.safetensors")
        except OSError:
            pytest.skip("this system lets no ordinary user make a symbolic link")
        with open_source(tmp_path / "low.safetensors") as low, pytest.raises(SourceError, match="same file twice"):
            check_pair(high, low)


def test_swapped_experts_are_no_pair_and_the_evidence_is_told(tmp_path):
    with base(tmp_path / "wan_low_noise.safetensors") as first, base(tmp_path / "wan_high_noise.safetensors", fill=1.0) as second:
        with pytest.raises(SourceError, match=r"swapped .*wan_low_noise.*wan_high_noise.*; swap the two files"):
            check_pair(first, second)
        check_pair(second, first)


@pytest.mark.parametrize(("change", "message"), [
    ({"in_dim": 36}, r"T2V.*I2V.*task t2v and i2v"), ({"dim": 256}, r"dim 128 and 256"), ({"blocks": 2}, r"num_layers 1 and 2"),
])
def test_experts_of_different_models_are_no_pair(tmp_path, change, message):
    high, low = base(tmp_path / "high.safetensors"), base(tmp_path / "low.safetensors", **change)
    with high, low, pytest.raises(SourceError, match=message):
        check_pair(high, low)
