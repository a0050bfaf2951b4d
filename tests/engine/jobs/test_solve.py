"""Plans that rest on a measurement, written to files: what safetensors reads in them is what was decided, to the byte."""

import dataclasses
import json

import pytest
from wan22_master.engine.errors import PlanError, Stopped
from wan22_master.engine.jobs import solve as solving
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.solve import error_of, picture, predicted, solve
from wan22_master.engine.plans.as_output import as_output
from wan22_master.engine.plans.plan import KEEP, Choice, PrecisionPlan
from wan22_master.engine.plans.request import parse
from wan22_master.quant.formats import DEFAULT
from wan22_master.tests.engine import kitchen, tiny

BLOCKS, FFN = 6, 512
LAYERS = sorted(tiny.linears(BLOCKS))
EDGES = [layer for layer in LAYERS if layer.split(".")[1] in "0145"]
LOUD, FAINT = "blocks.0.self_attn.q", "blocks.0.self_attn.k"
GB = 1e9


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """256 columns: a group of the rotated formats."""
    monkeypatch.setattr(tiny, "DIM", 256)


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
    _, plan = planned(folder, tmp_path)
    with plan:
        found = solve(plan, parse({"version": 1, **request}), reports=folder / "r")
        names = None if found.plan.fp32_names is None else frozenset(found.plan.fp32_names)
        return found, predicted(plan.experts[0], found.plan.experts["model"], found.plan.kept_dtype, names, DEFAULT)


def written(folder, tmp_path, plan: PrecisionPlan):
    """The finished file of a plan that was saved as JSON and read back."""
    plan.save(tmp_path / "plan.json")
    output = as_output(PrecisionPlan.load(tmp_path / "plan.json"))
    wish, _ = planned(folder, tmp_path, [json.loads(json.dumps(dataclasses.asdict(output)))])
    tiny.go(wish, folder / "r")
    return tiny.load(tmp_path / "out", "mix.safetensors")


def assert_is_the_plan(tensors, choices: dict[str, Choice]) -> None:
    wanted = {layer: choice for layer, choice in choices.items() if choice.format != KEEP}
    assert kitchen.formats(tensors) == {layer: choice.format for layer, choice in wanted.items()}
    slow = {layer for layer, said in kitchen.settings(tensors).items() if said.get("full_precision_matrix_mult")}
    ints = {"int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8"}  # they multiply in INT8 whatever is said
    assert slow == {layer for layer, choice in wanted.items() if choice.full_precision and choice.format not in ints}
    assert all(f"{layer}.weight" in tensors for layer in choices)


REQUESTS = {
    "nvfp4": {"format": "nvfp4"}, "w4a8": {"format": "asym_w4a8_int8"}, "e5m2": {"format": "float8_e5m2"},
    "blackwell": {"preset": "balanced", "hardware": "blackwell"}, "ada": {"preset": "speed", "hardware": "ada"},
    "ada, fp16": {"preset": "balanced", "hardware": "ada", "kept_dtype": "fp16"},
    "ampere, bf16": {"preset": "speed", "hardware": "ampere", "kept_dtype": "bf16"},
    "patterns": {"format": "mxfp8", "exclude": ["ffn"], "include": [{"pattern": r"\.v$", "format": "convrot_w4a4"}],
                 "keep_edge_blocks": True, "full_precision_switches": ["cross_attn_qkvo"]},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_plan_from_headers_reads_no_weight_and_predicts_the_file(folder, tmp_path, request_, monkeypatch):
    monkeypatch.setattr(solving, "measure", None)  # would fail
    found, nbytes = solved(folder, tmp_path, **request_)
    assert found.trials == {} and sorted(found.plan.experts["model"]) == LAYERS
    tensors = written(folder, tmp_path, found.plan)
    choices = found.plan.experts["model"]
    if request_ == REQUESTS["e5m2"]:               # it is always multiplied in 16 bit, whatever a plan says
        choices = dict.fromkeys(choices, Choice("float8_e5m2", full_precision=True))
    assert_is_the_plan(tensors, choices)
    assert nbytes == kitchen.data_bytes(tensors)


@pytest.mark.parametrize(("card", "gb"), [("rtx50", 0.0045), ("rtx50", 0.0071), ("cpu", 0.006), ("rtx40", 0.0085)])
def test_a_budget_is_met_within_a_percent_and_never_passed(folder, tmp_path, card, gb):
    found, nbytes = solved(folder, tmp_path, budget_gb=gb, card=card)
    assert 0.99 * gb * GB <= nbytes <= gb * GB
    tensors = written(folder, tmp_path, found.plan)
    assert kitchen.data_bytes(tensors) == nbytes
    assert_is_the_plan(tensors, found.plan.experts["model"])
    assert found.plan.title == f"{gb:g}gb" and "least error within" in found.plan.experts["model"][LOUD].reason


def error(folder, tensors) -> float:
    """Relative error of all block linears of a file to the merge in float64."""
    wanted, lost, energy = tiny.merge64(tiny.base(blocks=BLOCKS, ffn=FFN), [(tiny.load(folder, "l.safetensors"), 1.0)]), 0.0, 0.0
    for layer in LAYERS:
        weight = wanted[f"{layer}.weight"]
        lost += (kitchen.decode(tensors, layer, tuple(weight.shape)).double() - weight).square().sum().item()
        energy += weight.square().sum().item()
    return (lost / energy) ** 0.5


def test_the_error_that_is_told_is_the_files_and_no_plan_by_hand_of_this_size_has_less(folder, tmp_path):
    found, _ = solved(folder, tmp_path, budget_gb=0.0071, card="rtx50")
    choices, trials = found.plan.experts["model"], found.trials["model"]
    told = error_of(choices, trials)
    assert told == pytest.approx(error(folder, written(folder, tmp_path, found.plan)), rel=0.02)  # two tiles of four in ffn.0
    assert f"total error {told:.4f}" in " ".join(found.plan.notices)
    # the first layers of the model in 8 bit and the others in 4, as many as fit
    plain, small = dict.fromkeys(LAYERS, Choice("nvfp4")), 0
    for number in range(len(LAYERS)):
        hand = plain | dict.fromkeys(LAYERS[:number], Choice("int8_tensorwise"))
        with planned(folder, tmp_path)[1] as plan:
            if predicted(plan.experts[0], hand, "source", None, DEFAULT) > 0.0071 * GB:
                break
        small = error_of(hand, trials)
    assert told <= small * (1 + 1e-9)


def test_what_was_decided_otherwise_stays_and_counts_against_the_budget(folder, tmp_path):
    include = [{"pattern": r"blocks\.2\.cross_attn", "format": "mxfp8"}]
    found, nbytes = solved(folder, tmp_path, budget_gb=0.0085, card="rtx50", keep_edge_blocks=True, include=include,
                           exclude=[r"blocks\.2\.self_attn\.q"])
    choices = found.plan.experts["model"]
    assert all(choices[layer].format == KEEP for layer in [*EDGES, "blocks.2.self_attn.q"])
    assert all(choices[layer].format == "mxfp8" for layer in LAYERS if layer.startswith("blocks.2.cross_attn"))
    assert "edge block" in choices[EDGES[0]].reason and 0.99 * 0.0085 * GB <= nbytes <= 0.0085 * GB
    free = [layer for layer in LAYERS if "least error" in choices[layer].reason]
    assert len(free) == 60 - 40 - 4 - 1
    tensors = written(folder, tmp_path, found.plan)
    assert kitchen.data_bytes(tensors) == nbytes
    assert_is_the_plan(tensors, choices)


def test_full_precision_is_asked_for_after_the_budget(folder, tmp_path):
    more = {"full_precision_switches": ["cross_attn_qkvo"], "full_precision_layers": ["blocks.3.ffn.0"]}
    plain, _ = solved(folder, tmp_path, budget_gb=0.0045, card="rtx50")
    found, _ = solved(folder, tmp_path, budget_gb=0.0045, card="rtx50", **more)
    choices = found.plan.experts["model"]
    assert {layer: each.format for layer, each in choices.items()} == {
        layer: each.format for layer, each in plain.plan.experts["model"].items()}
    asked = {layer for layer in LAYERS if "cross_attn" in layer or layer == "blocks.3.ffn.0"}
    assert {layer for layer, each in choices.items() if each.full_precision} == {
        layer for layer in asked if choices[layer].format != KEEP}
    assert_is_the_plan(written(folder, tmp_path, found.plan), choices)


def test_a_budget_that_nothing_meets_names_the_least(folder, tmp_path):
    with pytest.raises(PlanError, match=r"size budget: expected at least 0\.00\d GB for this expert"):
        solved(folder, tmp_path, budget_gb=0.001, card="rtx50")


@pytest.mark.parametrize(("card", "eight"), [("rtx50", "mxfp8"), ("cpu", "int8_tensorwise")])
def test_a_layer_in_which_its_lora_would_drown_is_raised(folder, tmp_path, card, eight):
    start = "nvfp4" if card == "rtx50" else "asym_w4a8_int8"
    found, nbytes = solved(folder, tmp_path, format=start, card=card, promote_below=1.0)
    choices, effects = found.plan.experts["model"], {layer: each.effects() for layer, each in found.trials["model"].items()}
    assert effects[LOUD][start] > 1 > effects[FAINT][start]
    assert choices[LOUD] == Choice(start, reason=choices[LOUD].reason) and choices[FAINT].format == (
        eight if effects[FAINT][eight] >= 1 else KEEP)
    assert {each.format for layer, each in choices.items() if layer not in (LOUD, FAINT)} == {start}
    assert [each for each in found.plan.notices if each.startswith(f"model: 1 layers raised from {start} to ")]
    tensors = written(folder, tmp_path, found.plan)
    assert_is_the_plan(tensors, choices)
    assert kitchen.data_bytes(tensors) == nbytes


def test_under_a_budget_no_format_is_taken_in_which_the_lora_drowns(folder, tmp_path):
    found, nbytes = solved(folder, tmp_path, budget_gb=0.0045, card="rtx50", promote_below=1.0)
    without, _ = solved(folder, tmp_path, budget_gb=0.0045, card="rtx50")
    effects = found.trials["model"][FAINT].effects()
    chosen = found.plan.experts["model"][FAINT].format
    assert chosen == KEEP or effects[chosen] >= 1
    assert effects[without.plan.experts["model"][FAINT].format] < 1 and nbytes <= 0.0045 * GB


def test_a_stop_while_it_tries_formats_keeps_nothing_half(folder, tmp_path):
    _, plan = planned(folder, tmp_path)
    request = parse({"version": 1, "format": "nvfp4", "promote_below": 0.5})
    with plan, pytest.raises(Stopped):
        solve(plan, request, reports=tmp_path / "r", should_stop=lambda: True)
    assert not list((tmp_path / "r").glob("trial-*"))


def test_the_picture_has_a_cell_for_every_layer_of_the_main_blocks():
    choices = {"blocks.0.self_attn.q": Choice("nvfp4"), "blocks.0.ffn.2": Choice("nvfp4", full_precision=True),
               "blocks.2.ffn.2": Choice(KEEP, full_precision=True), "vace_blocks.0.ffn.0": Choice("mxfp8"),
               "blocks.0.cross_attn.k": Choice("int8_tensorwise")}
    assert picture(choices) == {"kinds": ["self_attn.q", "cross_attn.k", "ffn.2"],
                                "cells": [["nvfp4", "int8_tensorwise", "nvfp4 16-bit"], [None] * 3, [None, None, "keep"]]}
    assert picture({}) == {"kinds": [], "cells": []}
