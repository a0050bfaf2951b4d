"""Make the checkout importable as `wan22_master`, whatever its folder is called, without running ComfyUI.

Tests marked `gpu` or `comfyui` are skipped, with the reason, where there is none.
"""
import os
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
pack = types.ModuleType("wan22_master")
pack.__path__ = [str(ROOT)]
sys.modules["wan22_master"] = pack


def pytest_collection_modifyitems(items):
    has_gpu = torch.cuda.is_available() or torch.xpu.is_available()
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="no GPU that torch can use"))
        if item.get_closest_marker("comfyui") and not (COMFYUI / "main.py").is_file():
            item.add_marker(pytest.mark.skip(reason="no ComfyUI: set COMFYUI_PATH to its folder"))


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of the ComfyUI checkout; for tests marked `comfyui`."""
    return COMFYUI
