import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine.errors import LoraError, Stopped
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loratools.merge import Merging, Part, merge
from wan22_master.engine.loratools.wish import Ranks, Save, Watch
from wan22_master.tests.engine import tiny, trainers

HIGH, LOW = tiny.PAIR
LAYER = "blocks.1.ffn.0"


def run(tmp_path, parts, wish=None, **more):
    """parts: (path, strength, other fields of Part)."""
    opened = [open_lora(path) for path, *_ in parts]
    try:
        asked = [Part(lora, part[1], **(part[2] if len(part) > 2 else {})) for lora, part in zip(opened, parts, strict=True)]
        return merge(asked, wish or Merging(), Save(str(tmp_path / "merged.safetensors"), on_exists="overwrite", **more), Watch())
    finally:
        for lora in opened:
            lora.close()


def product(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    stem = f"diffusion_model.{layer}"
    return tensors[f"{stem}.lora_B.weight"].double().flatten(1) @ tensors[f"{stem}.lora_A.weight"].double().flatten(1)


def planted(layer: str, seed: int = 1, role: str = HIGH) -> torch.Tensor:
    return trainers.delta64(layer, seed, role, dtype=torch.bfloat16)


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 6e-8), ("bf16", 5e-3), ("fp16", 6e-4)])
def test_an_exact_merge_is_the_weighted_sum_without_cross_terms(tmp_path, dtype, most):
    first, second = trainers.write_musubi(tmp_path / "a")[0], trainers.write_ai_toolkit(tmp_path / "b", seed=2)[0]
    report = run(tmp_path, [(first, 0.7), (second, -1.3)], dtype=dtype)
    found, lost, total = load_file(report.path), 0.0, 0.0
    for layer in tiny.linears():
        expected = 0.7 * 0.5 * planted(layer) - 1.3 * planted(layer, 2)
        lost += (product(found, layer) - expected).square().sum().item()
        total += expected.square().sum().item()
    assert (lost / total) ** 0.5 <= most and report.error == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert {row.rank for row in report.rows} == {8} and all(value.dtype == report_dtype(dtype) for value in found.values())


def report_dtype(name: str) -> torch.dtype:
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def test_svd_is_the_best_of_its_rank_and_says_what_is_lost(tmp_path):
    first, second = trainers.write_musubi(tmp_path / "a")[0], trainers.write_ai_toolkit(tmp_path / "b", seed=2)[0]
    report = run(tmp_path, [(first, 2.0), (second, 0.5)], Merging("svd", Ranks(5)))
    found = load_file(report.path)
    for row in report.rows:
        layer = row.key.removesuffix(".weight")
        expected = planted(layer) + 0.5 * planted(layer, 2)
        sigma = torch.linalg.svdvals(expected)
        best = (sigma[5:].square().sum() / sigma.square().sum()).sqrt().item()
        assert row.rank == 5 and row.error == pytest.approx(best, rel=1e-5)
        assert ((product(found, layer) - expected).norm() / expected.norm()).item() == pytest.approx(best, rel=1e-5)


def test_whole_differences_are_summed_and_keep_the_names_that_comfyui_reads(tmp_path):
    one, other = trainers.write_lightx2v(tmp_path / "a")[0], trainers.write_lightx2v(tmp_path / "b", seed=2)[0]
    report = run(tmp_path, [(one, 1.0), (other, 0.5)])
    found = load_file(report.path)
    for key in ("blocks.0.modulation", "head.modulation", "blocks.0.norm3.weight", "blocks.1.ffn.0.bias", "head.head.weight"):
        expected = sum(strength * trainers.differences(key, seed).bfloat16().double() for seed, strength in ((1, 1.0), (2, 0.5)))
        layer = key.removesuffix(".weight").removesuffix(".bias")
        name = f"diffusion_model.{layer}" + (".diff_b" if key.endswith("bias") else ".diff")
        assert (found[name].double() - expected).norm() <= 1e-7 * expected.norm(), key


def test_lokr_and_loha_become_factors_by_svd_and_are_refused_by_exact(tmp_path):
    lokr = trainers.write_lokr(tmp_path, [LAYER])[0]
    draw = torch.Generator().manual_seed(4)
    sides = [torch.randn(shape, generator=draw) for shape in ((tiny.FFN, 3), (3, tiny.DIM)) * 2]
    names = [f"lora_unet_{LAYER.replace('.', '_')}.hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b")]
    loha = tiny.save(tmp_path / "loha.safetensors", dict(zip(names, sides, strict=True)))
    expected = 0.01 * (sides[0].double() @ sides[1].double()) * (sides[2].double() @ sides[3].double())
    expected = expected + torch.kron(*(each.double() for each in trainers.kron_factors(LAYER)))
    report = run(tmp_path, [(lokr, 1.0), (loha, 0.01)], Merging("svd", Ranks(70)))
    [row] = report.rows
    sigma = torch.linalg.svdvals(expected)
    best = (sigma[70:].square().sum() / sigma.square().sum()).sqrt().item()
    assert row.rank == 70 and row.error == pytest.approx(best, rel=1e-3)
    assert ((product(load_file(report.path), LAYER) - expected).norm() / expected.norm()).item() == pytest.approx(best, rel=1e-3)
    with pytest.raises(LoraError, match=r"lokr is no product of factors.*choose method svd"):
        run(tmp_path, [(lokr, 1.0)])


def test_what_needs_the_base_is_refused_or_left_out_and_told(tmp_path):
    tensors = load_file(trainers.write_ai_toolkit(tmp_path)[0])
    tensors[f"diffusion_model.{LAYER}.dora_scale"] = torch.rand(tiny.FFN, 1)
    dora = tiny.save(tmp_path / "dora.safetensors", tensors)
    with pytest.raises(LoraError, match=r"ffn.0.*dora needs the base's weights; merge it into the model and use Extract LoRA"):
        run(tmp_path, [(dora, 1.0)])
    report = run(tmp_path, [(dora, 1.0)], Merging(on_refused="leave_out"))
    assert len(report.left_out) == 1 and len(report.rows) == 19 and any("dora" in line for line in report.lines())


def test_halves_of_a_combined_file_are_merged_for_their_expert(tmp_path):
    [both] = trainers.write_onetrainer(tmp_path / "a")
    plain = trainers.write_ai_toolkit(tmp_path / "b", seed=2)[1]
    found = load_file(run(tmp_path, [(both, 1.0), (plain, 1.0)], Merging(role=LOW)).path)
    expected = 0.25 * planted(LAYER, 1, LOW) + planted(LAYER, 2, LOW)
    assert (product(found, LAYER) - expected).norm() <= 1e-6 * expected.norm()
    with pytest.raises(LoraError, match="holds both experts"):
        run(tmp_path, [(both, 1.0)])


def test_strengths_by_block_and_rs_lora_count(tmp_path):
    source = trainers.write_ai_toolkit(tmp_path)[0]
    found = load_file(run(tmp_path, [(source, 2.0, {"scope": {"0": 0.0, "ffn": 0.5}, "rs_lora": True})]).path)
    assert not any(".blocks.0." in key for key in found)
    # rs-LoRA: alpha / sqrt(rank) = sqrt(4)
    assert (product(found, LAYER) - 2 * 0.5 * 2 * planted(LAYER)).norm() <= 1e-6 * planted(LAYER).norm()


def test_a_convolution_keeps_its_kernel_and_flat_factors_of_it_add_up(tmp_path):
    draw = torch.Generator().manual_seed(2)
    up, down = torch.randn(tiny.DIM, 4, 1, 1, 1, generator=draw), torch.randn(4, 16, 1, 2, 2, generator=draw)
    stem = "diffusion_model.patch_embedding"
    pairs = {"a": (up, down), "b": (up.flatten(1), down.flatten(1))}
    paths = [tiny.save(tmp_path / f"{name}.safetensors", {f"{stem}.lora_B.weight": left, f"{stem}.lora_A.weight": right})
             for name, (left, right) in pairs.items()]
    found = load_file(run(tmp_path, [(path, 1.0) for path in paths]).path)
    shapes = [tuple(found[f"{stem}.lora_{part}.weight"].shape) for part in "AB"]
    assert shapes == [(8, 16, 1, 2, 2), (tiny.DIM, 8, 1, 1, 1)]
    expected = 2 * up.double().flatten(1) @ down.double().flatten(1)
    assert (product(found, "patch_embedding") - expected).norm() <= 1e-6 * expected.norm()


def test_loras_of_two_models_are_not_mixed(tmp_path):
    wide = tiny.save(tmp_path / "w.safetensors", {f"diffusion_model.{LAYER}.lora_{part}.weight": torch.ones(shape)
                                                  for part, shape in (("B", (9, 2)), ("A", (2, 7)))})
    with pytest.raises(LoraError, match=r"expected one shape in all LoRAs, found .* they were made for different models"):
        run(tmp_path, [(trainers.write_musubi(tmp_path)[0], 1.0), (wide, 1.0)])
    with pytest.raises(LoraError, match="a strength other than 0"):
        run(tmp_path, [(wide, 0.0)])


def test_the_file_names_its_parts_and_a_stop_leaves_nothing(tmp_path):
    source = trainers.write_musubi(tmp_path)[0]
    report = run(tmp_path, [(source, 0.5)], metadata={"modelspec.timestep_range": "900,1000"})
    with safe_open(report.path, "pt") as file:
        said = file.metadata()
    told = json.loads(said["wan22_master"])
    assert told["loras"] == [{"name": source.name, "strength": 0.5}] and str(tmp_path) not in json.dumps(said)
    assert said["modelspec.timestep_range"] == "900,1000" and told["error"] == report.error
    with open_lora(source) as lora, pytest.raises(Stopped):
        merge([Part(lora, 1.0)], Merging(), Save(str(tmp_path / "x.safetensors")), Watch(lambda: True))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]


def test_only_the_halves_of_the_asked_expert_must_agree_on_shapes(tmp_path):
    tensors = load_file(trainers.write_onetrainer(tmp_path)[0])
    tensors[f"diffusion_model.{LAYER}.lora_up.weight"] = torch.ones(tiny.FFN + 2, tiny.RANK)
    source = tiny.save(tmp_path / "odd.safetensors", tensors)
    assert len(run(tmp_path, [(source, 1.0)], Merging(role=LOW)).rows) == 20
    shape = {row.key: row for row in run(tmp_path, [(source, 1.0)], Merging(role=HIGH)).rows}
    assert f"{LAYER}.weight" in shape
