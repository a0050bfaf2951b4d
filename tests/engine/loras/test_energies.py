"""Shares of a LoRA's energy per group of its ledger, against plain float64 sums of the planted deltas; strict; the cache."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.errors import LoraError
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.loras import energies
from wan22_master.engine.loras.energies import EnergyCache, check_strict, measure, percent
from wan22_master.engine.loras.lora import Index, match, open_lora
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine import tiny, trainers

SPECS = {key: TensorSpec(shape, torch.bfloat16) for key, shape in tiny.shapes().items()}
INDEX = Index(SPECS, SPECS)
LAYERS = ["blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.0.ffn.2"]
HIGH, LOW = tiny.PAIR


def squared(layer, role=HIGH, factor=1.0):
    return (factor * trainers.delta64(layer, 1, role, dtype=torch.bfloat16)).square().sum().item()


def weigh(path, role=None, folder=None):
    with open_lora(path) as lora:
        ledger = match(lora, INDEX, role)
        measure(lora, ledger, EnergyCache(folder, "0" * 64, lora))
    return ledger


def pair(stem, factor=1.0, out=128, into=128, seed=0):
    draw = torch.Generator().manual_seed(seed)
    down, up = torch.randn(4, into, generator=draw), torch.randn(out, 4, generator=draw) * factor * 1e-4
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, (up.double() @ down.double()).square().sum().item()


def test_the_shares_are_those_of_float64_and_the_lost_one_is_of_what_was_meant_for_this_model(tmp_path):
    [path] = trainers.write_onetrainer(tmp_path, LAYERS)
    lost, share = pair("diffusion_model.blocks.0.cross_attn.k_img")
    text, beside = pair("lora_te1_q", seed=3)
    tensors = load_file(path) | lost | text | {"diffusion_model.blocks.1.norm3.diff_b": torch.full((128,), 1e-3)}
    save_file(tensors, path)
    expected = {role: sum(squared(layer, role, 1 / 4) for layer in LAYERS) for role in tiny.PAIR}
    expected[HIGH] += 128 * float(torch.tensor(1e-3)) ** 2
    said = weigh(path, HIGH).energies
    total = sum(expected.values()) + share + beside
    assert said["total"] == pytest.approx(total, rel=1e-6)              # float32 products of the factors
    assert said["applied"] == pytest.approx(expected[HIGH] / total, rel=1e-6)
    assert said["elsewhere"] == pytest.approx(expected[LOW] / total, rel=1e-6)
    assert said["refused"] == pytest.approx({"image branch absent": share / total, "text encoder": beside / total}, rel=1e-6)
    assert said["lost"] == pytest.approx(share / (share + expected[HIGH]), rel=1e-6)
    assert said["converted"] == 0 and said["unweighed"] == {}
    json.dumps(said)


def test_converted_and_applied_are_told_apart_and_every_share_adds_up_to_one(tmp_path):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    foreign, share = pair("transformer.blocks.1.attn1.to_v")
    save_file(load_file(path) | foreign, path)
    said = weigh(path).energies
    assert said["converted"] == pytest.approx(share / said["total"], rel=1e-6)
    assert said["applied"] + said["converted"] == pytest.approx(1, rel=1e-12) and said["lost"] == 0


@pytest.mark.parametrize(("change", "cause"), [
    ({"stem": "diffusion_model.blocks.9.ffn.0"}, "wrong depth"), ({"stem": "diffusion_model.blocks.1.ffn.3"}, "unknown layer"),
    ({"stem": "diffusion_model.blocks.1.self_attn.k", "into": 3072, "out": 3072}, "wrong width"),
    ({"stem": "diffusion_model.blocks.1.self_attn.k", "into": 64}, "wrong shape"),
    ({"stem": "diffusion_model.vace_blocks.0.after_proj"}, "of another family"),
])
def test_every_refusal_is_weighed_under_its_cause_and_strict_names_it(tmp_path, change, cause):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    foreign, share = pair(**change, factor=0.5)
    save_file(load_file(path) | foreign, path)
    ledger = weigh(path)
    assert ledger.energies["refused"] == pytest.approx({cause: share / ledger.energies["total"]}, rel=1e-6)
    lost = ledger.energies["lost"]
    check_strict(ledger, lost * 1.01, "a.safetensors")
    with pytest.raises(LoraError, match=rf"^a\.safetensors: .* refused \(strict\), found {percent(lost)}: {cause} \("):
        check_strict(ledger, lost * 0.99, "a.safetensors")


def test_strict_passes_what_is_whole_and_text_encoder_keys_are_not_lost(tmp_path):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    save_file(load_file(path) | pair("lora_te1_q")[0], path)
    ledger = weigh(path)
    check_strict(ledger, 0.0, "a")
    assert ledger.energies["refused"]["text encoder"] > 0 and ledger.energies["lost"] == 0
    [combined] = trainers.write_ai_toolkit(tmp_path / "c", LAYERS, split=False)
    ledger = weigh(combined, LOW)
    check_strict(ledger, 0.0, "a")
    assert ledger.energies["elsewhere"] > 0 and ledger.energies["lost"] == 0


def test_a_key_that_cannot_be_weighed_is_told_and_fails_strict(tmp_path):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    alone = {"diffusion_model.blocks.1.self_attn.k.lora_A.weight": torch.ones(4, 128)}
    save_file(load_file(path) | alone, path)
    ledger = weigh(path)
    assert ledger.energies["unweighed"] == {"incomplete": 1} and ledger.energies["lost"] == 0
    with pytest.raises(LoraError, match=r"incomplete \(1 keys of unknown weight\)"):
        check_strict(ledger, 0.5, "a")


def test_a_lora_of_zeros_has_no_shares(tmp_path):
    stem = "diffusion_model.blocks.0.ffn.0.lora_"
    save_file({f"{stem}A.weight": torch.ones(4, 128), f"{stem}B.weight": torch.zeros(320, 4)}, tmp_path / "z.safetensors")
    said = weigh(tmp_path / "z.safetensors").energies
    assert (said["total"], said["applied"], said["lost"]) == (0, 0, 0)


def test_energies_are_kept_by_content_and_not_computed_twice(tmp_path, monkeypatch):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    first = weigh(path, folder=tmp_path / "reports").energies
    monkeypatch.setattr(energies, "energy", lambda *_, **__: pytest.fail("computed again"))
    assert weigh(path, folder=tmp_path / "reports").energies == first
    [kept] = (tmp_path / "reports").iterdir()
    monkeypatch.undo()
    kept.write_text("{ damaged")
    assert weigh(path, folder=tmp_path / "reports").energies == first
    monkeypatch.setattr(energies, "VERSION", energies.VERSION + 1)
    weigh(path, folder=tmp_path / "reports")
    assert len(list((tmp_path / "reports").iterdir())) == 2


def test_a_wish_to_stop_is_heard(tmp_path):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    with open_lora(path) as lora, pytest.raises(KeyboardInterrupt):
        def stop():
            raise KeyboardInterrupt
        measure(lora, match(lora, INDEX), EnergyCache(None, "", lora), stop)


@pytest.mark.parametrize(("share", "text"), [(0.3104, "31.0 %"), (1.0, "100.0 %"), (0.0, "0 %"), (1e-7, "under 0.1 %")])
def test_a_share_in_words(share, text):
    assert percent(share) == text


def planned(tmp_path, tensors, *, strict=True, **entry):
    """The ledger's energies of one LoRA in a plan of a recipe."""
    model, path = tiny.save(tmp_path / "m.safetensors", tiny.base()), tiny.save(tmp_path / "a.safetensors", tensors)
    wish = tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": path}, **entry}], strict=strict, strict_share=0.5)
    with plan_recipe(wish, tmp_path / "r") as plan:
        return plan.experts[0].ledgers[0]["energies"]


def test_the_shares_are_those_of_what_is_merged_with_the_rs_lora_switch(tmp_path):
    foreign, share = pair("diffusion_model.blocks.9.ffn.0")                     # rank 4
    wide = tiny.lora(2, ["blocks.0.ffn.0"], rank=64)
    own = tiny.delta64(wide, "blocks.0.ffn.0").square().sum().item()
    for rs_lora in (None, True, False, True):                                   # one cache for all of them
        is_root = rs_lora is True                                               # alpha / sqrt(rank): sqrt(rank) times as much
        said = planned(tmp_path, wide | foreign, strict=False, rs_lora=rs_lora)
        expected = share * (4 if is_root else 1), own * (64 if is_root else 1)
        assert said["total"] == pytest.approx(sum(expected), rel=1e-6)
        assert said["lost"] == pytest.approx(expected[0] / sum(expected), rel=1e-6)


def test_strict_sees_no_weight_in_a_pair_of_rank_0_and_in_a_lone_alpha(tmp_path):
    stem = "diffusion_model.blocks.0.self_attn.q"
    empty = {f"{stem}.lora_A.weight": torch.zeros(0, 128), f"{stem}.lora_B.weight": torch.zeros(128, 0)}
    alone = {"diffusion_model.blocks.0.cross_attn.k_img.alpha": torch.tensor(4.0)}
    for more in (empty, alone, empty | alone | {f"{stem}.alpha": torch.tensor(4.0)}):
        said = planned(tmp_path, tiny.lora(layers=LAYERS) | more)
        assert said["unweighed"] == {} and said["lost"] == 0


@pytest.mark.parametrize("method", ["addition", "classic", "adaptive"])
def test_a_delta_beyond_float32_is_refused_before_a_job_is_begun(tmp_path, method):
    stem = "diffusion_model.blocks.0.ffn.0"
    wild = {f"{stem}.lora_A.weight": torch.ones(4, 128), f"{stem}.lora_B.weight": torch.ones(320, 4)}
    wild |= {f"{stem}.alpha": torch.tensor(3e38)}
    with pytest.raises(LoraError, match=r"^a\.safetensors: diffusion_model\.blocks\.0\.ffn\.0\.alpha: the delta overflows float32"):
        planned(tmp_path, wild, method=method)
    faint = {"strength": {"model": 1e-20}, "method": method}
    if method == "classic":                                                     # its delta is computed at strength 1
        with pytest.raises(LoraError, match="overflows float32"):
            planned(tmp_path, wild, **faint)
    else:
        assert planned(tmp_path, wild, **faint)["total"] == pytest.approx(320 * 128 * 3e38**2, rel=1e-6)
    assert planned(tmp_path, wild | tiny.lora(layers=LAYERS), scope={"0": 0.0})["total"] > 1e70   # not merged: no matter
