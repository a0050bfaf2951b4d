"""Precision Plan in a real ComfyUI: from each source, changed by each widget, the saved file holds exactly what the plan says."""
import json
import math
import sys
from pathlib import Path

import gguf
import numpy
import pytest
from comfy_server import PACK, text_of
from graphs import SINGLE, input_scales, node, precision_plan, quantize, save
from plan_models import (
    ALONE,
    HIGH,
    INJECT,
    LAYERS,
    LOAD,
    PLAN,
    QUANTIZE,
    ROLES,
    SAVE,
    SCALES,
    formats,
    merged,
    stored,
    user_folder,
    write_eight,
)
from wan22_master.engine.synthetic import Sizes, model_shapes

sys.path.append(str(PACK / "tests" / "engine" / "plans"))
from models import q5_k_m, write_gguf

GGUF = "eight-Q5_K_M.gguf"
UP, DOWN = "blocks.2.ffn.0", "blocks.3.ffn.2"


@pytest.fixture(scope="module")
def eight(comfy):
    """The tiny pair, and a GGUF of it that gguf's own writer made: ffn.0 has 5 bits, ffn.2 has 6, the rest 16."""
    paths = [*write_eight(comfy), comfy.models() / GGUF]
    writer = gguf.GGUFWriter(str(paths[-1]), "wan")
    for key, shape in model_shapes(Sizes(dim=256, ffn=512, blocks=8)).items():
        kind = {"ffn.0.weight": "Q5_0", "ffn.2.weight": "Q8_0"}.get(".".join(key.split(".")[2:]), "F16")
        if kind == "F16":
            writer.add_tensor(key, numpy.zeros(shape, dtype=numpy.float16))
        else:
            blocks = gguf.quants.quantize(numpy.ones(shape, dtype=numpy.float32), gguf.GGMLQuantizationType[kind])
            writer.add_tensor(key, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    yield comfy
    for path in paths:
        path.unlink()


@pytest.fixture
def server(eight, clean):
    return clean


def graph(source: str = "preset", *, title: str = "planned", strength: float = 1.0, **changes) -> dict:
    """Load to Save by a plan, which is also written under its title."""
    plan = precision_plan([INJECT, 0], source, title=title, save_as=title, **changes)
    return merged(strength) | {PLAN: plan, QUANTIZE: quantize([INJECT, 0], plan=[PLAN, 0]), SAVE: save([QUANTIZE, 0])}


def planned(server, title: str = "planned") -> dict[str, dict[str, dict]]:
    """Role -> layer -> choice of the plan that was written."""
    return json.loads((user_folder(server, "plans") / f"{title}.json").read_text())["experts"]


def files(server, outputs: dict) -> dict[str, Path]:
    """Role -> saved file."""
    return {row[0]: server.models() / row[-1] for row in outputs[SAVE]["wan22_table"][0]["rows"]}


def check(server, outputs: dict, title: str = "planned") -> dict[str, dict[str, str]]:
    """The saved files hold the plan's formats and flags, and nothing else; role -> layer -> format."""
    wanted = planned(server, title)
    for role, path in files(server, outputs).items():
        assert len(wanted[role]) == LAYERS
        assert {layer: each[:2] for layer, each in stored(path).items()} == {
            layer: (each["format"], each["full_precision"]) for layer, each in wanted[role].items() if each["format"] != "keep"}
    return {role: {layer: each["format"] for layer, each in layers.items()} for role, layers in wanted.items()}


def count(layers: dict[str, str]) -> dict[str, int]:
    return {form: list(layers.values()).count(form) for form in dict.fromkeys(layers.values())}


def pictured(outputs: dict) -> dict[str, dict]:
    """Role -> what the node draws."""
    drawn = outputs[PLAN]["wan22_plan"][0]
    assert drawn["version"] == 1
    return {each["role"]: each for each in drawn["experts"]}


def test_a_preset_is_saved_and_drawn_as_planned(server):
    outputs = server.run(graph("preset", preset="balanced", hardware="blackwell"))
    found, drawn = check(server, outputs), pictured(outputs)
    assert found["high_noise"] == found["low_noise"] and count(found["low_noise"]) == {"mxfp8": 66, "nvfp4": 14}
    assert {each["name"]: each["layers"] for each in drawn["low_noise"]["formats"]} == {"mxfp8": 66, "nvfp4": 14}
    assert len(drawn["high_noise"]["cells"]) == 8 and drawn["high_noise"]["cells"][3][drawn["high_noise"]["kinds"].index(
        "cross_attn.k")] == "nvfp4 16-bit"
    assert any(line.startswith("RTX 50: ") and "% FP4" in line for line in drawn["high_noise"]["cards"])
    for role, path in files(server, outputs).items():
        with open(path, "rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        entries = 80 * (80 + 4)                    # a comfy_quant object and what aligns it, and an input scale, a layer
        assert 0 <= path.stat().st_size - header - drawn[role]["bytes"] <= entries
    assert "nvfp4 natively on NVIDIA cards" in text_of(outputs, QUANTIZE)


def test_one_format_with_patterns_lists_and_switches_and_names_that_are_unknown(server):
    (user_folder(server, "plans") / "slow.txt").write_text(f"{UP}\nblocks.5.self_attn.oblocks.0.cross_attn.k\nblocks.9.ffn.0\n")
    outputs = server.run(graph("one format", exclude="^blocks\\.0\\.", include="ffn\\.2$ = float8_e4m3fn\nblocks\\.1\\.ffn = keep",
                               full_precision_high="slow.txt", full_precision_layers="blocks.2.self_attn.q", cross_attn_kv=True))
    found, text = check(server, outputs), text_of(outputs, PLAN)
    assert count(found["low_noise"]) == {"keep": 10 + 2 - 1, "float8_e4m3fn": 8 - 1, "nvfp4": 62}   # include wins over exclude
    slow = {role: {layer for layer, each in layers.items() if each["full_precision"]} for role, layers in planned(server).items()}
    text_kv = {f"blocks.{block}.cross_attn.{name}" for block in range(1, 8) for name in "kv"}
    assert slow["low_noise"] == text_kv | {"blocks.2.self_attn.q"}
    assert slow["high_noise"] == slow["low_noise"] | {UP, "blocks.5.self_attn.o"}
    assert "high_noise: slow.txt: 1 names are not in this model: blocks.9.ffn.0" in text
    assert "blocks.5.self_attn.oblocks.0.cross_attn.k" in text and "low_noise: slow.txt" not in text


def test_a_bad_pattern_and_a_list_that_is_no_name_are_refused_in_words(server):
    assert "include: expected a line as ffn\\.0$ = nvfp4, found 'ffn'" in server.fail(graph("one format", include="ffn"))
    assert "expected a regular expression" in server.fail(graph("one format", exclude="blocks.(1"))
    assert "source is gguf, but gguf_high and gguf_low name none" in server.fail(graph("gguf"))
    assert "source is plan file, but plan_file names none" in server.fail(graph("plan file"))
    assert "value_not_in_list" in server.fail(graph("plan file", plan_file="../../secret.json"))
    assert "save_as" not in {path.name for path in user_folder(server, "plans").iterdir()}


def test_a_gguf_is_a_map_of_formats(server):
    outputs = server.run(graph("gguf", gguf_high=GGUF, gguf_low=GGUF, keep_edge_blocks=True, title=""))
    layers = formats(files(server, outputs)["low_noise"])
    assert layers == {f"blocks.{block}.ffn.0": "nvfp4" for block in range(2, 6)} | {
        f"blocks.{block}.ffn.2": "float8_e4m3fn" for block in range(2, 6)}
    assert "low_noise_d256_nvfp4_gguf-q5_k_m.safetensors" in text_of(outputs, SAVE)


def read_gguf(path: Path) -> dict[str, tuple[str, int]]:
    """Layer -> (type, bytes) of the weights of a saved GGUF, read by the gguf library."""
    return {tensor.name.removesuffix(".weight"): (tensor.tensor_type.name, int(tensor.n_bytes))
            for tensor in gguf.GGUFReader(path).tensors if tensor.name.startswith("blocks.") and tensor.name.endswith(".weight")
            and len(tensor.shape) == 2}


def test_a_plan_for_a_gguf_is_saved_and_drawn_as_planned(server):
    mix = server.run(graph("one format", container="gguf", gguf_format="Q4_K_M", include="blocks\\.2\\.ffn\\.0$ = Q8_0", title=""))
    saved = files(server, mix)
    assert saved["low_noise"].name.endswith("_low_noise_d256_Q4_K_M_mixed.gguf")
    mixed = count({layer: name for layer, (name, _) in read_gguf(saved["low_noise"]).items()})
    assert mixed == {each["name"]: each["layers"] for each in pictured(mix)["low_noise"]["formats"]}
    assert mixed == {"Q4_K": 55, "Q6_K": 24, "Q8_0": 1}
    asked = graph("size budget", container="gguf", budget_gb=["60", 0])
    budget = server.run(asked | {"60": node("PrimitiveFloat", value=0.0065)})   # under the widget's least
    for role, path in files(server, budget).items():
        wanted, found, drawn = planned(server)[role], read_gguf(path), pictured(budget)[role]
        assert {layer: name for layer, (name, _) in found.items()} == {
            layer: "BF16" if each["format"] == "keep" else each["format"] for layer, each in wanted.items()}
        assert sum(nbytes for _, nbytes in found.values()) == sum(each["bytes"] for each in drawn["formats"])
        assert 0.97 * 6.5e6 < drawn["bytes"] <= 6.5e6 and drawn["error"] < 0.2
        assert drawn["cards"] == [f"{drawn['cards'][0].partition(':')[0]}: 100 % 16 bit: expect little speed over BF16"]
    copied = server.run(graph("gguf", container="gguf", gguf_high=GGUF, gguf_low=GGUF))
    assert count({layer: each["format"] for layer, each in planned(server)["low_noise"].items()}) == {
        "keep": 64, "Q5_0": 8, "Q8_0": 8} and "fails" not in text_of(copied, PLAN)


def test_a_plan_for_a_gguf_is_asked_for_in_its_words(server):
    assert "preset: expected none for a GGUF" in server.fail(graph("preset", container="gguf"))
    assert "expected a format of a gguf file, found 'nvfp4'" in server.fail(graph(
        "one format", container="gguf", include="ffn = nvfp4"))
    assert "minimum_fast: expected 0 for a GGUF" in server.fail(graph("size budget", container="gguf", minimum_fast=0.5))


def test_a_size_budget_is_met_and_measured(server):
    asked = graph("size budget", budget_gb=["60", 0], minimum_fast=0.25, keep_edge_blocks=True)
    outputs = server.run(asked | {"60": node("PrimitiveFloat", value=0.013)})
    found, drawn = check(server, outputs), pictured(outputs)
    for role in ROLES:
        assert 0.98 * 13e6 < drawn[role]["bytes"] <= 13e6      # a layer is 1 %, and none may be too much
        assert 0.001 < drawn[role]["error"] < 0.09
        assert len(count(found[role])) > 1 and {found[role][f"blocks.{block}.ffn.0"] for block in (0, 1, 6, 7)} == {"keep"}
    assert "high_noise: 0.013 GB: total error" in text_of(outputs, PLAN)


def test_a_plan_saved_by_one_queue_is_a_source_of_the_next(server):
    outputs = server.run(graph("one format", include="ffn = mxfp8", title="first"))
    first = check(server, outputs, "first")
    again = server.run(graph("plan file", plan_file="first.json", exclude="^blocks\\.0\\.", title="second"))
    second = check(server, again, "second")
    assert {layer: form for layer, form in first["low_noise"].items() if not layer.startswith("blocks.0.")} == {
        layer: form for layer, form in second["low_noise"].items() if form != "keep"}
    server.run(graph("one format", format="int8_tensorwise", title="first"))   # under the same name
    changed = server.run(graph("plan file", plan_file="first.json", exclude="^blocks\\.0\\.", title="second"))
    assert count(check(server, changed, "second")["low_noise"]) == {"keep": 10, "int8_tensorwise": 70}


def test_layers_in_which_the_lora_would_drown_are_raised(server):
    weak = server.run(graph("one format", promote=True, strength=0.6, title="weak"))
    found = count(check(server, weak, "weak")["high_noise"])
    assert found["mxfp8"] > 60 and found.get("keep", 0) == 0   # a third of the noise is enough; mxfp8 is the 8 bit of an RTX 50
    assert f"{found['mxfp8']} layers raised from nvfp4 to mxfp8: the LoRAs would drown in its noise" in text_of(weak, PLAN)
    strong = server.run(graph("one format", promote=True, strength=20.0, title="strong"))
    assert count(check(server, strong, "strong")["high_noise"]) == {"nvfp4": LAYERS}
    assert pictured(strong)["high_noise"]["error"] == pytest.approx(0.082, abs=0.002)   # balanced on normal weights
    nothing = server.fail(graph("one format", promote=True, strength=0.01))
    assert "expected a layer that is quantized, found none; choose bf16 or fp16 without a plan" in nothing


def sparse(path: Path, shapes: dict) -> None:
    """A model's header, and a hole for its weights."""
    entries, offset = {}, 0
    for key, shape in shapes.items():
        stop = offset + 2 * math.prod(shape)
        entries[key], offset = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}, stop
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + offset)


def seed_graph(server, sizes: Sizes, name: str, **changes) -> dict:
    """The original converter's command line as a graph, on a header of real shapes: nothing of its weights is ever read."""
    shapes = model_shapes(sizes)
    write_gguf(server.models() / "real-Q5_K_M.gguf", shapes, {key: q5_k_m(key) for key in shapes})
    rows = [{"layer": key.removesuffix(".weight"), "amax_max": 20.0, "amax_p99_9": 10.0} for key, shape in shapes.items()
            if key.startswith("blocks.") and len(shape) == 2 and not key.endswith((".v.weight", ".ffn.2.weight"))]
    kept = tuple(f"blocks.{block}." for block in (0, 1, sizes.blocks - 2, sizes.blocks - 1))
    rows = [row for row in rows if not row["layer"].startswith(kept)]
    (user_folder(server, "calibration") / "summary.json").write_text(json.dumps({"percentiles": [99.9], "layers": rows}))
    (user_folder(server, "plans") / "slow.txt").write_text("blocks.9.ffn.0\nblocks.5.self_attn.oblocks.3.cross_attn.k\n")
    names = [name] if "model" in name else [f"{name}_high_noise.safetensors", f"{name}_low_noise.safetensors"]
    for each in names:
        sparse(server.models() / each, shapes)
    both = {"low_noise": "(none)"} if len(names) == 1 else {"low_noise": names[1]}
    return {
        LOAD: node("Wan22LoadDualDiT", high_noise=names[0], allow_quantized_source=False, **both),
        PLAN: precision_plan([LOAD, 0], "gguf", gguf_high="real-Q5_K_M.gguf", gguf_low="real-Q5_K_M.gguf", keep_edge_blocks=True,
                             kept_dtype="fp16", full_precision_high="slow.txt", full_precision_low="slow.txt",
                             cross_attn_qkvo=True, **changes),
        SCALES: input_scales([LOAD, 0], summary_high="summary.json", summary_low="summary.json", percentile=99.9, multiplier=1.08),
        QUANTIZE: quantize([LOAD, 0], activations="16-bit", plan=[PLAN, 0], scales=[SCALES, 0]),
        SAVE: save([QUANTIZE, 0], plan_only=True)}


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_the_seeds_command_line_on_a_14b_pair(clean, kind):
    outputs = clean.run(seed_graph(clean, Sizes(dim=5120, ffn=13824, blocks=40, kind=kind), f"real_{kind}"))
    for role, drawn in pictured(outputs).items():
        assert drawn["title"] == "gguf-q5_k_m" and {each["name"]: each["layers"] for each in drawn["formats"]} == {
            "nvfp4": 252, "float8_e4m3fn": 108, "keep": 40}
        cells = [cell for row in drawn["cells"] for cell in row]
        assert sum(cell.endswith(" 16-bit") for cell in cells) == 36 * 4 + 2       # cross-attention, and two of the list
        assert f"{role}: slow.txt: 1 lines hold two names pasted together, taken as both" in text_of(outputs, PLAN)
        # q, k, o and ffn.0 from the summary; v of self-attention as its q and k, v of cross-attention as every k
        assert f"input scales for {252 + 36 + 36} of the 360 layers of {role} that can have one" in text_of(outputs, QUANTIZE)
        assert f"{role}: input scales of 252 layers from the summary (percentile 99.9, times 1.08)" in text_of(outputs, SCALES)
    rows = outputs[SAVE]["wan22_table"][0]["rows"]
    assert [(row[2], row[3]) for row in rows] == [("12.34 GB", "new")] * 2 and "24.68 GB at the peak" in text_of(outputs, SAVE)


def test_the_seeds_command_line_on_a_5b_without_fp8(clean):
    outputs = clean.run(seed_graph(clean, Sizes(dim=3072, ffn=14336, blocks=30), "real_5b_model.safetensors", use_fp8=False))
    drawn = pictured(outputs)["model"]
    assert {each["name"]: each["layers"] for each in drawn["formats"]} == {"nvfp4": 182, "keep": 118}
    assert "input scales for 182 of the 182 layers that can have one" in text_of(outputs, QUANTIZE)


def test_a_plan_and_scales_of_another_model_are_refused_in_words(server):
    def load(name: str) -> dict:
        return node("Wan22LoadDualDiT", high_noise=name, low_noise="(none)", allow_quantized_source=False)

    def refused(of: str, on: str, plan: bool) -> str:
        made = {PLAN: precision_plan([of, 0], "one format")} if plan else {SCALES: input_scales([of, 0], "constant")}
        wanted = {"plan": [PLAN, 0]} if plan else {"scales": [SCALES, 0]}
        return server.fail(models | made | {QUANTIZE: quantize([on, 0], **wanted), SAVE: save([QUANTIZE, 0], plan_only=True)})

    models = merged() | {"50": load(ALONE), "51": load(SINGLE), "52": load(HIGH)}
    assert "plan nvfp4 is for high_noise, not for low_noise; make it of the same dit" in refused("52", INJECT, plan=True)
    assert "expected the 400 layers of model, found 80, and blocks.8.self_attn.q is not in it; it was made for another model" \
        in refused("50", "51", plan=True)
    assert "found 400, and blocks.8.self_attn.q is not in the model; it was made" in refused("51", "50", plan=True)
    assert "scales are for model, not for high_noise or low_noise" in refused("50", INJECT, plan=False)
    assert "expected layers of model, found 320 that it has not, as blocks.8.self_attn.q" in refused("51", "50", plan=False)
    (user_folder(server, "plans") / "other.json").write_text(json.dumps(
        {"version": 1, "title": "t", "experts": {"high_noise": {"blocks.99.ffn.0": {"format": "nvfp9"}}}}))
    told = server.fail(graph("plan file", plan_file="other.json"))
    assert "other.json" in told and "nvfp9" in told
