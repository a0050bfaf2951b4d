"""A GGUF file as a precision map: the decisions of the original converter, the counts of real models, and files that are none."""
import os
from collections import Counter

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.errors import HeaderError, SourceError
from wan22_master.engine.plans import gguf_map
from wan22_master.engine.precision import is_block_linear
from wan22_master.quant.formats import BLOCK_TYPES
from wan22_master.tests.engine.plans import models

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ3_XXS", "TQ1_0",
         "MXFP4", "I8"]
MODEL = models.small()
WEIGHTS = [key for key, spec in MODEL.items() if is_block_linear(key, spec)]


@pytest.fixture(scope="module")
def real_maps(tmp_path_factory):
    """14B and 5B: the header of the model, and what was read from a whole Q5_K_M of it."""
    folder, found = tmp_path_factory.mktemp("gguf"), {}
    for name, sizes in {"14B": {}, "5B": {"dim": 3072, "ffn": 14336, "blocks": 30}}.items():
        model = models.model(**sizes)
        path = models.write_gguf(folder / f"{name}-Q5_K_M.gguf", {key: spec.shape for key, spec in model.items()},
                                 {key: models.q5_k_m(key) for key in model})
        found[name] = model, gguf_map.types_of(path), path
    return found


def decided(key: str, found: str | None, limit: int, use_fp8: bool, edge: bool, blocks: int) -> str:
    """The converter's decision once more, straight from its description: calibration reference 1.3, and digits by hand."""
    if edge and int(key.split(".")[1]) in (0, 1, blocks - 2, blocks - 1):
        return "keep"
    if found is None or found in ("F16", "BF16", "F32"):
        return "keep"
    digits = ""
    for place, letter in enumerate(found):
        if letter == "Q" and not digits:
            for each in found[place + 1:]:
                if each not in "0123456789":
                    break
                digits += each
    if digits == "":
        return "keep"
    if int(digits) <= limit:
        return "nvfp4"
    return "float8_e4m3fn" if use_fp8 else "keep"


@given(st.data())
def test_any_map_is_decided_as_the_converter_describes_it(data):
    types = {key: found for key in WEIGHTS if (found := data.draw(st.sampled_from([*TYPES, None])))}
    limit, use_fp8, edge = data.draw(st.integers(1, 9)), data.draw(st.booleans()), data.draw(st.booleans())
    if not types:
        return
    found = gguf_map.from_gguf(MODEL, types, nvfp4_max_bitdepth=limit, use_fp8=use_fp8, keep_edge_blocks=edge)
    assert {f"{layer}.weight": choice.format for layer, choice in found.items()} == {
        key: decided(key, types.get(key), limit, use_fp8, edge, 8) for key in WEIGHTS}


def test_a_plan_for_a_gguf_copies_the_types_of_another(real_maps):
    model, types, _ = real_maps["14B"]
    found = gguf_map.copied(model, types)
    assert {f"{layer}.weight": each.format for layer, each in found.items()} == {
        key: models.q5_k_m(key) for key, spec in model.items() if is_block_linear(key, spec)}
    assert found["blocks.2.ffn.2"].reason == "Q6_K in the GGUF" and not gguf_map.oddities(model, types, found)


@pytest.mark.parametrize("name", [each.name for each in gguf.GGMLQuantizationType])
def test_a_type_that_is_not_written_becomes_the_nearest_and_is_told(name):
    types = dict.fromkeys(WEIGHTS, "Q4_0") | {WEIGHTS[0]: name}
    found = gguf_map.copied(MODEL, types)
    became, told = found[WEIGHTS[0].removesuffix(".weight")].format, gguf_map.oddities(MODEL, types, found)
    block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    if name in BLOCK_TYPES:
        assert became == name and not told
    elif block == 1:                               # floats and integers
        assert became == "keep" and bool(told) == (name not in ("F32", "F16", "BF16"))
    else:
        size, stored = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[became]]
        # half a bit away, or the least there is; Q8_1 and Q8_K are Q8_0 with sums beside it
        assert abs(8 * stored / size - 8 * nbytes / block) <= 0.6 or became in ("Q2_K", "Q8_0")
        assert told == [f"gguf map: 1 layers are of a type that is not written here and get the nearest: "
                        f"{WEIGHTS[0].removesuffix('.weight')} {name} to {became}"]


def test_a_layer_that_the_map_lacks_is_kept_and_a_map_of_another_model_is_refused():
    assert gguf_map.copied(MODEL, dict.fromkeys(WEIGHTS[1:], "Q4_K"))[WEIGHTS[0].removesuffix(".weight")].format == "keep"
    with pytest.raises(SourceError, match="choose a GGUF of this model"):
        gguf_map.copied(MODEL, {"a": "Q4_K"})


def test_the_real_14b_gives_252_nvfp4_and_108_fp8_and_40_kept(real_maps):
    model, types, path = real_maps["14B"]
    assert os.path.getsize(path) > 10e9 and os.stat(path).st_blocks * 512 < 1e6  # the data is a hole: nothing of it was needed
    found = gguf_map.from_gguf(model, types, nvfp4_max_bitdepth=5, use_fp8=True, keep_edge_blocks=True)
    assert Counter(choice.format for choice in found.values()) == {"nvfp4": 252, "float8_e4m3fn": 108, "keep": 40}
    assert found["blocks.2.self_attn.q"].reason == "Q5_K in the GGUF; at most 5 bits: nvfp4"
    assert found["blocks.39.ffn.2"].reason == "Q6_K in the GGUF; more than 5 bits: float8_e4m3fn; edge block 39: keep"
    assert not gguf_map.oddities(model, types)


def test_the_real_5b_without_fp8_gives_182_nvfp4(real_maps):
    model, types, _ = real_maps["5B"]
    found = gguf_map.from_gguf(model, types, nvfp4_max_bitdepth=5, keep_edge_blocks=True)
    assert Counter(choice.format for choice in found.values()) == {"nvfp4": 182, "keep": 118}


def test_f32_names_are_all_that_the_file_holds_in_f32(real_maps):
    model, types, _ = real_maps["5B"]
    names = set(gguf_map.fp32_names(types))
    assert names == {key for key in model if models.q5_k_m(key) == "F32"}
    assert {"patch_embedding.weight", "head.modulation", "blocks.7.ffn.0.bias"} <= names and "head.head.weight" not in names


@pytest.mark.parametrize("side", ["gguf", "model"])
def test_a_checkpoint_prefix_on_either_side_is_ignored_and_told(side):
    types = dict.fromkeys(WEIGHTS, "Q4_K")
    prefixed = {f"model.diffusion_model.{key}": name for key, name in types.items()}
    model = {f"model.diffusion_model.{key}": spec for key, spec in MODEL.items()}
    pair = (MODEL, prefixed) if side == "gguf" else (model, types)
    assert gguf_map.from_gguf(*pair) == gguf_map.from_gguf(MODEL, types)
    assert any(f"names of the {side}" in each for each in gguf_map.oddities(*pair))


def test_a_prefix_is_read_from_a_file_and_named_keys_stay_as_spelled(tmp_path):
    path = models.write_gguf(tmp_path / "a.gguf", {"blocks.0.ffn.0.bias": (8,)}, {"blocks.0.ffn.0.bias": "F32"},
                             prefix="model.diffusion_model.")
    types = gguf_map.types_of(path)
    assert types == {"model.diffusion_model.blocks.0.ffn.0.bias": "F32"} and gguf_map.fp32_names(types) == ("blocks.0.ffn.0.bias",)


def test_what_one_side_has_not_is_counted_with_names():
    types = dict.fromkeys(WEIGHTS[10:], "Q4_K") | {"blocks.8.ffn.0.weight": "Q4_K", "text_embedding.0.weight": "Q8_0"}
    types[WEIGHTS[-1]] = "MXFP4"
    told = "\n".join(gguf_map.oddities(MODEL, types))
    for text in ("10 of 80 block linears are not in it and stay unquantized: blocks.0.self_attn.q", "it has 1 block linears",
                 "1 tensors are of a type without a bit depth", "1 tensors outside the linears"):
        assert text in told


def test_a_map_of_another_model_is_refused_with_its_number_of_names():
    with pytest.raises(SourceError, match=r"80 block linears.*none of them among 2 names \(a, b\).*choose a GGUF of this model"):
        gguf_map.from_gguf(MODEL, {"a": "Q4_K", "b": "F32"})


def test_another_architecture_is_refused_by_name(tmp_path):
    path = models.write_gguf(tmp_path / "flux.gguf", {"x.weight": (32,)}, {"x.weight": "F32"}, arch="flux")
    with pytest.raises(SourceError, match=r"flux\.gguf: expected a GGUF of architecture wan, found 'flux', choose"):
        gguf_map.types_of(path)


def test_a_file_that_is_cut_anywhere_is_refused_by_name(tmp_path):
    whole = models.write_gguf(tmp_path / "a.gguf", {"blocks.0.ffn.0.weight": (32, 256)}, {"blocks.0.ffn.0.weight": "Q5_K"})
    body = whole.read_bytes()
    for length in range(0, len(body), 13):
        (tmp_path / "cut.gguf").write_bytes(body[:length])
        with pytest.raises(HeaderError, match=r"cut\.gguf: expected a (whole )?GGUF file"):
            gguf_map.types_of(tmp_path / "cut.gguf")


@pytest.mark.parametrize(("body", "found"), [(b"PK\3\4" + bytes(40), "starts with"), (b"GGUF" + b"\xff" * 40, "at most 200000")])
def test_what_is_no_gguf_is_refused_by_name(tmp_path, body, found):
    (tmp_path / "b.gguf").write_bytes(body)
    with pytest.raises(HeaderError, match=rf"b\.gguf: .*{found}"):
        gguf_map.types_of(tmp_path / "b.gguf")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HeaderError, match=r"none\.gguf: .*check the path"):
        gguf_map.types_of(tmp_path / "none.gguf")
