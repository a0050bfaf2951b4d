import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.errors import LoraError, SourceError, Stopped, TensorError
from wan22_master.engine.loras.ledger import match
from wan22_master.engine.loras.lora import Index, open_lora
from wan22_master.engine.loratools.extract import Extraction, extract
from wan22_master.engine.loratools.sketch import Method
from wan22_master.engine.loratools.wish import Ranks, Save, Watch
from wan22_master.tests.engine import tiny

BASE = {key: value.float() for key, value in tiny.base(0).items()}
LARGE = "blocks.1.ffn.0.weight"


def tuned(rank: int = 3, **changes) -> dict[str, torch.Tensor]:
    """Every matrix moved by a product of `rank`, every other tensor by noise; changes: keys with a value of their own."""
    draw, found = torch.Generator().manual_seed(3), {}
    for key, value in BASE.items():
        if key.endswith(".weight") and value.dim() > 1:
            columns = value[0].numel()
            up, down = torch.randn(value.shape[0], rank, generator=draw), torch.randn(rank, columns, generator=draw)
            found[key] = value + (up @ down * 1e-3).view(value.shape)
        else:
            found[key] = value + torch.randn(value.shape, generator=draw) * 1e-3
    return found | changes


def run(tmp_path, weights, wish=None, **more):
    left = tiny.save(tmp_path / "tuned.safetensors", weights)
    right = tiny.save(tmp_path / "base.safetensors", BASE)
    save = Save(str(tmp_path / "lora.safetensors"), on_exists="overwrite", **more)
    with open_source(left) as one, open_source(right) as other:
        return extract(one, other, wish or Extraction(Ranks(4)), save, Watch())


def delta_of(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """What the file says, in float64."""
    stem = "diffusion_model." + key.removesuffix(".weight").removesuffix(".bias")
    if f"{stem}.lora_A.weight" in tensors and key.endswith(".weight"):
        down, up = tensors[f"{stem}.lora_A.weight"].double().flatten(1), tensors[f"{stem}.lora_B.weight"].double().flatten(1)
        return (up @ down).view(BASE[key].shape)
    return tensors[stem + (".diff_b" if key.endswith(".bias") else ".diff")].double()


@pytest.mark.parametrize("method", [Method(), Method(exact_side=8)], ids=["exact", "random"])
def test_a_planted_lora_comes_back(tmp_path, method):
    weights = tuned()
    report = run(tmp_path, weights, Extraction(Ranks(16), "all", method=method))
    found = load_file(report.path)
    for key, value in BASE.items():
        delta = weights[key].double() - value.double()
        # tuned itself was rounded to float32: 2e-9 of weights of 0.03 on deltas of 1e-3
        assert (delta_of(found, key) - delta).norm() <= 1e-5 * delta.norm(), key
    assert report.error < 1e-5 and not report.left_out


def test_the_stated_error_is_the_real_one_with_everything_that_is_left_out(tmp_path):
    weights = tuned(rank=40)
    report = run(tmp_path, weights, Extraction(Ranks(8), "blocks", vectors=False), dtype="bf16")
    found, lost, total = load_file(report.path), 0.0, 0.0
    for key, value in BASE.items():
        delta = (weights[key] - value).double()
        total += delta.square().sum().item()
        stem = "diffusion_model." + key.removesuffix(".weight")
        lost += (delta - (delta_of(found, key) if f"{stem}.lora_A.weight" in found else 0)).square().sum().item()
    assert report.error == pytest.approx((lost / total) ** 0.5, rel=1e-5)
    assert {row.key for row in report.left_out} == BASE.keys() - {f"{layer}.weight" for layer in tiny.linears()}
    told = report.as_json()
    json.dumps(told, allow_nan=False)
    assert sum(each["share"] for each in told["left_out"]) < told["error"] ** 2
    assert any("not in the file" in line for line in report.lines())


def test_energy_takes_fewer_ranks_where_fewer_suffice(tmp_path):
    report = run(tmp_path, tuned(rank=3), Extraction(Ranks(16, 0.99)))
    assert {row.rank for row in report.rows if row.rank} <= {1, 2, 3}
    assert all(row.error <= 0.1 for row in report.rows)                       # √(1 − 0.99)


def test_a_small_matrix_is_stored_whole_and_an_untouched_tensor_not_at_all(tmp_path):
    weights = tuned(**{LARGE: BASE[LARGE]})
    report = run(tmp_path, weights, Extraction(Ranks(64), "all"))
    found = load_file(report.path)
    assert torch.equal(found["diffusion_model.head.head.diff"], weights["head.head.weight"] - BASE["head.head.weight"])
    assert report.unchanged == [LARGE] and not any("blocks.1.ffn.0.lora" in key for key in found)


def test_our_own_ledger_applies_every_key(tmp_path):
    path = run(tmp_path, tuned(), Extraction(Ranks(4), "all")).path
    with open_source(tmp_path / "base.safetensors") as base, open_lora(path) as lora:
        ledger = match(lora, Index(base.keys(), {key: base.spec(key) for key in base.keys()}))  # noqa: SIM118
        assert ledger.refused == [] and set(ledger.applied) == set(BASE)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["wan22_master"])
    assert told["base"] == "base.safetensors" and told["tuned"] == "tuned.safetensors" and told["error"] < 1


def test_same_inputs_same_bytes(tmp_path):
    wish, found = Extraction(Ranks(4), method=Method(exact_side=8)), []
    for _ in range(2):
        run(tmp_path, tuned(rank=20), wish)
        found.append((tmp_path / "lora.safetensors").read_bytes())
    assert found[0] == found[1]


def test_models_that_do_not_belong_together_are_refused_by_name(tmp_path):
    with pytest.raises(LoraError, match="nothing to extract"):
        run(tmp_path, {**BASE, "head.head.bias": BASE["head.head.bias"] + 1}, Extraction(vectors=False))
    wide = tuned(**{"patch_embedding.weight": torch.zeros(tiny.DIM, 36, 1, 2, 2)})
    with pytest.raises(SourceError, match=r"patch_embedding.weight: expected one shape .*\(128, 36, 1, 2, 2\) in tuned"):
        run(tmp_path, wide)
    with pytest.raises(SourceError, match="found one file twice"), open_source(tmp_path / "base.safetensors") as one:
        extract(one, one, Extraction(), Save(str(tmp_path / "x.safetensors")), Watch())
    bad = tuned()
    bad[LARGE][5, 7] = float("nan")
    with pytest.raises(TensorError, match=f"{LARGE}.*found NaN or inf"):
        run(tmp_path, bad)
    assert {path.name for path in tmp_path.iterdir()} == {"tuned.safetensors", "base.safetensors"}


def test_a_key_of_one_model_alone_is_told(tmp_path):
    more = tuned() | {"img_emb.emb_pos": torch.zeros(1, 2, 8)}
    report = run(tmp_path, more)
    alone = [(row.key, row.why) for row in report.left_out if row.total is None]
    assert alone == [("img_emb.emb_pos", "only the tuned model has it")]


def test_a_stop_leaves_no_file_and_progress_reaches_its_end(tmp_path):
    run(tmp_path, tuned())
    told = []
    with open_source(tmp_path / "tuned.safetensors") as one, open_source(tmp_path / "base.safetensors") as other:
        watch = Watch(lambda: len(told) > 5, told.append)
        with pytest.raises(Stopped):
            extract(one, other, Extraction(), Save(str(tmp_path / "x.safetensors")), watch)
        watch = replace(Watch(), on_progress=told.append)
        extract(one, other, Extraction(), Save(str(tmp_path / "y.safetensors")), watch)
    assert told[-1].done_bytes == told[-1].total_bytes > 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("x")]
