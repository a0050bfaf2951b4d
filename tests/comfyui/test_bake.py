"""Any MODEL can be saved: from every kind of base, with other nodes' patches, in float32, rounded once; or refused by name."""
import hashlib
import json
import time

import pytest
from comfy_server import error_of, find_comfyui, text_of
from graphs import HIGH, LIGHTNING, LOW, QUANTIZE, SAVE, STYLE, node, plain_loader, quantize, sampling, save
from safetensors import safe_open
from test_interrupt import BIG
from test_preview import latent, probe
from wan22_master.engine.synthetic import write_model

BASES = ("bf16", "fp16", "fp32", "float8_e4m3fn", "mxfp8", "nvfp4", "nvfp4 in bf16", "nvfp4 smoothed", "GGUF Q8_0",
         "GGUF BF16", "GGUF F16")
FLOAT32 = 2.0**-22                                 # relative: base and delta in float32, a sum and a product of their own
REFUSED = {"bypass": "a bypass LoRA acts beside the weights; use the normal LoRA loader",
           "wrapper": "weight wrappers act on 1 weights at every use, first diffusion_model.blocks.0.ffn.0.weight",
           "hooks": "LoRA hooks change with the time of sampling", "module": "modules are replaced (diffusion_model.blocks.0)",
           "model_as_lora": "head.head.weight: a model used as a hook's LoRA", "injection": "injection other changes the modules"}
BAKED = "my_mix_v1_t2v_high_noise_d128_fp32.safetensors"


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    return probe("bake_probe", tmp_path_factory.mktemp("bake"))


@pytest.mark.parametrize("base", BASES)
def test_base_and_lora_are_added_in_float32_whatever_the_base_is_stored_in(probed, base):
    if base.startswith("GGUF") and not (find_comfyui()[0] / "custom_nodes" / "ComfyUI-GGUF").is_dir():
        pytest.skip("no ComfyUI-GGUF in this ComfyUI")
    found = probed[f"base {base}"]
    assert found["error"] < FLOAT32
    assert found["loaded differs"] == []           # baked while loaded and patched, and while not: the same values
    assert bool(found["lossy"]) == (base.startswith(("float8", "mxfp8", "nvfp4")) or base.endswith("Q8_0"))
    assert "  20 patches of lora at 0.8" in found["described"]


def test_a_merge_of_two_models_is_baked_as_sampled_or_as_intended(probed):
    merge = probed["merge"]
    assert merge["sampled"] < FLOAT32 and merge["intended"] < FLOAT32
    assert merge["live"] == []                     # what ComfyUI samples, bit for bit
    assert merge["skipped"] == ["blocks.0.modulation", "blocks.1.modulation", "head.modulation"]
    assert "  66 patches of a merged model at 0.25" in merge["told"] and "blocks.1.modulation" in merge["told"][3]
    assert merge["name"] == "bf16.safetensors + 66 patches of a merged model at 0.25 + 20 patches of lora at 0.8"
    assert probed["rounded once"] == []


def test_a_clone_is_baked_right_while_another_one_is_loaded(probed):
    assert probed["clones"] == {"differs": [], "object": True, "live": True}


def test_threads_that_ask_for_bands_of_two_keys_get_each_its_own(probed):
    assert probed["threads"] and probed["whole"]


def test_no_two_sources_of_one_model_are_the_same_to_a_job(probed):
    assert probed["identities"]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_become_weights_is_refused_by_name(probed, case):
    said = probed[f"refused {case}"]
    assert said.startswith("SourceError: this MODEL cannot be baked: ") and REFUSED[case] in said


def test_what_only_acts_while_sampling_is_told(probed):
    assert probed["told"] == ["not stored: model_sampling; put those nodes (ModelSamplingSD3) behind the loaded file again",
                              "not stored, acts while sampling: patches_replace"]


def test_a_lora_of_which_nothing_fits_is_an_error_and_not_a_file_without_it(probed):
    said = probed["no patch fits"]
    assert said.startswith("SourceError: m: none of 20 patches of lora at 0.8 fits, first blocks.") and "weight (" in said


def test_patches_that_do_not_fit_are_one_line_and_not_in_the_name(probed):
    found = probed["some do not fit"]
    assert found["error"] < FLOAT32 and found["name"] == "m + 19 patches of lora at 0.8"
    [line] = found["lines"]
    assert line.startswith("note: 1 of 20 patches of lora at 0.8 do not fit and are left out, as when ComfyUI samples, first: "
                           "blocks.0.ffn.0.weight: weight (")


def test_a_model_is_the_expert_that_its_file_tells(probed):
    assert [probed[f"role {name}"] for name in ("some_high_noise", "some_other", "plain")] == ["high_noise", "low_noise", None]


def merged(strength: float = 0.8) -> dict:
    """UNETLoader + LoraLoaderModelOnly + ModelMergeSimple; the MODEL is node 42."""
    return {"40": plain_loader(HIGH),
            "41": node("LoraLoaderModelOnly", model=["40", 0], lora_name=LIGHTNING, strength_model=strength),
            "43": plain_loader(LOW), "42": node("ModelMergeSimple", model1=["41", 0], model2=["43", 0], ratio=0.7)}


def baking(graph: dict, format_name: str = "fp32", **changes) -> dict:
    return graph | {QUANTIZE: quantize(["42", 0], format_name), SAVE: save([QUANTIZE, 0], **changes)}


def test_a_model_of_other_nodes_saved_in_fp32_samples_as_it_does_live(clean):
    live = sampling(node("ModelSamplingSD3", model=["42", 0], shift=5.0), plain_loader(LOW))
    outputs = clean.run(baking(merged()) | live)
    assert f"{BAKED}: written" in text_of(outputs, SAVE)
    told = text_of(outputs, QUANTIZE)
    assert f"MODEL of {HIGH}: 1095 tensors (1095 float32), 1054 patched" in told and "400 patches of lora at 0.8" in told
    assert "as sampled: ComfyUI does not apply the patches of 41 weights" in told and "a MODEL has no identity" in told
    clean.free()
    from_file = sampling(node("ModelSamplingSD3", model=["44", 0], shift=5.0), plain_loader(LOW)) | {"44": plain_loader(BAKED)}
    assert latent(clean.run(from_file)) == latent(outputs)


def test_two_formats_of_a_model_come_from_one_reading_and_the_same_bytes_again(clean):
    graph = baking(merged(), "bf16")
    graph["45"] = quantize(["42", 0], "float8_e4m3fn")
    graph[QUANTIZE]["inputs"]["more"] = ["45", 0]
    outputs = clean.run(graph)
    names = [BAKED.replace("fp32", name) for name in ("fp8_scaled", "bf16")]
    assert all(f"{name}: written" in text_of(outputs, SAVE) for name in names)
    first = [hashlib.sha256((clean.models() / name).read_bytes()).hexdigest() for name in names]
    clean.free()
    graph[SAVE]["inputs"]["subfolder"] = "again"
    clean.run(graph)
    assert [hashlib.sha256((clean.models() / "again" / name).read_bytes()).hexdigest() for name in names] == first


def test_both_experts_saved_one_by_one_under_a_title_are_a_pair(clean):
    for name, on_exists in ((HIGH, "overwrite"), (LOW, "overwrite")):
        graph = baking({"40": plain_loader(name), "42": node("LoraLoaderModelOnly", model=["40", 0], lora_name=LIGHTNING,
                                                             strength_model=1.0)}, "bf16", on_exists=on_exists)
        outputs = clean.run(graph)
        assert f"known by: file name '{name}'" in text_of(outputs, QUANTIZE)
    made = {path.name: path for path in clean.models().iterdir() if path.name.startswith("my_mix")}
    assert set(made) == {BAKED.replace("fp32", "bf16"), BAKED.replace("fp32", "bf16").replace("high", "low")}
    for name, path in made.items():
        role = "high_noise" if "high" in name else "low_noise"
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["wan22_master"])["expert"] == role
        assert metadata["modelspec.architecture"].startswith("wan2.2-t2v")
    graph[QUANTIZE]["inputs"]["experts"] = "high_noise"
    assert "experts is high_noise, but loaded is low_noise" in clean.fail(graph)


def test_a_bypass_lora_is_refused_before_anything_is_written(clean):
    graph = baking({"40": plain_loader(HIGH), "42": node("LoraLoaderBypassModelOnly", model=["40", 0], lora_name=STYLE,
                                                          strength_model=1.0)})
    assert "a bypass LoRA acts beside the weights; use the normal LoRA loader" in clean.fail(graph)
    assert not [path for path in clean.models().iterdir() if path.name.startswith("my_mix")]


def test_a_stop_of_a_models_save_leaves_nothing_and_the_next_run_is_right(clean):
    write_model(clean.models() / "big.safetensors", BIG, "big")
    graph = baking({"42": plain_loader("big.safetensors")})
    prompt, final = clean.queue(graph), clean.models() / "my_mix_v1_t2v_d1024_fp32.safetensors"
    part, give_up = final.with_name(final.name + ".part"), time.monotonic() + 60
    while not part.exists() and time.monotonic() < give_up:
        time.sleep(0.005)
    clean.post("/interrupt", {})
    assert error_of(clean.wait(prompt)) == "interrupted"
    assert not [path.name for path in clean.models().iterdir() if path.name.startswith("my_mix")]
    assert f"{final.name}: written" in text_of(clean.run(graph), SAVE)
    assert [path.name for path in clean.models().iterdir() if path.name.startswith("my_mix")] == [final.name]
