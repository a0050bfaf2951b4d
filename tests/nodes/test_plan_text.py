"""The picture and the table of a precision plan, of a plan that is built here."""
from types import SimpleNamespace

import gguf
import pytest
import torch
from wan22_master.engine.jobs.experts import ExpertPlan
from wan22_master.engine.jobs.solve import Solved
from wan22_master.engine.jobs.trial import Trial
from wan22_master.engine.plans.plan import Choice, PrecisionPlan
from wan22_master.engine.precision import processing_order
from wan22_master.engine.specs import TensorSpec
from wan22_master.engine.synthetic import Sizes, model_shapes
from wan22_master.nodes.plan_text import on_card, on_cards, picture, table
from wan22_master.quant.formats import form_of

SPECS = {key: TensorSpec(shape, torch.bfloat16) for key, shape in model_shapes(Sizes(dim=128, ffn=256, blocks=2)).items()}
LAYERS = [key.removesuffix(".weight") for key, spec in SPECS.items() if key.startswith("blocks.") and len(spec.shape) == 2]
EXPERT = ExpertPlan("low_noise", None, SimpleNamespace(), SPECS, processing_order(SPECS))
CHOICES = {layer: Choice("nvfp4", reason="small") for layer in LAYERS} | {
    "blocks.0.ffn.2": Choice("keep", reason="edge"), "blocks.1.cross_attn.k": Choice("float8_e4m3fn", True, "listed")}
PLAN = PrecisionPlan("mine", {"low_noise": CHOICES})


def stored(layer: str, name: str) -> int:
    shape = SPECS[f"{layer}.weight"].shape
    outputs = form_of("bf16" if name == "keep" else name).outputs(shape).values()
    return sum(torch.Size(each).numel() * dtype.itemsize for each, dtype in outputs)


def drawn(trials: dict | None = None) -> dict:
    found = picture([EXPERT], Solved(PLAN, {"low_noise": trials} if trials else {}))
    assert found["version"] == 1
    return found["experts"][0]


def test_the_picture_counts_layers_and_bytes_of_each_format():
    found, linears = drawn(), {f"{layer}.weight" for layer in LAYERS}
    layers = {each["name"]: each["layers"] for each in found["formats"]}
    assert layers == {"nvfp4": 18, "keep": 1, "float8_e4m3fn": 1} and len(LAYERS) == 20
    wanted = {name: sum(stored(layer, name) for layer, each in CHOICES.items() if each.format == name) for name in layers}
    assert {each["name"]: each["bytes"] for each in found["formats"]} == wanted
    assert found["bytes"] == sum(wanted.values()) + sum(spec.nbytes for key, spec in SPECS.items() if key not in linears)
    assert (found["role"], found["title"], found["error"]) == ("low_noise", "mine", None)


def test_the_picture_of_a_plan_for_a_gguf_has_the_bytes_that_ggml_gives_its_types():
    choices = dict.fromkeys(LAYERS, Choice("Q5_0")) | {"blocks.0.ffn.2": Choice("Q4_K"), "blocks.0.ffn.0": Choice("keep")}
    found = picture([EXPERT], Solved(PrecisionPlan("p", {"low_noise": choices}), {}))["experts"][0]

    def nbytes(key: str, name: str) -> int:
        kind = gguf.GGMLQuantizationType[name]
        size, stored = gguf.GGML_QUANT_SIZES[kind]
        return SPECS[key].numel // size * stored

    linears = {f"{layer}.weight": "BF16" if each.format == "keep" else each.format for layer, each in choices.items()}
    wanted = {"Q5_0": sum(nbytes(key, "Q5_0") for key, name in linears.items() if name == "Q5_0"),
              "Q4_K": nbytes("blocks.0.ffn.2.weight", "Q4_K"), "keep": nbytes("blocks.0.ffn.0.weight", "BF16")}
    assert {each["name"]: each["bytes"] for each in found["formats"]} == wanted
    rest = {key: spec for key, spec in SPECS.items() if key not in linears}
    wide = {key for key, spec in rest.items() if len(spec.shape) == 2 and spec.numel > 1024}   # city96: BF16, all else F32
    assert found["bytes"] == sum(wanted.values()) + sum(spec.numel * (2 if key in wide else 4) for key, spec in rest.items())
    assert found["cells"][0][-1] == "Q4_K" and len(found["cards"]) == 1 and ": 100 % 16 bit: " in found["cards"][0]


def test_each_cell_says_what_its_layer_becomes():
    found = drawn()
    place = {f"blocks.{block}.{kind}": cell for block, row in enumerate(found["cells"])
             for kind, cell in zip(found["kinds"], row, strict=True)}
    assert place.pop("blocks.1.cross_attn.k") == "float8_e4m3fn 16-bit" and place.pop("blocks.0.ffn.2") == "keep"
    assert set(place.values()) == {"nvfp4"} and len(place) == 18
    assert found["kinds"] == [*(f"{kind}.{name}" for kind in ("self_attn", "cross_attn") for name in "qkvo"), "ffn.0", "ffn.2"]


def test_errors_are_told_where_every_layer_was_tried():
    trials = {layer: Trial(4.0, {"nvfp4": 0.04, "keep": 0.0, "float8_e4m3fn": 0.01}, {}) for layer in LAYERS}
    found = drawn(trials)
    assert {each["name"]: each["error"] for each in found["formats"]} == {"nvfp4": 0.1, "keep": 0.0, "float8_e4m3fn": 0.05}
    assert found["error"] == pytest.approx(((18 * 0.04 + 0.01) / (20 * 4.0)) ** 0.5)
    assert drawn({layer: Trial(4.0, {"nvfp4": 0.04}, {}) for layer in LAYERS})["error"] is None


def test_cards_of_which_the_same_is_true_share_a_line():
    first, *others = drawn()["cards"]
    assert first.startswith("RTX 50: ") and "% FP4" in first
    assert [line.partition(":")[0] for line in others] == ["RTX 40, RTX 30, RTX 20, RDNA, Arc, any other"]
    assert others[0].endswith(": 100 % 16 bit: expect little speed over BF16")


def test_the_table_names_every_layer_with_its_reason():
    lines = table(Solved(PLAN, {}))
    assert lines[0] == "low_noise: 18 nvfp4, 1 keep, 1 float8_e4m3fn" and len(lines) == 1 + len(LAYERS)
    assert "  blocks.1.cross_attn.k: float8_e4m3fn, product in 16 bit: listed" in lines
    assert "  blocks.0.ffn.2: keep: edge" in lines


def test_every_class_of_card_is_told_with_what_runs_where_and_why():
    lines = on_cards([EXPERT], Solved(PLAN, {}))
    causes = [line for line in lines if line.startswith("low_noise:   ")]
    assert any("FP4: " in line and "nvfp4: FP4 tensor cores" in line for line in causes)
    assert any("16 bit: cross_attn.k: float8_e4m3fn, emulated: full precision is asked for" in line for line in causes)
    heads = [line for line in lines if not line.startswith("low_noise:   ")]
    assert [head.split(": ")[1] for head in heads] == ["RTX 50", "RTX 40, RTX 30, RTX 20, RDNA, Arc, any other"]
    [here] = on_card([EXPERT], Solved(PLAN, {}), "rtx40")
    assert here.startswith("low_noise, cards as this machine's: RTX 40: ") and "FP4 units came with RTX 50" in here
