"""Makes example_workflows/*.json and their thumbnails: graphs of graphs.py, laid out, run on tiny models and photographed.

    python tests/comfyui/make_examples.py

The thumbnails are real pictures of a run. Run it when a node's inputs have grown, and look at the pictures.
"""
import json
import runpy
import sys
import tempfile
import uuid
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
runpy.run_path(str(HERE.parent / "conftest.py"))   # makes the checkout importable as wan22_master
from browser import ENDED, FIT, load, opened, run  # noqa: E402
from comfy_server import PACK, Server  # noqa: E402
from graphs import (  # noqa: E402
    CALIBRATE,
    CLIP,
    HIGH,
    INJECT,
    LIGHTNING,
    LOAD,
    LORA_1,
    LORA_2,
    LOW,
    METER,
    PREVIEW_HIGH,
    PREVIEW_LOW,
    PROMPTS,
    QUANTIZE,
    SAVE,
    SENSITIVITY,
    SPLIT,
    STYLE,
    SUMMARY,
    VAE,
    calibrated_job,
    input_scales,
    main_job,
    node,
    precision_plan,
    preview,
    quantize,
    single_job,
    text_to_video,
    without_encoder,
)
from graphs import PLAN as CALIBRATED_PLAN  # noqa: E402
from tiny_models import write_models  # noqa: E402
from wan22_master.engine.synthetic import Sizes, write_lora, write_model  # noqa: E402

TARGET = PACK / "example_workflows"
# node id -> x, y, width; heights follow from what a node tells after a run
PLACES = {LOAD: (0, 0, 420), LORA_1: (0, 330, 420), LORA_2: (0, 800, 420), INJECT: (480, 0, 420), METER: (960, 0, 460),
          QUANTIZE: (1480, 0, 440), "8": (960, 640, 420), "9": (1480, 0, 380), SAVE: (1980, 0, 480)}
SAMPLING = {"20": (0, 0, 300), "21": (0, 230, 300), "22": (340, 0, 300), "23": (340, 230, 300),
            "32": (0, 470, 300), "33": (0, 650, 300), "24": (340, 370, 300), "34": (340, 560, 300), "25": (680, 0, 280),
            "26": (1000, 0, 300), "27": (1340, 0, 300), "35": (1680, 0, 260), "36": (1680, 100, 260), "37": (1680, 240, 260)}
TALL = {"21": 170, "32": 330, "33": 330}           # how much lower these are where models come from Merge Preview
START, START_BY_A_PLAN = (0, 1290), (1480, 1090)   # of the sampling row
LAY_OUT = """([places, note]) => { const graph = window.app.graph;
    for (const node of graph._nodes) { const [x, y, width] = places[node.id] ?? [0, 0, 300];
        node.pos = [x, y]; node.setSize([width, node.computeSize()[1]]);
        for (const each of node.widgets ?? []) if (each.name === 'control_after_generate') each.value = 'fixed'; }
    const said = window.LiteGraph.createNode('MarkdownNote'); graph.add(said);
    said.pos = [0, -190]; said.setSize([900, 130]); said.widgets[0].value = note;
    return JSON.stringify({ ...graph.serialize(), extra: {} }); }"""
SAVED = [node("Wan22LoadSaved", files=[SAVE, 0], expert=role, format="any") for role in ("high_noise", "low_noise")]
PREVIEWS = [preview(role) for role in ("high_noise", "low_noise")]


PLAN, SCALES = "10", "11"
WIDE = {PLAN: (960, 0, 460), SCALES: (1480, 0, 440), QUANTIZE: (1480, 440, 440)}   # where a plan is
SMALLER = "12"                                     # the other GGUF of one run
GGUF = {QUANTIZE: (960, 0, 440), SMALLER: (960, 560, 440), SAVE: (1460, 0, 560)}
CALIBRATED = {
    PREVIEW_HIGH: (960, 0, 380), PREVIEW_LOW: (960, 400, 380), PROMPTS: (0, 800, 420), CALIBRATE: (1400, 0, 400),
    "22": (1400, 560, 400), "23": (1400, 700, 400), SPLIT: (1400, 840, 400), "32": (480, 1100, 420), "24": (480, 1280, 420),
    "34": (480, 1500, 420), "25": (960, 800, 380), "26": (1860, 0, 340), "27": (1860, 480, 340), SUMMARY: (2260, 0, 640),
    SENSITIVITY: (2960, 0, 640), CALIBRATED_PLAN: (3660, 0, 480), QUANTIZE: (2960, 1000, 640), SAVE: (4200, 0, 480)}
BLOCKS_OF_256 = Sizes(dim=256, ffn=512, blocks=40, rank=8)     # as K-quants have; the narrower models would fall back
ONLY = """(id) => { window.seen.length = 0; window.app.queuePrompt(0, 1, [id]); }"""


def plan_job() -> dict:
    """A mix of formats by a plan, with input scales, saved and sampled."""
    graph = main_job() | text_to_video(*SAVED)
    graph[INJECT]["inputs"]["stack"] = [LORA_1, 0]
    graph[PLAN] = precision_plan([INJECT, 0], card="this machine")
    graph[SCALES] = input_scales([INJECT, 0], "constant")
    graph[QUANTIZE] = quantize([INJECT, 0], "nvfp4", plan=[PLAN, 0], scales=[SCALES, 0])
    return {place: each for place, each in graph.items() if place not in {LORA_2, METER}}


def gguf_job() -> dict:
    """Two GGUF files of each expert from one reading."""
    graph = main_job()
    graph[QUANTIZE] = quantize([INJECT, 0], "Q8_0")
    graph[SMALLER] = quantize([INJECT, 0], "Q4_K_M", more=[QUANTIZE, 0])
    graph[SAVE]["inputs"]["job"] = [SMALLER, 0]
    return {place: each for place, each in graph.items() if place != METER}


def preview_job() -> dict:
    """The merge, compared and sampled, without a file."""
    graph = main_job() | text_to_video(*PREVIEWS)
    graph["8"] = node("Wan22LoraAnalysis", dit=[INJECT, 0], experts="all")
    graph["9"] = node("Wan22SplitStep", steps=4, shift=5.0, task="auto", boundary=0.875, scheduler="simple", dit=[INJECT, 0])
    graph["26"]["inputs"]["end_at_step"] = graph["27"]["inputs"]["start_at_step"] = ["9", 0]
    return {place: each for place, each in graph.items() if place not in {QUANTIZE, SAVE}}


EXAMPLES = {
    "merge_two_loras_save_fp8": (main_job(), (
        "**Merge two LoRAs into both experts of Wan 2.2 and save them as scaled FP8.** Choose the two experts in Load and your "
        "LoRAs in LoRA Pair, then Run. Stability Meter tells how far the merge moves the model; the files land in "
        "models/diffusion_models. To see sizes and time first, turn on plan_only.")),
    "single_model_two_formats": (single_job(), (
        "**A model that is one file (5B, Wan 2.1, VACE, ...), saved in two formats from one reading.** Chain Quantize nodes by "
        "*more*; each adds a file to the same Save.")),
    "merge_save_and_sample": (main_job() | text_to_video(*SAVED), (
        "**Merge, save, and sample the saved files in one run.** Load Saved takes the files of this very run, which Load Diffusion "
        "Model cannot. Needs the umt5 text encoder and the Wan 2.1 VAE. The four steps are for a Lightning LoRA; without one take "
        "20 steps and cfg 3.5.")),
    "preview_before_saving": (preview_job(), (
        "**Sample a merge before a byte is written.** Merge Preview gives each expert as a MODEL with the very weights that Save "
        "would write in BF16; LoRA Analysis tells which LoRAs fight, Split Step at which step the experts change. Like it? Connect "
        "Inject to Quantize and Save Model.")),
    "nvfp4_by_plan": (plan_job(), (
        "**NVFP4 for RTX 50, with 8 bit where it matters.** Precision Plan says which layer gets which format, and why; other "
        "cards and size budgets are choices of the same node. Input Scales gives one safe number to all layers; with a "
        "calibration, choose its summary instead. Then Quantize, Save and sampling of the saved files.")),
    "merge_loras_save_gguf": (gguf_job(), (
        "**Merge two LoRAs into both experts and save GGUF files, without llama.cpp.** Q8_0 is nearest to bf16, Q4_K_M is little "
        "more than half as large; both come from one reading, and any other format can be chained. Sample them by Unet Loader "
        "(GGUF) of ComfyUI-GGUF, or by Load Saved in the same run.")),
    "calibrate_and_save": (calibrated_job(), (
        "**Your own prompts decide how the merge is quantized.** Prompt List hands eight prompts to both samplers, Calibrate "
        "writes down what each layer's input is, Summary makes input scales of it, Sensitivity tells what each format does to each "
        "layer's output, and the plan spends the bytes where that falls most. Needs the umt5 text encoder. Raise limit for more "
        "prompts; what is recorded stays in the session. While you only collect prompts, bypass Save Model.")),
}


def sampling_places(graph: dict) -> dict[str, tuple[int, int, int]]:
    """Where the nodes that sample stand in one example."""
    right, down = START_BY_A_PLAN if PLAN in graph else START
    lower = TALL if any(each["class_type"] == "Wan22MergePreview" for each in graph.values()) else {}
    return {place: (x + right, y + down + lower.get(place, 0), width) for place, (x, y, width) in SAMPLING.items()}


def widen(server: Server) -> None:
    """The pair and its LoRAs again, in rows of 256."""
    for role, name in (("high", HIGH), ("low", LOW)):
        write_model(server.models() / name, BLOCKS_OF_256, role)
        for lora, dialect in ((LIGHTNING, "native"), (STYLE, "kohya")):
            write_lora(server.models("loras") / lora.replace("high", role), BLOCKS_OF_256, dialect, f"{lora} {role}")


def main() -> None:
    """Write all examples; photograph those that the tiny models can run."""
    TARGET.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as server:
        write_models(server)
        (server.models("text_encoders") / CLIP).touch()
        (server.models("vae") / VAE).touch()       # named only, so that the page does not call them missing
        with opened(server, "classic", (1700, 1050)) as page:
            for name, (graph, note) in EXAMPLES.items():
                if SMALLER in graph:
                    widen(server)
                load(page, graph)
                own = CALIBRATED if PROMPTS in graph else WIDE if PLAN in graph else GGUF if SMALLER in graph else {}
                places = {**PLACES, **sampling_places(graph), **own}
                saved = json.loads(page.evaluate(LAY_OUT, [places, note]))
                saved["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, name))
                path = TARGET / f"{name}.json"
                path.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
                load(page, path)
                large = "37" in graph or PROMPTS in graph
                page.set_viewport_size({"width": 2300, "height": 1800 if "37" in graph else 1000} if large
                                       else {"width": 1700, "height": 1050})
                if PROMPTS in graph:
                    load(page, without_encoder(graph))
                    page.evaluate(LAY_OUT, [places, note])
                    run(page, 600)
                elif PLAN in graph:
                    page.evaluate(ONLY, SAVE)      # what samples needs a text encoder
                    page.wait_for_function(ENDED, timeout=120_000)
                elif not large:
                    run(page)
                if PLAN in graph or PROMPTS in graph or not large:
                    page.wait_for_timeout(9000)    # until the toast is gone
                page.evaluate(FIT)
                page.wait_for_timeout(1000)
                view = page.viewport_size
                page.screenshot(path=path.with_suffix(".jpg"), type="jpeg", quality=70 if large else 80, clip={
                    "x": 60, "y": 88, "width": view["width"] - 80, "height": view["height"] - 150})


if __name__ == "__main__":
    main()
