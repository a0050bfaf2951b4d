"""LoRAs that the tools wrote, in ComfyUI's own loader: every key is applied, and gives the delta that the trainer planted."""
import json
import subprocess
import time
from pathlib import Path

import pytest
import torch
from comfy_server import PACK, error_of, find_comfyui, text_of
from graphs import HIGH as HIGH_FILE
from graphs import INJECT, LOAD, LORA_2, STYLE, lora_pair, main_job, node
from graphs import LOW as LOW_FILE
from safetensors import safe_open
from safetensors.torch import load_file
from test_interrupt import BIG
from tiny_models import TINY
from wan22_master.engine.bases.roles import by_range, by_words
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loratools.convert import Conversion, convert, experts_of
from wan22_master.engine.loratools.extract import Extraction, extract
from wan22_master.engine.loratools.merge import Merging, Part, merge
from wan22_master.engine.loratools.wish import Ranks, Save, Watch
from wan22_master.engine.synthetic import write_model
from wan22_master.tests.engine import tiny, trainers

HIGH, LOW = tiny.PAIR
# Options of each writer of trainers.py, and the alpha / rank that it plants.
WRITERS = {
    "ai_toolkit": ({}, 1.0), "ai_toolkit combined": ({"split": False}, 1.0), "onetrainer": ({}, 1 / 4),
    "onetrainer legacy": ({"omi": False}, 1 / 4), "musubi": ({}, 2 / 4), "seko": ({}, 8 / 64), "lightx2v": ({}, 1.0),
    "diffusion_pipe": ({"alpha": 8}, 2.0), "diffusers": ({}, 2 / 4), "diffusers rs": ({"rslora": True}, 2 / 4**0.5),
    "diffusers combined": ({"both": True}, 2 / 4), "fun": ({}, 2 / 4), "peft": ({}, 1.0), "peft named": ({"named": True}, 1.0),
    "lokr": ({}, 1.0),
}


def dialects_of(name: str) -> tuple[str, ...]:
    """Those that ComfyUI loads; kohya has no name for the modulation in LightX2V's files."""
    return tuple(each for each in ("native", "native_down_up", "kohya", "omi") if (name, each) != ("lightx2v", "kohya"))


def planted(writer: str, layer: str, role: str, factor: float) -> torch.Tensor:
    """The delta in float64, from what the writer says it planted."""
    if writer == "lokr":
        return torch.kron(*(each.double() for each in trainers.kron_factors(layer)))
    if writer.startswith("seko"):
        return factor * trainers.delta64(layer, role=role, rank=64)
    return factor * trainers.delta64(layer, role=role, dtype=torch.bfloat16)


def write(folder: Path, name: str, to: str) -> list[tuple[str, str]]:
    """(role, path) of every file that a trainer's files are converted to."""
    options, found = WRITERS[name][0], []
    paths = getattr(trainers, f"write_{name.split(' ')[0]}")(folder / name, **options)
    for number, path in enumerate(paths):
        with open_lora(path) as lora:
            both = len(experts_of(lora)) == 2
            for role in (HIGH, LOW) if both else ((HIGH, LOW)[number],):
                save = Save(str(folder / f"{name} {number} {role} {to}.safetensors".replace(" ", "_")))
                converted = convert(lora, Conversion(to, role if both else None), save, Watch())
                assert converted.refused == ()
                found.append((role, converted.path))
    return found


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """(trainer, dialect, role) -> (what ComfyUI said, key -> delta); and ("merged" or "extracted", ...) likewise."""
    folder, files = tmp_path_factory.mktemp("tools"), {}
    for name in WRITERS:
        for to in dialects_of(name):
            files |= {(name, to, role): path for role, path in write(folder, name, to)}
    files |= made(folder)
    (comfyui, python), out = find_comfyui(), folder / "deltas.safetensors"
    sizes = [str(each) for each in (tiny.DIM, tiny.FFN, tiny.BLOCKS)]
    command = [str(python), str(PACK / "tests/comfyui/lora_probe.py"), str(comfyui), *sizes, str(out), *files.values()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told, deltas = json.loads(done.stdout.splitlines()[-1]), {}
    for name, delta in load_file(out).items():
        number, _, key = name.partition("|")
        deltas.setdefault(int(number), {})[key.removeprefix("diffusion_model.")] = delta
    return {which: (told[number], deltas[number]) for number, which in enumerate(files)}


def made(folder: Path) -> dict[tuple, str]:
    """A merge of two trainers' LoRAs, exact and by SVD, and a LoRA out of two checkpoints."""
    first, second = trainers.write_musubi(folder / "a")[0], trainers.write_lightx2v(folder / "b", seed=2)[0]
    with open_lora(first) as one, open_lora(second) as two:
        parts = [Part(one, 0.7), Part(two, -1.3)]
        saves = {method: Save(str(folder / f"{method}.safetensors")) for method in ("exact", "svd")}
        found = {("merged", method): merge(parts, Merging(method, Ranks(8)), save, Watch()).path for method, save in saves.items()}
    base, tuned = tiny.base(0), {key: value.float() for key, value in tiny.base(0).items()}
    draw = torch.Generator().manual_seed(5)
    for value in tuned.values():
        value += torch.randn(value.shape, generator=draw) * 1e-3
    paths = [tiny.save(folder / f"{name}.safetensors", each) for name, each in (("tuned", tuned), ("base", base))]
    with open_source(paths[0]) as left, open_source(paths[1]) as right:
        wish = Extraction(Ranks(40), layers="all")
        found[("extracted",)] = extract(left, right, wish, Save(str(folder / "extracted.safetensors")), Watch()).path
    return found


@pytest.mark.parametrize(("name", "to"), [(name, to) for name in WRITERS for to in dialects_of(name)])
def test_a_converted_lora_loads_with_every_key_and_gives_what_was_planted(probed, name, to):
    found = {which: value for which, value in probed.items() if which[:2] == (name, to)}
    assert found
    for (_, _, role), (said, deltas) in found.items():
        assert said["not_loaded"] == [] and said["keys"] > 0
        for layer in tiny.linears():
            expected = planted(name, layer, role, WRITERS[name][1])
            # ComfyUI multiplies the factors in float32
            assert (deltas[f"{layer}.weight"].double() - expected).norm() <= 1e-6 * expected.norm(), layer


def test_whole_differences_of_lightx2v_load_under_the_names_they_are_converted_to(probed):
    for role in tiny.PAIR:
        _, deltas = probed["lightx2v", "native", role]
        for key, shape in tiny.shapes().items():
            if key.endswith(("modulation", "bias")) or len(shape) == 1 or key == "head.head.weight":
                assert torch.equal(deltas[key], trainers.differences(key, role=role).bfloat16().float()), key


@pytest.mark.parametrize("method", ["exact", "svd"])
def test_a_merged_lora_loads_with_every_key_and_is_the_weighted_sum(probed, method):
    said, deltas = probed["merged", method]
    assert said["not_loaded"] == []
    for layer in tiny.linears():
        one = 0.7 * 2 / 4 * trainers.delta64(layer, dtype=torch.bfloat16)
        expected = one - 1.3 * trainers.delta64(layer, seed=2, dtype=torch.bfloat16)
        assert (deltas[f"{layer}.weight"].double() - expected).norm() <= 1e-6 * expected.norm(), layer


def test_an_extracted_lora_loads_with_every_key_and_small_tensors_come_back_whole(probed):
    said, deltas = probed["extracted",]
    assert said["not_loaded"] == [] and set(deltas) == set(tiny.shapes())
    draw, base = torch.Generator().manual_seed(5), tiny.base(0)
    for key, value in base.items():
        tuned = value.float() + torch.randn(value.shape, generator=draw) * 1e-3
        if not key.endswith(".weight") or value.dim() == 1:
            assert torch.equal(deltas[key], tuned - value.float()), key


def defaults(comfy, kind: str, **changes) -> dict:
    """A node with the defaults that the server tells."""
    info = comfy.get("/object_info")[kind]["input"]["required"]
    found = {name: spec[1]["default"] for name, spec in info.items() if len(spec) > 1 and "default" in spec[1]}
    return node(kind, **(found | changes))


def files_of(comfy, before: set[Path]) -> dict[str, Path]:
    """Name -> path of what is new in the server's LoRA folder."""
    return {path.name: path for path in set(comfy.models("loras").rglob("*.safetensors")) - before}


def test_the_nodes_convert_merge_and_extract_into_the_lora_folder(comfy):
    folder = comfy.models("loras")
    [combined] = trainers.write_onetrainer(folder, name="combined")
    comfy.free()
    before = set(folder.rglob("*.safetensors"))
    graph = {"1": defaults(comfy, "Wan22LoraConvert", lora=combined.name),
             "2": lora_pair(STYLE), "3": defaults(comfy, "Wan22LoraMerge", stack=["2", 0], method="svd", rank=4, name="wan/small"),
             "4": node("Wan22LoadDualDiT", high_noise=HIGH_FILE, low_noise="(none)", allow_quantized_source=False),
             "5": node("Wan22LoadDualDiT", high_noise="(none)", low_noise=LOW_FILE, allow_quantized_source=False)}
    outputs = comfy.run(graph)
    made_files = files_of(comfy, before)
    assert set(made_files) == {"combined_native_high_noise.safetensors", "combined_native_low_noise.safetensors",
                               "small_high_noise.safetensors", "small_low_noise.safetensors"}
    assert made_files["small_high_noise.safetensors"].parent == folder / "wan"
    assert "rank 4" in text_of(outputs, "3") and "60 tensors written" in text_of(outputs, "1")
    for path in [*made_files.values(), combined]:
        path.unlink()


def test_a_converted_or_merged_half_keeps_its_expert_in_name_and_header_and_is_never_relabelled(comfy):
    folder = comfy.models("loras")
    mine = folder / "plainly.safetensors"          # its metadata alone tell that it is for high noise
    mine.write_bytes(trainers.write_musubi(folder, name="musubi")[0].read_bytes())
    comfy.free()
    before = set(folder.rglob("*.safetensors"))
    graph = {"1": defaults(comfy, "Wan22LoraConvert", lora=mine.name),
             "2": {**lora_pair(STYLE)}, "3": defaults(comfy, "Wan22LoraMerge", stack=["2", 0], name="mixed_high_noise")}
    graph["2"]["inputs"]["lora_low"] = "(none)"
    assert "exact: the error is the rounding to bf16 alone" in text_of(comfy.run(graph), "3")
    made_files = files_of(comfy, before)
    assert set(made_files) == {"plainly_native_high_noise.safetensors", "mixed_high_noise.safetensors"}
    with safe_open(made_files["mixed_high_noise.safetensors"], "pt") as file:
        assert by_title_or_range(file.metadata()) == "high_noise"
    low = graph["1"] | {"inputs": graph["1"]["inputs"] | {"halves": "low_noise"}}
    said = comfy.fail({"1": low})
    assert f"{mine.name}: halves takes it for low_noise, but it is made for high_noise (metadata modelspec.timestep_range" in said
    twice = graph["1"] | {"inputs": graph["1"]["inputs"] | {"lora_low": mine.name, "to": "omi"}}
    assert "found the same file twice" in comfy.fail({"1": twice})
    twice["inputs"]["halves"] = "split"
    assert "halves is split, but lora_low is to be joined" in comfy.fail({"1": twice})
    for path in [*made_files.values(), *folder.glob("musubi*"), mine]:
        path.unlink()


def by_title_or_range(metadata: dict[str, str]) -> str | None:
    """The expert by the header, whatever the file is called."""
    found = by_range(metadata) or by_words("title", metadata.get("modelspec.title", ""))
    return found and found.role


def test_a_stop_of_a_tool_is_an_interrupt_and_leaves_nothing(comfy):
    names = ("stop_tuned.safetensors", "stop_base.safetensors")
    for name in names:
        write_model(comfy.models() / name, BIG, name)
    comfy.free()
    before = set(comfy.models("loras").rglob("*"))
    graph = {str(number): node("Wan22LoadDualDiT", high_noise=name, low_noise="(none)", allow_quantized_source=False)
             for number, name in enumerate(names)}
    graph["out"] = defaults(comfy, "Wan22LoraExtract", tuned=["0", 0], base=["1", 0], rank=256)
    prompt, give_up = comfy.queue(graph), time.monotonic() + 60
    while set(comfy.models("loras").rglob("*")) == before and time.monotonic() < give_up:
        time.sleep(0.005)
    comfy.post("/interrupt", {})
    assert error_of(comfy.wait(prompt)) == "interrupted"
    assert set(comfy.models("loras").rglob("*")) == before
    for name in names:
        (comfy.models() / name).unlink()


def test_extract_refuses_two_different_experts_and_finds_what_is_between_two_models(comfy):
    before, loads = set(comfy.models("loras").rglob("*.safetensors")), {"high": HIGH_FILE, "low": LOW_FILE}
    graph = {name: node("Wan22LoadDualDiT", high_noise=file, low_noise="(none)", allow_quantized_source=False)
             for name, file in loads.items()}
    graph["low"]["inputs"].update(high_noise="(none)", low_noise=LOW_FILE)
    graph["out"] = defaults(comfy, "Wan22LoraExtract", tuned=["high", 0], base=["low", 0], rank=4)
    assert "expected the same experts in tuned and base" in comfy.fail(graph)
    single = comfy.models() / "other_single.safetensors"
    write_model(single, TINY, "other")
    write_model(comfy.models() / "first_single.safetensors", TINY, "first")
    comfy.free()
    for name, file in (("high", single.name), ("low", "first_single.safetensors")):
        graph[name] = node("Wan22LoadDualDiT", high_noise=file, low_noise="(none)", allow_quantized_source=False)
    told = text_of(comfy.run(graph), "out")
    assert "400 layers as factors, rank 4" in told and "error of the whole" in told
    assert set(files_of(comfy, before)) == {"extracted.safetensors"}
    for path in [*files_of(comfy, before).values(), single, comfy.models() / "first_single.safetensors"]:
        path.unlink()


def test_an_adaptive_lora_is_saved_as_a_plain_one_for_each_expert(comfy):
    before, graph = set(comfy.models("loras").rglob("*.safetensors")), main_job()
    graph = {key: graph[key] for key in (LOAD, LORA_2, INJECT)}
    del graph[LORA_2]["inputs"]["stack"]
    graph[INJECT]["inputs"]["method"] = "adaptive"
    graph["9"] = defaults(comfy, "Wan22LoraGated", dit=[INJECT, 0])
    told = text_of(comfy.run(graph), "9")
    stems = {f"{STYLE.replace('high', role).removesuffix('.safetensors')}_gated.safetensors" for role in ("high", "low")}
    assert set(files_of(comfy, before)) == stems and all(stem in told for stem in stems)
    for path in files_of(comfy, before).values():
        path.unlink()
