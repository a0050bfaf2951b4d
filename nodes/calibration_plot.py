"""The summary of a calibration as pictures, drawn with Pillow: histograms, amax by block, and a table of the twenty most varying.

Every line is named at its end and every axis has its numbers; colour only repeats what is written.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..engine.calibration.summary import coefficient, number
from ..engine.calibration.top import HEAD, TOP, figure, most_varying, table
from .calibration_chart import EMPTY, LINES, bounds_of, draw_chart, series
from .plot import FAINT, INK, MARGIN, PAPER, WIDTH

PLOTS = ("all", "histograms", "amax by block", "top 20")
BINS = 30
TITLE, GAP, LINE = 40, 20, 20                       # heights, pixels
NARROWEST = 1e-9                                   # span of an axis by what lies on it: a bin then holds 10^5 of float64's steps
TINY = 1e-6                                        # what lies on it counts as at least so much: 0 has no magnitude
BARS = 150                                         # height of a histogram, pixels
BAR = (96, 165, 250)


@dataclass(frozen=True)
class Drawn:
    """What is drawn of one expert. rows: of its summary; outliers: layer -> share of outlier channels, as far as it is known."""

    role: str
    rows: Sequence[Mapping]
    outliers: Mapping[str, float] = field(default_factory=dict)


def draw(kind: str, experts: Sequence[Drawn], threshold: float) -> torch.Tensor:
    """Picture of all experts side by side: (1, height, 960 each, 3), float32, 0..1. kind: of PLOTS; threshold: of scale_cv."""
    bounds = bounds_of([series(expert.rows) for expert in experts])
    columns = [_column(kind, expert, bounds, threshold) for expert in experts]
    image = Image.new("RGB", (WIDTH * len(columns), max(column.height for column in columns)), PAPER)
    for place, column in enumerate(columns):
        image.paste(column, (WIDTH * place, 0))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)[None]


def _column(kind: str, expert: Drawn, bounds: tuple[float, float], threshold: float) -> Image.Image:
    """One expert. bounds: of the amax axis, of all experts."""
    names = [name for name in PLOTS[1:] if kind in (name, PLOTS[0])]
    heights = {"histograms": BARS + 3 * LINE, "amax by block": LINES + 2 * LINE, "top 20": LINE * (min(TOP, len(expert.rows)) + 2)}
    image = Image.new("RGB", (WIDTH, sum(TITLE + heights[name] for name in names) + GAP), PAPER)
    pen, top = ImageDraw.Draw(image), 0
    for name in names:
        pen.text((MARGIN, top + 12), f"{expert.role}: {name}", INK, ImageFont.load_default(18))
        if name == "histograms":
            _histograms(pen, top + TITLE, expert, threshold)
        elif name == "amax by block":
            draw_chart(pen, top + TITLE, series(expert.rows), bounds)
        else:
            _table(pen, top + TITLE, expert)
        top += TITLE + heights[name]
    return image


def _histograms(pen: ImageDraw.ImageDraw, top: int, expert: Drawn, threshold: float) -> None:
    width = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    shown: list[tuple[str, Callable, float | None]] = [
        ("scale_cv", coefficient, threshold), ("kurtosis", lambda row: number(row, "scale_kurtosis"), None),
        ("share of outlier calls", lambda row: number(row, "scale_outlier_frac_3std"), None)]
    for place, (title, measure, mark) in enumerate(shown):
        values = [value for row in expert.rows if (value := measure(row)) is not None]
        _histogram(pen, (MARGIN + place * (width + GAP), top, width), (title, values), mark)


def _histogram(pen: ImageDraw.ImageDraw, corner: tuple[float, int, float], shown: tuple[str, list[float]],
               mark: float | None) -> None:
    """corner: left, top, width; shown: title, values; mark: a value that a line stands at."""
    (left, top, width), (title, values), font = corner, shown, ImageFont.load_default(12)
    floor = top + LINE + BARS
    pen.rectangle((left, top + LINE, left + width, floor), EMPTY)
    if not values:
        pen.text((left, top), f"{title}: nothing to show", FAINT, font)
        return
    low, high = min(values), max(values)
    span = max(high - low, NARROWEST * max(abs(low), abs(high), TINY))    # all but equal: one bar
    counts = np.histogram(values, BINS, (low, max(high, low + span)))[0]
    pen.text((left, top), f"{title}: {len(values)} layers, median {figure(float(np.median(values)))}", FAINT, font)
    step = width / BINS
    for place, count in enumerate(counts):
        height = (BARS - 36) * count / counts.max()
        if count:
            x = left + place * step
            pen.rectangle((x, floor - max(height, 2), x + step - 2, floor), BAR)
    pen.text((left + 4, top + LINE + 2), f"{counts.max()} layers in the highest bar", FAINT, font)
    if mark is not None and low <= mark <= high:
        x = left + width * (mark - low) / span
        pen.line((x, top + LINE + 20, x, floor), INK, 2)
        text, is_right = f"t = {mark:g}: {sum(value >= mark for value in values)} at or above", x > left + width / 2
        pen.text((x - 4 if is_right else x + 4, top + LINE + 18), text, INK, font, anchor="ra" if is_right else "la")
    ends = {0.0: "la"} if figure(low) == figure(high) else {0.0: "la", 0.5: "ma", 1.0: "ra"}
    for share, anchor in ends.items():
        pen.text((left + share * width, floor + 5), figure(low + share * span), FAINT, font, anchor=anchor)


def _table(pen: ImageDraw.ImageDraw, top: int, expert: Drawn) -> None:
    font, stops = ImageFont.load_default(13), (MARGIN + 34, 470, 580, 720, 830, WIDTH - MARGIN)
    for line, cells in enumerate([HEAD, *table(most_varying(expert.rows), expert.outliers)]):
        y, colour = top + line * LINE, INK if line else FAINT
        if line % 2:
            pen.rectangle((MARGIN, y - 2, WIDTH - MARGIN, y + LINE - 3), EMPTY)
        if line:
            pen.text((MARGIN + 24, y), str(line), FAINT, font, anchor="ra")
        for x, cell in zip(stops, cells, strict=True):
            pen.text((x, y), cell, colour, font, anchor="la" if cell is cells[0] else "ra")
