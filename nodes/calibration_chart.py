"""The largest input of each layer along the blocks: one line a kind, drawn with Pillow on a logarithmic axis."""
import math
from collections.abc import Mapping, Sequence

from PIL import ImageDraw, ImageFont

from ..engine.calibration.summary import number
from ..engine.plans.input_scales import BLOCK
from .plot import FAINT, MARGIN, WIDTH

Lines = dict[str, dict[int, float]]                # kind -> block -> largest amax
LINES = 300                                        # height of a chart, pixels
LONGEST = len("blocks.999")                        # a stranger's summary may name block 10^9, and the axis would be drawn to there
EMPTY, GRID = (40, 40, 44), (62, 62, 68)
# Layers with one input are one line. Colours of Okabe and Ito, told apart with colour-blind eyes too, lightened for a dark ground.
KINDS = {"self_attn.q": ("self q k v", (86, 180, 233)), "self_attn.o": ("self o", (0, 158, 115)),
         "cross_attn.q": ("cross q", (230, 159, 0)), "cross_attn.k": ("text k v", (204, 121, 167)),
         "cross_attn.o": ("cross o", (240, 228, 66)), "ffn.0": ("ffn.0", (213, 94, 0)), "ffn.2": ("ffn.2", (200, 200, 205))}


def series(rows: Sequence[Mapping]) -> Lines:
    """Kind -> block -> largest amax, of the kinds that are drawn and values above 0."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        at, amax = BLOCK.fullmatch(str(row["layer"])), number(row, "amax_max")
        if at and amax and at[2] in KINDS and at[1].startswith("blocks.") and len(at[1]) <= LONGEST:
            found.setdefault(at[2], {})[int(at[1].removeprefix("blocks."))] = amax
    return found


def bounds_of(shown: Sequence[Lines]) -> tuple[int, float, float]:
    """Blocks, least and largest amax of all experts, a decade apart at least: both are drawn on one scale."""
    paths = [points for lines in shown for points in lines.values()]
    values = [value for points in paths for value in points.values()] or [1.0]
    high = max(values) * 1.1
    return max((block for points in paths for block in points), default=0) + 1, min(min(values) / 1.1, high / 10.0), high


def draw_chart(pen: ImageDraw.ImageDraw, top: int, lines: Lines, bounds: tuple[int, float, float]) -> None:
    """The lines of one expert, amax on a logarithmic axis. bounds: of `bounds_of`."""
    (blocks, low, high), font = bounds, ImageFont.load_default(12)
    left, right, floor = MARGIN + 40, WIDTH - MARGIN - 90, top + LINES

    def spot(block: int, value: float) -> tuple[float, float]:
        return left + (right - left) * block / max(blocks - 1, 1), floor - LINES * math.log(value / low) / math.log(high / low)

    pen.rectangle((left, top, right, floor), EMPTY)
    for value in (digit * 10.0 ** power for power in range(-6, 7) for digit in (1, 2, 5)):
        if low <= value <= high:
            y = spot(0, value)[1]
            pen.line((left, y, right, y), GRID, 1)
            pen.text((left - 6, y), f"{value:g}", FAINT, font, anchor="rm")
    for block in range(0, blocks, 5):
        pen.text((spot(block, low)[0], floor + 5), str(block), FAINT, font, anchor="ma")
    pen.text((right + 8, floor + 5), "block", FAINT, font)
    ends = []
    for kind, points in lines.items():
        name, colour = KINDS[kind]
        path = [spot(*point) for point in sorted(points.items())]
        pen.line(path, colour, 2)
        for x, y in path:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), colour)
        ends.append((path[-1][1], name, colour))
    for (_, name, colour), y in zip(sorted(ends), _apart([end[0] for end in sorted(ends)], floor), strict=True):
        pen.text((right + 8, y), name, colour, font, anchor="lm")


def _apart(wished: Sequence[float], floor: float) -> list[float]:
    """Heights for labels that wish to stand at these, sorted, a line apart and none below the floor."""
    places: list[float] = []
    for y in wished:
        places.append(max(y, places[-1] + 15 if places else y))
    for place in range(len(places) - 1, -1, -1):
        below = places[place + 1] - 15 if place + 1 < len(places) else floor
        places[place] = min(places[place], below)
    return places
