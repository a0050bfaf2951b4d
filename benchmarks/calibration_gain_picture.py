"""The picture of calibration_gain.py: output error by format, and latent error by plan, as an SVG."""
import statistics
from pathlib import Path

GREY, BLUE, ORANGE = "#8a8a8a", "#2a6fbb", "#d9a441"
WIDE, HIGH, TOP, BOTTOM = 940, 370, 60, 290        # the bars lie between TOP and BOTTOM
PARTS = ((46, 330), (400, 930))                    # left and right ends of both halves
Group = tuple[str, list[tuple[str, float]]]        # name, (colour, height) of each bar


def draw(found: dict, path: Path) -> None:
    """Write it. found: as calibration_gain.py keeps it."""
    files = [(row["format"], list(zip((GREY, BLUE), map(statistics.median, row["output"]), strict=True))) for row in found["files"]]
    plans = []
    for row in found["plans"]:
        whole = statistics.mean(row["preset"])
        bars = [(colour, statistics.mean(row[label]) / whole)
                for colour, label in ((GREY, "preset"), (ORANGE, "by weights"), (BLUE, "by outputs"))]
        plans.append((f"{row['card']} {row['plan']}", bars))
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" font-family="sans-serif" font-size="11">',
           f'<rect width="{WIDE}" height="{HIGH}" fill="#fff"/>',
           *_titled("Output error of the median layer, held out", (("plain", GREY), ("columns weighed", BLUE)), PARTS[0][0]),
           *_bars(files, PARTS[0]),
           *_titled("Latent error over the preset's, at its bytes, held out",
                    (("preset", GREY), ("budget by weights", ORANGE), ("budget by outputs, weighed", BLUE)), PARTS[1][0]),
           *_bars(plans, PARTS[1])]
    path.write_text("\n".join([*out, "</svg>\n"]), encoding="utf-8")


def _titled(title: str, legend: tuple, x: float) -> list[str]:
    out = [f'<text x="{x}" y="18" font-size="14">{title}</text>']
    for name, colour in legend:
        out.append(f'<rect x="{x:.0f}" y="27" width="11" height="11" fill="{colour}"/><text x="{x + 15:.0f}" y="37">{name}</text>')
        x += 34 + 5.8 * len(name)
    return out


def _bars(groups: list[Group], span: tuple[int, int]) -> list[str]:
    """Groups of bars from 0, between two places, over a scale of quarters of the highest."""
    (left, right), tall = span, BOTTOM - TOP
    top, wide = max(height for _, bars in groups for _, height in bars), (right - left) / len(groups)
    out = []
    for part in range(5):
        y = BOTTOM - tall * part / 4
        out.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>'
                   f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{top * part / 4:.3g}</text>')
    for place, (name, bars) in enumerate(groups):
        start, thick = left + wide * (place + 0.1), wide * 0.8 / len(bars)
        for number, (colour, height) in enumerate(bars):
            x, y = start + thick * number, BOTTOM - tall * height / top
            out.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{thick - 1:.1f}" height="{BOTTOM - y:.1f}" fill="{colour}"/>')
        at = f"{start + wide * 0.4:.1f} {BOTTOM + 14}"
        out.append(f'<text transform="translate({at}) rotate(-30)" text-anchor="end">{name}</text>')
    return out
