"""Sensitivity of a tiny model: what is saved is what the session holds, for the layers where a held-out half said so."""
import gguf
import pytest
import torch
from wan22_master.engine.calibration import sensitivity_json
from wan22_master.engine.calibration.layer_inputs import Inputs
from wan22_master.engine.imatrix import read_imatrix
from wan22_master.engine.jobs import sensitivity
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.sensitivity import ALL, CARDS_OWN, FORMATS, GGUFS, assess, save, wanted
from wan22_master.engine.jobs.solve import solve
from wan22_master.engine.jobs.trial import Wanted
from wan22_master.engine.plans.request import parse
from wan22_master.tests.engine import tiny
from wan22_master.tests.engine.calibrated import Memory

FLAT, BLIND = "blocks.0.self_attn.k", "blocks.0.cross_attn.v"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(tiny, "DIM", 256)


def memory() -> Memory:
    """Skewed inputs everywhere; one layer whose halves contradict each other, one that was not seen."""
    found = Memory.of_model(tiny.base(blocks=1, ffn=512), tokens=64)
    del found.inputs[BLIND]
    sizes = torch.ones(256)
    sizes[::2] = 30.0
    noise = torch.randn(64, 256, generator=torch.Generator().manual_seed(5))
    found.inputs[FLAT] = torch.cat([noise[:32] * sizes, noise[32:] * sizes.flip(0)])
    return found


def run(tmp_path, which=None, card="rtx50", **more):
    path = tmp_path / "m.safetensors"
    if not path.exists():
        tiny.save(path, tiny.base(blocks=1, ffn=512))
    seen = more.pop("memory", None) or memory()
    inputs = Inputs(seen, session="calib_01", prompts=3)
    with plan_recipe(tiny.recipe(tmp_path / "out", {"model": str(path)}), tmp_path / "r") as plan:
        asked = wanted(plan.experts[0], which, card, inputs) if which in FORMATS else Wanted(("nvfp4",), inputs=inputs)
        [found] = assess(plan, {"model": asked}, reports=tmp_path / "r", **more)
        (tmp_path / "s").mkdir(exist_ok=True)
        return found, save(found, tmp_path / "s", plan.experts[0]), seen


def test_the_imatrix_holds_all_that_was_recorded_where_the_other_half_agreed(tmp_path):
    found, paths, seen = run(tmp_path)
    assert set(found.weighed) == set(found.layers) - {FLAT, BLIND} and found.layers[BLIND] is None
    assert found.layers[FLAT].gain > 1.0
    means = read_imatrix(paths[0])
    assert set(means) == {f"{layer}.weight" for layer in found.weighed}
    for layer in found.weighed:
        wanted_ = seen.inputs[layer].double().square().mean(0)       # both halves
        assert torch.allclose(means[f"{layer}.weight"].double(), wanted_, rtol=1e-6)
    counts = {tensor.name: tensor.data for tensor in gguf.GGUFReader(paths[0]).tensors if tensor.name.endswith(".counts")}
    assert {count.item() for count in counts.values()} == {64.0}
    said = sensitivity_json.read(tmp_path / "s", "model")
    assert (said.weighed, said.state, said.samples) == (len(found.weighed), "state", 3)
    assert any("1 of 10 layers were not seen" in notice and BLIND in notice for notice in said.notices)
    assert any("in 1 of 9 layers weighing columns does not help" in notice for notice in said.notices)


def test_without_a_layer_that_gains_an_older_imatrix_goes(tmp_path):
    run(tmp_path)
    found, paths, _ = run(tmp_path, memory=Memory({FLAT: memory().inputs[FLAT]}, "other"))
    assert not found.weighed and [path.rsplit("/", 1)[1] for path in paths] == ["model_sensitivity.json"]
    assert not (tmp_path / "s" / "model_imatrix.gguf").exists() and sensitivity_json.read(tmp_path / "s", "model").weighed == 0


def test_a_card_whose_formats_never_search_still_gets_weights(tmp_path):
    found, _, _ = run(tmp_path, CARDS_OWN, "rtx30")
    names = {name for each in found.seen.values() for name in each.formats}
    assert names == {"int8_tensorwise", "asym_w4a8_int8", "convrot_w4a4", "keep", *sensitivity.PROBE}
    assert found.weighed and found.narrowest is None and not found.spoiled


@pytest.mark.parametrize(("which", "names"), [
    (CARDS_OWN, {"nvfp4", "float8_e4m3fn", "mxfp8", "int8_tensorwise", "asym_w4a8_int8", "convrot_w4a4", "keep"}),
    (GGUFS, {"Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K", "keep"}),
])
def test_what_is_tried_follows_the_choice(tmp_path, which, names):
    found, _, _ = run(tmp_path, which)
    assert all(set(each.formats) == names for each in found.seen.values())
    assert (found.narrowest == "nvfp4") == (which == CARDS_OWN)


def test_all_formats_are_tried_on_cards_that_have_them(tmp_path):
    with plan_recipe(tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", tiny.base(blocks=1))}),
                     tmp_path / "r") as plan:
        asked = wanted(plan.experts[0], ALL, "cpu", Inputs(memory(), card="cpu"))
    assert {"nvfp4", "mxfp8", "float8_e4m3fn", "Q2_K"} < set(asked.candidates) and asked.inputs.card is None
    assert "float8_e5m2" not in asked.candidates   # never multiplied as FP8


def test_layers_that_inputs_spoil_are_told(tmp_path):
    wild = memory()
    layer = "blocks.0.cross_attn.q"
    # one channel of each block dwarfs the others, and weights of zero take it out of the output: nvfp4 keeps little of the rest
    tensors = tiny.base(blocks=1, ffn=512)
    tensors[f"{layer}.weight"][:, ::16] = 0
    tiny.save(tmp_path / "m.safetensors", tensors)
    wild.inputs[layer] = wild.inputs[layer].clone()
    wild.inputs[layer][:, ::16] = 300.0
    found, _, _ = run(tmp_path, CARDS_OWN, memory=Memory(wild.inputs, "wild"))
    errors = found.layers[layer].formats["nvfp4"]
    assert errors.rounded > 0.8 and errors.stored < 0.1 and found.spoiled == [layer]


def test_progress_ends_where_it_said(tmp_path):
    told = []
    run(tmp_path, CARDS_OWN, "rtx30", on_progress=told.append)      # two passes
    assert told[-1].done_bytes == told[-1].total_bytes == 2 * sum(
        tensor.nbytes for key, tensor in tiny.base(blocks=1, ffn=512).items() if key.removesuffix(".weight") in tiny.linears(1))


@pytest.mark.parametrize(("which", "request_"), [
    (CARDS_OWN, {"card": "rtx50", "budget_gb": 0.002}), (GGUFS, {"container": "gguf", "budget_gb": 0.002, "card": "rtx30"})])
def test_a_budget_after_it_measures_nothing_again(tmp_path, which, request_):
    run(tmp_path, which)
    with plan_recipe(tiny.recipe(tmp_path / "out", {"model": str(tmp_path / "m.safetensors")}), tmp_path / "r") as plan:
        solve(plan, parse({"version": 1, **request_}), reports=tmp_path / "r", calibration={"model": Inputs(memory())})
    assert len(list((tmp_path / "r").glob("trial-*"))) == 1
