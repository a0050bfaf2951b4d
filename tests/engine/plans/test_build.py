"""A plan from all its sources: the order of the steps, each expert with its own files, and what is told."""
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.engine.errors import HeaderError, RecipeError, SourceError
from wan22_master.engine.plans.build import build
from wan22_master.engine.plans.plan import KEEP, Choice, PrecisionPlan, block_linears, counts
from wan22_master.engine.plans.request import Include, PlanRequest
from wan22_master.tests.engine.plans import models

BLOCKS = 7  # block 3 in no edge of presets, 2 and 4 in no edge of two
MODEL = models.small(BLOCKS)
LAYERS = list(block_linears(MODEL))
PAIR = {"high_noise": MODEL, "low_noise": MODEL}
Q5 = {key: models.q5_k_m(key) for key in MODEL}


def test_the_command_line_of_the_original_as_a_request(tmp_path):
    model = models.model()
    path = models.write_gguf(tmp_path / "Wan2.2-I2V-A14B-HighNoise-Q5_K_M.gguf", {key: spec.shape for key, spec in model.items()},
                             {key: models.q5_k_m(key) for key in model})
    (tmp_path / "high.txt").write_text("blocks.2.ffn.0\nblocks.5.self_attn.oblocks.0.cross_attn.k\nblocks.7.self_attn.norm_q\n")
    plan = build({"high_noise": model, "low_noise": model}, PlanRequest(
        gguf={"both": str(path)}, gguf_nvfp4_max_bitdepth=5, use_fp8=True, keep_edge_blocks=True, kept_dtype="fp16",
        full_precision_lists={"high_noise": str(tmp_path / "high.txt")}, full_precision_switches=("cross_attn_qkvo",)))
    high, low = plan.experts["high_noise"], plan.experts["low_noise"]
    assert counts(plan, "high_noise") == counts(plan, "low_noise") == {"nvfp4": 252, "float8_e4m3fn": 108, "keep": 40}
    crossed = {f"blocks.{block}.cross_attn.{part}" for block in range(2, 38) for part in "qkvo"}
    assert {layer for layer in high if high[layer].full_precision} == crossed | {"blocks.2.ffn.0", "blocks.5.self_attn.o"}
    assert {layer for layer in low if low[layer].full_precision} == crossed
    assert high["blocks.5.self_attn.o"].reason == "Q5_K in the GGUF; at most 5 bits: nvfp4; high.txt: products in 16 bit"
    assert plan.title == "gguf-q5_k_m" and plan.kept_dtype == "fp16" and "head.modulation" in plan.fp32_names
    assert len(plan.notices) == 3 and all(each.startswith("high_noise: high.txt: 1 ") for each in plan.notices)


def oracle(layer: str, types: dict, rows: dict, asked: PlanRequest) -> str:
    """The order of decisions, written once more from its description: calibration reference 1.2, with patterns after it."""
    name, block = types.get(f"{layer}.weight"), int(layer.split(".")[1])
    digits = re.findall(r"Q([0-9]+)", name or "")
    found = KEEP
    if digits and int(digits[0]) <= asked.gguf_nvfp4_max_bitdepth:
        found = "nvfp4"
    elif digits and asked.use_fp8:
        found = "float8_e4m3fn"
    if asked.keep_edge_blocks and block in (0, 1, BLOCKS - 2, BLOCKS - 1):
        found = KEEP
    if asked.min_ffn_fp8 and ".ffn." in layer and found == "nvfp4":
        found = "float8_e4m3fn"
    if asked.min_ffn2_16bit and layer.endswith(".ffn.2"):
        found = KEEP
    if asked.sensitivity and layer in rows and rows[layer] > asked.sensitivity_threshold and asked.sensitivity_action == KEEP:
        found = KEEP
    for pattern in asked.exclude:
        found = KEEP if pattern in layer else found
    for each in asked.include:
        found = each.format if each.pattern in layer else found
    return found


WORDS = st.sampled_from(["self_attn", "ffn", "blocks", "cross_attn", "nothing"])


@settings(max_examples=40, deadline=None)  # a temporary folder each
@given(st.data())
def test_any_request_is_decided_in_the_stated_order(data):
    kinds = st.sampled_from(["Q4_K", "Q6_K", "F16", "Q5_K", "IQ4_XS", "I8", None])
    types = {f"{layer}.weight": found for layer in LAYERS if (found := data.draw(kinds))}
    rows = data.draw(st.dictionaries(st.sampled_from(LAYERS), st.sampled_from([0.1, 0.3, float("nan")])))
    if not types:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.json"
        path.write_text(json.dumps({"layers": [{"layer": layer, "rel_rmse_mean": value} for layer, value in rows.items()]}))
        asked = PlanRequest(
            gguf={"both": "a"}, gguf_nvfp4_max_bitdepth=data.draw(st.integers(3, 7)), use_fp8=data.draw(st.booleans()),
            keep_edge_blocks=data.draw(st.booleans()), min_ffn_fp8=data.draw(st.booleans()),
            min_ffn2_16bit=data.draw(st.booleans()), sensitivity={"both": str(path)} if data.draw(st.booleans()) else {},
            sensitivity_threshold=0.2, sensitivity_action=data.draw(st.sampled_from([KEEP, "full_precision"])),
            exclude=tuple(data.draw(st.lists(WORDS, max_size=2))),
            include=tuple(Include(word, name) for word, name in data.draw(
                st.lists(st.tuples(WORDS, st.sampled_from(["float8_e4m3fn", "nvfp4", KEEP])), max_size=2))),
            full_precision_switches=tuple(data.draw(st.sets(st.sampled_from(["ffn_up", "self_attn_qkvo"])))))
        plan = build({"model": MODEL}, asked, read=lambda _: types)
    found = plan.experts["model"]
    assert {layer: found[layer].format for layer in found} == {layer: oracle(layer, types, rows, asked) for layer in LAYERS}
    for layer, choice in found.items():
        assert choice.reason and not (choice.full_precision and choice.format == KEEP)
        if choice.format != KEEP and "ffn_up" in asked.full_precision_switches and layer.endswith("ffn.0"):
            assert choice.full_precision


def test_each_expert_has_its_own_map_or_that_for_both():
    read = {"h.gguf": dict.fromkeys(Q5, "Q4_K"), "b.gguf": dict.fromkeys(Q5, "Q8_0") | {"head.modulation": "F32"}}.get
    plan = build(PAIR, PlanRequest(gguf={"high_noise": "h.gguf", "both": "b.gguf"}, use_fp8=True), read=read)
    assert counts(plan, "high_noise") == {"nvfp4": 70} and counts(plan, "low_noise") == {"float8_e4m3fn": 70}
    assert plan.fp32_names == ("head.modulation",)
    with pytest.raises(RecipeError, match="expected a file for low_noise or for both, found high_noise"):
        build(PAIR, PlanRequest(gguf={"high_noise": "h.gguf"}), read=read)


def test_a_file_for_an_expert_that_is_not_there_is_told():
    plan = build({"model": MODEL}, PlanRequest(format="nvfp4", full_precision_lists={"low_noise": "l.txt"}))
    assert plan.notices == ("full_precision_lists: the file for low_noise is not used, as there is no such expert",)


def test_one_format_and_a_preset_name_every_layer_and_their_title():
    plan = build(PAIR, PlanRequest(format="nvfp4"))
    assert plan.title == "nvfp4" and counts(plan, "high_noise") == {"nvfp4": 70} and plan.fp32_names is None
    plan = build(PAIR, PlanRequest(preset="balanced", hardware="blackwell", keep_edge_blocks=True))
    assert plan.title == "balanced-blackwell" and list(plan.experts["low_noise"]) == LAYERS
    assert [plan.experts["low_noise"][f"blocks.{block}.ffn.0"].format for block in (1, 2, 3)] == [KEEP, "mxfp8", "nvfp4"]


def test_a_plan_from_a_file_may_be_changed_and_built_again(tmp_path):
    first = build(PAIR, PlanRequest(gguf={"both": "a-Q4_K_S.gguf"}, exclude=("zebra",), kept_dtype="bf16"), read=lambda _: Q5)
    assert len(first.notices) == 2  # the idle pattern, per expert: told again with the plan
    first.save(tmp_path / "p.json")
    again = build(PAIR, PlanRequest(plan=str(tmp_path / "p.json")))
    assert again == first and first.title == "gguf-q4_k_s"
    other = build(PAIR, PlanRequest(plan=str(tmp_path / "p.json"), exclude=("ffn",), kept_dtype="source"))
    assert other.kept_dtype == "source" and all(choice.format == KEEP for layer, choice in other.experts["low_noise"].items()
                                                if "ffn" in layer)


def test_a_plan_of_another_model_tells_what_it_lacks(tmp_path):
    PrecisionPlan("a", {"model": {layer: Choice("nvfp4") for layer in [*LAYERS[3:], "blocks.9.ffn.0"]}}).save(tmp_path / "p.json")
    plan = build({"low_noise": MODEL}, PlanRequest(plan=str(tmp_path / "p.json")))
    assert counts(plan, "low_noise") == {"nvfp4": 67, KEEP: 3}
    assert plan.notices == (
        "low_noise: plan a: made for model, used for low_noise",
        "low_noise: plan a: 3 layers are not in it and stay unquantized: blocks.0.self_attn.q, blocks.0.self_attn.k, "
        "blocks.0.self_attn.v",
        "low_noise: plan a: 1 of its layers are not linears of this model's blocks: blocks.9.ffn.0")
    PrecisionPlan("a", {"high_noise": {}, "low_noise": {}}).save(tmp_path / "p.json")
    with pytest.raises(RecipeError, match="plan a: expected a plan for model, found one for high_noise and low_noise"):
        build({"model": MODEL}, PlanRequest(plan=str(tmp_path / "p.json")))


def test_a_prefixed_model_is_planned_under_native_names_and_told():
    plan = build({"model": {f"model.diffusion_model.{key}": spec for key, spec in MODEL.items()}}, PlanRequest(format="nvfp4"))
    assert list(plan.experts["model"]) == LAYERS and "model.diffusion_model. before the names of the model" in plan.notices[0]


def test_what_no_format_holds_is_kept_last_of_all_and_told():
    plan = build({"model": models.model(dim=384, ffn=512, blocks=2)}, PlanRequest(
        format="nvfp4", include=(Include(".", "int8_tensorwise"),), full_precision_switches=("ffn_up", "ffn_down")))
    assert counts(plan, "model") == {KEEP: 18, "int8_tensorwise": 2}
    assert not any(choice.full_precision for choice in plan.experts["model"].values() if choice.format == KEEP)
    assert "18 layers stay unquantized" in plan.notices[0]
    assert "2 layers in INT formats multiply in int8" in plan.notices[1]


def test_a_wrong_file_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(HeaderError, match=r"a\.txt"):
        build(PAIR, PlanRequest(gguf={"both": str(tmp_path / "a.txt")}))
    with pytest.raises(SourceError, match=r"b\.gguf: gguf map: expected the 70 block linears"):
        build(PAIR, PlanRequest(gguf={"both": "b.gguf"}), read=lambda _: {"x": "Q4_K"})
    with pytest.raises(RecipeError, match=r"a\.txt: expected a sensitivity JSON"):
        build(PAIR, PlanRequest(format="nvfp4", sensitivity={"both": str(tmp_path / "a.txt")}, sensitivity_threshold=0.1))
    with pytest.raises(RecipeError, match=r"none\.txt: expected a list of layers"):
        build(PAIR, PlanRequest(format="nvfp4", full_precision_lists={"both": str(tmp_path / "none.txt")}))


def types_of(plan: PrecisionPlan, role: str = "model") -> dict[str, str]:
    return {layer: choice.format for layer, choice in plan.experts[role].items()}


@pytest.mark.parametrize(("name", "counted"), [
    ("Q4_K_M", {"Q4_K": 49, "Q6_K": 21}), ("Q4_K_S", {"Q4_K": 59, "Q5_K": 11}), ("Q3_K_M", {"Q3_K": 49, "Q4_K": 19, "Q5_K": 2}),
    ("Q8_0", {"Q8_0": 70}), ("Q4_K", {"Q4_K": 70})])
def test_a_mix_of_gguf_types_gives_v_and_ffn_2_what_its_rules_say(name, counted):
    plan = build({"model": MODEL}, PlanRequest(format=name, container="gguf"))
    assert (counts(plan, "model"), plan.title, plan.container, plan.notices) == (counted, name, "gguf", ())
    assert types_of(plan)["blocks.3.cross_attn.v"] == {"Q4_K_M": "Q6_K", "Q3_K_M": "Q4_K"}.get(name, name.removesuffix("_S"))


def test_a_gguf_map_is_copied_for_a_gguf():
    plan = build(PAIR, PlanRequest(gguf={"both": "x-Q5_K_M.gguf"}, container="gguf"), read=lambda _: Q5)
    assert types_of(plan, "low_noise") == {layer: Q5[f"{layer}.weight"] for layer in LAYERS}
    assert plan.title == "gguf-q5_k_m" and "head.modulation" in plan.fp32_names


def test_what_changes_a_plan_changes_one_for_a_gguf(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"layers": [{"layer": "blocks.3.self_attn.k", "rel_rmse_mean": 0.5}]}))
    plan = build({"model": MODEL}, PlanRequest(
        format="Q4_K_M", container="gguf", keep_edge_blocks=True, min_ffn_fp8=True, sensitivity={"both": str(tmp_path / "s.json")},
        sensitivity_threshold=0.1, exclude=(r"blocks\.3\.self_attn\.q",), include=(Include(r"blocks\.3\.cross_attn", "IQ4_XS"),)))
    found = types_of(plan)
    assert {found[layer] for layer in LAYERS if layer.split(".")[1] in "0156"} == {KEEP}
    wanted = {"self_attn.q": KEEP, "self_attn.k": KEEP, "self_attn.v": "Q6_K", "cross_attn.v": "IQ4_XS", "ffn.0": "Q8_0",
              "ffn.2": "Q8_0"}
    assert {name: found[f"blocks.3.{name}"] for name in wanted} == wanted


def test_full_precision_changes_nothing_in_a_gguf_and_is_told(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"layers": [{"layer": LAYERS[0], "rel_rmse_mean": 0.5}]}))
    plan = build({"model": MODEL}, PlanRequest(
        format="Q4_K", container="gguf", full_precision_switches=("ffn_up",), full_precision_layers=(LAYERS[1],),
        sensitivity={"both": str(tmp_path / "s.json")}, sensitivity_threshold=0.1, sensitivity_action="full_precision"))
    assert set(plan.experts["model"].values()) == {Choice("Q4_K", reason="all linears of the blocks")}
    assert plan.notices == tuple(f"{field}: changes nothing in a GGUF, whose layers are all multiplied in 16 bit" for field in (
        "full_precision_layers", "full_precision_switches", "sensitivity_action"))


def test_columns_that_a_type_cannot_hold_fall_back_as_llama_cpp_has_it_and_are_told():
    model = models.model(dim=384, ffn=528, blocks=2)           # 32 divides 384 columns, and not 528
    plan = build({"model": model}, PlanRequest(format="Q4_K_M", container="gguf"))
    assert counts(plan, "model") == {"Q5_0": 14, "Q8_0": 4, KEEP: 2}
    assert plan.experts["model"]["blocks.0.ffn.2"] == Choice(KEEP, reason="Q4_K_M: more bits for v and ffn.2; 528 columns: keep")
    assert [each.partition(":")[2].partition(":")[0] for each in plan.notices] == [
        " 14 layers become Q5_0, as their columns are no multiple of the block of Q4_K",
        " 4 layers become Q8_0, as their columns are no multiple of the block of Q6_K",
        " 2 layers stay unquantized, as their columns are no multiple of the block of Q6_K"]


@pytest.mark.parametrize(("name", "container", "said"), [
    ("nvfp4", "gguf", "expected formats of a gguf file, found those of a safetensors file; choose another plan, or safetensors as"),
    ("Q4_K", "safetensors", "expected formats of a safetensors file, found those of a gguf file; choose another plan, or gguf as")])
def test_a_plan_file_for_another_kind_of_file_is_refused(tmp_path, name, container, said):
    PrecisionPlan("a", {"model": dict.fromkeys(LAYERS, Choice(name))}).save(tmp_path / "p.json")
    with pytest.raises(RecipeError, match=f"plan a: {said}"):
        build({"model": MODEL}, PlanRequest(plan=str(tmp_path / "p.json"), container=container))
    other = {"gguf": "safetensors", "safetensors": "gguf"}[container]
    assert set(types_of(build({"model": MODEL}, PlanRequest(plan=str(tmp_path / "p.json"), container=other))).values()) == {name}
