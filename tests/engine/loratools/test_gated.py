import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.errors import PlanError
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.loratools.gated import save_gated
from wan22_master.engine.loratools.wish import Save, Watch
from wan22_master.engine.preview import settle
from wan22_master.tests.engine import tiny

LAYERS = ["blocks.0.self_attn.q", "blocks.1.ffn.0"]


def merged(tmp_path, lora: str, method: str, strength: float) -> dict[str, torch.Tensor]:
    """The fp32 weights of a merge."""
    entry = {"files": {"model": lora}, "strength": {"model": strength}, "method": method}
    folder = tmp_path / f"{method}"
    wish = tiny.recipe(folder, {"model": str(tmp_path / "base.safetensors")}, [entry], ("fp32",))
    folder.mkdir()
    report = tiny.go(wish, tmp_path / "reports")
    return load_file(report["experts"][0]["outputs"][0]["path"])


def gated(tmp_path, lora: str, method: str = "adaptive", dtype: str = "fp32"):
    entry = {"files": {"model": lora}, "strength": {"model": 1.0}, "method": method}
    wish = tiny.recipe(tmp_path, {"model": str(tmp_path / "base.safetensors")}, [entry], ("fp32",))
    with plan_recipe(wish, tmp_path / "reports") as plan:
        settle(plan, "model", reports=tmp_path / "reports")
        return save_gated(plan.experts[0], 0, Save(str(tmp_path / "gated.safetensors"), dtype), Watch())


def test_adding_the_gated_lora_is_the_adaptive_merge_of_the_lora(tmp_path):
    base = {key: value.float() for key, value in tiny.base().items()}
    tiny.save(tmp_path / "base.safetensors", base)
    bias = torch.randn(tiny.FFN, generator=torch.Generator().manual_seed(8)) * 1e-3
    tensors = tiny.lora(2, LAYERS, alpha=2.0) | {"diffusion_model.blocks.1.ffn.0.diff_b": bias}
    source = tiny.save(tmp_path / "style.safetensors", tensors)
    report = gated(tmp_path, source)
    assert report.left_out == [] and len(load_file(report.path)) == 5
    by_method, by_file = merged(tmp_path, source, "adaptive", 0.5), merged(tmp_path, report.path, "addition", 0.5)
    for key, value in base.items():
        moved = (by_method[key].double() - value.double()).norm()
        # both weights are rounded to float32, 2e-9 each, on changes of 2e-4
        assert (by_method[key].double() - by_file[key].double()).norm() <= 1e-4 * moved, key
    assert (by_method["blocks.0.self_attn.q.weight"] - base["blocks.0.self_attn.q.weight"]).norm() > 0


def test_a_kind_that_is_no_factors_is_told_and_a_lora_of_another_method_refused(tmp_path):
    tiny.save(tmp_path / "base.safetensors", tiny.base())
    tensors = tiny.lora(2, LAYERS)
    tensors["diffusion_model.blocks.1.ffn.0.dora_scale"] = torch.rand(tiny.FFN, 1)
    save_file(tensors, tmp_path / "style.safetensors")
    report = gated(tmp_path, str(tmp_path / "style.safetensors"))
    assert [row.key for row in report.rows] == ["blocks.0.self_attn.q.weight"]
    assert [(row.key, row.why.split(" ")[0]) for row in report.left_out] == [("blocks.1.ffn.0.weight", "dora")]
    with pytest.raises(PlanError, match="expected a LoRA of method adaptive"):
        gated(tmp_path, str(tmp_path / "style.safetensors"), "addition")
