"""Formats tried on 256 rows of the merge, against the whole tensors in float64 and comfy-kitchen's quantizers."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.jobs import trial
from wan22_master.engine.jobs.carry import Ride
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.trial import Trial, Wanted, measure, tiles_of
from wan22_master.engine.progress import Clock, silent
from wan22_master.quant.formats import Options
from wan22_master.tests.engine import kitchen, tiny

FFN = 1280
NAMES = ("nvfp4", "float8_e4m3fn", "mxfp8", "int8_tensorwise", "convrot_w4a4", "keep")
FAST = Options("fast")                             # where the 4-bit formats do what comfy-kitchen does
TALL, SMALL = "blocks.0.ffn.0", "blocks.0.self_attn.q"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """ffn.0 has ten tiles of 128 rows, of which two are tried; the other layers have two, so all of them is."""
    monkeypatch.setattr(tiny, "DIM", 256)


def weights(seed=0):
    return tiny.base(seed, blocks=1, ffn=FFN)


def lora(seed=1, layers=(TALL, SMALL), **more):
    return tiny.lora(seed, list(layers), ffn=FFN, **{"size": 2e-3, **more})


def planned(tmp_path, tensors=(), **more):
    """A plan of one model with these LoRAs in one pass; more: fields of the pass, or `each` for its LoRAs."""
    each = more.pop("each", {})
    paths = [tiny.save(tmp_path / f"l{n}.safetensors", one) for n, one in enumerate(tensors)]
    entries = [{"files": {"model": path}, **each} for path in paths]
    model = str(tmp_path / "m.safetensors")
    if not Path(model).exists():                   # written again, it would be another file
        tiny.save(Path(model), weights())
    passes = [{"loras": entries, **more}] if entries else []
    return plan_recipe(tiny.recipe(tmp_path / "out", {"model": model}, passes=passes), tmp_path / "r")


def ride(plan, tmp_path):
    return Ride(plan.device, Clock(1, silent), bool, tmp_path / "r")


def tried(tmp_path, tensors=(), wanted=None, layers=None, **more) -> dict[str, Trial]:
    wanted = wanted or Wanted(NAMES, FAST)
    with planned(tmp_path, tensors, **more) as plan:
        return measure(plan.experts[0], wanted, ride(plan, tmp_path), layers)


def read_back(merged: torch.Tensor, name: str) -> torch.Tensor:
    """Float64 weight that comfy-kitchen makes of a merge."""
    return (merged.bfloat16() if name == "keep" else kitchen.rounded(merged.float(), name)[1]).double()


def exact(merged: torch.Tensor, name: str) -> float:
    return (read_back(merged, name) - merged).square().sum().item()


@given(st.text(), st.integers(1, 20_000))
def test_tiles_are_two_of_128_rows_at_most_seeded_distinct_and_inside(key, total):
    tiles = tiles_of(key, total)
    assert tiles == sorted(set(tiles)) == tiles_of(key, total) and len(tiles) == min(2, -(-total // 128))
    for first, stop in tiles:
        assert first % 128 == 0 and 0 <= first < stop == min(total, first + 128)


def test_tiles_of_two_layers_differ_and_reach_all_parts():
    found = [tiles_of(f"blocks.{n}.ffn.0.weight", 13824) for n in range(100)]
    assert len({tuple(each) for each in found}) > 90 and {first * 4 // 13824 for each in found for first, _ in each} == {0, 1, 2, 3}


def test_tiles_never_change_because_trials_are_kept_by_content():
    assert tiles_of("blocks.0.ffn.0.weight", 13824) == [(9344, 9472), (9728, 9856)]
    assert tiles_of("blocks.3.cross_attn.v.weight", 5120) == [(2816, 2944), (3968, 4096)]


def test_what_a_format_loses_is_what_the_whole_tensor_loses(tmp_path):
    found, merged = tried(tmp_path, [lora()]), tiny.merge64(weights(), [(lora(), 1.0)])
    assert list(found) == [key.removesuffix(".weight") for key in sorted(merged) if key.removesuffix(".weight") in tiny.linears(1)]
    for layer, one in found.items():
        weight = merged[f"{layer}.weight"]
        share = 1.0 if layer != TALL else 0.2
        # normal weights: a sum of n squares is known to sqrt(2 / n); 65536 are tried, three of that are 1.7 %
        assert one.energy == pytest.approx(weight.square().sum().item(), rel=1e-6 if share == 1.0 else 0.017)
        for name in NAMES:
            # one scale of the tensor may lie elsewhere, where its largest weight is in no tried row
            assert one.lost[name] == pytest.approx(exact(weight, name), rel=2e-3 if share == 1.0 else 0.04), (layer, name)


def test_rows_that_are_tried_are_all_that_is_looked_at(tmp_path):
    base, rows = weights(), [row for first, stop in tiles_of(f"{TALL}.weight", FFN) for row in range(first, stop)]
    found, merged = tried(tmp_path, [lora()], Wanted(("mxfp8", "int8_tensorwise")))[TALL], tiny.merge64(base, [(lora(), 1.0)])
    weight = merged[f"{TALL}.weight"][rows]
    assert found.energy == pytest.approx(weight.square().sum().item() * FFN / 256, rel=1e-6)
    for name in ("mxfp8", "int8_tensorwise"):      # no scale of the tensor: comfy-kitchen on these rows alone loses the same
        assert found.lost[name] == pytest.approx(exact(weight, name) * FFN / 256, rel=1e-4)


def test_what_survives_is_told_of_merged_layers_alone(tmp_path):
    found, merged = tried(tmp_path, [lora()]), tiny.merge64(weights(), [(lora(), 1.0)])
    assert {layer for layer, one in found.items() if one.survival} == {TALL, SMALL}
    assert found["blocks.0.self_attn.k"].effects() == {}
    weight, delta = merged[f"{SMALL}.weight"], tiny.delta64(lora(), SMALL)
    basis = torch.linalg.qr(lora()[f"diffusion_model.{SMALL}.lora_A.weight"].double().T).Q
    for name in NAMES[:-1]:
        sums, noise = found[SMALL].survival[name], read_back(weight, name) - weight
        assert sums["delta"] == pytest.approx(delta.square().sum().item(), rel=1e-4)
        assert sums["kept"] == pytest.approx(((noise + delta) * delta).sum().item(), rel=1e-2)
        effect = ((delta @ basis).norm() / (noise @ basis).norm()).item()
        assert found[SMALL].effects()[name] == pytest.approx(effect, rel=5e-3), name


def test_strengths_scopes_and_the_expert_are_those_of_the_job(tmp_path):
    found = tried(tmp_path, [lora()], Wanted(("keep",)), scope={"ffn": 0.25}, global_factor=2.0)
    for layer, by in ((TALL, 0.5), (SMALL, 2.0)):
        delta = by * tiny.delta64(lora(), layer)
        rows = [row for first, stop in tiles_of(f"{layer}.weight", len(delta)) for row in range(first, stop)]
        assert found[layer].survival["keep"]["delta"] == pytest.approx(delta[rows].square().sum().item(), rel=1e-3)


WHOLE = {
    "classic": {"method": "classic"}, "adaptive": {"method": "adaptive"},
    "ties": {"combine": "ties", "density": 0.4}, "dare": {"combine": "dare_ties", "density": 0.5},
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_tried_is_the_merge_that_is_written(tmp_path, kind):
    tensors = [lora(), lora(2, rank=7)]
    entries = [{"files": {"model": tiny.save(tmp_path / f"l{n}.safetensors", one)}} for n, one in enumerate(tensors)]
    model = {"model": tiny.save(tmp_path / "m.safetensors", weights())}
    wish = tiny.recipe(tmp_path / "out", model, passes=[{"loras": entries, **WHOLE[kind]}], formats=["fp32"])
    tiny.go(wish, tmp_path / "written")            # another folder: what adaptive needs is measured by the trial itself
    merged = tiny.load(tmp_path / "out", "mix_fp32.safetensors")
    found = tried(tmp_path, tensors, Wanted(("mxfp8", "keep")), **WHOLE[kind])
    for layer in (TALL, SMALL, "blocks.0.ffn.2"):
        weight = merged[f"{layer}.weight"].double()
        rows = [row for first, stop in tiles_of(f"{layer}.weight", len(weight)) for row in range(first, stop)]
        share = len(weight) / len(rows)
        assert found[layer].energy == pytest.approx(weight[rows].square().sum().item() * share, rel=1e-6)
        assert found[layer].lost["mxfp8"] == pytest.approx(exact(weight[rows], "mxfp8") * share, rel=1e-4)
    # what the LoRAs listen to is the space of their down factors, whatever a gate lets through of the delta
    downs = torch.cat([one[f"diffusion_model.{SMALL}.lora_A.weight"] for one in tensors]).double()
    basis, weight = torch.linalg.qr(downs.T).Q, merged[f"{SMALL}.weight"].double()
    delta, noise = weight - weights()[f"{SMALL}.weight"].double(), read_back(weight, "mxfp8") - weight
    effect = ((delta @ basis).norm() / (noise @ basis).norm()).item()
    assert found[SMALL].effects()["mxfp8"] == pytest.approx(effect, rel=2e-3)


def test_a_dense_difference_is_tried_with_all_of_space_as_what_it_listens_to(tmp_path):
    delta = torch.randn(FFN, 256, generator=torch.manual_seed(3)) * 2e-3
    dense = {f"diffusion_model.{TALL}.diff": delta}
    found = tried(tmp_path, [dense], Wanted(("mxfp8",)))[TALL]
    rows = [row for first, stop in tiles_of(f"{TALL}.weight", FFN) for row in range(first, stop)]
    weight = weights()[f"{TALL}.weight"].double()[rows] + delta.double()[rows]
    noise = read_back(weight, "mxfp8") - weight
    assert found.effects()["mxfp8"] == pytest.approx((delta.double()[rows].norm() / noise.norm()).item(), rel=1e-3)


def test_candidates_that_cannot_hold_a_layer_are_left_out_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "DIM", 128)          # half a group of the rotated formats
    model = {"model": tiny.save(tmp_path / "m.safetensors", tiny.base(blocks=1, ffn=512))}
    with plan_recipe(tiny.recipe(tmp_path / "out", model), tmp_path / "r") as plan:
        found = measure(plan.experts[0], Wanted(NAMES), ride(plan, tmp_path))
    assert set(found[SMALL].lost) == {"nvfp4", "float8_e4m3fn", "mxfp8", "keep"}
    assert set(found["blocks.0.ffn.2"].lost) == set(NAMES)  # 512 columns


def test_stochastic_rounding_loses_more_and_formats_without_it_the_same(tmp_path):
    names = ("nvfp4", "mxfp8", "asym_w4a8_int8")
    nearest, noisy = (tried(tmp_path, [lora()], Wanted(names, FAST, rounding))[SMALL] for rounding in ("nearest", "stochastic"))
    for name in names[:2]:  # uniform noise of a step, over rounding in it: sqrt(2) in rms where the grid is fine
        assert 1.3 < math.sqrt(noisy.lost[name] / nearest.lost[name]) < 1.6
    assert noisy.lost[names[2]] == nearest.lost[names[2]]


@pytest.fixture
def readings(monkeypatch):
    """Keys that trials read of a base."""
    seen, really = [], trial._read
    monkeypatch.setattr(trial, "_read", lambda expert, key, *more: seen.append(key) or really(expert, key, *more))
    return seen


def test_a_trial_is_kept_by_content_and_read_again_only_for_another(tmp_path, readings):
    wanted = Wanted(("mxfp8",))
    first = tried(tmp_path, [lora()], wanted)
    assert readings
    readings.clear()
    assert tried(tmp_path, [lora()], wanted) == first and not readings
    changes = [{"each": {"strength": {"model": 0.5}}}, {"scope": {"ffn": 0.5}}, {"method": "classic"}]
    for more in changes:
        assert tried(tmp_path, [lora()], wanted, **more) != first and readings
        readings.clear()
    for other in (Wanted(("mxfp8", "keep")), Wanted(("mxfp8",), Options("fast")), Wanted(("mxfp8",), rounding="stochastic")):
        tried(tmp_path, [lora()], other)
        assert readings
        readings.clear()
    tried(tmp_path, [lora(3)], wanted)
    assert readings


def test_some_layers_alone_are_read_and_nothing_is_kept(tmp_path, readings):
    found = tried(tmp_path, [lora()], Wanted(("mxfp8",)), [TALL])
    assert list(found) == [TALL] and set(readings) == {f"{TALL}.weight"}
    assert not list((tmp_path / "r").glob("trial-*"))


def test_both_experts_are_tried_for_themselves(tmp_path):
    paths = {role: tiny.save(tmp_path / f"tiny_{role}.safetensors", weights(n)) for n, role in enumerate(tiny.PAIR)}
    entry = {"files": {"high_noise": tiny.save(tmp_path / "l.safetensors", lora())}}
    with plan_recipe(tiny.recipe(tmp_path / "out", paths, [entry]), tmp_path / "r") as plan:
        high, low = (measure(expert, Wanted(("mxfp8",)), ride(plan, tmp_path)) for expert in plan.experts)
        again = [measure(expert, Wanted(("mxfp8",)), ride(plan, tmp_path)) for expert in plan.experts]
    assert high[SMALL].survival and not low[SMALL].survival and again == [high, low]
    assert low[SMALL].lost["mxfp8"] == pytest.approx(exact(weights(1)[f"{SMALL}.weight"].double(), "mxfp8"), rel=1e-4)


def test_progress_ends_where_it_said_and_a_kept_trial_counts_as_done(tmp_path):
    for _ in range(2):
        with planned(tmp_path, [lora()], method="adaptive") as plan:
            expert, told = plan.experts[0], []
            total = trial.readings(expert, tmp_path / "r", expert.block_linears)
            clock = Clock(total, told.append)
            measure(expert, Wanted(("mxfp8",)), Ride(plan.device, clock, bool, tmp_path / "r"))
            assert clock.done == total
    assert not told and clock.skipped == total == sum(weights()[f"{layer}.weight"].nbytes for layer in tiny.linears(1))
