"""Output errors of a trial, against plain float64 products of comfy-kitchen's weights and inputs."""
import json

import pytest
import torch
from wan22_master.engine.calibration.layer_inputs import Inputs
from wan22_master.engine.jobs.carry import Ride
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.trial import Trial, Wanted, measure, tiles_of
from wan22_master.engine.progress import Clock, silent
from wan22_master.quant.formats import Options, form_of
from wan22_master.tests.engine import kitchen, tiny
from wan22_master.tests.engine.calibrated import Memory

FFN = 640
TALL, SMALL = "blocks.0.ffn.0", "blocks.0.self_attn.q"
NAMES = ("nvfp4", "float8_e4m3fn", "mxfp8", "int8_tensorwise", "asym_w4a8_int8", "Q4_K", "keep")
MARGIN = 1.5                                       # no power of two, which would move no FP8 code


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A group of the rotated formats, and a block of Q4_K."""
    monkeypatch.setattr(tiny, "DIM", 256)


def weights():
    return tiny.base(blocks=1, ffn=FFN)


def tried(tmp_path, memory: Memory, names=NAMES, layers=(TALL, SMALL), **more) -> dict[str, Trial]:
    model = tmp_path / "m.safetensors"
    if not model.exists():                         # written again, it would be another file
        tiny.save(model, weights())
    with plan_recipe(tiny.recipe(tmp_path / "out", {"model": str(model)}), tmp_path / "r") as plan:
        ride = Ride(plan.device, Clock(1, silent), bool, tmp_path / "r")
        return measure(plan.experts[0], Wanted(names, inputs=Inputs(memory, MARGIN, **more)), ride, layers)


def rows_of(layer: str) -> torch.Tensor:
    """The tried rows of a layer, float64."""
    weight = weights()[f"{layer}.weight"].double()
    return weight[[row for first, stop in tiles_of(f"{layer}.weight", len(weight)) for row in range(first, stop)]]


def off(tokens: torch.Tensor, weight: torch.Tensor, found: torch.Tensor, taken: torch.Tensor | None = None) -> float:
    """‖XWᵀ - X̂Ŵᵀ‖ / ‖XWᵀ‖ in float64."""
    wanted = tokens.double() @ weight.T
    return ((wanted - (tokens if taken is None else taken).double() @ found.double().T).norm() / wanted.norm()).item()


def stored(weight: torch.Tensor, name: str, importance=None, search="balanced") -> torch.Tensor:
    """Ŵ by the pack's own encoders, whose bytes have oracles of their own."""
    form = form_of(name, Options(search))
    stats = form.combine([form.measure(weight)]) if form.measure else None
    return form.dequantize(form.quantize(weight, stats, importance=importance) | form.constants(stats))[:, :weight.shape[1]]


def test_weights_alone_are_judged_by_tokens_of_the_other_half(tmp_path):
    memory = Memory.of_model(weights())
    found = tried(tmp_path, memory)
    for layer in (TALL, SMALL):
        weight, held = rows_of(layer), memory.tokens(layer, 1)
        told = found[layer].outputs.formats
        assert found[layer].outputs.count == len(held) == 128
        for name in ("mxfp8", "int8_tensorwise"):  # no scale of the tensor, no search: comfy-kitchen's bytes
            # float32 products of 256 numbers; INT8's rotation rounds otherwise there in a code of 10^5
            assert told[name].weights == pytest.approx(off(held, weight, kitchen.rounded(weight.float(), name)[1]), rel=1e-3)
            assert told[name].weighted is None
        assert told["keep"].weights == pytest.approx(off(held, weight, weight.bfloat16()), rel=1e-3, abs=1e-9)
        assert told["keep"].rounded is None and told["Q4_K"].rounded is None


def test_weighted_searches_take_mean_squares_of_the_first_half(tmp_path):
    memory = Memory.of_model(weights())
    found = tried(tmp_path, memory, ("nvfp4", "Q4_K"))[SMALL].outputs
    weight, (means, _), held = rows_of(SMALL), memory.columns(SMALL, 0), memory.tokens(SMALL, 1)
    for name in ("nvfp4", "Q4_K"):
        assert found.formats[name].weights == pytest.approx(off(held, weight, stored(weight.float(), name)), rel=1e-4)
        wanted = off(held, weight, stored(weight.float(), name, means.float()))
        assert found.formats[name].weighted == pytest.approx(wanted, rel=1e-4)
        assert wanted < 0.85 * found.formats[name].weights         # lognormal sizes: see benchmarks/calibrated_error.py
    assert found.weighing_helps and found.gain < 0.85


def test_inputs_are_rounded_by_the_calibrated_amax_with_its_margin(tmp_path):
    memory = Memory.of_model(weights())
    found = tried(tmp_path, memory)[SMALL].outputs.formats
    weight, held, (means, _) = rows_of(SMALL), memory.tokens(SMALL, 1), memory.columns(SMALL, 0)
    amax = memory.inputs[SMALL].abs().max().item() * MARGIN
    for name, largest in (("nvfp4", 2688), ("float8_e4m3fn", 448)):
        layout = {"nvfp4": kitchen.TensorCoreNVFP4Layout, "float8_e4m3fn": kitchen.TensorCoreFP8Layout}[name]
        taken = layout.dequantize(*layout.quantize(held.contiguous(), scale=torch.tensor(amax) / largest))
        ours = stored(weight.float(), name, means.float() if name == "nvfp4" else None)
        assert found[name].rounded == pytest.approx(off(held, weight, ours, taken), rel=1e-4)
        assert found[name].rounded > found[name].stored
    layout = kitchen.TensorCoreMXFP8Layout
    taken = layout.dequantize(*layout.quantize(held.contiguous()))
    assert found["mxfp8"].rounded == pytest.approx(off(held, weight, stored(weight.float(), "mxfp8"), taken), rel=1e-4)
    assert found["int8_tensorwise"].rounded > found["int8_tensorwise"].weights


def test_a_card_that_reads_back_rounds_no_input(tmp_path):
    found = tried(tmp_path, Memory.of_model(weights()), card="rtx30")[SMALL].outputs.formats
    assert found["nvfp4"].rounded is None and found["mxfp8"].rounded is None and found["int8_tensorwise"].rounded is not None


def test_layers_without_tokens_have_no_output_error_and_keep_that_of_their_weight(tmp_path):
    memory = Memory.of_model(weights())
    full = tried(tmp_path, memory, ("mxfp8",))
    del memory.inputs[SMALL]
    memory.inputs[TALL] = memory.inputs[TALL][:1]                   # nothing is left for the other half
    found = tried(tmp_path, memory, ("mxfp8",))
    assert found[SMALL].outputs is None and found[TALL].outputs is None
    assert [each.lost for each in found.values()] == [each.lost for each in full.values()]


@pytest.mark.parametrize("spoil", ["zeros", "zero tokens", "nan tokens", "nan weights", "narrow"])
def test_inputs_that_say_nothing_are_not_used(tmp_path, spoil):
    memory, some, nan = Memory.of_model(weights()), torch.randn(4, 256), torch.full((4, 256), torch.nan)
    memory.inputs[SMALL] = {"zeros": torch.zeros(8, 256), "zero tokens": torch.cat([some, torch.zeros(4, 256)]),
                            "nan tokens": torch.cat([some, nan]), "nan weights": torch.cat([nan, some]),
                            "narrow": torch.randn(8, 128)}[spoil]
    assert tried(tmp_path, memory, ("mxfp8",), [SMALL])[SMALL].outputs is None


def test_a_zero_layer_has_no_error_to_tell(tmp_path):
    blank = {**weights(), f"{SMALL}.weight": torch.zeros(256, 256, dtype=torch.bfloat16)}
    model = tiny.save(tmp_path / "m.safetensors", blank)
    with plan_recipe(tiny.recipe(tmp_path / "out", {"model": model}), tmp_path / "r") as plan:
        ride = Ride(plan.device, Clock(1, silent), bool, tmp_path / "r")
        found = measure(plan.experts[0], Wanted(("mxfp8",), inputs=Inputs(Memory.of_model(blank))), ride, [SMALL])
    assert found[SMALL].outputs is None


def test_it_is_kept_by_the_state_of_the_inputs_and_what_is_done_with_them(tmp_path):
    def kept() -> set[str]:
        return {path.name for path in (tmp_path / "r").glob("trial-*")}

    memory = Memory.of_model(weights(), tokens=8)
    first = tried(tmp_path, memory, ("mxfp8",), None)
    one = kept()
    assert tried(tmp_path, memory, ("mxfp8",), None) == first and kept() == one and len(one) == 1
    json.loads((tmp_path / "r" / one.pop()).read_text())            # strict enough to be read back
    tried(tmp_path, Memory(memory.inputs, "other"), ("mxfp8",), None)
    tried(tmp_path, memory, ("mxfp8",), None, card="rtx50")
    assert len(kept()) == 3
