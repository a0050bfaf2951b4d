"""Plans for a GGUF that rest on a measurement, written to files: what the gguf library reads in them is what was decided."""
import dataclasses
import json

import gguf
import numpy as np
import pytest
import torch
from wan22_master.engine.errors import PlanError
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.solve import error_of, predicted, solve
from wan22_master.engine.jobs.solve_budget import GGUF_CANDIDATES
from wan22_master.engine.plans.as_output import as_output
from wan22_master.engine.plans.plan import KEEP, Choice, PrecisionPlan
from wan22_master.engine.plans.request import parse
from wan22_master.quant.formats import DEFAULT
from wan22_master.quant.gguf import families
from wan22_master.tests.engine import tiny

BLOCKS, FFN = 3, 512
LAYERS = sorted(tiny.linears(BLOCKS))
LOUD, FAINT = "blocks.0.self_attn.q", "blocks.0.self_attn.k"
GB, ALIGNMENT = 1e9, 32


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """256 columns: a super-block. By torch: the same bytes, and nothing to compile first."""
    monkeypatch.setattr(tiny, "DIM", 256)
    monkeypatch.setattr(families, "has_numba", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, a LoRA, and what is found out about them, for all tests of this file: a trial is kept by content."""
    found, before = tmp_path_factory.mktemp("solve"), tiny.DIM
    tiny.DIM = 256
    tiny.save(found / "m.safetensors", tiny.base(blocks=BLOCKS, ffn=FFN))
    tiny.save(found / "l.safetensors", tiny.lora(1, [LOUD], ffn=FFN, size=2e-2) | tiny.lora(2, [FAINT], ffn=FFN, size=2e-4))
    tiny.DIM = before
    return found


def planned(folder, tmp_path, outputs=()):
    entry = {"files": {"model": str(folder / "l.safetensors")}}
    wish = tiny.recipe(tmp_path / "out", {"model": str(folder / "m.safetensors")}, [entry], outputs, save={"name": "%title%"})
    return wish, plan_recipe(wish, folder / "r")


def solved(folder, tmp_path, **request):
    """(what was solved, predicted bytes)."""
    with planned(folder, tmp_path)[1] as plan:
        found = solve(plan, parse({"version": 1, "container": "gguf", **request}), reports=folder / "r")
        names = None if found.plan.fp32_names is None else frozenset(found.plan.fp32_names)
        return found, predicted(plan.experts[0], found.plan.experts["model"], found.plan.kept_dtype, names, DEFAULT)


def written(folder, tmp_path, plan: PrecisionPlan) -> dict[str, gguf.ReaderTensor]:
    """The tensors of the finished file of a plan that was saved as JSON and read back."""
    plan.save(tmp_path / "plan.json")
    output = as_output(PrecisionPlan.load(tmp_path / "plan.json"))
    wish, _ = planned(folder, tmp_path, [json.loads(json.dumps(dataclasses.asdict(output)))])
    tiny.go(wish, folder / "r")
    [path] = (tmp_path / "out").iterdir()
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def assert_is_the_plan(tensors: dict[str, gguf.ReaderTensor], choices: dict[str, Choice]) -> None:
    """KEEP of a bf16 source is BF16 there."""
    assert {layer: tensors[f"{layer}.weight"].tensor_type.name for layer in choices} == {
        layer: "BF16" if choice.format == KEEP else choice.format for layer, choice in choices.items()}


def data_bytes(tensors: dict[str, gguf.ReaderTensor]) -> int:
    return sum(int(tensor.n_bytes) for tensor in tensors.values())


REQUESTS = {"Q4_K_M": {"format": "Q4_K_M"}, "Q8_0": {"format": "Q8_0", "kept_dtype": "fp16"}, "Q3_K": {"format": "Q3_K"},
            "patterns": {"format": "Q5_K_S", "exclude": ["blocks.0.ffn"], "include": [{"pattern": r"\.v$", "format": "IQ4_NL"}]}}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_plan_from_headers_predicts_the_file_to_the_byte(folder, tmp_path, request_):
    found, nbytes = solved(folder, tmp_path, **request_)
    assert found.trials == {} and sorted(found.plan.experts["model"]) == LAYERS
    tensors = written(folder, tmp_path, found.plan)
    assert_is_the_plan(tensors, found.plan.experts["model"])
    assert nbytes == data_bytes(tensors)


@pytest.mark.parametrize(("card", "gb"), [("rtx50", 0.0029), ("cpu", 0.0029), ("cpu", 0.0038), ("rtx40", 0.0052)])
def test_a_budget_is_met_within_a_percent_whatever_the_card(folder, tmp_path, card, gb):
    found, nbytes = solved(folder, tmp_path, budget_gb=gb, card=card)
    assert 0.99 * gb * GB <= nbytes <= gb * GB
    choices = found.plan.experts["model"]
    assert {each.format for each in choices.values()} <= {*GGUF_CANDIDATES, KEEP} and found.plan.title == f"{gb:g}gb"
    assert choices == solved(folder, tmp_path, budget_gb=gb)[0].plan.experts["model"]
    tensors = written(folder, tmp_path, found.plan)
    assert_is_the_plan(tensors, choices)
    assert data_bytes(tensors) == nbytes


def test_the_error_that_is_told_is_the_files_and_no_type_for_all_within_the_budget_has_less(folder, tmp_path):
    found, _ = solved(folder, tmp_path, budget_gb=0.0038)
    choices, trials = found.plan.experts["model"], found.trials["model"]
    tensors, wanted = written(folder, tmp_path, found.plan), tiny.merge64(
        tiny.base(blocks=BLOCKS, ffn=FFN), [(tiny.load(folder, "l.safetensors"), 1.0)])
    lost, energy = 0.0, 0.0
    for layer in LAYERS:
        tensor, weight = tensors[f"{layer}.weight"], wanted[f"{layer}.weight"]
        decoded = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))).double()
        lost, energy = lost + (decoded - weight).square().sum().item(), energy + weight.square().sum().item()
    told = error_of(choices, trials)
    assert told == pytest.approx((lost / energy) ** 0.5, rel=0.03)     # two tiles of four in ffn.0
    [said] = [each for each in found.plan.notices if "GB: total error" in each]
    assert said.startswith(f"model: 0.0038 GB: total error {told:.4f}") and "multiply-adds" not in said
    with planned(folder, tmp_path)[1] as plan:
        for name in GGUF_CANDIDATES:
            alike = dict.fromkeys(LAYERS, Choice(name))
            if predicted(plan.experts[0], alike, "source", None, DEFAULT) <= 0.0038 * GB:
                assert told <= error_of(alike, trials)


def test_what_was_decided_otherwise_stays_and_counts_against_the_budget(folder, tmp_path):
    found, nbytes = solved(folder, tmp_path, budget_gb=0.0038, exclude=["blocks.1.self_attn"], min_ffn_fp8=True,
                           include=[{"pattern": "blocks.2.cross_attn", "format": "Q5_1"}])
    choices = found.plan.experts["model"]
    assert nbytes <= 0.0038 * GB and {choices[layer].format for layer in LAYERS if "1.self" in layer} == {KEEP}
    assert {choices[layer].format for layer in LAYERS if "2.cross" in layer} == {"Q5_1"}
    assert {choices[layer].format for layer in LAYERS if "ffn" in layer} <= {"Q8_0", KEEP}


def test_a_budget_that_nothing_meets_names_the_least(folder, tmp_path):
    with pytest.raises(PlanError, match=r"model: size budget: expected at least 0\.00\d GB for this expert"):
        solved(folder, tmp_path, budget_gb=0.001)


def test_a_layer_in_which_its_lora_would_drown_is_raised_to_q8_0(folder, tmp_path):
    found, nbytes = solved(folder, tmp_path, format="Q4_K", promote_below=1.0)
    choices, effects = found.plan.experts["model"], {layer: each.effects() for layer, each in found.trials["model"].items()}
    assert effects[LOUD]["Q4_K"] > 1 > effects[FAINT]["Q4_K"]
    assert choices[LOUD].format == "Q4_K" and choices[FAINT].format == ("Q8_0" if effects[FAINT]["Q8_0"] >= 1 else KEEP)
    tensors = written(folder, tmp_path, found.plan)
    assert_is_the_plan(tensors, choices)
    assert data_bytes(tensors) == nbytes


def test_columns_of_32_get_the_types_that_hold_them(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "DIM", 128)
    tiny.save(tmp_path / "m.safetensors", tiny.base(ffn=320))
    wish = tiny.recipe(tmp_path / "out", {"model": str(tmp_path / "m.safetensors")}, [], [])
    with plan_recipe(wish, tmp_path / "r") as plan:
        found = solve(plan, parse({"version": 1, "container": "gguf", "budget_gb": 0.00063}), reports=tmp_path / "r")
    names = {each.format for each in found.plan.experts["model"].values()}
    assert names <= {"Q8_0", "Q5_1", "Q5_0", "IQ4_NL", KEEP} and names - {"Q8_0", KEEP}
