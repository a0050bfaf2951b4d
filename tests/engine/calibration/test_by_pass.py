"""Calls to forward passes, of a session that stands in here."""
from types import SimpleNamespace

import numpy as np
import torch
from wan22_master.engine.calibration.by_pass import by_pass
from wan22_master.engine.calibration.records import Call

Q, K = "blocks.10.self_attn.q", "blocks.10.self_attn.k"


def gathered(amax: dict[str, list[float]], calls: list[tuple]) -> SimpleNamespace:
    """What a session gives, as far as it is asked here. NaN: not seen, inf: not finite."""
    table = {layer: torch.tensor(values, dtype=torch.float32) for layer, values in amax.items()}
    return SimpleNamespace(
        calls=calls, layers=lambda: list(table), amax=lambda layer: table[layer][torch.isfinite(table[layer])],
        left_out=lambda layer: int(table[layer].isinf().sum()),
        places=lambda layer: torch.isfinite(table[layer]).nonzero().flatten())


def test_a_pass_has_the_largest_of_its_parts_that_saw_a_finite_input():
    nan, inf = float("nan"), float("inf")
    calls = [(0, 0, Call(1.0, "cond")), (0, 0, Call(1.0, "uncond")), (0, 1, Call(0.5, "cond")), (2, 0, Call(0.5, "uncond"))]
    found = by_pass(gathered({Q: [1.0, 3.0, 5.0, nan], K: [nan, nan, nan, nan], "x": [inf, 1.0, inf, 4.0]}, calls))
    assert found.runs.tolist() == [0, 0, 2]        # the last two calls are of different runs, though of one sigma
    assert found.amax[Q].tolist()[:2] == [3.0, 5.0] and np.isnan(found.amax[Q][2]) and np.isnan(found.amax[K]).all()
    assert np.isnan(found.amax["x"][1]) and found.amax["x"].tolist()[::2] == [1.0, 4.0] and found.left_out == {"x": 2}
