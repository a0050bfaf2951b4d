import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is ComfyUI's, and of the test extra")
from wan22_master.nodes.plot import HEIGHT, INK, MARGIN, WIDTH, draw

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "report.json").read_text(encoding="utf-8"))


def with_meter(**changes) -> dict:
    return {"experts": [{**GOLDEN["experts"][1], "meter": {**GOLDEN["experts"][1]["meter"], **changes}}]}


def needle_at(picture: torch.Tensor) -> float:
    """Middle of the pixels of the needle's colour in the row of its broad upper end."""
    row = (picture[0, 46] * 255).round().int()
    return torch.nonzero((row == torch.tensor(INK)).all(1)).float().mean().item()


def test_the_picture_has_a_strip_per_expert_in_the_form_of_an_image_batch():
    picture = draw(GOLDEN)
    assert picture.shape == (1, 2 * HEIGHT, WIDTH, 3) and picture.dtype == torch.float32
    assert picture.min() >= 0.0 and picture.max() <= 1.0


def test_the_large_needle_stands_at_the_shift_that_is_judged():
    loras = [{**lora, "protected": False} for lora in GOLDEN["experts"][1]["meter"]["loras"]]
    report = with_meter(needles={"all": 0.04, "distillation": 0.03, "rest": 0.009}, loras=loras)
    wanted = MARGIN + (WIDTH - 2 * MARGIN) * 0.009 / 0.045           # the scale ends at 1.5 * 0.030
    assert abs(needle_at(draw(report)) - wanted) < 2                 # pixels
    assert abs(needle_at(draw(with_meter(needles={"all": 0, "distillation": 0, "rest": 9.0}, loras=loras))) - (WIDTH - MARGIN)) < 8


def test_a_distillation_lora_gets_needles_of_its_own():
    loras = GOLDEN["experts"][1]["meter"]["loras"]
    assert any(lora["protected"] for lora in loras)
    plain = with_meter(loras=[{**lora, "protected": False} for lora in loras])
    needles = {"all": None, "distillation": None, "rest": None}
    assert not torch.equal(draw(with_meter()), draw(plain))
    assert torch.isfinite(draw(with_meter(needles=needles, legacy=None))).all()
