"""Mode `log`: the original's log of input scales, one tab-separated line a call and layer: written step by step, and read.

    nvfp4 <TAB> dynamic <TAB> blocks.0.self_attn.q <TAB> 0.008405 <TAB> 22.593750 <TAB> (33440, 3072)
    format      mode          layer                      amax / 2688    amax            input vectors, in_features

as convert_nvfp4's patch of ComfyUI writes it and analyze_input_scale_log.py reads it; older logs lack the first field. It divides
by 2688 = 448 * 6 whatever the layer's format, and six decimals leave two or three digits of a small scale: amax is the number.
A line of the mode `provided` tells the scale that a file gave, and `-` in place of amax: nothing was measured.
"""
import bz2
import gzip
import lzma
import math
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import RecipeError
from ..plans.scales_summary import LOGGED
from ..system import naming
from .by_pass import passes
from .records import StepRecord

FORMAT, DYNAMIC, PROVIDED = "nvfp4", "dynamic", "provided"
OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
ENDINGS = (".log", ".txt", *OPENERS)
DAMAGED = (lzma.LZMAError, zlib.error, EOFError)   # and OSError, which `naming` wraps
MOST_LINES = 20_000_000                            # 400 layers, 100 prompts, 40 calls are 1.6 million
LONGEST_LINE = 4096                                # bytes; a real one has 80, and what is packed may unpack to anything
LARGEST = 3.4028235e38                             # of float32, which an amax is; a finite number above it is none
DIGITS = 6                                         # decimals of a scale and an amax


@dataclass
class Log:
    """What a log tells. scales, amax: layer -> both columns of its lines, in their order; formats: of these lines.

    provided, foreign, broken: lines that were left out, as they give a scale that was not measured, are no line of such a log, or
    tell an input that is not finite.
    """

    scales: dict[str, array] = field(default_factory=dict)
    amax: dict[str, array] = field(default_factory=dict)
    formats: set[str] = field(default_factory=set)
    provided: int = 0
    foreign: int = 0
    broken: int = 0


def lines(record: StepRecord, points: Mapping[str, Sequence[str]]) -> str:
    """The lines of one step, each with its line break: of every forward pass and every layer that it reached.

    points: point -> its layers. amax is the largest of the pass's parts, and inf where an input was not finite.
    """
    told, amax, rows = [], record.amax.tolist(), record.rows.tolist()
    for places in passes(record.calls):
        for column, point in enumerate(record.points):
            seen = [place for place in places if rows[place][column]]
            if seen:
                shape = (sum(rows[place][column] for place in seen), len(record.squares[point]))
                told += [_line(layer, max(amax[place][column] for place in seen), shape) for layer in points[point]]
    return "".join(told)


def _line(layer: str, amax: float, shape: tuple[int, int]) -> str:
    return f"{FORMAT}\t{DYNAMIC}\t{layer}\t{amax / LOGGED:.{DIGITS}f}\t{amax:.{DIGITS}f}\t{shape}\n"


def read(path: str | os.PathLike) -> Log:
    """A log, packed or not by the ending of its name. Raises RecipeError when it is damaged or has not one measured line."""
    path, found = os.fspath(path), Log()
    try:
        with naming(path, "read", "check the path and the rights of the file"):
            for line in _lines(path):
                _take(found, line.decode("utf-8", "replace").strip())
    except DAMAGED as cause:
        raise RecipeError(f"{path}: expected a packed log, found: {str(cause)[:99]}; fetch it again, or choose another") from cause
    if not found.amax:
        raise RecipeError(f"{path}: expected lines of format, mode, layer, scale, amax and shape, with tabs between, found "
                          f"{found.foreign} others, {found.provided} of mode {PROVIDED} and {found.broken} that are not finite; "
                          "choose another log")
    return found


def _lines(path: str) -> Iterator[bytes]:
    opener = next((OPENERS[ending] for ending in OPENERS if path.lower().endswith(ending)), open)
    with opener(path, "rb") as file:
        for _ in range(MOST_LINES):
            line = file.readline(LONGEST_LINE)
            if not line:
                return
            yield line
    raise RecipeError(f"{path}: expected a log of at most {MOST_LINES} lines, found more; choose another")


def _take(found: Log, line: str) -> None:
    if not line:
        return
    parts = line.split("\t")
    form, mode, layer, *numbers = parts if len(parts) > 5 else (FORMAT, *parts) if len(parts) == 5 else ("", "", "")
    if mode == PROVIDED and layer:
        found.provided += 1
        return
    scale, amax = _number(numbers, 0), _number(numbers, 1)
    if mode != DYNAMIC or not layer or scale is None or amax is None:
        found.foreign += 1
    elif not (math.isfinite(scale) and math.isfinite(amax)):
        found.broken += 1
    else:
        found.formats.add(form)
        found.scales.setdefault(layer, array("d")).append(scale)
        found.amax.setdefault(layer, array("d")).append(amax)


def _number(texts: Sequence[str], place: int) -> float | None:
    """The number there, NaN and infinities included; None for a text that is none, and for one that no amax is."""
    try:
        value = float(texts[place])
    except (IndexError, ValueError):
        return None
    return None if value < 0.0 or LARGEST < value < math.inf else value
