"""Stop, and go on: ComfyUI's own interrupt while Save writes."""
import hashlib
import json
import time

from comfy_server import error_of, text_of
from graphs import HIGH, LOAD, SAVE, main_job, single_job
from wan22_master.engine.synthetic import Sizes, write_model

BIG = Sizes(dim=1024, ffn=8192, blocks=8)          # 0.4 GB in bf16: some seconds of work, so that the stop comes in the middle


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def big_job(**changes) -> dict:
    graph = single_job(model="big.safetensors", **changes)
    return {place: each for place, each in graph.items() if place in {LOAD, SAVE, "8"}} | {
        "8": {**graph["8"], "inputs": {**graph["8"]["inputs"], "model": [LOAD, 0], "format": "fp32"}},
        SAVE: {**graph[SAVE], "inputs": {**graph[SAVE]["inputs"], "job": ["8", 0]}}}


def test_a_stop_answers_at_once_keeps_the_job_and_goes_on_to_the_same_bytes(clean):
    write_model(clean.models() / "big.safetensors", BIG, "big")
    final = clean.models() / "my_mix_v1_t2v_d1024_fp32.safetensors"
    prompt = clean.queue(big_job())
    part = final.with_name(final.name + ".part")
    give_up = time.monotonic() + 60
    while not part.exists() and time.monotonic() < give_up:
        time.sleep(0.005)
    time.sleep(0.2)
    start = time.monotonic()
    clean.post("/interrupt", {})
    entry = clean.wait(prompt)
    waited = time.monotonic() - start
    assert waited < 2 and error_of(entry) == "interrupted", (waited, error_of(entry))
    assert part.exists() and final.with_name(final.name + ".job.json").exists() and not final.exists()
    listed = clean.get("/object_info/UNETLoader")["UNETLoader"]["input"]["required"]["unet_name"][0]
    assert HIGH in listed and not [name for name in listed if "my_mix" in name]

    other = text_of(clean.run(single_job(subfolder="", title="other", plan_only=True)), SAVE)
    assert f"unfinished: {final.name}" in other

    outputs = clean.run(big_job())
    assert "resumed and written" in text_of(outputs, SAVE) and not part.exists()
    clean.run(big_job(subfolder="whole"))
    assert sha256(final) == sha256(clean.models() / "whole" / final.name)


def test_a_stop_of_one_expert_does_not_redo_the_finished_one(clean):
    outputs = clean.run(main_job())
    files = sorted(path for path in clean.models().iterdir() if path.name.startswith("my_mix"))
    stamp = files[0].stat().st_mtime_ns
    files[1].unlink()
    clean.free()
    outputs = clean.run(main_job())
    assert files[0].stat().st_mtime_ns == stamp and files[1].exists()
    assert json.dumps(outputs[SAVE]).count("already up to date") == 1
