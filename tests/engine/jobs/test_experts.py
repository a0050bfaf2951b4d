"""What of a recipe concerns one expert, and how its ledger tells it."""
import json

import pytest
import torch
from wan22_master.engine.errors import LoraError
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import measure
from wan22_master.tests.engine import tiny


@pytest.mark.parametrize("zero", ["strength", "global_factor"])
def test_a_lora_of_strength_0_is_told_and_changes_no_bit(tmp_path, zero):
    model = tiny.save(tmp_path / "m.safetensors", tiny.base())
    loras = [{"files": {"model": tiny.save(tmp_path / f"l{n}.safetensors", tiny.lora(n))}} for n in (1, 2)]
    dead = {"loras": [loras[0] | {"strength": {"model": 0.0}}]} if zero == "strength" else {"loras": [loras[0]], "global_factor": 0}
    wish = tiny.recipe(tmp_path / "with", {"model": model}, passes=[dead, {"loras": [loras[1]]}])
    [expert] = tiny.go(wish, tmp_path / "r")["experts"]
    first, second = expert["ledger"]
    assert first["lora"] == "l1.safetensors" and first["note"] == "strength 0: not merged"
    assert (first["applied"], first["refused"], first["strength"]) == (0, [], 0.0) and first["keys"] == len(tiny.lora())
    assert "note" not in second and second["applied"] == second["keys"]
    assert [each["shift"] > 0 for each in expert["meter"]["loras"]] == [False, True]
    tiny.go(tiny.recipe(tmp_path / "without", {"model": model}, [loras[1]]), tmp_path / "r")
    one, other = (tiny.load(tmp_path / name, "mix_bf16.safetensors") for name in ("with", "without"))
    assert all(tiny.same_bits(one[key], other[key]) for key in one)


def test_a_lora_of_strength_0_need_not_even_fit(tmp_path):
    model = tiny.save(tmp_path / "m.safetensors", tiny.base())
    other = tiny.save(tmp_path / "l.safetensors", {key.replace("blocks.", "blocks.9"): each for key, each in tiny.lora().items()})
    wish = tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": other}, "strength": {"model": 0.0}}])
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert [each["note"] for each in plan.experts[0].ledgers] == ["strength 0: not merged"]
        assert plan.experts[0].contributions == {}


def rotations(folder, settings):
    """A PEFT OFT with its configuration; blocks of 32."""
    draw = torch.Generator().manual_seed(1)
    tensors = {f"base_model.model.{layer}.oft_R.weight":
               torch.randn(tiny.shapes()[f"{layer}.weight"][1] // 32, 496, generator=draw) * 0.01 for layer in tiny.linears()}
    path = tiny.save(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT", "r": 0, "oft_block_size": 32, **settings}))
    return path


def test_another_rotation_of_peft_is_another_job_and_another_reading(tmp_path):
    model, jobs, files = tiny.save(tmp_path / "m.safetensors", tiny.base()), set(), set()
    for terms in (5, 4, None):
        settings = {"use_cayley_neumann": terms is not None, "num_cayley_neumann_terms": terms or 5}
        lora = rotations(tmp_path / "oft", settings)
        wish = tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": lora}}], ["fp32"], save={"metadata": "none"})
        [expert] = tiny.go(wish, tmp_path / "r")["experts"]
        assert expert["ledger"][0]["adapters"] == {"oft": {"where": "adapter_config.json", "terms": terms}}
        assert not expert["outputs"][0].get("up_to_date")
        jobs.add(expert["outputs"][0]["job_id"])
        files.add(expert["outputs"][0]["data_sha256"])
        measured = tiny.recipe(tmp_path, {"model": model}, [{"files": {"model": lora}}], [])
        with plan_recipe(measured, tmp_path / "r") as plan:
            measure(plan, reports=tmp_path / "r")
        assert len(list((tmp_path / "r").glob("meter-*"))) == len(files)
    assert len(jobs) == len(files) == 3


def test_a_glora_without_its_partners_is_refused_by_name_under_compat(tmp_path):
    module = "diffusion_model.blocks.0.ffn.0"
    tensors = {f"{module}.a1.weight": torch.ones(128, 3), f"{module}.b1.weight": torch.ones(320, 3)}
    path = tiny.save(tmp_path / "g.safetensors", tensors)
    model = tiny.save(tmp_path / "m.safetensors", tiny.base())
    with pytest.raises(LoraError, match=r"^g\.safetensors: diffusion_model\.blocks\.0\.ffn\.0\.a1\.weight: .* a2 and b2 missing"):
        plan_recipe(tiny.recipe(tmp_path, {"model": model}, [{"files": {"model": path}}], compat="comfyui"), tmp_path / "r")
