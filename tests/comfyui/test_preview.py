"""What is previewed is what is saved: the same bits, on both experts and on every way that ComfyUI takes to a weight."""
import hashlib
import json
import subprocess

import pytest
from comfy_server import PACK, find_comfyui, text_of
from graphs import HIGH, INJECT, LIGHTNING, LOAD, LORA_1, LORA_2, LOW, QUANTIZE, SAVE, main_job, node, plain_loader, sampling

ROLES = ("high_noise", "low_noise")
SAME = [f"{name} {dtype} {role}" for name, dtypes in (("addition", ("bf16", "fp16", "fp32")), ("classic", ("bf16",)),
        ("adaptive", ("bf16",)), ("five", ("bf16",))) for dtype in dtypes for role in ROLES]
FILES = [f"my_mix_v1_t2v_{role}_d128_bf16.safetensors" for role in ROLES]


def probe(name: str, folder) -> dict:
    comfyui, python = find_comfyui()
    command = [str(each) for each in (python, PACK / f"tests/comfyui/{name}.py", comfyui, PACK, folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    return probe("preview_probe", tmp_path_factory.mktemp("preview"))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return probe("split_probe", tmp_path_factory.mktemp("split"))


@pytest.mark.parametrize("merge", SAME)
def test_preview_and_baked_bf16_file_hold_the_same_bits_and_sample_alike(probed, merge):
    found = probed[f"same bits: {merge}"]
    assert found["different"] == [] and found["sampled"] and found["moved"] and found["merged"] >= 20


def test_a_lora_behind_the_preview_is_a_lora_on_the_baked_file(probed):
    assert probed["lora behind"] == [] and probed["lora behind twice"] == [True, True]


def test_float16_arithmetic_of_comfyui_does_not_reach_the_base(probed):
    assert probed["float16 arithmetic"] == []


def test_layers_that_are_patched_at_every_use_give_what_the_file_gives(probed):
    was_low, previewed, from_file = probed["low VRAM"]
    assert was_low and previewed == from_file


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_adapter_that_comfyui_rebuilt_answers_in_the_dtype_it_is_asked_for(probed, dtype):
    assert probed[f"rebuilt torch.{dtype}"] == [True, True]
    assert probed["rebuilt adapter"] == [True, True, True]


def test_previews_and_base_in_turn_on_one_loaded_base_are_each_as_alone(probed):
    in_turn, alone = probed["clones"]
    assert in_turn == alone and len(set(alone)) == 3
    assert probed["preview_of"] == [True, True] == probed["base_of"]


def test_a_stop_inside_an_adapter_is_an_ordinary_error_and_leaves_the_base_as_it_was(probed):
    message, still_patched, same = probed["stop"]
    assert message.startswith("PreviewStoppedError: stopped while the preview was merged") and still_patched == 0 and same


@pytest.mark.parametrize(("case", "said"), [
    ("lora before", "20 weights of this MODEL are already patched by a LoRA or merge before it (lora)"),
    ("preview before", "already patched by another Merge Preview"),
    ("fp8 weight_dtype", "found float8_e4m3fn; ComfyUI would round the merge to them again"),
    ("other file", "expected a MODEL of high_noise_bf16.safetensors, found low_noise_bf16.safetensors"),
    ("changed file", "expected as it was when the preview was made, found it changed")])
def test_what_would_not_show_the_saved_file_is_refused_by_name(probed, case, said):
    assert said in probed[case]


def test_a_quantized_host_is_taken_only_as_approximate(probed):
    refused, taken = probed["quantized host"]
    assert "found float8_e4m3fn" in refused and taken == "no error" and probed["host"] == "no error"


def test_the_node_tells_what_each_step_reads_again(probed):
    assert probed["card holds all"] == "no step reads the base again: what does not stay on the card is kept in memory"
    half, none = (float(probed[f"card holds {name}"].split()[5]) for name in ("half", "none"))
    assert 0.1 < half < none < 3 and probed["card holds none"].split()[6] == "MB"   # weights of 1.5 MB, 0.1 MB of it kept


def test_a_preview_without_loras_and_a_wrong_expert_are_told_in_plain_words(probed):
    assert probed["no lora"] == "nothing is merged: no LoRA changes high_noise; the MODEL is the base as it is"
    assert probed["one file"] == "RecipeError: merge preview: expert is high_noise, but loaded is one file; choose model"


def previews(**changes) -> tuple[dict, dict]:
    options = {"saved_as": "bf16", "cache_gb": 8.0, "approximate": False, "device": "auto"} | changes
    return tuple(node("Wan22MergePreview", dit=[INJECT, 0], expert=role, **options) for role in ROLES)


def merge_of(job: dict) -> dict:
    return {place: job[place] for place in (LOAD, LORA_1, LORA_2, INJECT)}


def saved_as(name: str, **changes) -> dict:
    job = main_job(**changes)
    job[QUANTIZE]["inputs"]["format"] = name
    return job


def latent(outputs: dict) -> str:
    return json.loads(text_of(outputs, "30"))["latent"]


def test_sampling_both_previews_gives_the_latent_of_both_saved_files(clean):
    graph = merge_of(main_job()) | sampling(*previews())
    outputs = clean.run(graph)
    previewed = latent(outputs)
    low_memory = latent(clean.run(merge_of(main_job()) | sampling(*previews(cache_gb=0.0))))
    assert "400 of 1095 tensors of high_noise are merged with 2 LoRAs" in text_of(outputs, "20")
    clean.free()
    clean.run(saved_as("bf16"))
    saved = latent(clean.run(sampling(*map(plain_loader, FILES))))
    unmerged = latent(clean.run(sampling(plain_loader(HIGH), plain_loader(LOW))))
    assert previewed == low_memory == saved != unmerged


def test_a_preview_on_a_loaded_model_takes_a_lora_behind_it_and_refuses_one_before(clean):
    style = {"lora_name": LIGHTNING, "strength_model": 0.5}
    high, low = previews()
    high["inputs"]["model"], low["inputs"]["model"] = ["50", 0], ["51", 0]
    hosts = {"50": plain_loader(HIGH), "51": plain_loader(LOW), "52": high}
    graph = merge_of(main_job()) | hosts | sampling(node("LoraLoaderModelOnly", model=["52", 0], **style), low)
    behind = latent(clean.run(graph))
    clean.run(saved_as("bf16"))
    files = {"52": plain_loader(FILES[0])}
    files |= sampling(node("LoraLoaderModelOnly", model=["52", 0], **style), plain_loader(FILES[1]))
    assert behind == latent(clean.run(files))
    graph |= {"50": node("LoraLoaderModelOnly", model=["53", 0], **style), "53": plain_loader(HIGH)}
    assert "already patched by a LoRA or merge before it (lora)" in clean.fail(graph)


def test_quantize_saves_a_preview_model_as_its_dit(clean):
    clean.run(saved_as("bf16"))
    want = [hashlib.sha256((clean.models() / name).read_bytes()).hexdigest() for name in FILES]
    high, low = previews()
    job = merge_of(main_job()) | {"52": high, "53": low}
    job |= {QUANTIZE: saved_as("bf16")[QUANTIZE], "54": saved_as("bf16")[QUANTIZE], SAVE: main_job(subfolder="again")[SAVE]}
    job[QUANTIZE] = {**job[QUANTIZE], "inputs": {**job[QUANTIZE]["inputs"], "model": ["52", 0], "more": ["54", 0]}}
    job["54"] = {**job["54"], "inputs": {**job["54"]["inputs"], "model": ["53", 0]}}
    outputs = clean.run(job)
    assert "a MODEL of Merge Preview: saved from its files" in text_of(outputs, QUANTIZE)
    assert [hashlib.sha256((clean.models() / "again" / name).read_bytes()).hexdigest() for name in FILES] == want
    behind = dict(job) | {"55": node("LoraLoaderModelOnly", model=["53", 0], lora_name=LIGHTNING, strength_model=0.5)}
    behind["54"] = {**job["54"], "inputs": {**job["54"]["inputs"], "model": ["55", 0]}}
    behind[SAVE], behind[QUANTIZE] = main_job(subfolder="behind")[SAVE], behind["54"]
    assert "saved as low_noise, known by: the Merge Preview on it" in text_of(clean.run(behind), QUANTIZE)
    assert [path.name for path in (clean.models() / "behind").iterdir()] == [FILES[1]]
    job["54"]["inputs"]["experts"] = "high_noise"
    assert "the MODEL is a preview of low_noise; choose all" in clean.fail(job)


def test_split_step_is_that_of_comfyuis_own_sigmas_in_every_scheduler(split):
    assert split["exact"] == [] and split["formula"] == []
    assert split["auto"] == [2, 2] and split["custom"] == 4
    assert "neither dit nor model is connected" in split["nothing"]
    assert split["text"].startswith("high-noise: 2 of 4 steps")
    assert split["alone"].startswith("the high-noise expert does all of it")


def test_split_step_drives_both_samplers(clean):
    graph = sampling(plain_loader(HIGH), plain_loader(LOW))
    want = latent(clean.run(graph))
    graph["60"] = node("Wan22SplitStep", steps=4, shift=5.0, task="I2V (0.9)", boundary=0.5, scheduler="simple", model=["22", 0])
    graph["26"]["inputs"]["end_at_step"] = graph["27"]["inputs"]["start_at_step"] = ["60", 0]
    outputs = clean.run(graph)
    assert latent(outputs) == want and "high-noise: 2 of 4 steps" in text_of(outputs, "60")
