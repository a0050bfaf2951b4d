import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine.errors import LoraError, PlanError, RecipeError, Stopped
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loratools.convert import Conversion, convert, experts_of, join
from wan22_master.engine.loratools.wish import Save, Watch
from wan22_master.tests.engine import tiny, trainers

HIGH, LOW = tiny.PAIR
ONE = ["blocks.1.cross_attn.k"]


def metadata(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def run(source, to, target, role=None, **more):
    with open_lora(source) as lora:
        wish = Conversion(to, role, more.pop("on_refused", "error"), more.pop("span", None))
        return convert(lora, wish, Save(str(target), **more), Watch())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(tiny.same_bits(one[key], other[key]) for key in one)


@pytest.mark.parametrize("through", ["native", "native_down_up", "diffusers", "omi"])
def test_kohya_there_and_back_is_equal_in_every_bit(tmp_path, through):
    source = trainers.write_musubi(tmp_path)[0]
    there = run(source, through, tmp_path / "there.safetensors").path
    back = run(there, "kohya", tmp_path / "back.safetensors").path
    assert load_file(there).keys().isdisjoint(load_file(source)) and same(load_file(back), load_file(source))


@pytest.mark.parametrize("through", ["kohya", "diffusers", "omi"])
def test_a_lora_without_alphas_comes_back_without_alphas(tmp_path, through):
    source = trainers.write_ai_toolkit(tmp_path)[0]
    there = run(source, through, tmp_path / "there.safetensors").path
    assert "lora_adapter_metadata" not in metadata(there)
    assert same(load_file(run(there, "native", tmp_path / "back.safetensors").path), load_file(source))


def test_an_integer_alpha_stays_an_integer_and_in_diffusers_is_in_the_metadata_alone(tmp_path):
    source = trainers.write_seko(tmp_path, ONE)[0]
    there = run(source, "diffusers", tmp_path / "there.safetensors")
    assert there.moved == 1 and set(load_file(there.path)) == {f"transformer.blocks.1.attn2.to_k.lora_{one}.weight" for one in "AB"}
    told = json.loads(metadata(there.path)["lora_adapter_metadata"])
    assert (told["transformer.r"], told["transformer.lora_alpha"], told["transformer.use_rslora"]) == (64, 8, False)
    back = load_file(run(there.path, "native_down_up", tmp_path / "back.safetensors").path)
    assert back["diffusion_model.blocks.1.cross_attn.k.alpha"].dtype == torch.int64
    assert same(back, {f"diffusion_model.{key}": value for key, value in load_file(source).items()})


def test_ranks_and_alphas_that_differ_are_patterns_bound_to_their_whole_name(tmp_path):
    tensors = load_file(trainers.write_musubi(tmp_path)[0])
    tensors["lora_unet_blocks_1_ffn_0.alpha"] = torch.tensor(3.0).bfloat16()
    for part, cut in (("lora_down", (slice(2),)), ("lora_up", (slice(None), slice(2)))):
        key = f"lora_unet_blocks_1_ffn_2.{part}.weight"
        tensors[key] = tensors[key][cut].clone()
    source = tiny.save(tmp_path / "mixed.safetensors", tensors)
    there = run(source, "diffusers", tmp_path / "there.safetensors").path
    told = json.loads(metadata(there)["lora_adapter_metadata"])  # PEFT 0.21.2 reads exactly these, measured once by hand
    assert told["transformer.alpha_pattern"] == {r"^blocks\.1\.ffn\.net\.0\.proj": 3}
    assert told["transformer.rank_pattern"] == {r"^blocks\.1\.ffn\.net\.2": 2}
    assert len(told["transformer.target_modules"]) == 20
    assert same(load_file(run(there, "kohya", tmp_path / "back.safetensors").path), tensors)


def test_rs_lora_of_a_configuration_becomes_an_alpha_that_gives_the_same_factor(tmp_path):
    source = trainers.write_diffusers(tmp_path, ONE, alpha=3, rslora=True)[0]
    found = load_file(run(source, "native", tmp_path / "there.safetensors").path)
    assert found["diffusion_model.blocks.1.cross_attn.k.alpha"].item() / 4 == 3 / 4**0.5


def test_a_file_of_both_experts_is_split_and_joined_again_equal_in_every_bit(tmp_path):
    [source] = trainers.write_onetrainer(tmp_path)
    halves = {role: run(source, "native", tmp_path / f"{role}.safetensors", role) for role in tiny.PAIR}
    assert all(each.elsewhere == 60 for each in halves.values())
    with open_lora(halves[HIGH].path) as high, open_lora(halves[LOW].path) as low:
        assert experts_of(high) == () == experts_of(low)
        joined = join(high, low, Conversion("omi"), Save(str(tmp_path / "joined.safetensors")), Watch()).path
        both = join(high, low, Conversion("diffusers"), Save(str(tmp_path / "both.safetensors")), Watch()).path
    assert same(load_file(joined), load_file(source)) and metadata(joined)["ot_branch"] == "dev/wan22-i2v-support"
    told = json.loads(metadata(both)["lora_adapter_metadata"])
    assert told["transformer.lora_alpha"] == told["transformer_2.lora_alpha"] == 1
    assert {key.partition(".")[0] for key in load_file(both)} == {"transformer", "transformer_2"}
    with open_lora(both) as lora:
        assert experts_of(lora) == tiny.PAIR
    assert same(load_file(run(both, "omi", tmp_path / "again.safetensors").path), load_file(source))


def test_what_only_one_half_says_keeps_its_expert_in_a_joined_file_and_loses_it_again(tmp_path):
    first, second = trainers.write_musubi(tmp_path)
    with open_lora(first) as high, open_lora(second) as low:
        joined = join(high, low, Conversion("omi"), Save(str(tmp_path / "joined.safetensors")), Watch()).path
    said = metadata(joined)
    assert said["high_noise.modelspec.timestep_range"] == "900,1000" and said["low_noise.modelspec.timestep_range"] == "0,900"
    assert said["ss_network_dim"] == "4" and "modelspec.timestep_range" not in said
    low = metadata(run(joined, "kohya", tmp_path / "low.safetensors", LOW).path)
    assert {key: low[key] for key in metadata(second)} == metadata(second)


def test_both_experts_do_not_fit_into_native_and_a_wrong_half_is_refused(tmp_path):
    [source] = trainers.write_onetrainer(tmp_path)
    with pytest.raises(LoraError, match="holds both experts, which native cannot"):
        run(source, "native", tmp_path / "x.safetensors")
    low = run(source, "diffusers", tmp_path / "low.safetensors", LOW).path
    problem = pytest.raises(LoraError, match="expected the high_noise half alone")
    with open_lora(source) as combined, open_lora(low) as other, problem:
        join(combined, other, Conversion("omi"), Save(str(tmp_path / "x.safetensors")), Watch())
    with open_lora(low) as one, pytest.raises(RecipeError, match="expected a dialect with both experts"):
        join(one, one, Conversion("kohya"), Save(str(tmp_path / "x.safetensors")), Watch())
    assert not (tmp_path / "x.safetensors").exists()


def test_whole_differences_keep_their_bits_and_modulation_gets_the_name_that_comfyui_reads(tmp_path):
    source = trainers.write_lightx2v(tmp_path)[0]
    tensors, found = load_file(source), load_file(run(source, "native_down_up", tmp_path / "x.safetensors").path)
    renamed = {key.replace(".diff_m", ".modulation.diff"): value for key, value in tensors.items()}
    assert same(found, renamed)


def test_what_a_dialect_cannot_hold_is_an_error_with_the_way_out_or_left_out_and_listed(tmp_path):
    source = trainers.write_lightx2v(tmp_path)[0]
    with pytest.raises(LoraError, match=r"blocks.0.diff_m: kohya has no name for a parameter .*native.*3 keys in all"):
        run(source, "kohya", tmp_path / "x.safetensors")
    done = run(source, "kohya", tmp_path / "x.safetensors", on_refused="leave_out")
    missing = {key for key in load_file(source) if key.endswith("diff_m")}
    assert {each.key for each in done.refused} == missing and len(load_file(done.path)) == 73 - 3
    assert all(any(key in line for line in done.lines()) for key in missing)
    lokr = trainers.write_lokr(tmp_path)[0]
    with pytest.raises(LoraError, match="diffusers does not know LoKr; expand it to plain factors by Merge LoRAs with method svd"):
        run(lokr, "diffusers", tmp_path / "y.safetensors")
    found = load_file(run(lokr, "native", tmp_path / "y.safetensors").path)
    assert all(found[key].dtype == torch.float16 for key in found) and len(found) == 60


@pytest.mark.parametrize("extra", ["diffusion_model.text.lora_A.weight", "lora_te_q.lora_down.weight", "weird"])
def test_no_key_is_lost_in_silence(tmp_path, extra):
    tensors = load_file(trainers.write_ai_toolkit(tmp_path)[0]) | {extra: torch.ones(2, 2)}
    source = tiny.save(tmp_path / "more.safetensors", tensors)
    with pytest.raises(LoraError, match=extra):
        run(source, "native", tmp_path / "x.safetensors")
    done = run(source, "native", tmp_path / "x.safetensors", on_refused="leave_out")
    assert [each.key for each in done.refused] == [extra] and done.tensors == 40


def test_peft_magnitude_changes_its_shape_and_name_but_no_bit(tmp_path):
    tensors, stem = load_file(trainers.write_ai_toolkit(tmp_path, ONE)[0]), "diffusion_model.blocks.1.cross_attn.k"
    tensors[f"{stem}.lora_magnitude_vector.weight"] = torch.rand(tiny.DIM)
    source = tiny.save(tmp_path / "dora.safetensors", tensors)
    native = load_file(run(source, "native", tmp_path / "x.safetensors").path)
    assert torch.equal(native[f"{stem}.dora_scale"][:, 0], tensors[f"{stem}.lora_magnitude_vector.weight"])
    there = run(tmp_path / "x.safetensors", "diffusers", tmp_path / "y.safetensors").path
    assert json.loads(metadata(there)["lora_adapter_metadata"])["transformer.use_dora"] is True
    assert load_file(there)["transformer.blocks.1.attn2.to_k.lora_magnitude_vector.weight"].shape == (tiny.DIM,)
    native[f"{stem}.dora_scale"] = torch.rand(1, tiny.DIM)
    per_input = tiny.save(tmp_path / "z.safetensors", native)
    with pytest.raises(LoraError, match="holds a DoRA magnitude per output"):
        run(per_input, "diffusers", tmp_path / "w.safetensors")


def test_a_lora_bias_is_scaled_as_peft_scales_it(tmp_path):
    tensors, stem = load_file(trainers.write_ai_toolkit(tmp_path, ONE)[0]), "diffusion_model.blocks.1.cross_attn.k"
    bias = torch.rand(tiny.DIM)
    tensors |= {f"{stem}.lora_B.bias": bias, f"{stem}.alpha": torch.tensor(3.0)}
    found = load_file(run(tiny.save(tmp_path / "b.safetensors", tensors), "native", tmp_path / "x.safetensors").path)
    assert torch.equal(found[f"{stem}.diff_b"], (bias.double() * 0.75).float())


def test_two_spellings_of_a_layer_are_not_one_of_them(tmp_path):
    native, kohya = trainers.write_ai_toolkit(tmp_path, ONE)[0], trainers.write_musubi(tmp_path, ONE)[0]
    source = tiny.save(tmp_path / "two.safetensors", load_file(native) | load_file(kohya))
    with pytest.raises(LoraError, match="add the two up by Merge LoRAs"):
        run(source, "native", tmp_path / "x.safetensors")


def test_metadata_pass_but_for_hashes_of_the_old_bytes_and_a_known_range_is_added(tmp_path):
    tensors = load_file(trainers.write_ai_toolkit(tmp_path, ONE)[0])
    said = {"ss_tag_frequency": "{}", "sshs_model_hash": "abc", "modelspec.hash_sha256": "0x1", "name": "mine"}
    source = tiny.save(tmp_path / "said.safetensors", tensors, said)
    done = run(source, "kohya", tmp_path / "x.safetensors", span="900,1000")
    found = metadata(done.path)
    assert found["ss_tag_frequency"] == "{}" and found["name"] == "mine" and found["modelspec.timestep_range"] == "900,1000"
    assert done.untrue == ("modelspec.hash_sha256", "sshs_model_hash") and not set(done.untrue) & found.keys()
    assert json.loads(found["wan22_master"])["from"] == ["said.safetensors"]
    musubi = trainers.write_musubi(tmp_path, ONE)[1]
    kept = run(musubi, "native", tmp_path / "y.safetensors", span="900,1000").path
    assert metadata(kept)["modelspec.timestep_range"] == "0,900"


@pytest.mark.parametrize("name", ["norm3", "img_emb"])
def test_norms_change_places_in_diffusers_and_the_image_branch_has_names_without_a_base(tmp_path, name):
    layers = {"norm3": "blocks.0.norm3", "img_emb": "blocks.39.cross_attn.k_img"}
    tensors = {f"lora_unet_{layers[name].replace('.', '_')}.{part}": torch.randn(4, 4) for part in
               ("lora_up.weight", "lora_down.weight")} | {"lora_unet_blocks_0_self_attn_q.lora_up.weight": torch.randn(4, 4),
                                                          "lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.randn(4, 4)}
    source = tiny.save(tmp_path / "x.safetensors", tensors)
    found = load_file(run(source, "diffusers", tmp_path / "y.safetensors").path)
    expected = {"norm3": "transformer.blocks.0.norm2", "img_emb": "transformer.blocks.39.attn2.add_k_proj"}[name]
    assert f"{expected}.lora_A.weight" in found and same(load_file(run(tmp_path / "y.safetensors", "kohya",
                                                                       tmp_path / "z.safetensors").path), tensors)


def test_on_exists_decides_and_a_stop_leaves_nothing(tmp_path):
    source, target = trainers.write_ai_toolkit(tmp_path, ONE)[0], tmp_path / "out" / "x.safetensors"
    with pytest.raises(PlanError, match="expected an existing folder"):
        run(source, "kohya", target)
    target.parent.mkdir()
    first = run(source, "kohya", target)
    second = run(source, "omi", target)
    assert second.path.endswith("x-2.safetensors") and second.notice
    with pytest.raises(PlanError, match="exists already"):
        run(source, "omi", target, on_exists="error")
    run(source, "omi", target, on_exists="overwrite")
    assert first.path == str(target) and next(iter(load_file(target))).startswith("diffusion_model.")
    with open_lora(source) as lora, pytest.raises(Stopped):
        convert(lora, Conversion("native"), Save(str(tmp_path / "out" / "y.safetensors")), Watch(lambda: True))
    assert sorted(path.name for path in target.parent.iterdir()) == ["x-2.safetensors", "x.safetensors"]


def test_tensors_of_any_mix_of_dtypes_stay_aligned_and_whole(tmp_path):
    stem = "lora_unet_blocks_0_ffn_0"
    tensors = {f"{stem}.alpha": torch.tensor(2.0).bfloat16(), f"{stem}.lora_down.weight": torch.randn(3, 5),
               f"{stem}.lora_up.weight": torch.randn(7, 3).bfloat16(), "lora_unet_blocks_0_ffn_2.diff": torch.randn(3).double()}
    source = tiny.save(tmp_path / "mixed.safetensors", tensors)
    run(source, "native", tmp_path / "x.safetensors")
    assert same(load_file(run(tmp_path / "x.safetensors", "kohya", tmp_path / "y.safetensors").path), tensors)


def test_a_factor_that_no_float32_alpha_gives_gets_a_float64_one(tmp_path):
    stem, shapes = "transformer.blocks.0.attn1.to_q", {"A": (3, 8), "B": (8, 3)}
    tensors = {f"{stem}.lora_{part}.weight": torch.ones(shape) for part, shape in shapes.items()}
    config = {"transformer.r": 3, "transformer.lora_alpha": 1, "transformer.use_rslora": True}
    source = tiny.save(tmp_path / "rs.safetensors", tensors, {"lora_adapter_metadata": json.dumps(config)})
    alpha = load_file(run(source, "native", tmp_path / "x.safetensors").path)["diffusion_model.blocks.0.self_attn.q.alpha"]
    assert alpha.dtype == torch.float64 and alpha.item() / 3 == pytest.approx(3**-0.5, rel=1e-15)
