"""FP8 bases: code times scale in all three spellings; what is not read back is refused by its name."""
import json

import pytest
import torch
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.errors import SourceError
from wan22_master.tests.engine.stored_base import DIM, FFN, saved, wan


def fp8(tensors, keys):
    """float8_e4m3fn codes for `keys`, and the scale of each."""
    scales = {key: (tensors[key].abs().max() / 448).float() for key in keys}
    return tensors | {key: (tensors[key] / scales[key]).to(torch.float8_e4m3fn) for key in keys}, scales


QUANTIZED = ["blocks.0.self_attn.q.weight", "blocks.0.ffn.0.weight", "blocks.1.ffn.0.weight", "time_projection.1.weight"]


def layer(key):
    return key.removesuffix(".weight")


def scaled_files(how):
    """An FP8 base in each of the three ways of saying so: tensors, header metadata, and the scales for the oracle."""
    tensors, scales = fp8(wan(torch.bfloat16), QUANTIZED)
    settings = {"format": "float8_e4m3fn"}
    if how == "legacy":
        extra = {f"{layer(key)}.scale_weight": scale for key, scale in scales.items()} | {"scaled_fp8": torch.zeros(2)}
        return tensors | extra | {f"{layer(QUANTIZED[0])}.scale_input": torch.tensor(1.0)}, None, scales
    extra = {f"{layer(key)}.weight_scale": scale.reshape(1) for key, scale in scales.items()}
    extra[f"{layer(QUANTIZED[0])}.input_scale"] = torch.tensor(0.5)
    if how == "metadata":
        listed = {layer(key): settings for key in scales} | {"text_encoders.other": {"format": "nvfp4"}}
        return tensors | extra, {"_quantization_metadata": json.dumps({"layers": listed})}, scales
    quant = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    return tensors | extra | {f"{layer(key)}.comfy_quant": quant.clone() for key in scales}, None, scales


@pytest.mark.parametrize("how", ["comfy_quant", "metadata", "legacy"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_scaled_fp8_is_code_times_scale(tmp_path, how, prefix):
    tensors, metadata, scales = scaled_files(how)
    path = saved(tmp_path / "fp8.safetensors", {prefix + key: value for key, value in tensors.items()}, metadata)
    with pytest.raises(SourceError, match=r"blocks\.0.*float8_e4m3fn, scaled.*allow_quantized_source"):
        open_source(path)
    with open_source(path, allow_lossy=True) as source:
        assert source.lossy == "float8_e4m3fn, scaled"
        assert set(source.keys()) == set(wan())
        for key in source.keys():  # noqa: SIM118
            wanted = tensors[key].float() * scales.get(key, torch.tensor(1.0))
            assert torch.equal(source.read(key), wanted)
            if wanted.ndim > 1:
                assert torch.equal(source.read(key, (0, len(wanted) // 2)), wanted[:len(wanted) // 2])


def test_scaled_e5m2_is_code_times_scale(tmp_path):
    key, scale = QUANTIZED[1], torch.tensor(0.37)
    codes = wan()[key].to(torch.float8_e5m2)
    quant = torch.tensor(list(b'{"format": "float8_e5m2"}'), dtype=torch.uint8)
    tensors = wan(torch.bfloat16) | {key: codes, f"{layer(key)}.weight_scale": scale, f"{layer(key)}.comfy_quant": quant}
    with open_source(saved(tmp_path / "fp8.safetensors", tensors), allow_lossy=True) as source:
        assert (source.lossy, source.formats) == ("float8_e5m2, scaled", {key: "float8_e5m2"})
        assert torch.equal(source.read(key, (3, 77)), codes[3:77].float() * scale)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_unscaled_fp8_is_the_code_itself(tmp_path, dtype):
    tensors = wan(torch.bfloat16)
    tensors["blocks.0.ffn.0.weight"] = tensors["blocks.0.ffn.0.weight"].to(dtype)
    path = saved(tmp_path / "fp8.safetensors", tensors)
    with pytest.raises(SourceError, match=rf"blocks\.0\.ffn\.0\.weight.*{str(dtype)[6:]}, unscaled.*allow_quantized_source"):
        open_source(path)
    with open_source(path, allow_lossy=True) as source:
        assert source.lossy == f"{str(dtype)[6:]}, unscaled"
        assert torch.equal(source.read("blocks.0.ffn.0.weight"), tensors["blocks.0.ffn.0.weight"].float())


def changed(how):
    """A scaled file with one thing wrong, and what the refusal must say."""
    tensors, _, _ = scaled_files("comfy_quant")
    first = layer(QUANTIZED[0])
    text = {"svdquant_w4a4": '{"format": "svdquant_w4a4"}', "float8_e4m3fn_rowwise": '{"format": "float8_e4m3fn_rowwise"}',
            "no format": "{}", "no JSON": "{{", "a list": "[]"}.get(how)
    if text:
        return tensors | {f"{first}.comfy_quant": torch.tensor(list(text.encode()), dtype=torch.uint8)}
    scales = {"zero": torch.tensor(0.0), "nan": torch.tensor(torch.nan), "per row": torch.ones(DIM, 1), "int": torch.tensor(1)}
    if how in scales:
        return tensors | {f"{first}.weight_scale": scales[how]}
    if how == "smoothed":
        return tensors | {f"{first}.pre_quant_scale": torch.ones(DIM)}
    if how == "bf16 weight":
        return tensors | {f"{first}.weight": torch.zeros(DIM, DIM, dtype=torch.bfloat16)}
    missing = {"no scale": f"{first}.weight_scale", "no weight": f"{first}.weight", "unexplained": f"{first}.comfy_quant"}[how]
    return {key: value for key, value in tensors.items() if key != missing}


@pytest.mark.parametrize(("how", "message"), [
    ("svdquant_w4a4", "found svdquant_w4a4, which is not read back"), ("no format", "name of its format"),
    ("float8_e4m3fn_rowwise", "found float8_e4m3fn_rowwise, which is not read back"), ("no JSON", "expected JSON"),
    ("a list", "expected JSON"), ("zero", "finite scale above 0"), ("nan", "finite scale above 0"),
    ("per row", r"expected one float, found F32 \[128, 1\]"), ("int", "expected one float"),
    ("smoothed", "pre_quant_scale"), ("bf16 weight", "expected an FP8 weight"), ("no scale", "expected one scale, found none"),
    ("no weight", "found no weight"), ("unexplained", "nothing explains"),
])
def test_quantized_tensors_that_cannot_be_read_back_are_refused_even_when_lossy_is_allowed(tmp_path, how, message):
    path = saved(tmp_path / "q.safetensors", changed(how))
    with pytest.raises(SourceError, match=message) as caught:
        open_source(path, allow_lossy=True)
    assert layer(QUANTIZED[0]) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool], ids=str)
def test_weights_that_are_no_floats_are_refused_by_name(tmp_path, dtype):
    tensors = wan() | {"blocks.1.norm3.weight": torch.ones(DIM, dtype=dtype)}
    with pytest.raises(SourceError, match=r"blocks\.1\.norm3\.weight: expected floating-point weights"):
        open_source(saved(tmp_path / "base.safetensors", tensors), allow_lossy=True)


def test_packed_weights_without_a_word_are_taken_for_nvfp4(tmp_path):
    packed = torch.zeros(FFN, DIM // 2, dtype=torch.uint8)
    tensors = wan() | {"blocks.0.ffn.0.weight": packed, "blocks.0.ffn.0.weight_scale_2": torch.ones(1)}
    with pytest.raises(SourceError, match="nvfp4"):
        open_source(saved(tmp_path / "base.safetensors", tensors), allow_lossy=True)
