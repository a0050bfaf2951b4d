"""What Quantize, Save, Load Saved, Merge Preview and Inspect make of formats, plans and input scales, in a real ComfyUI."""
import json
import math
import re
import struct
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from comfy_server import text_of
from graphs import input_scales, node, plain_loader, precision_plan, quantize, sampling, save
from plan_models import (
    ALONE,
    INJECT,
    LAYERS,
    LOAD,
    LORA,
    PLAN,
    QUANTIZE,
    ROLES,
    SAVE,
    SCALES,
    SIZES,
    formats,
    merged,
    stored,
    user_folder,
    write_eight,
)
from safetensors.torch import load_file, save_file
from wan22_master.engine.synthetic import model_shapes

SUMMARY = {"blocks.1.self_attn.q": 4.0, "blocks.1.self_attn.k": 5.0, "blocks.1.cross_attn.k": 3.0, "blocks.2.ffn.0": 70.0}
MIX = "ffn\\.2$ = float8_e4m3fn\nself_attn\\.o$ = int8_tensorwise"
RTX50, RTX40 = "as on RTX 50 (W4A4)", "as on RTX 40 (W8A8)"


@pytest.fixture(scope="module")
def eight(comfy):
    paths = write_eight(comfy)
    yield comfy
    for path in paths:
        path.unlink()


@pytest.fixture
def server(eight, clean):
    return clean


def one(scales: dict, **changes) -> dict:
    """The mix by a plan with input scales, of the high-noise expert alone."""
    return merged() | {
        PLAN: precision_plan([INJECT, 0], "one format", include=MIX), SCALES: scales,
        QUANTIZE: quantize([INJECT, 0], experts="high_noise", plan=[PLAN, 0], scales=[SCALES, 0], **changes),
        SAVE: save([QUANTIZE, 0])}


def saved(server, outputs: dict) -> dict[str, Path]:
    """Label -> file of a run."""
    return {f"{row[0]} {row[1]}": server.models() / row[-1] for row in outputs[SAVE]["wan22_table"][0]["rows"]}


def as_stored(amax: float, largest: float) -> float:
    return struct.unpack("f", struct.pack("f", amax / largest))[0]


def test_scales_of_a_summary_are_in_the_file_and_of_that_file_in_the_next(server):
    rows = [{"layer": layer, "amax_max": amax, "amax_p99_9": amax / 2} for layer, amax in SUMMARY.items()]
    (user_folder(server, "calibration") / "mine.json").write_text(json.dumps({"percentiles": [99.9], "layers": rows}))
    outputs = server.run(one(input_scales([INJECT, 0], summary_high="mine.json", percentile=99.9, multiplier=1.08),
                             activations="16-bit"))
    path = saved(server, outputs)["high_noise nvfp4_mixed"]
    given = {layer: amax / 2 * 1.08 for layer, amax in SUMMARY.items()}
    given |= {"blocks.1.self_attn.v": given["blocks.1.self_attn.k"]}           # the same input, the larger of q and k
    given |= {f"blocks.{block}.cross_attn.{name}": given["blocks.1.cross_attn.k"] for block in range(8) for name in "kv"}
    found = stored(path)
    assert {layer: each[2] for layer, each in found.items() if each[2] is not None} == {
        layer: as_stored(amax, 2688.0) for layer, amax in given.items()}
    fast = {layer for layer, (form, slow, _) in found.items() if not slow and form != "int8_tensorwise"}
    assert fast == set(given)                      # the others multiply in 16 bit, and int8 in int8 whatever a file says
    text = text_of(outputs, SCALES)
    assert "low_noise: no input scales, nothing is chosen for it" in text and "input scales of 4 layers from the summary" in text
    assert f"{len(given)} of the 72 layers of high_noise that can have one" in text_of(outputs, QUANTIZE)
    again = one(input_scales([INJECT, 0], "another file", file_high=path.name), suffix="again")
    found = {layer: each[2] for layer, each in stored(saved(server, server.run(again))["high_noise nvfp4_mixed_again"]).items()}
    assert {layer: found[layer] for layer in given} == {layer: as_stored(as_stored(amax, 2688.0) * 2688.0, 2688.0)
                                                        for layer, amax in given.items()}
    assert found["blocks.0.ffn.2"] == 1.0          # float8 without a scale: what ComfyUI would take is written out


def test_a_constant_scale_is_divided_by_what_each_format_holds(server):
    outputs = server.run(one(input_scales([INJECT, 0], "constant", amax=20.0)))
    found = stored(saved(server, outputs)["high_noise nvfp4_mixed"])
    wanted = {"nvfp4": as_stored(20.0, 2688.0), "float8_e4m3fn": as_stored(20.0, 448.0), "int8_tensorwise": None}
    assert len(found) == LAYERS and all(scale == wanted[form] for form, _, scale in found.values())
    assert "nothing is chosen for high_noise or low_noise" in server.fail(one(input_scales([INJECT, 0])))


def test_three_formats_from_one_reading_and_one_more_later(server):
    graph = merged() | {"10": quantize([INJECT, 0], "nvfp4"), "11": quantize([INJECT, 0], more=["10", 0]),
                        QUANTIZE: quantize([INJECT, 0], "mxfp8", more=["11", 0]), SAVE: save([QUANTIZE, 0]),
                        "40": node("PreviewAny", source=[SAVE, 4])}
    outputs = server.run(graph)
    files = saved(server, outputs)
    assert list(files) == [f"{role} {form}" for role in ROLES for form in ("nvfp4", "float8_e4m3fn", "mxfp8")]
    assert all(set(formats(path).values()) == {label.split()[1]} for label, path in files.items())
    report = json.loads(text_of(outputs, "40"))
    told = [[out["format"] for out in expert["outputs"]] for expert in report["experts"]]
    assert told == [["nvfp4", "float8_e4m3fn", "mxfp8"]] * 2
    before = {path: path.stat().st_mtime_ns for path in files.values()}
    graph |= {"12": quantize([INJECT, 0], "asym_w4a8_int8", more=[QUANTIZE, 0]), SAVE: save(["12", 0])}
    text = text_of(server.run(graph), SAVE)
    assert text.count("already up to date") == 6 and text.count(": written") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_one_format_twice_needs_a_suffix(server):
    graph = merged() | {"10": quantize([INJECT, 0], "nvfp4", search="fast"), SAVE: save([QUANTIZE, 0], plan_only=True),
                        QUANTIZE: quantize([INJECT, 0], "nvfp4", more=["10", 0])}
    assert "nvfp4 of high_noise is asked for twice" in server.fail(graph) and "suffix" in server.fail(graph)
    graph["10"]["inputs"]["suffix"] = "fast"
    rows = server.run(graph)[SAVE]["wan22_table"][0]["rows"]
    assert [row[1] for row in rows] == ["nvfp4_fast", "nvfp4"] * 2 and len({row[-1] for row in rows}) == 4
    graph |= {SAVE: save([QUANTIZE, 0]), "31": node("Wan22TestReport", model=["20", 0])}
    both = "found 2 (high_noise nvfp4_fast, high_noise nvfp4); write one of these names into label, as nvfp4_fast"
    assert both in server.fail(graph | {"20": loaders()[0]}) and both in server.fail(graph | {"20": loaders(format="nvfp4")[0]})
    for row in rows[:2]:
        told = text_of(server.run(graph | {"20": loaders(label=row[1])[0]}), "20")
        assert told.splitlines()[0] == f"loaded {Path(row[-1]).name}"
    assert "format any, label mine; saved was high_noise nvfp4_fast" in server.fail(graph | {"20": loaders(label="mine")[0]})


def test_what_a_lora_loader_added_to_a_quantized_model_is_rounded_stochastically_in_its_own_format(server):
    base = {LOAD: node("Wan22LoadDualDiT", high_noise=ALONE, low_noise="(none)", allow_quantized_source=False)}
    first = server.run(base | {QUANTIZE: quantize([LOAD, 0], "nvfp4"), SAVE: save([QUANTIZE, 0], title="onto")})
    name = first[SAVE]["wan22_table"][0]["rows"][0][-1]
    graph = {"40": plain_loader(name), "41": node("LoraLoaderModelOnly", model=["40", 0], lora_name=LORA, strength_model=1.0),
             QUANTIZE: quantize(["41", 0], "nvfp4"), "42": quantize(["41", 0], "mxfp8", more=[QUANTIZE, 0]),
             SAVE: save(["42", 0], title="moved"), "43": node("PreviewAny", source=[SAVE, 4])}
    outputs = server.run(graph)
    nvfp4, mxfp8 = json.loads(text_of(outputs, "43"))["experts"][0]["outputs"]
    assert nvfp4["stochastic"] == LAYERS and mxfp8["stochastic"] == 0   # only in the format that the base is rounded to already
    assert f"{LAYERS} nvfp4" in text_of(outputs, QUANTIZE)


def test_the_table_before_a_run_tells_each_volume_and_the_order(server):
    def planned(strength: float = 1.0, **changes) -> tuple[str, float, float]:
        """The order, and GB in the end and at the peak."""
        outputs = server.run(merged(strength) | job | {SAVE: save([QUANTIZE, 0], plan_only=True, on_exists="overwrite", **changes)})
        told = re.search(r": ([\d.]+) GB more in the end, ([\d.]+) GB at the peak, [\d.]+ GB free; order: (.+)",
                         text_of(outputs, SAVE))
        return told[3], float(told[1]), float(told[2])

    job = {"10": quantize([INJECT, 0], "bf16"), QUANTIZE: quantize([INJECT, 0], "fp32", more=["10", 0])}
    both = 2 * 6 * sum(math.prod(shape) for shape in model_shapes(SIZES).values()) / 1e9   # two experts, 2 and 4 bytes a weight
    order, end, peak = planned()
    assert order == "all at once" and end == peak == pytest.approx(both, abs=0.006)        # two decimals, and the header
    server.run(merged() | job | {SAVE: save([QUANTIZE, 0])})
    # Every file replaces the one that is there, whose room is free again once the new one is finished
    assert planned(0.5) == ("all at once", 0.0, peak)
    assert planned(0.5, order="expert by expert") == ("expert by expert", 0.0, pytest.approx(both / 2, abs=0.006))
    assert planned(0.5, order="file by file") == ("file by file", 0.0, pytest.approx(both / 3, abs=0.006))


def test_after_saving_each_file_is_loaded_and_asked(server):
    graph = one(input_scales([INJECT, 0], "constant"))
    graph[SAVE] = save([QUANTIZE, 0], after_save=True)
    text = text_of(server.run(graph), SAVE)
    assert "nvfp4_mixed.safetensors: ComfyUI loads it; finite at sigma 0.98 and 0.92; differs from the preview by" in text
    assert "PROBLEM" not in text and "64 nvfp4 (error 8." in text and "of the merge" in text
    # What was told before the run stays in what is told after it
    assert re.search(r"planned: .+ GB more in the end, .+ GB at the peak, .+ GB free; order: all at once", text)


def test_after_saving_onto_a_quantized_base_the_file_is_asked_and_compared_with_nothing(server):
    base = {LOAD: node("Wan22LoadDualDiT", high_noise=ALONE, low_noise="(none)", allow_quantized_source=False)}
    name = server.run(base | {QUANTIZE: quantize([LOAD, 0], "nvfp4"), SAVE: save([QUANTIZE, 0], title="packed")})[SAVE][
        "wan22_table"][0]["rows"][0][-1]
    base = {LOAD: node("Wan22LoadDualDiT", high_noise=name, low_noise="(none)", allow_quantized_source=True),
            QUANTIZE: quantize([LOAD, 0], "bf16")}
    model = {"40": plain_loader(name), QUANTIZE: quantize(["40", 0], "bf16")}
    for graph, why in ((base, "the base is quantized (nvfp4)"), (model, "the MODEL is quantized (nvfp4)")):
        told = f"after_save: loaded and asked, but compared with nothing: {why}"
        planned = server.run(graph | {SAVE: save([QUANTIZE, 0], title="again", plan_only=True, after_save=True)})
        assert told in text_of(planned, SAVE)
        text = text_of(server.run(graph | {SAVE: save([QUANTIZE, 0], title="again", after_save=True)}), SAVE)
        assert told in text and "ComfyUI loads it; finite at sigma 0.95 and 0.3\n" in text and "differs" not in text


def test_a_file_that_would_be_black_is_an_error_but_stays_and_is_not_written_twice(server):
    broken = server.models() / "broken.safetensors"
    weights = load_file(server.models() / ALONE)
    save_file(weights | {"blocks.1.ffn.2.bias": weights["blocks.1.ffn.2.bias"].float().mul(1e38).bfloat16()}, broken)
    graph = {LOAD: node("Wan22LoadDualDiT", high_noise=broken.name, low_noise="(none)", allow_quantized_source=False),
             QUANTIZE: quantize([LOAD, 0], "nvfp4"), SAVE: save([QUANTIZE, 0], title="black", after_save=True)}
    told = server.fail(graph)
    assert "the saved model: expected finite numbers at sigma 0.95, found NaN or infinity" in told and "the file is there" in told
    graph[SAVE] = save([QUANTIZE, 0], title="black")
    assert "already up to date" in text_of(server.run(graph), SAVE)
    broken.unlink()


def latent(server, graph: dict, name: str) -> torch.Tensor:
    """The latent of a sampling graph."""
    kept = {place: each for place, each in graph.items() if place not in {"30", "31"}}
    server.run(kept | {"38": node("SaveLatent", samples=["27", 0], filename_prefix=name)})
    return load_file(sorted((server.base / "output").glob(f"{name}_*.latent"))[-1])["latent_tensor"].float()


def previews(**changes) -> list[dict]:
    options = {"saved_as": "bf16", "cache_gb": 8.0, "approximate": False, "device": "auto"} | changes
    return [node("Wan22MergePreview", dit=[INJECT, 0], expert=role, **options) for role in ROLES]


def loaders(**changes) -> list[dict]:
    return [node("Wan22LoadSaved", files=[SAVE, 0], expert=role, **({"format": "any"} | changes)) for role in ROLES]


def apart(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / second.norm())


def test_a_preview_as_nvfp4_samples_as_the_saved_file_does(server):
    job = merged() | {QUANTIZE: quantize([INJECT, 0], "nvfp4"), SAVE: save([QUANTIZE, 0])}
    from_file = latent(server, job | sampling(*loaders()), "file")
    previewed = latent(server, merged() | sampling(*previews(saved_as="nvfp4")), "preview")
    assert torch.equal(previewed, from_file)       # a file's weights are read back to bf16, the host's too: the same bits
    assert apart(from_file, latent(server, merged() | sampling(*previews()), "bf16")) > 1e-3


def test_a_preview_of_a_plan_and_of_a_job_samples_as_the_file_here_and_as_on_other_cards(server):
    job = merged() | {PLAN: precision_plan([INJECT, 0], "one format", include=MIX),
                      SCALES: input_scales([INJECT, 0], "constant", amax=20.0),
                      QUANTIZE: quantize([INJECT, 0], plan=[PLAN, 0], scales=[SCALES, 0])}
    files = job | {SAVE: save([QUANTIZE, 0])}
    here = latent(server, files | sampling(*loaders()), "here")
    by_plan = latent(server, job | sampling(*previews(plan=[PLAN, 0])), "by_plan")
    # int8 layers round their inputs everywhere; one product is of int8 codes, the other of what they stand for in float32, and a
    # sum that differs in its last bit may round to the next code: measured 6e-6
    assert apart(by_plan, here) < 1e-4
    seen = {}
    for card in (RTX50, RTX40):
        seen[card] = latent(server, files | sampling(*loaders(activations=card)), "card")
        shown = latent(server, job | sampling(*previews(job=[QUANTIZE, 0], activations=card)), "shown")
        assert apart(shown, seen[card]) < 1e-4 < 3e-4 < apart(seen[card], here)    # measured 1e-7 and 2e-5 of 5e-2 and 6e-4
    text = server.run(files | {"20": loaders(activations=RTX50)[0], "31": node("Wan22TestReport", model=["20", 0])})
    assert "inputs of 72 of 80 quantized layers are rounded as on RTX 50 (float8_e4m3fn, nvfp4)" in text_of(text, "20")
    assert apart(seen[RTX50], here) > apart(seen[RTX40], here)


def test_a_preview_refuses_a_job_and_a_plan_that_are_not_its_own(server):
    other = merged(0.5) | {"60": node("Wan22LoadDualDiT", high_noise="wan2.2_ti2v_5B_fp16.safetensors", low_noise="(none)",
                                      allow_quantized_source=False), PLAN: precision_plan(["60", 0], "one format"),
                           QUANTIZE: quantize([LOAD, 0], experts="low_noise"), "31": node("Wan22TestReport", model=["20", 0])}
    assert "job is of another model or merge" in server.fail(other | {"20": previews(job=[QUANTIZE, 0])[0]})
    assert "plan nvfp4 is for model, not for high_noise" in server.fail(other | {"20": previews(plan=[PLAN, 0])[0]})
    other[QUANTIZE] = quantize([INJECT, 0], experts="low_noise")
    assert "job saves nothing of high_noise" in server.fail(other | {"20": previews(job=[QUANTIZE, 0])[0]})


def test_inspect_tells_what_is_in_a_saved_file_and_in_a_gguf(server):
    graph = one(input_scales([INJECT, 0], "constant", amax=20.0)) | {
        "50": node("Wan22Inspect", file="(files)", files=[SAVE, 0]), "51": node("PreviewAny", source=["50", 1])}
    outputs = server.run(graph)
    text, (found,) = text_of(outputs, "50"), json.loads(text_of(outputs, "51"))
    assert found["quantized"] == {"nvfp4": 64, "float8_e4m3fn": 8, "int8_tensorwise": 8} and found["problems"] == []
    assert {layer: each["format"] for layer, each in found["layers"].items()} == formats(
        saved(server, outputs)["high_noise nvfp4_mixed"])
    assert "input scales of nvfp4: 64 layers, 0.00744 / 0.00744 / 0.00744" in text and "opens in: ComfyUI " in text
    assert "recipe inside: high_noise of eight_high_noise.safetensors, 1 LoRA(s), as nvfp4" in text
    writer = gguf.GGUFWriter(str(server.models() / "map.gguf"), "wan")
    writer.add_tensor("blocks.0.ffn.0.weight", numpy.zeros((512, 256), dtype=numpy.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    text = text_of(server.run({"50": node("Wan22Inspect", file="map.gguf")}), "50")
    assert text.startswith("map.gguf: ") and "F16: 1 tensors" in text and "GGUF" in text
    assert "value_not_in_list" in server.fail({"50": node("Wan22Inspect", file="../secret.safetensors")})
