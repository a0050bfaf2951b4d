"""Budgets that go by the error of outputs, against plain sums of what was measured, and layers that are spared."""
import json
import math

import pytest
from wan22_master.engine.calibration.layer_errors import FormatErrors, LayerErrors
from wan22_master.engine.calibration.layer_inputs import Inputs
from wan22_master.engine.errors import PlanError
from wan22_master.engine.jobs.layer_cost import cost, error_of, spare
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.solve import solve
from wan22_master.engine.jobs.trial import Trial
from wan22_master.engine.plans.plan import KEEP, Choice
from wan22_master.engine.plans.request import parse
from wan22_master.tests.engine import tiny
from wan22_master.tests.engine.calibrated import Memory

BLIND, WILD = "blocks.0.cross_attn.v", "blocks.1.cross_attn.q"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(tiny, "DIM", 256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a layer that rounding its input spoils, for all tests: trials are kept by content."""
    found, before = tmp_path_factory.mktemp("calibrated"), tiny.DIM
    tiny.DIM = 256
    tensors = tiny.base(blocks=2, ffn=512)
    tensors[f"{WILD}.weight"][:, ::16] = 0
    tensors["blocks.0.ffn.2.weight"] *= 8          # by weights' squares it would get nearly all bytes
    tiny.save(found / "m.safetensors", tensors)
    tiny.DIM = before
    return found


def memory() -> Memory:
    found = Memory.of_model(tiny.base(blocks=2, ffn=512), tokens=64)
    del found.inputs[BLIND]
    found.inputs[WILD] = found.inputs[WILD].clone()
    found.inputs[WILD][:, ::16] = 300.0
    return found


def solved(folder, calibrated=True, **request):
    with plan_recipe(tiny.recipe(folder / "out", {"model": str(folder / "m.safetensors")}), folder / "r") as plan:
        inputs = {"model": Inputs(memory(), session="calib_01", prompts=3)} if calibrated else None
        return solve(plan, parse({"version": 1, **request}), reports=folder / "r", calibration=inputs)


def output_lost(trial: Trial, choice: Choice) -> float:
    """Square of a layer's relative output error, of its weight where nothing was seen."""
    if trial.outputs is None:
        return trial.lost[choice.format] / trial.energy
    errors = trial.outputs.formats[choice.format]
    slow = choice.format == KEEP or (choice.full_precision and choice.format in ("nvfp4", "mxfp8", "float8_e4m3fn"))
    return (min(errors.weights, errors.weighted or math.inf) if slow else errors.rounded) ** 2


BUDGET = {"budget_gb": 0.0027, "card": "rtx50"}


def test_a_budget_with_a_calibration_has_less_output_error_than_one_by_weights(folder):
    by_output, by_weights = solved(folder, **BUDGET), solved(folder, calibrated=False, **BUDGET)
    trials = by_output.trials["model"]
    one, other = (sum(output_lost(trials[layer], choice) for layer, choice in found.plan.experts["model"].items())
                  for found in (by_output, by_weights))
    assert one < other
    assert error_of(by_output.plan.experts["model"], trials) == pytest.approx(math.sqrt(one / len(trials)), rel=1e-12)
    told = " ".join(by_output.plan.notices)
    assert f"total output error {math.sqrt(one / len(trials)):.4f}" in told
    assert "calibration calib_01 of 3 prompts: 19 layers by the error of their output" in told and "1 that it did not see" in told


def test_without_a_calibration_nothing_changes(folder):
    found = solved(folder, calibrated=False, **BUDGET)
    assert all(trial.outputs is None for trial in found.trials["model"].values())
    assert "output" not in json.dumps(found.plan.to_json())
    preset = {"preset": "balanced", "hardware": "blackwell"}
    plain, calibrated = solved(folder, calibrated=False, **preset), solved(folder, **preset)
    assert calibrated.plan.experts == plain.plan.experts and not calibrated.trials
    assert any("changes nothing here" in notice for notice in calibrated.plan.notices)


def test_a_layer_that_its_input_spoils_is_spared_where_that_is_asked_for(folder):
    plain, spared = (solved(folder, format="nvfp4", **more).plan for more in ({}, {"full_precision_above": 2.0}))
    slow = [layer for layer, choice in spared.experts["model"].items() if choice.full_precision]
    assert slow == [WILD] and not any(choice.full_precision for choice in plain.experts["model"].values())
    assert "output error 0.730 with its input rounded, 0.057 without" in spared.experts["model"][WILD].reason
    assert any("1 layers are multiplied in 16 bit" in notice for notice in spared.notices)


def test_a_budget_counts_a_spared_layer_as_slow_and_with_the_error_it_then_has(folder):
    narrow = {"budget_gb": 0.0024, "card": "rtx50"}
    plain, spared = (solved(folder, **narrow, **more) for more in ({}, {"full_precision_above": 2.0}))
    kept, choice = plain.plan.experts["model"][WILD], spared.plan.experts["model"][WILD]
    # as bytes are short everywhere, the layer costs others some where it may not be spared
    assert kept.format != "nvfp4" and (choice.format, choice.full_precision) == ("nvfp4", True)
    lost, _ = cost(spared.trials["model"][WILD], choice, outputs=True)
    assert lost == spared.trials["model"][WILD].outputs.formats["nvfp4"].stored ** 2
    with pytest.raises(PlanError, match="fast compute"):
        solved(folder, **narrow, full_precision_above=2.0, minimum_fast=0.999)


def test_sparing_needs_a_calibration_and_means_nothing_in_a_gguf(folder):
    with pytest.raises(PlanError, match="expected a calibration, found none; connect one"):
        solved(folder, calibrated=False, format="nvfp4", full_precision_above=2.0)
    found = solved(folder, container="gguf", format="Q4_K", full_precision_above=2.0)
    assert not found.trials and any("full_precision_above: changes nothing in a GGUF" in each for each in found.plan.notices)


def test_a_budget_of_gguf_types_takes_outputs_too(folder):
    found = solved(folder, container="gguf", budget_gb=0.0024)
    trials = found.trials["model"]
    told = error_of(found.plan.experts["model"], trials)
    assert told == pytest.approx(math.sqrt(sum(
        trial.outputs.formats[choice.format].stored ** 2 if trial.outputs else trial.lost[choice.format] / trial.energy
        for trial, choice in ((trials[layer], choice) for layer, choice in found.plan.experts["model"].items())) / len(trials)))


def test_costs_by_hand():
    seen = Trial(4.0, {"nvfp4": 1.0}, {}, LayerErrors(64, 0.1, 0.1, 0.0, 1.0, {"nvfp4": FormatErrors(0.3, 0.2, 0.5)}))
    blind = Trial(4.0, {"nvfp4": 1.0}, {})
    fast, slow = Choice("nvfp4"), Choice("nvfp4", full_precision=True)
    assert cost(seen, fast, outputs=True) == (0.25, 1.0) and cost(seen, slow, outputs=True) == (pytest.approx(0.04), 1.0)
    few = Trial(4.0, {"nvfp4": 1.0}, {}, LayerErrors(31, 0.1, 0.1, 0.0, 1.0, {"nvfp4": FormatErrors(0.3, 0.2, 0.5)}))
    assert cost(few, slow, outputs=True) == (pytest.approx(0.09), 1.0)     # 31 tokens do not say that weighing helps
    assert cost(blind, fast, outputs=True) == (0.25, 1.0) and cost(seen, fast, outputs=False) == (1.0, 4.0)
    assert cost(Trial(0.0, {"nvfp4": 0.0}, {}), fast, outputs=True) == (0.0, 1.0)
    assert error_of({"a": fast, "b": fast}, {"a": seen, "b": blind}) == pytest.approx(0.5)
    assert error_of({"a": fast}, {"a": blind}) == pytest.approx(0.5)
    found, told = spare({"a": fast, "b": fast, "c": Choice(KEEP)}, {"a": seen, "b": blind}, 2.0)
    assert [choice.full_precision for choice in found.values()] == [True, False, False] and len(told) == 1
    assert spare({"a": fast}, {"a": seen}, 3.0)[0]["a"] == fast and spare({"a": fast}, {"a": seen}, None) == ({"a": fast}, [])
