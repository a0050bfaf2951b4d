import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import delta64, linears, lora, recipe, save, write_pair
from wan22_master.engine.analysis.run import analyse
from wan22_master.engine.errors import Stopped
from wan22_master.engine.jobs import base_norms
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import measure

STRENGTHS = (1.0, -0.5, 0.8)


@pytest.fixture
def three(tmp_path):
    """Two experts; a distillation LoRA and two others: the last on some layers only, the second with an alpha."""
    tensors = [lora(1), lora(2, alpha=2.0), lora(3, layers=linears()[3:7], rank=2)]
    names = ("lightx2v_4steps_high_noise", "style_high_noise", "dance_high_noise")
    loras = [{"files": {"high_noise": save(tmp_path / "loras" / f"{name}.safetensors", each)}, "strength": {"high_noise": strength}}
             for name, each, strength in zip(names, tensors, STRENGTHS, strict=True)]
    return recipe(tmp_path, write_pair(tmp_path), loras, formats=()), tensors


def analysed(wish, reports: Path, **options) -> dict:
    with plan_recipe(wish, reports) as plan:
        return analyse(plan, reports=reports, **options)


def high(report: dict) -> dict:
    return report["experts"][0]["conflicts"]


def flat64(tensors: list[dict], layers=None) -> torch.Tensor:
    """strength * delta of every LoRA over these layers, one row each, float64."""
    rows = []
    for each, strength in zip(tensors, STRENGTHS, strict=True):
        parts = []
        for layer in layers or linears():
            delta = delta64(each, layer)
            zero = torch.zeros_like(delta64(tensors[0], layer))
            parts.append((strength * delta if delta is not None else zero).reshape(-1))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def test_norms_cosines_and_gram_matrix_are_those_of_the_full_deltas(three, tmp_path):
    section = high(analysed(three[0], tmp_path / "reports"))
    gram = flat64(three[1]) @ flat64(three[1]).t()
    scale = torch.outer(gram.diagonal().sqrt(), gram.diagonal().sqrt())
    assert ((torch.tensor(section["gram"]) - gram).abs() / scale).max() < 1e-6      # float32 products, summed in float64
    for number, told in enumerate(section["loras"]):
        assert told["norm"] == pytest.approx(gram[number, number].sqrt().item(), rel=1e-6)
    for pair in section["pairs"]:
        cosine = (gram / scale)[pair["first"], pair["second"]].item()
        assert pair["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert [pair["tensors"] for pair in section["pairs"]] == [20, 4, 4]


def test_each_layer_and_each_block_is_told_with_its_own_numbers(three, tmp_path):
    section = high(analysed(three[0], tmp_path / "reports"))
    files = [json.loads(path.read_text()) for path in (tmp_path / "reports").glob("conflicts-*.json")]
    kept = max(files, key=lambda each: len(each["layers"]))
    layer = linears()[3]
    flat = flat64(three[1], [layer])
    upper = kept["layers"][f"{layer}.weight"]["gram"]
    assert [len(row) for row in upper] == [3, 2, 1]                  # the upper triangle only
    assert upper[0][1] == pytest.approx((flat[0] @ flat[1]).item(), rel=1e-4)
    assert kept["layers"][f"{linears()[0]}.weight"]["who"] == [0, 1]
    first = [name for name in linears() if name.startswith("blocks.0.")]
    gram = flat64(three[1], first) @ flat64(three[1], first).t()
    assert section["by_block"][0]["cosines"][0] == pytest.approx((gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()).item(), abs=1e-6)
    assert section["by_block"][1]["cosines"][1:] == section["by_block"][1]["excesses"][1:] == [None, None]   # they do not meet


def test_the_movement_is_told_for_all_for_distillation_and_for_the_rest_and_by_block_and_kind(three, tmp_path):
    section, flat = high(analysed(three[0], tmp_path / "reports")), flat64(three[1])
    assert [told["protected"] for told in section["loras"]] == [True, False, False]
    assert section["moved"]["all"] == pytest.approx(flat.sum(0).norm().item(), rel=1e-6)
    assert section["moved"]["distillation"] == pytest.approx(flat[0].norm().item(), rel=1e-6)
    assert section["moved"]["rest"] == pytest.approx(flat[1:].sum(0).norm().item(), rel=1e-6)
    cell = flat64(three[1], [name for name in linears() if name.startswith("blocks.1.ffn")]).sum(0).norm().item()
    assert section["moved"]["cells"][1][2] == pytest.approx(cell, rel=1e-6)


def test_the_shift_is_unknown_without_the_base_predicted_with_its_norms_and_measured_by_the_meter(three, tmp_path):
    wish, reports = three[0], tmp_path / "reports"
    assert high(analysed(wish, reports))["shift"] is None
    weights = load_file(wish.experts["high_noise"])
    with plan_recipe(wish, reports) as plan:
        expert = plan.experts[0]
        rows = {key: {"base": weights[key].double().square().sum().item()} for key in expert.block_linears}
        base_norms.keep(reports, expert.source, rows)
        predicted = high(analyse(plan, reports=reports))["shift"]
        meter = measure(plan, reports=reports)["experts"][0]["meter"]
        measured = high(analyse(plan, reports=reports))["shift"]
    assert predicted["from"] == "base norms" and measured["from"] == "stability meter"
    norm = math.sqrt(math.fsum(row["base"] for row in rows.values()))
    assert predicted["all"] == pytest.approx(flat64(three[1]).sum(0).norm().item() / norm, rel=1e-6)
    for name in ("all", "distillation", "rest"):
        assert predicted[name] == pytest.approx(meter["needles"][name], rel=1e-5) and measured[name] == meter["needles"][name]
    for row, wanted in zip(predicted["cells"], meter["cells"], strict=True):
        assert row == pytest.approx(wanted, rel=1e-5)


def test_no_weight_of_the_base_is_read(three, tmp_path, monkeypatch):
    from wan22_master.engine.bases.stored import StoredTensors

    monkeypatch.setattr(StoredTensors, "read", None)
    assert high(analysed(three[0], tmp_path / "reports"))["pairs"]


def test_it_is_done_once_and_again_when_a_strength_changes(three, tmp_path, monkeypatch):
    wish, reports = three[0], tmp_path / "reports"
    first = analysed(wish, reports)
    monkeypatch.setattr("wan22_master.engine.analysis.run.compare", None)
    assert analysed(wish, reports) == first
    monkeypatch.undo()
    changes = (({"strength": {"high_noise": -0.25}}, True), ({"scope": {"0-39": 0.5}}, True), ({"scope": {"ffn": 0.5}}, False))
    for changed, halved in changes:
        loras = [replace(entry, **changed) if number == 1 else entry for number, entry in enumerate(wish.passes[0].loras)]
        other = high(analysed(replace(wish, passes=(replace(wish.passes[0], loras=tuple(loras)),)), reports))
        ratio = other["loras"][1]["norm"] / high(first)["loras"][1]["norm"]
        assert ratio == pytest.approx(0.5) if halved else 0.5 < ratio < 1
    assert len(list(reports.glob("conflicts-*.json"))) == 5           # four of the high-noise expert, one of the low


def test_the_numbers_do_not_depend_on_the_number_of_workers(three, tmp_path, monkeypatch):
    first = analysed(three[0], tmp_path / "one")
    monkeypatch.setattr("wan22_master.engine.analysis.run.processors", lambda: 1)
    assert high(analysed(three[0], tmp_path / "other")) == high(first)


def test_progress_reaches_the_end_and_a_stop_is_heard(three, tmp_path):
    seen = []
    analysed(three[0], tmp_path / "reports", on_progress=seen.append)
    assert (seen[-1].done_bytes, seen[-1].phase) == (seen[-1].total_bytes, "analyse") and len(seen) == 20
    with pytest.raises(Stopped):
        analysed(three[0], tmp_path / "other", should_stop=lambda: (tmp_path / "other" / "hashes.json").exists())
    assert not list((tmp_path / "other").glob("conflicts-*"))


def test_an_expert_without_loras_or_with_one_of_strength_zero_is_told_empty(three, tmp_path):
    report = analysed(three[0], tmp_path / "reports")
    low = report["experts"][1]["conflicts"]
    assert (low["loras"], low["pairs"], low["moved"]["all"]) == ([], [], 0.0) and len(low["by_block"]) == 2
    json.dumps(report, allow_nan=False)
    files = [{"files": dict(entry.files), "strength": {"high_noise": strength}}
             for entry, strength in zip(three[0].passes[0].loras, (1.0, 0.0, 1.0), strict=True)]
    silent = high(analysed(recipe(tmp_path, dict(three[0].experts), files, formats=()), tmp_path / "other"))
    assert silent["loras"][1]["norm"] == 0.0 and silent["pairs"][0]["cosine"] is silent["pairs"][0]["excess"] is None


def test_under_compat_the_deltas_that_comfyui_adds_are_compared_and_other_kinds_are_told(three, tmp_path):
    wish, tensors = three
    sides = {f"hada_w{n}_{side}": torch.ones(shape) for n in "12" for side, shape in (("a", (128, 2)), ("b", (2, 64)))}
    module = {f"diffusion_model.patch_embedding.{part}": tensor for part, tensor in sides.items()}
    path = save(tmp_path / "loha.safetensors", module | {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(128)})
    files = [{"files": dict(each.files), "strength": dict(each.strength)} for each in wish.passes[0].loras]
    files.append({"files": {"high_noise": path}, "strength": {"high_noise": 0.5}})
    section = high(analysed(recipe(tmp_path, dict(wish.experts), files, formats=(), compat="comfyui"), tmp_path / "reports"))
    gram = flat64(tensors) @ flat64(tensors).t()
    scale = torch.outer(gram.diagonal().sqrt(), gram.diagonal().sqrt())
    assert ((torch.tensor(section["gram"])[:3, :3] - gram).abs() / scale).max() < 1e-6   # as under compat correct
    assert section["loras"][3]["norm"] == pytest.approx(0.5 * 128**0.5)                   # the bias
    assert [(each["lora"], each["kind"], each["tensors"]) for each in section["left_out"]] == [("loha.safetensors", "loha", 1)]
    assert "comfyui" in section["left_out"][0]["reason"]


def test_a_lora_of_which_nothing_can_be_known_without_the_base_is_told_as_left_out(three, tmp_path):
    wish, [first, *_] = three
    ups = {key: up for key, up in first.items() if "lora_B" in key}
    dora = {key.replace("lora_B.weight", "dora_scale"): torch.ones(len(up), 1) for key, up in ups.items()}
    entry = {"files": {"high_noise": save(tmp_path / "dora.safetensors", first | dora)}}
    section = high(analysed(recipe(tmp_path, dict(wish.experts), [entry], formats=()), tmp_path / "reports"))
    assert section["loras"][0]["norm"] == section["moved"]["all"] == 0.0
    assert [(each["kind"], each["tensors"]) for each in section["left_out"]] == [("dora", len(linears()))]
