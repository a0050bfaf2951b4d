"""The LoRA analysis as a picture: pair matrix and block strips per expert, drawn with Pillow for the IMAGE output.

Above the diagonal the cosine, below it the excess conflict with its standard error; numbers say it, brightness only repeats it.
"""
import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .analysis_text import predicted, stands_out
from .judge import number
from .plot import FAINT, HEAT, INK, MARGIN, PAPER, WIDTH

COOL, EMPTY = (96, 165, 250), (45, 45, 48)
CELL, LINE, STRIP = 34, 20, 96                     # heights, pixels
LEFT = MARGIN + 30


def draw(report: dict) -> torch.Tensor:
    """Picture of all experts below each other: (1, height, 960, 3), float32, 0..1."""
    sections = [expert["conflicts"] for expert in report["experts"]]
    heights = [2 * LINE + 16 + len(section["loras"]) * (LINE + CELL) + 2 * LINE + 2 * STRIP for section in sections]
    image = Image.new("RGB", (WIDTH, sum(heights)), PAPER)
    pen = ImageDraw.Draw(image)
    for place, expert in enumerate(report["experts"]):
        _draw_expert(pen, sum(heights[:place]), expert)
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


def _draw_expert(pen: ImageDraw.ImageDraw, top: int, expert: dict) -> None:
    section, large, small = expert["conflicts"], ImageFont.load_default(18), ImageFont.load_default(13)
    name = expert["name"] if expert["role"] == "model" else f"{expert['role']}  {expert['name']}"
    pen.text((MARGIN, top + 8), name, INK, large)
    pen.text((MARGIN, top + 8 + LINE + 6), predicted(section), INK, small)
    top += 2 * LINE + 16
    for place, lora in enumerate(section["loras"]):
        mark = " D" if lora["protected"] else ""
        pen.text((MARGIN, top + place * LINE),
                 f"{place + 1}{mark}  strength {lora['strength']:g}, norm {lora['norm']:.3g}  {lora['name']}", FAINT, small)
    top += len(section["loras"]) * LINE
    _matrix(pen, top, section)
    top += LINE + len(section["loras"]) * CELL
    pen.text((MARGIN, top + 4), "above: cosine, below: excess conflict ± standard error, framed where it stands out", FAINT, small)
    bars = [(block["excess"], block["se"]) for block in section["by_block"]]
    _strip(pen, top + LINE + 6, bars, ("excess conflict by block, all pairs", lambda value: f"{value:.1%}"))
    _strip(pen, top + LINE + 6 + STRIP, _movement(section), _movement_words(section))


def _matrix(pen: ImageDraw.ImageDraw, top: int, section: dict) -> None:
    font, width = ImageFont.load_default(12), min((WIDTH - LEFT - MARGIN) / max(len(section["loras"]), 1), 120)
    for place, lora in enumerate(section["loras"]):
        mark = " D" if lora["protected"] else ""
        pen.text((LEFT + (place + 0.5) * width, top + 10), f"{place + 1}{mark}", FAINT, font, anchor="mm")
        pen.text((MARGIN, top + LINE + (place + 0.5) * CELL), str(place + 1), FAINT, font, anchor="lm")
    for pair in section["pairs"]:
        cosine, excess = pair["cosine"], pair["excess"]
        said = "-" if cosine is None else f"{cosine:+.2f}", "-" if excess is None else f"{excess:.1%} ± {pair['se']:.1%}"
        colour = COOL if (cosine or 0.0) >= 0 else HEAT
        _cell(pen, (LEFT + pair["second"] * width, top + LINE + pair["first"] * CELL, width), (said[0], colour, abs(cosine or 0.0)))
        corner = (LEFT + pair["first"] * width, top + LINE + pair["second"] * CELL, width)
        _cell(pen, corner, (said[1], HEAT, 5 * (excess or 0.0)), framed=stands_out(pair))


def _cell(pen: ImageDraw.ImageDraw, corner: tuple[float, int, float], shown: tuple, *, framed: bool = False) -> None:
    """corner: left, top, width; shown: text, colour, share of its brightness."""
    (left, top, width), (said, bright, share) = corner, shown
    colour = tuple(int(dark + (light - dark) * min(share, 1.0) * 0.7) for dark, light in zip(EMPTY, bright, strict=True))
    pen.rectangle((left, top, left + width - 2, top + CELL - 2), colour, INK if framed else None, 2)
    pen.text((left + width / 2, top + CELL / 2), said, INK, ImageFont.load_default(min(13, width / 6)), anchor="mm")


def _movement(section: dict) -> list[tuple[float | None, None]]:
    """By block: the largest shift of its kinds, or the size of all changes where the base is unknown."""
    if section["shift"]:
        return [(max((cell or 0.0 for cell in row), default=0.0), None) for row in section["shift"]["cells"]]
    return [(math.hypot(*row), None) for row in section["moved"]["cells"]]


def _movement_words(section: dict) -> tuple:
    return ("largest shift in a block" if section["shift"] else "size of all changes by block"), number


def _strip(pen: ImageDraw.ImageDraw, top: int, bars: list[tuple], words: tuple) -> None:
    """A bar per block with its whisker. bars: (value, standard error), either may be None; words: title, writer of a number."""
    (title, write), font = words, ImageFont.load_default(12)
    largest, height = max(((value or 0.0) + (error or 0.0) for value, error in bars), default=0.0), STRIP - 44
    pen.text((MARGIN, top), f"{title}, largest bar {write(largest)}", FAINT, font)
    width, floor = (WIDTH - 2 * MARGIN) / max(len(bars), 1), top + 20 + height

    def level(value: float) -> float:
        return floor - height * (value / largest if largest else 0.0)

    for block, (value, error) in enumerate(bars):
        left = MARGIN + block * width
        pen.rectangle((left, top + 20, left + width - 2, floor), EMPTY)
        if value:
            pen.rectangle((left, level(value), left + width - 2, floor), HEAT)
        if value is not None and error:
            middle = left + width / 2 - 1
            pen.line((middle, level(value + error), middle, level(max(value - error, 0.0))), INK, 2)
        if block % 5 == 0:
            pen.text((left, floor + 4), str(block), FAINT, font)
