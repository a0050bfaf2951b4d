"""The stability meter as a picture: gauge and heat strip per expert, drawn with Pillow for the IMAGE output.

Status is a word and a position, shift a number; colour only repeats them. The large needle is what the word judges; where a
distillation LoRA is merged, small ones with the letters D and A stand for its own shift and that of all.
"""
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .judge import judged_shift, number, side_needles

WIDTH, HEIGHT, MARGIN = 960, 268, 24               # of one expert, pixels
INK, FAINT, PAPER = (230, 230, 230), (150, 150, 150), (24, 24, 27)
ZONES = ((46, 125, 80), (176, 130, 30), (170, 55, 55))
HEAT = (255, 170, 60)


def draw(report: dict) -> torch.Tensor:
    """Picture of all experts below each other: (1, height, 960, 3), float32, 0..1."""
    experts = report["experts"]
    image = Image.new("RGB", (WIDTH, HEIGHT * len(experts)), PAPER)
    pen = ImageDraw.Draw(image)
    for place, expert in enumerate(experts):
        _draw_expert(pen, place * HEIGHT, expert)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


def _draw_expert(pen: ImageDraw.ImageDraw, top: int, expert: dict) -> None:
    meter, large, small = expert["meter"], ImageFont.load_default(22), ImageFont.load_default(14)
    name = expert["name"] if expert["role"] == "model" else f"{expert['role']}  {expert['name']}"
    pen.text((MARGIN, top + 14), f"{meter['status']}  {number(judged_shift(meter))}", INK, large)
    pen.text((WIDTH - MARGIN, top + 18), name, FAINT, small, anchor="ra")
    _gauge(pen, top + 52, meter, small)
    touched = number(meter["shift_touched"])
    legacy = "unknown" if meter["legacy"] is None else f"{meter['legacy']:.1e}"
    beside = "".join(f"{name[0].upper()}: {name} {number(shift)}    " for name, shift in side_needles(meter).items())
    pen.text((MARGIN, top + 98), f"{beside}over touched layers alone {touched}    legacy {legacy}", FAINT, small)
    _heat(pen, top + 126, meter, small)


def _gauge(pen: ImageDraw.ImageDraw, top: int, meter: dict, font) -> None:
    """Three zones with their bounds in numbers, and a needle; a shift off the scale stands at its end."""
    span = WIDTH - 2 * MARGIN
    full = 1.5 * meter["volatile_above"] or 1.0
    bounds = (0.0, meter["stable_below"], meter["volatile_above"], full)
    for low, high, colour, word in zip(bounds, bounds[1:], ZONES, ("stable", "saturated", "volatile"), strict=False):
        left, right = MARGIN + span * low / full, MARGIN + span * high / full
        pen.rectangle((left, top, right, top + 14), colour)
        pen.text((left + 3, top + 20), f"{low:g} {word}", FAINT, font)

    def place(shift: float | None) -> float:
        return MARGIN + span * (full if shift is None else min(shift, full)) / full

    for name, shift in side_needles(meter).items():
        x = place(shift)
        pen.line((x, top - 3, x, top + 14), INK, 1)
        pen.text((x, top - 4), name[0].upper(), INK, font, anchor="mb")
    needle = place(judged_shift(meter))
    pen.polygon((needle - 6, top - 8, needle + 6, top - 8, needle, top + 3), INK)
    pen.line((needle, top, needle, top + 14), INK, 2)


def _heat(pen: ImageDraw.ImageDraw, top: int, meter: dict, font) -> None:
    """One row a kind, one column a block; brightness grows with the shift, a cross marks what is above the volatile bound."""
    left, blocks, full = MARGIN + 92, max(meter["blocks"], 1), meter["volatile_above"] or 1.0
    width = (WIDTH - MARGIN - left) / blocks
    for row, kind in enumerate(meter["kinds"]):
        y = top + row * 34
        pen.text((MARGIN, y + 8), kind, FAINT, font)
        for block, cells in enumerate(meter["cells"]):
            shift = full if cells[row] is None else cells[row]
            share, x = min(shift / full, 1.0), left + block * width
            colour = tuple(int(dark + (bright - dark) * share) for dark, bright in zip((45, 45, 48), HEAT, strict=True))
            pen.rectangle((x, y, x + width - 2, y + 30), colour)
            if shift > full:
                pen.line((x + 2, y + 2, x + width - 4, y + 28), PAPER, 2)
                pen.line((x + 2, y + 28, x + width - 4, y + 2), PAPER, 2)
    for block in range(0, meter["blocks"], 5):
        pen.text((left + block * width, top + 34 * len(meter["kinds"])), str(block), FAINT, font)

