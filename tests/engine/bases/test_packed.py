"""Packed bases: every format that ComfyUI loads is read as comfy-kitchen, which ComfyUI decodes with, decodes it."""
import dataclasses
import json
import random

import pytest
import torch
from safetensors.torch import save_file
from wan22_master.engine.bases import packed as packed_weights
from wan22_master.engine.bases.names import to_diffusers
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.errors import SourceError
from wan22_master.tests.engine.packed_base import DIM, KINDS, SHAPES, assert_equal, opened, packed, plain
from wan22_master.tests.engine.stored_base import read_at_once, saved


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_that_comfy_kitchen_decodes(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(packed_weights, "PIECE", 9000)    # 35 rows of 256: cut inside the tiles
    tensors, wanted = packed([kind])
    draw = random.Random(5)
    with opened(tmp_path, tensors) as source:
        assert source.formats == dict.fromkeys(wanted, KINDS[kind][2]["format"])
        assert source.lossy == KINDS[kind][2]["format"]
        assert set(source.keys()) == set(wanted) | set(plain())
        for key, weight in wanted.items():
            assert (source.spec(key).shape, source.spec(key).dtype) == (tuple(weight.shape), torch.bfloat16)
            whole = source.read(key)
            assert_equal(whole, weight, kind)
            ends = [sorted(draw.sample(range(len(weight) + 1), 2)) for _ in range(8)]
            for start, stop in [(0, 0), (128, 129), (len(weight) - 1, len(weight)), *ends]:
                source.advise(key, (start, stop))
                out = torch.full((stop - start + 2, weight.shape[1]), torch.nan)
                assert source.read(key, (start, stop), out[1:-1]).data_ptr() == out[1:-1].data_ptr()
                assert torch.equal(out[1:-1], whole[start:stop])
                assert out[0].isnan().all()
                assert out[-1].isnan().all()


@pytest.mark.parametrize("says", ["comfy_quant", "metadata"])
@pytest.mark.parametrize(("prefix", "rename"), [("", str), ("model.diffusion_model.", str), ("", to_diffusers)])
def test_a_format_is_found_however_the_file_says_it(tmp_path, says, prefix, rename):
    kinds = ["nvfp4", "int8 row", "asym_w4a8_int8"]
    tensors, wanted = packed(kinds, says=says == "comfy_quant")
    layers = {rename(layer): KINDS[kind][2] for layer, kind in zip(SHAPES, kinds, strict=True)}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})} if says == "metadata" else None
    path = saved(tmp_path / "base.safetensors", {prefix + rename(key): value for key, value in tensors.items()}, metadata)
    with pytest.raises(SourceError, match=r"blocks\.\d\.\S+\.weight: expected 16 or 32-bit weights, found \w+; .*allow_quantized"):
        open_source(path)
    with open_source(path, allow_lossy=True) as source:
        assert source.lossy == "1 asym_w4a8_int8, 1 int8_tensorwise, 1 nvfp4"
        for (key, weight), kind in zip(wanted.items(), kinds, strict=True):
            assert_equal(source.read(key), weight, kind)


def test_codes_and_scales_may_lie_in_different_shards(tmp_path):
    tensors, wanted = packed(["nvfp4", "mxfp8", "convrot_w4a4"])
    scales = {key for key in tensors if "_scale" in key}
    for number, part in enumerate(({key: tensors[key] for key in tensors.keys() - scales}, {key: tensors[key] for key in scales})):
        save_file(part, tmp_path / f"base-0000{number + 1}-of-00002.safetensors")
    with open_source(tmp_path, allow_lossy=True) as source:
        for (key, weight), kind in zip(wanted.items(), ("nvfp4", "mxfp8", "convrot_w4a4"), strict=True):
            assert_equal(source.read(key, (5, 200)), weight[5:200], kind)
            stored = [tensor.nbytes for name, tensor in tensors.items() if name.startswith(key)]
            assert source.nbytes(key) == sum(stored)


def test_a_mixed_file_is_graded_by_the_number_of_each_format(tmp_path):
    tensors, wanted = packed(["nvfp4", "nvfp4", "mxfp8"])
    eight = {"blocks.1.self_attn.k.weight": torch.zeros(DIM, DIM, dtype=torch.float8_e4m3fn), "scaled_fp8": torch.zeros(2),
             "blocks.1.self_attn.k.scale_weight": torch.tensor(0.5)}
    with opened(tmp_path, tensors | eight) as source:
        assert source.lossy == "2 nvfp4, 1 float8_e4m3fn, 1 mxfp8"
        assert source.formats == dict(zip([*wanted, "blocks.1.self_attn.k.weight"], ["nvfp4", "nvfp4", "mxfp8", "float8_e4m3fn"],
                                          strict=True))
        assert source.spec("blocks.1.self_attn.k.weight").dtype == torch.float8_e4m3fn


def test_no_more_than_a_piece_is_decoded_at_once(tmp_path, monkeypatch):
    """The memory of a band: 128 rows of the widest layers are several times that."""
    monkeypatch.setattr(packed_weights, "PIECE", 1 << 14)
    decoded = []

    class Spy:
        def __init__(self, form):
            self.form = form

        def dequantize(self, parts, rows):
            found = self.form.dequantize(parts, rows)
            decoded.append(found.numel())
            return found

    kinds = ["nvfp4", "int8 row", "convrot_w4a4"]
    tensors, _ = packed(kinds, {f"blocks.{number}.ffn.2": (DIM, DIM) for number in range(3)})
    with opened(tmp_path, tensors) as source:
        for key in source.formats:
            place = source._places[key]
            form = dataclasses.replace(place.packed, form=Spy(place.packed.form))
            source._places[key] = dataclasses.replace(place, packed=form)
            source.read(key, (64, DIM))
    assert sum(decoded) == 3 * 192 * DIM
    assert max(decoded) == 1 << 14


def test_threads_that_read_packed_weights_at_once_read_the_same(tmp_path):
    tensors, wanted = packed(["nvfp4", "mxfp8", "int8 row"])
    with opened(tmp_path, tensors) as source:
        bands = [(key, (start, min(start + 37, len(wanted[key])))) for key in wanted for start in range(0, len(wanted[key]), 37)]
        bands *= 3
        together = read_at_once(source, bands)
    for (key, (start, stop)), found in zip(bands, together, strict=True):
        assert torch.equal(found, wanted[key][start:stop])
