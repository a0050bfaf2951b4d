"""Make the checkout importable as `wan22_master`, whatever its folder is called, without running ComfyUI.

Tests marked `gpu` or `comfyui` are skipped, with the reason, where there is none.
"""
import json
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
if "wan22_master" not in sys.modules:              # scripts beside the tests run this file too
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


@pytest.fixture
def write_huge_model():
    """Writes the header of a model of 5 TB and a hole for its data: more than a disk has, and planned from the header alone."""
    if os.name == "nt":
        pytest.skip("truncate makes no hole there")

    def write(path: Path) -> Path:
        from wan22_master.engine.synthetic import Sizes, model_shapes

        entries, offset = {}, 0
        for key, shape in model_shapes(Sizes(dim=1024, ffn=30_000_000, blocks=40)).items():
            stop = offset + 2 * math.prod(shape)
            entries[key], offset = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, stop]}, stop
        header = json.dumps(entries).encode()
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + offset)
        return path

    return write
