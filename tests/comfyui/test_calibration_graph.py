"""Prompts, calibration, summary, sensitivity, plan and files in one queue of a real ComfyUI, from its page if there is one.

The picture goes to the session's temporary folder.
"""
import io
import json
import shutil

import pytest
from browser import CHROMIUM, load, opened, run
from comfy_server import text_of
from graphs import LOAD, LORA_1, PLAN, PROMPTS, QUANTIZE, SAVE, SENSITIVITY, SUMMARY, calibrated_job, lora_pair, without_encoder
from PIL import Image
from plan_models import HIGH, LORA, LOW, ROLES, stored, user_folder, write_eight

TEXT = "a fox in snow --d 5\na boat at sea --d 6\nleaves in the wind --d 7"
LARGEST = {"nvfp4": 2688.0, "float8_e4m3fn": 448.0}    # what an input scale of 1 stands for (comfy/quant_ops.py)


def graph_of(**prompts) -> dict:
    """The example on the tiny pair of eight blocks, with a budget that binds."""
    graph = without_encoder(calibrated_job())
    graph[PROMPTS]["inputs"] |= {"text": TEXT, "cfg": 2.0, **prompts}
    graph[LOAD]["inputs"] |= {"high_noise": HIGH, "low_noise": LOW}
    graph[LORA_1] = lora_pair(LORA)
    graph[PLAN]["inputs"] |= {"budget_gb": 0.01, "card": "rtx50", "include": "self_attn = nvfp4"}   # of 17 MB in bf16
    return graph


def in_the_page(comfy, folder) -> dict:
    """Outputs of the graph, queued by the page as a person does."""
    with opened(comfy, "nodes2", (2600, 1300)) as page:
        load(page, graph_of())
        assert run(page, 300) == "execution_success" and page.errors == []
        page.screenshot(path=folder / "calibration.png")
        [entry] = comfy.get("/history?max_items=1").values()
    return entry["outputs"]


@pytest.fixture(scope="module")
def ran(comfy, tmp_path_factory):
    """The whole graph once, its outputs, and the session's folder."""
    before = {*comfy.models().iterdir(), *comfy.models("loras").iterdir()}
    write_eight(comfy)
    outputs = comfy.run(graph_of()) if CHROMIUM is None else in_the_page(comfy, tmp_path_factory.getbasetemp())
    yield comfy, outputs, user_folder(comfy, "calibration") / "calib_01"
    for path in {*comfy.models().iterdir(), *comfy.models("loras").iterdir()} - before:
        path.unlink()
    shutil.rmtree(comfy.base / "user" / "default" / "wan22_master")


def runs_of(folder) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*/run.json"))]


def test_each_prompt_is_one_run_of_each_expert(ran):
    _, _, folder = ran
    told = sorted((run["role"], run["facts"]["prompt"], run["facts"]["seed"], run["finished"]) for run in runs_of(folder))
    assert told == sorted((role, prompt, seed, True) for role in ROLES
                          for prompt, seed in (("a fox in snow", 5), ("a boat at sea", 6)))


def test_what_sums_up_behind_a_list_runs_once(ran):
    _, outputs, _ = ran
    assert all(len(outputs[place]["text"]) == 1 for place in (SUMMARY, SENSITIVITY, PLAN, QUANTIZE, SAVE))


def test_the_summary_is_a_picture_of_both_experts(ran):
    comfy, outputs, _ = ran
    [told] = outputs[SUMMARY]["images"]
    place = "&".join(f"{name}={told[name]}" for name in ("filename", "subfolder", "type"))
    image = Image.open(io.BytesIO(comfy.read(f"/view?{place}"))).convert("L")
    wide, tall = image.size
    halves = [image.crop((left, 0, left + wide // 2, tall)) for left in (0, wide // 2)]
    assert wide > tall and all(len(half.getcolors(256)) > 50 for half in halves)      # letters and lines, not one colour


def test_the_saved_files_carry_twice_the_largest_inputs(ran):
    comfy, _, folder = ran
    for role in ROLES:
        rows = json.loads((folder / f"{role}_summary.json").read_text())["layers"]
        amax = {row["layer"]: row["amax_max"] for row in rows}
        found = stored(next(comfy.models().glob(f"my_mix*{role}*")))
        assert {form for form, _, _ in found.values()} & set(LARGEST)
        for layer, (form, _, scale) in found.items():
            wanted = 2 * amax[layer] / LARGEST[form] if form in LARGEST else None
            assert scale == (None if wanted is None else pytest.approx(wanted, rel=1e-6)), layer   # a float32


def test_a_second_queue_skips_what_is_done_and_runs_the_rest(ran):
    comfy, _, folder = ran
    graph = graph_of(limit=0, skip_done=True)
    outputs = comfy.run({place: graph[place] for place in graph if place not in {SENSITIVITY, PLAN, QUANTIZE, SAVE}})
    assert sorted(run["facts"]["seed"] for run in runs_of(folder)) == [5, 5, 6, 6, 7, 7]
    assert "3 runs of 3 prompts" in text_of(outputs, SUMMARY)
