"""The summary of a calibration in the original's schema: 24 columns a layer, of a session or of a log; as JSON and CSV.

Over the n calls of a layer, x being scale = amax / 2688 in the first half of the columns and amax in the second:
    mean = sum x / n        m_k = sum (x - mean)^k / n        std = sqrt(m_2)        kurtosis = m_4 / m_2^2 - 3
    outlier_frac_3std = the share of calls with |x - mean| > 3 std
    p_q: of the calls in order, what stands at (n - 1) q / 100, linear between neighbours
as convert_nvfp4's analyze_input_scale_log.py defines them, in float64. kurtosis and outlier_frac_3std do not exist where all calls
are equal or there is only one. That program then writes NaN, which is not JSON; here it is null: nothing that reads a summary there
looks at these two columns, and everybody else's reader takes the file. In CSV it is nan, as there.

A call is one forward pass, cond and uncond together, as in a log (by_pass.py). Inputs that are not finite are left out.
"""
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import RecipeError
from ..open_file import open_write
from ..plans.scales_summary import LOGGED, column_of
from ..system import replace, write_json
from .by_pass import ByPass
from .log import DYNAMIC, FORMAT, Log

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)       # analyze_input_scale_log.py's, when it is asked for none
ALL = "all"                                        # its word for a log of several formats
MEASURES = ("min", "max", "mean", "std", "kurtosis", "outlier_frac_3std")
OUTLIER = 3.0                                      # standard deviations, of outlier_frac_3std


@dataclass(frozen=True)
class Measured:
    """scales, amax: layer -> one finite number a call, both in order of recording; format: as a log says it."""

    scales: Mapping[str, Sequence[float]]
    amax: Mapping[str, Sequence[float]]
    format: str = FORMAT


def of_log(log: Log) -> Measured:
    """Both columns as they were logged: so a log has one summary, here and there."""
    return Measured(log.scales, log.amax, next(iter(log.formats)) if len(log.formats) == 1 else ALL)


def of_session(found: ByPass) -> Measured:
    """The exact amax of every forward pass, and that over 2688."""
    finite = {layer: values[np.isfinite(values)] for layer, values in found.amax.items()}
    amax = {layer: values for layer, values in finite.items() if len(values)}
    return Measured({layer: values / LOGGED for layer, values in amax.items()}, amax)


def columns(values: Sequence[float], percentiles: Iterable[float] = PERCENTILES) -> dict[str, float | None]:
    """min, max, mean, std, kurtosis, outlier_frac_3std, p50 ... of one layer's calls, float64; None where a measure does not exist.

    values: (n,), finite, n > 0.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    low, high = float(ordered[0]), float(ordered[-1])
    # Of equal values the mean may miss by a rounding, and a deviation that is none would get a kurtosis.
    mean = low if low == high else float(ordered.mean())
    away = ordered - mean
    std = math.sqrt((away ** 2).mean())
    shape = (None, None) if std == 0.0 else (                            # over std first: m_2^2 of tiny scales is 0 in float64
        float(((away / std) ** 4).mean()) - 3.0, float((np.abs(away) > OUTLIER * std).mean()))
    found = dict(zip(MEASURES, (low, high, mean, std, *shape), strict=True))
    return found | {column_of(each): float(np.percentile(ordered, each, method="linear")) for each in percentiles}


def summarize(measured: Measured, percentiles: Iterable[float] = PERCENTILES) -> dict:
    """The summary, layers in lexicographic order as the original's. percentiles: 0 to 100."""
    asked = sorted({float(each) for each in percentiles})
    rows = [{"layer": layer, "count": len(measured.amax[layer]),
             **{f"{name}_{column}": value for name, values in (("scale", measured.scales), ("amax", measured.amax))
                for column, value in columns(values[layer], asked).items()}} for layer in sorted(measured.amax)]
    if not rows:
        raise RecipeError("summary: expected layers that saw an input, found none; sample a prompt with the calibrated model first")
    return {"format": measured.format, "mode": DYNAMIC, "percentiles": asked, "layers": rows}


def coefficient(row: Mapping) -> float | None:
    """scale_cv of a row, its coefficient of variation: scale_std / scale_mean; None where the mean is 0 or unknown."""
    mean, std = number(row, "scale_mean"), number(row, "scale_std")
    return None if not mean or std is None else std / mean


def number(row: Mapping, column: str) -> float | None:
    """A finite number of a row; None for what is missing, null or NaN, as the original writes it."""
    value = row.get(column)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def write(summary: Mapping, stem: str | os.PathLike) -> tuple[str, str]:
    """Write `stem`.json and `stem`.csv, each whole or not at all, and return both paths. Raises MergeError."""
    stem = os.fspath(stem)
    write_json(f"{stem}.json", summary)
    write_text(f"{stem}.csv", as_csv(summary))
    return f"{stem}.json", f"{stem}.csv"


def as_csv(summary: Mapping) -> str:
    """One line a layer, six decimals, as the original's."""
    rows = summary["layers"]
    return "\n".join([",".join(rows[0]), *(",".join(map(_cell, row.values())) for row in rows)])


def write_text(path: str, text: str) -> None:
    """Write a text in UTF-8 so that `path` always holds either the old or the new one, whole. Raises MergeError."""
    with open_write(f"{path}.new", resume=False) as file:
        file.write_at(0, text.encode())
        file.sync()
    replace(f"{path}.new", path)


def _cell(value: str | int | float | None) -> str:
    return "nan" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)
