"""The line's refusals: which file, which tensor, which stage, and what to do."""
import re

import pytest
import torch
from wan22_master.engine.errors import MergeError, TensorError
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import measure, run
from wan22_master.engine.merging.merge import load_change, merge_whole
from wan22_master.engine.precision import Forms
from wan22_master.tests.engine import tiny

KEY = "blocks.1.ffn.0.weight"


# Finite deltas whose energy is not: their squares are beyond float32's 3.4e38.
HUGE = {
    "factors": {key: tensor.float() * (1e27 if "lora_B" in key else 1e-22)
                for key, tensor in tiny.lora(2, ["blocks.1.ffn.0"]).items()},
    "difference": {"diffusion_model.blocks.1.ffn.0.diff": torch.full((tiny.FFN, tiny.DIM), 1e20)},
}


def job(tmp_path, weights, loras, **more):
    model = tiny.save(tmp_path / "wan_high.safetensors", weights)
    paths = [tiny.save(tmp_path / f"{name}.safetensors", tensors) for name, tensors in loras.items()]
    return tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": path}} for path in paths], **more)


@pytest.mark.parametrize("kind", HUGE)
@pytest.mark.parametrize("written", [True, False], ids=["run", "measure"])
def test_energies_beyond_float32_are_refused_and_the_lora_is_named(tmp_path, kind, written):
    wish = job(tmp_path, tiny.base(), {"mild": tiny.lora(), "wild": HUGE[kind]}, formats=["fp32"])
    said = re.escape(f"wan_high.safetensors: {KEY}: merge failed: the delta overflows float32; lower the strength, or replace the ")
    said = {"factors": r"^wild\.safetensors: .*blocks\.1\.ffn\.0\.lora_\S+: the delta overflows float32",   # when it is weighed
            "difference": f"^{said}{re.escape('LoRA wild.safetensors')}$"}[kind]
    with pytest.raises(MergeError, match=said):
        if written:
            tiny.go(wish, tmp_path / "r")
        else:
            with plan_recipe(wish, tmp_path / "r") as plan:
                measure(plan, reports=tmp_path / "r")


@pytest.mark.parametrize("name", ["bf16", "float8_e4m3fn"])
def test_a_base_with_inf_is_named_with_its_file_and_the_stage(tmp_path, name):
    weights = tiny.base()
    weights[KEY][3, 4] = float("inf")
    with pytest.raises(TensorError, match=rf"^wan_high\.safetensors: {re.escape(KEY)}: read failed: the base holds NaN or inf"):
        tiny.go(job(tmp_path, weights, {}, formats=[name]), tmp_path / "r")


def test_what_does_not_fit_the_chosen_dtype_is_named_with_file_and_stage(tmp_path):
    loras = {"big": tiny.lora(size=1e6)}
    with pytest.raises(TensorError, match=r"^wan_high\.safetensors: \S+\.weight: quantize failed: .* fp16; choose bf16 or fp32$"):
        tiny.go(job(tmp_path, tiny.base(), loras, formats=["fp16"]), tmp_path / "r")


def test_a_kept_tensor_that_overflows_names_its_own_dtype(tmp_path):
    weights = {key: tensor.half() for key, tensor in tiny.base().items()}
    lora = {"diffusion_model.blocks.0.ffn.0.diff_b": torch.full((tiny.FFN,), 1e6)}
    said = "does not fit into fp16; this tensor keeps the base's fp16; choose fp32, or a bf16 base"
    with pytest.raises(TensorError, match=rf"blocks\.0\.ffn\.0\.bias: quantize failed: .* {said}$"):
        tiny.go(job(tmp_path, weights, {"big": lora}, formats=["bf16"]), tmp_path / "r")


@pytest.mark.parametrize("name", ["fp32", "float8_e4m3fn"])
@pytest.mark.parametrize(("asked", "normalize"), [({"combine": "ties", "density": 0.25}, False), ({}, True),
                                                  ({"combine": "orthogonal"}, True)])
def test_the_line_writes_what_a_merge_in_memory_makes(tmp_path, name, asked, normalize):
    weights = tiny.base()
    loras = {each: tiny.lora(seed, [KEY.removesuffix(".weight")], size=3e-3) for seed, each in enumerate("ab", 7)}
    wish = job(tmp_path, weights, loras, formats=[name], normalize=normalize)
    wish = tiny.parse({**wish.to_json(), "passes": [{**each, **asked} for each in wish.to_json()["passes"]]})
    with plan_recipe(wish, tmp_path / "r") as plan:
        [expert] = plan.experts
        parts = [what for _, what in expert.contributions[KEY]]
        change = load_change(KEY, expert.specs[KEY], parts, plan.device.torch_device, expert.rules)
        whole = weights[KEY].float()
        energies = merge_whole(change, whole)
        report = run(plan, reports=tmp_path / "r")["experts"][0]
        form = Forms(name).of(KEY, expert.specs[KEY])
    written = tiny.load(tmp_path / "out", report["outputs"][0]["file"])
    codes = form.quantize(whole, form.combine([form.measure(whole)]) if form.measure else None, torch.empty_like(whole))[""]
    assert tiny.same_bits(written[KEY], codes)
    moved = energies.moved if normalize else sum(map(sum, energies.gram))
    base = weights[KEY].double().square().sum().item()
    assert report["meter"]["top"][0]["shift"] == pytest.approx((moved / base) ** 0.5, rel=1e-5)   # float32 sums of the base
