"""ComfyUI's real page in a headless Chromium: open a workflow, run it, look at what stands on the nodes."""
import json
import shutil
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Nothing may leave the machine; the rest is what a container needs.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync",
         "--disable-component-update", "--disable-dev-shm-usage",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"]
RENDERINGS = {"classic": False, "nodes2": True}
READY = """() => window.app?.graph && window.app.extensionManager && window.LiteGraph
    && Object.keys(window.LiteGraph.registered_node_types).length > 50"""
LISTEN = """() => { window.seen = [];
    for (const kind of ['progress', 'execution_success', 'execution_error', 'execution_interrupted'])
    window.app.api.addEventListener(kind, ({ detail }) => window.seen.push([kind, detail])); }"""
ENDED = "() => window.seen.some(([kind]) => kind.startsWith('execution_'))"
FIT = """() => { const { ds, canvas } = window.app.canvas, nodes = window.app.graph._nodes;
    const left = Math.min(...nodes.map((n) => n.pos[0])), top = Math.min(...nodes.map((n) => n.pos[1] - 40));
    const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
    const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
    ds.scale = Math.min(1, (canvas.clientWidth - 120) / (right - left), (canvas.clientHeight - 180) / (bottom - top));
    ds.offset[0] = 90 / ds.scale - left; ds.offset[1] = 90 / ds.scale - top; window.app.canvas.setDirty(true, true); }"""


@contextmanager
def opened(server, rendering: str, size: tuple[int, int] = (2000, 1250)):
    """A page with the application up; `page.errors` collects what goes wrong in scripts."""
    server.post("/settings", {"Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False, "Comfy.Locale": "en",
                              "Comfy.Workflow.ShowMissingModelsWarning": False, "Comfy.Minimap.Visible": False,
                              "Comfy.VueNodes.Enabled": RENDERINGS[rendering]})
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server.url, wait_until="domcontentloaded", timeout=120_000)
        page.wait_for_function(READY, timeout=120_000)
        page.wait_for_timeout(500)
        page.evaluate(LISTEN)
        yield page
        browser.close()


def load(page: Page, workflow: dict | Path) -> None:
    """Open a saved workflow (a path), or a graph in API form."""
    if isinstance(workflow, Path):
        page.evaluate("(saved) => window.app.loadGraphData(saved, true, true)", json.loads(workflow.read_text(encoding="utf-8")))
    else:
        page.evaluate("(graph) => window.app.loadApiJson(graph, 'test')", workflow)
    page.wait_for_timeout(700)
    page.evaluate(FIT)


def run(page: Page, seconds: float = 120) -> str:
    """Queue what is on the canvas, as the Run button does; how it ended."""
    page.evaluate("() => { window.seen.length = 0; window.app.queuePrompt(0, 1); }")
    page.wait_for_function(ENDED, timeout=seconds * 1000)
    page.wait_for_timeout(1500)                    # the views measure themselves once they are laid out
    page.evaluate(FIT)
    page.wait_for_timeout(700)
    return page.evaluate("() => window.seen.find(([kind]) => kind.startsWith('execution_'))[0]")
