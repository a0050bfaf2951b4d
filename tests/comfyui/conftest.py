"""One real ComfyUI server for all tests here, with tiny Wan models under the names of the published files."""
import shutil
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))
from comfy_server import Server, find_comfyui
from tiny_models import write_models

FOUND = find_comfyui()


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.comfyui)
            if FOUND is None:
                item.add_marker(pytest.mark.skip(reason="no ComfyUI"))


def pytest_terminal_summary(terminalreporter):
    if FOUND is None:
        terminalreporter.write_line("tests/comfyui: all skipped, no ComfyUI with a .venv at $COMFYUI_PATH or ~/comfy/ComfyUI")
    elif not (FOUND[0] / "custom_nodes" / "ComfyUI-GGUF").is_dir():
        terminalreporter.write_line("tests/comfyui/test_gguf*.py: skipped, no ComfyUI-GGUF in custom_nodes")


@pytest.fixture(scope="session")
def comfy(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("comfy"))
    write_models(server)
    with server:
        yield server


@pytest.fixture
def clean(comfy):
    """The server, and afterwards no file that a test saved, no report, no cached output."""
    given = set(comfy.models().iterdir())
    yield comfy
    for path in set(comfy.models().iterdir()) - given:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(comfy.base / "user" / "default" / "wan22_master", ignore_errors=True)
    comfy.free()
