import copy
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is ComfyUI's, and of the test extra")
from wan22_master.nodes.analysis_plot import draw

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "report.json").read_text(encoding="utf-8"))


def test_the_picture_shows_every_expert_and_changes_with_a_conflict():
    fighting = copy.deepcopy(GOLDEN)
    fighting["experts"][1]["conflicts"]["pairs"][2] |= {"excess": 0.125, "se": 0.004, "cosine": -0.25}
    quiet, loud = draw(GOLDEN), draw(fighting)
    assert quiet.shape == loud.shape and quiet.shape[0] == 1 and quiet.shape[2:] == (960, 3) and quiet.dtype == torch.float32
    half = quiet.shape[1] // 2
    assert torch.equal(quiet[:, :half], loud[:, :half]) and not torch.equal(quiet[:, half:], loud[:, half:])


def test_an_expert_without_loras_and_a_base_unknown_are_drawn_too():
    report = copy.deepcopy(GOLDEN)
    report["experts"][0]["conflicts"] |= {"loras": [], "pairs": []}
    report["experts"][1]["conflicts"] |= {"shift": None, "by_block": [{"excess": None, "se": None}] * 4}
    assert torch.isfinite(draw(report)).all()


def test_forty_loras_still_fit_into_the_picture():
    report = copy.deepcopy(GOLDEN)
    section = report["experts"][0]["conflicts"]
    section["loras"] = [section["loras"][0]] * 40
    section["pairs"] = [{**section["pairs"][0], "first": j, "second": k} for j in range(40) for k in range(j + 1, 40)]
    assert draw({"experts": report["experts"][:1]}).shape[2] == 960
