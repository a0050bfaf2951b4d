"""A file's claims about its quantized layers: nothing is read that is no entry and no single number."""
import json
import re

import pytest
import torch
from wan22_master.engine.bases import quant_entries, stated
from wan22_master.engine.bases.quant_entries import LONGEST
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.errors import SourceError
from wan22_master.engine.header import read_header
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine.stored_base import saved, wan

LAYER = "blocks.0.ffn.0"


def never(key: str) -> bytes:
    raise AssertionError(f"{key} was read")


def base(entry: bytes, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A model with one layer in FP8, whose entry is given."""
    tensors = wan(torch.bfloat16)
    tensors[f"{LAYER}.weight"] = tensors[f"{LAYER}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{LAYER}.comfy_quant"] = torch.frombuffer(bytearray(entry), dtype=torch.uint8)
    return tensors | {f"{LAYER}.weight_scale": torch.tensor(0.5)} | {f"{LAYER}.{name}": each for name, each in more.items()}


def test_a_number_is_read_only_where_there_is_one():
    for shape, dtype in (((10**12,), torch.float32), ((0,), torch.float32), ((), torch.int32)):
        assert quant_entries.number(TensorSpec(shape, dtype), "a", never) is None
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        stored = torch.tensor([0.375], dtype=dtype).view(torch.uint8).numpy().tobytes()
        assert quant_entries.number(TensorSpec((1,), dtype), "a", lambda _, stored=stored: stored) == 0.375


def test_an_entry_is_read_up_to_its_longest_and_no_further():
    found = quant_entries.read_entries({"a.comfy_quant": TensorSpec((LONGEST + 1,), torch.uint8), "a.weight": None}, never)
    assert found == ({"a": {}}, {"a.comfy_quant": f"expected at most {LONGEST} bytes of JSON, found {LONGEST + 1}"})
    text = b'{"format": "nvfp4"}'.ljust(LONGEST)
    assert quant_entries.read_entries({"a.comfy_quant": TensorSpec((LONGEST,), torch.uint8)}, lambda _: text) == (
        {"a": {"format": "nvfp4"}}, {})


def test_a_base_with_an_entry_that_is_too_long_is_refused_by_its_key(tmp_path):
    path = saved(tmp_path / "m.safetensors", base(b'{"format": "float8_e4m3fn"}'.ljust(LONGEST + 1)))
    with pytest.raises(SourceError, match=rf"{re.escape(LAYER)}\.comfy_quant: expected at most {LONGEST} bytes of JSON"):
        open_source(path, allow_lossy=True)


def test_the_older_marker_overrules_a_layers_own_entry_for_every_reader(tmp_path):
    # ComfyUI comfy/utils.py, convert_old_quants: it writes the entries of the layers with scale_weight anew
    tensors = base(b'{"format": "nvfp4"}', scale_weight=torch.tensor(0.5)) | {"scaled_fp8": torch.zeros(1)}
    del tensors[f"{LAYER}.weight_scale"]
    path = saved(tmp_path / "m.safetensors", tensors)
    with open_source(path, allow_lossy=True) as source:
        assert source.formats == {f"{LAYER}.weight": "float8_e4m3fn"}
    headers = [read_header(path)]
    with stated.fetching(headers) as fetch:
        assert stated.read(headers, fetch).layers == {LAYER: {"format": "float8_e4m3fn"}}


def test_the_older_marker_says_nothing_where_the_header_does(tmp_path):
    said = {"_quantization_metadata": json.dumps({"layers": {LAYER: {"format": "float8_e5m2"}}})}
    path = saved(tmp_path / "m.safetensors", base(b"{}") | {"scaled_fp8": torch.zeros(1)}, said)
    headers = [read_header(path)]
    with stated.fetching(headers) as fetch:
        found = stated.read(headers, fetch)
    assert found.layers == {LAYER: {"format": "float8_e5m2"}} and not found.is_legacy
