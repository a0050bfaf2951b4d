"""The layers whose largest input varies most between calls, as a table: for a text and for a picture."""
import math
from collections.abc import Mapping, Sequence

from .gather import Gathered
from .summary import coefficient, number

TOP = 20
HEAD = ("layer", "scale_cv", "kurtosis", "outlier channels", "amax", "calls")


def most_varying(rows: Sequence[Mapping], most: int = TOP) -> list[Mapping]:
    """Rows of a summary with the largest scale_cv, the largest first; of equal ones by name."""
    return sorted(rows, key=lambda row: (-(coefficient(row) or 0.0), str(row["layer"])))[:most]


def outlier_channels(rows: Sequence[Mapping], gathered: Gathered) -> dict[str, float]:
    """Layer -> share of its channels whose rms sticks out (gather.py), of layers in `rows` that a session recorded."""
    found = {row["layer"]: gathered.outliers(row["layer"])[0] for row in rows}
    return {layer: share for layer, share in found.items() if not math.isnan(share)}


def table(rows: Sequence[Mapping], outliers: Mapping[str, float]) -> list[tuple[str, ...]]:
    """A line for each row, under HEAD. outliers: layer -> share of outlier channels, as far as it is known."""
    return [(str(row["layer"]), figure(coefficient(row)), figure(number(row, "scale_kurtosis")),
             f"{outliers[row['layer']]:.2%}" if row["layer"] in outliers else "-",
             figure(number(row, "amax_max")), str(row.get("count", "-"))[:9]) for row in rows]


def as_text(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with aligned columns, HEAD first."""
    lines = [HEAD, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEAD))]
    return ["  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))])
            for line in lines]


def figure(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    return "-" if value is None else f"{value:.3g}"
