"""At which step the high-noise expert hands over to the low-noise one: Wan 2.2's boundary, in steps of a sampler.

Wan 2.2 asks the high-noise expert while sigma >= boundary (Wan-Video/Wan2.2, wan/text2video.py, `timestep >= boundary * 1000`;
0.875 in wan/configs/wan_t2v_A14B.py, 0.9 in wan_i2v_A14B.py). ComfyUI switches by the number of the step, so the number follows
from the schedule. A flow schedule of shift s lays time t in 0..1 at

    sigma = s t / (1 + (s - 1) t)      hence      t_b = b / (s - (s - 1) b)
(ComfyUI, comfy/model_sampling.py, time_snr_shift). Steps lie evenly in t, at t_i = 1 - i / steps, as
`simple` and `normal` lay them.
"""
import itertools
import math
from collections.abc import Sequence

from .errors import RecipeError

BOUNDARY = {"t2v": 0.875, "i2v": 0.9, "vace": 0.875}   # by task, as `variant.detect` names it; VACE-Fun A14B comes of T2V
SLACK, FLOAT32 = 1e-9, 2.0**-22                    # of t in float64; of a sigma in float32, after up to four roundings


def boundary_of(task: str) -> float:
    """sigma of the hand-over for a task. Raises RecipeError for a model without one, or whose boundary its makers do not tell."""
    if task not in BOUNDARY:
        raise RecipeError(f"boundary: known for {', '.join(BOUNDARY)}, found {task}; choose custom and type the boundary")
    return BOUNDARY[task]


def high_share(boundary: float, shift: float) -> float:
    """Share of the time axis, 0..1, that the high-noise expert covers. Raises RecipeError outside 0 < boundary < 1, shift > 0."""
    if not 0.0 < boundary < 1.0 or not shift > 0.0:
        raise RecipeError(f"boundary and shift: expected 0 < boundary < 1 and shift > 0, found {boundary:g} and {shift:g}")
    return 1.0 - boundary / (shift - (shift - 1.0) * boundary)


def split_step(steps: int, shift: float, boundary: float) -> int:
    """Number of steps of the high-noise expert: those with t_i >= t_b, of `steps` that lie evenly in t; at most `steps`."""
    if steps < 1:
        raise RecipeError(f"steps: expected 1 or more, found {steps}")
    return min(steps, math.floor(steps * high_share(boundary, shift) + SLACK) + 1)


def split_of(sigmas: Sequence[float], boundary: float) -> int:
    """Number of steps that begin at or above the boundary. sigmas: one per step and the end of the last, falling.

    Raises RecipeError when there is no step, or when they rise.
    """
    if len(sigmas) < 2 or any(after > before for before, after in itertools.pairwise(sigmas)):
        raise RecipeError(f"sigmas: expected two or more falling values, found {len(sigmas)}; connect those of a scheduler")
    return sum(sigma >= boundary - FLOAT32 for sigma in sigmas[:-1])
