"""What Calibrate says on its node before a run and after it."""
from types import SimpleNamespace

import pytest
import torch
from wan22_master.nodes.calibration_lines import coming, ending

MODULES = {f"blocks.0.{name}": torch.nn.Linear(1, 1) for name in ("ffn.0", "ffn.2")}


def run(unseen=()):
    """As much of a Recording as is looked at."""
    return SimpleNamespace(modules=MODULES, unseen=lambda: list(unseen), alone=[])


def test_it_says_what_will_be_recorded_and_nothing_that_a_run_changes():
    assert coming(MODULES, [], "a.safetensors") == ["will record the inputs of all 2 layers of a.safetensors"]
    assert coming(MODULES, ["blocks.0.ffn.2"], "a")[0] == "will record the inputs of 1 of 2 layers of a"


@pytest.mark.parametrize(("unseen", "runs", "said"), [
    ((), 1, "all 2 layers, 1 run"), ((), 32, "all 2 layers, 32 runs"),
    (["blocks.0.ffn.0"], 2, "1 of 2 layers, 2 runs; 1 layers (blocks.0.ffn.0) not seen: the network did not call them")])
def test_a_run_ends_with_its_layers_and_how_many_runs_there_are_by_now(unseen, runs, said):
    assert ending(run(unseen), runs) == said
