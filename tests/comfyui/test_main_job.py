"""The main job in a real ComfyUI: what is saved loads in the plain loader and samples, and a queue run twice works once."""
import json
import struct

import graphs
from comfy_server import text_of
from graphs import INJECT, LOAD, LORA_2, METER, QUANTIZE, SAVE, main_job, node, plain_loader, sampling
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import TINY
from wan22_master.engine.synthetic import write_lora

FILES = ["my_mix_v1_t2v_high_noise_d128_fp8_scaled.safetensors", "my_mix_v1_t2v_low_noise_d128_fp8_scaled.safetensors"]
COMPLAINTS = ("lora key not loaded", "unet unexpected", "unet missing", "left over keys", "missing keys")
FP8_LAYERS = 40 * 10                               # block linears of the tiny model
LOAD_AND_REPORT = {"20": node("Wan22LoadSaved", files=[SAVE, 0], expert="high_noise", format="any"),
                   "31": node("Wan22TestReport", model=["20", 0])}


def names(comfy) -> set[str]:
    return {path.name for path in comfy.models().iterdir()}


def test_both_files_load_in_the_plain_loader_and_sample(clean):
    before = len(clean.log())
    outputs = clean.run(main_job())
    assert set(FILES) <= names(clean)
    assert all(f"{name}: written" in text_of(outputs, SAVE) for name in FILES)
    sampled = clean.run(sampling(plain_loader(FILES[0]), plain_loader(FILES[1])))
    latent, model = (json.loads(text_of(sampled, place)) for place in ("30", "31"))
    assert latent["finite"] and 0.1 < latent["std"] < 10
    assert model["config"] == "WAN21_T2V" and model["layouts"].get("TensorCoreFP8E4M3Layout", 0) == FP8_LAYERS, model["layouts"]
    assert [line for line in clean.log()[before:].splitlines() if any(word in line.lower() for word in COMPLAINTS)] == []


def test_every_node_tells_what_it_did(clean):
    outputs = clean.run(main_job())
    assert "known by: file name" in text_of(outputs, LOAD)
    assert "paired with my_style_low_noise.safetensors: rank 8" in text_of(outputs, LORA_2)
    assert "1200 of 1200 keys, rank 8, alpha/rank 1.0, strength 1, addition" in text_of(outputs, INJECT)
    assert text_of(outputs, METER).splitlines()[0].startswith("high_noise: S")
    assert "uncalibrated" in text_of(outputs, QUANTIZE)
    assert json.dumps(outputs[METER]["wan22_report"]).count(str(clean.base)) == 0


def test_the_same_queue_twice_runs_save_once_and_after_a_restart_finds_it_done(clean):
    clean.run(main_job())
    state = {name: (clean.models() / name).stat().st_mtime_ns for name in FILES}
    entry = clean.wait(clean.queue(main_job()))
    cached = next(message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")
    assert SAVE in cached and METER in cached
    clean.free()
    assert all(f"{name}: already up to date" in text_of(clean.run(main_job()), SAVE) for name in FILES)
    assert {name: (clean.models() / name).stat().st_mtime_ns for name in FILES} == state


def test_a_deleted_file_is_written_again_by_the_same_queue(clean):
    clean.run(main_job())
    (clean.models() / FILES[0]).unlink()
    text = text_of(clean.run(main_job()), SAVE)
    assert f"{FILES[0]}: written" in text and f"{FILES[1]}: already up to date" in text


def test_load_saved_has_the_weights_of_the_file_as_it_is_now(clean):
    def graph(strength):
        job = main_job(on_exists="overwrite")
        job[LORA_2]["inputs"]["strength_high"] = strength
        return job | LOAD_AND_REPORT

    first, second = (json.loads(text_of(clean.run(graph(strength)), "31"))["weight"] for strength in (0.5, -3.0))
    clean.free()
    plain = json.loads(text_of(clean.run(LOAD_AND_REPORT | {"20": plain_loader(FILES[0])}), "31"))["weight"]
    assert first != second == plain
    assert names(clean) & {name.replace(".safe", "-2.safe") for name in FILES} == set()


def test_saving_and_sampling_in_one_run_equals_sampling_the_files_later(clean):
    loaders = [node("Wan22LoadSaved", files=[SAVE, 0], expert=role, format="any") for role in ("high_noise", "low_noise")]
    at_once = json.loads(text_of(clean.run(main_job() | sampling(*loaders)), "30"))
    clean.free()
    later = json.loads(text_of(clean.run(sampling(*map(plain_loader, FILES))), "30"))
    assert at_once["latent"] == later["latent"]


def test_plan_only_shows_the_table_writes_nothing_and_stops_what_follows(clean):
    before = names(clean)
    outputs = clean.run(main_job(plan_only=True) | LOAD_AND_REPORT)
    assert names(clean) == before and "31" not in outputs
    table = outputs[SAVE]["wan22_table"][0]
    assert [row[-1] for row in table["rows"]] == FILES and table["head"][0] == "expert" and "free" in table["head"]


def test_plan_only_shows_the_table_also_where_the_disk_is_too_small_and_a_run_refuses(clean, write_huge_model):
    write_huge_model(clean.models() / "huge.safetensors")
    job = graphs.single_job(model="huge.safetensors")
    graph = {LOAD: job[LOAD], QUANTIZE: graphs.quantize([LOAD, 0]), SAVE: graphs.save([QUANTIZE, 0], plan_only=True)}
    outputs = clean.run(graph)
    assert len(outputs[SAVE]["wan22_table"][0]["rows"]) == 1 and text_of(outputs, SAVE).startswith("does not fit: ")
    graph[SAVE]["inputs"]["plan_only"] = False
    assert "free some space" in clean.fail(graph)


def test_an_unreadable_job_in_the_folder_is_shown_and_fails_no_save(clean):
    (clean.models() / "old.safetensors.job.json").write_text("no json")
    text = text_of(clean.run(main_job()), SAVE)
    assert f"{FILES[1]}: written" in text and "unfinished: old.safetensors, 0.0 MB, cannot go on: " in text


def test_chained_formats_come_from_one_run_and_load_saved_tells_them_apart(clean):
    graph = main_job()
    graph["8"] = graphs.quantize([METER, 0], "bf16", experts="low_noise")
    graph[QUANTIZE]["inputs"]["more"] = ["8", 0]
    graph |= LOAD_AND_REPORT | {"20": node("Wan22LoadSaved", files=[SAVE, 0], expert="auto", format="bf16")}
    model = json.loads(text_of(clean.run(graph), "31"))
    assert {FILES[0], FILES[1], "my_mix_v1_t2v_low_noise_d128_bf16.safetensors"} <= names(clean)
    assert set(model["layouts"]) == {"None"}


def test_a_volatile_merge_does_not_get_past_a_meter_that_blocks(clean):
    before, graph = names(clean), main_job()
    graph[METER]["inputs"].update(on_volatile="block", stable_below=0.0001, volatile_above=0.0002)
    assert SAVE not in clean.run(graph) and names(clean) == before


def test_nothing_private_is_in_the_published_header(clean):
    clean.run(main_job())
    for name in FILES:
        assert str(clean.base).encode() not in (clean.models() / name).read_bytes()


def test_the_plot_is_a_picture_with_a_part_for_each_expert(clean):
    outputs = clean.run(main_job(plan_only=True) | {"12": node("PreviewImage", images=[METER, 4])})
    picture = outputs["12"]["images"][0]
    png = clean.read(f"/view?filename={picture['filename']}&type={picture['type']}&subfolder={picture['subfolder']}")
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", png[16:24]) == (960, 2 * 268)


def test_one_half_of_a_pair_alone_goes_through_all_nodes(clean):
    graph = main_job()
    graph[LOAD]["inputs"].update(high_noise="(none)", low_noise=graphs.LOW)
    outputs = clean.run(graph)
    assert "my_style_low_noise.safetensors: 1200 of 1200 keys" in text_of(outputs, INJECT)
    assert text_of(outputs, METER).startswith("low_noise: ") and len(outputs[METER]["wan22_report"][0]["experts"]) == 1
    [saved] = clean.models().glob("my_mix*.safetensors")
    assert "low_noise" in saved.name               # so that its other half, made later, finds it
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["modelspec.timestep_range"] == "0,875"


def test_a_sharded_model_is_listed_once_and_opens_by_its_index(clean):
    tensors = load_file(clean.models() / graphs.SINGLE)
    halves = [dict(list(tensors.items())[part::2]) for part in (0, 1)]
    names_of = [f"wan_set-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, half in zip(names_of, halves, strict=True):
        save_file(half, clean.models() / name)
    index = {"weight_map": {key: name for name, half in zip(names_of, halves, strict=True) for key in half}}
    (clean.models() / "wan_set.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    listed = clean.get("/object_info/Wan22LoadDualDiT")["Wan22LoadDualDiT"]["input"]["required"]["high_noise"][1]["options"]
    assert [name for name in listed if "wan_set" in name] == ["wan_set.safetensors.index.json"]
    outputs = clean.run(graphs.single_job(model="wan_set.safetensors.index.json"))
    assert f"{len(tensors)} tensors" in text_of(outputs, LOAD)


def test_a_replaced_base_or_lora_is_noticed_though_its_name_is_the_same(clean):
    outputs = clean.run(main_job(plan_only=True))
    loras = clean.models("loras")
    kept = (loras / graphs.STYLE).read_bytes()
    try:
        write_lora(loras / graphs.STYLE, TINY, "kohya", "another")
        assert text_of(clean.run(main_job(plan_only=True)), METER) != text_of(outputs, METER)
    finally:
        (loras / graphs.STYLE).write_bytes(kept)


def test_a_model_that_is_one_file_is_never_called_high(clean):
    outputs = clean.run(graphs.single_job())
    assert "high" not in json.dumps(outputs)
    saved = sorted(names(clean) - {graphs.HIGH, graphs.LOW, graphs.SINGLE})
    assert saved == ["my_mix_v1_t2v_d128_bf16.safetensors", "my_mix_v1_t2v_d128_fp8_scaled.safetensors"]
    assert not any(b"high" in (clean.models() / name).read_bytes()[:100_000] for name in saved)
