"""The example workflows in ComfyUI's real page, in the classic canvas and in Nodes 2.0, as a person would open and run them.

Pictures go to the session's temporary folder; their paths are printed at the end of a run with -rP.
"""
import json

import pytest
from browser import CHROMIUM, RENDERINGS, load, opened, run
from comfy_server import PACK
from graphs import HIGH, LIGHTNING, LOAD, METER, QUANTIZE, SAVE, main_job, precision_plan

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
PLAN = "10"
EXAMPLES = sorted((PACK / "example_workflows").glob("*.json"))
VIEW = """(id) => { const node = window.app.graph.getNodeById(Number(id));
    const element = node.widgets.find(({ name }) => name === 'wan22_view')?.element;
    const box = element?.getBoundingClientRect();
    const drawn = [...(element?.querySelectorAll('svg[role=img]') ?? [])];
    return element && { text: element.innerText, shown: element.isConnected && element.checkVisibility(),
        width: box.width, height: box.height, node: node.size[1], scale: window.app.canvas.ds.scale,
        scrolls: element.scrollHeight > element.clientHeight + 2, svgs: drawn.length,
        labels: drawn.map((svg) => svg.getAttribute('aria-label')), cells: element.querySelectorAll('svg g').length }; }"""
OPTIONS = "(id) => window.app.graph.getNodeById(Number(id)).widgets[0].options.values"


@pytest.fixture(params=list(RENDERINGS))
def page(request, clean):
    with opened(clean, request.param) as page:
        page.rendering = request.param
        yield page


def picture(page, tmp_path_factory, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"{name}_{page.rendering}.png"
    page.screenshot(path=path)


def test_the_main_example_runs_and_shows_progress_gauge_and_result(page, clean, tmp_path_factory):
    load(page, PACK / "example_workflows" / "merge_two_loras_save_fp8.json")
    assert run(page) == "execution_success"
    picture(page, tmp_path_factory, "main")
    bars = page.evaluate("() => window.seen.filter(([kind]) => kind === 'progress').map(([, detail]) => detail)")
    for node in (METER, SAVE):
        mine = [bar for bar in bars if bar["node"] == node]
        assert mine and mine[-1]["value"] == mine[-1]["max"] > 1
    meter = page.evaluate(VIEW, METER)
    assert meter["shown"] and meter["svgs"] == 2 and meter["cells"] == 2 * 40 * 3 and not meter["scrolls"]
    assert [label.split(":")[0] for label in meter["labels"]] == ["high_noise", "low_noise"]
    assert meter["width"] > 300 * meter["scale"] and 250 * meter["scale"] < meter["height"] < meter["node"] * meter["scale"]
    saved = page.evaluate(VIEW, SAVE)
    assert saved["shown"] and "low_noise_d128_fp8_scaled.safetensors: written" in saved["text"] and not saved["scrolls"]
    assert page.errors == []


def test_a_saved_file_is_announced_and_offered_by_every_loader_at_once(page, clean):
    load(page, main_job())
    assert run(page) == "execution_success"
    page.wait_for_selector("text=Saved in diffusion_models", timeout=10_000)
    offered = f"(id) => ({OPTIONS})(id).includes('my_mix_v1_t2v_high_noise_d128_fp8_scaled.safetensors')"
    page.wait_for_function(offered, arg=LOAD, timeout=10_000)


def test_results_are_there_again_when_the_workflow_is_opened_once_more(page, clean):
    load(page, main_job())
    assert run(page) == "execution_success"
    page.evaluate("() => document.querySelectorAll('.wan22-view').forEach((view) => view.setAttribute('old', 1))")
    load(page, main_job())
    meter = page.evaluate(VIEW, METER)
    assert meter["svgs"] == 2 and meter["shown"] and page.locator(".wan22-view[old]").count() == 0


def test_a_precision_plan_is_drawn_block_by_block(page, clean, tmp_path_factory):
    graph = main_job(plan_only=True)
    graph[PLAN] = precision_plan([METER, 0], full_precision_layers="blocks.3.ffn.0")
    graph[QUANTIZE]["inputs"]["plan"] = [PLAN, 0]
    load(page, graph)
    assert run(page) == "execution_success"
    picture(page, tmp_path_factory, "plan")
    drawn = page.evaluate(VIEW, PLAN)
    assert drawn["shown"] and drawn["svgs"] == 2 and not drawn["scrolls"]
    swatches = 2 + 1                               # nvfp4, mxfp8, and the stripes of products in 16 bit
    assert drawn["cells"] == 2 * (40 * 10 + swatches)
    assert all("238 layers" in label and "162 layers" in label for label in drawn["labels"])
    assert "RTX 50: 59 % FP4, 40 % FP8" in drawn["text"] and drawn["height"] < drawn["node"] * drawn["scale"]
    assert "nvfp4_balanced-blackwell" in page.evaluate(VIEW, QUANTIZE)["text"]
    saved = page.evaluate(VIEW, SAVE)
    assert "GB at the peak" in saved["text"] and "plan only" in saved["text"] and page.errors == []


def test_an_error_of_ours_reaches_the_page_in_words(page, clean):
    graph = main_job()
    graph[LOAD]["inputs"]["low_noise"] = HIGH
    load(page, graph)
    assert run(page) == "execution_error"
    detail = page.evaluate("() => window.seen.find(([kind]) => kind === 'execution_error')[1]")
    assert "same file twice" in detail["exception_message"] and len(json.dumps(detail["current_inputs"])) < 2000


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_opens_with_all_its_nodes_known_and_has_a_thumbnail(clean, example):
    with opened(clean, "classic") as page:
        load(page, example)
        kinds = page.evaluate("""() => window.app.graph._nodes.map(
            ({ type }) => [type, type in window.LiteGraph.registered_node_types])""")
    assert len(kinds) > 5 and [kind for kind, known in kinds if not known] == []
    assert example.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"


def test_the_examples_name_files_that_the_tiny_models_have(clean):
    text = "".join(path.read_text(encoding="utf-8") for path in EXAMPLES)
    assert HIGH in text and LIGHTNING in text and "/" not in HIGH
