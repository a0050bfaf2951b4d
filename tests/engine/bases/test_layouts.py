"""What a file says of a packed layer: spellings that ComfyUI takes are taken, what does not fit is refused by its name."""
import pytest
import torch
from wan22_master.engine.errors import SourceError
from wan22_master.tests.engine.packed_base import DIM, KINDS, assert_equal, made, opened, packed, plain, quant


def test_scales_may_be_stored_as_bytes_or_in_another_shape(tmp_path):
    kinds = ["nvfp4", "mxfp8", "asym_w4a8_int8", "convrot_w4a4", "int8 tensor", "int8 row"]
    tensors, wanted = packed(kinds, {f"blocks.{number}.ffn.0": (192, DIM) for number in range(6)})
    for number, suffix in enumerate(("_scale", "_scale", "_s_rel")):
        tensors[f"blocks.{number}.ffn.0.weight{suffix}"] = tensors[f"blocks.{number}.ffn.0.weight{suffix}"].view(torch.uint8)
    tensors["blocks.0.ffn.0.weight_scale_2"] = tensors["blocks.0.ffn.0.weight_scale_2"].reshape(1)
    tensors["blocks.3.ffn.0.weight_scale"] = tensors["blocks.3.ffn.0.weight_scale"].reshape(-1, 1)
    tensors["blocks.4.ffn.0.weight_scale"] = tensors["blocks.4.ffn.0.weight_scale"].reshape(1)
    tensors["blocks.5.ffn.0.input_scale"] = torch.tensor(0.5)
    with opened(tmp_path, tensors) as source:
        for (key, weight), kind in zip(wanted.items(), kinds, strict=True):
            assert_equal(source.read(key, (130, 190)), weight[130:190], kind)


@pytest.mark.parametrize(("kind", "rows", "stored_rows"), [("nvfp4", 40, 48), ("mxfp8", 40, 64), ("nvfp4", 130, 144)])
def test_rows_beyond_the_bias_are_padding(tmp_path, kind, rows, stored_rows):
    stored, wanted = made(kind, (rows, DIM))
    assert wanted.shape == (stored_rows, DIM)
    layer = "blocks.0.ffn.0"
    tensors = plain() | {f"{layer}.weight{suffix}": tensor for suffix, tensor in stored.items()}
    tensors |= {f"{layer}.comfy_quant": quant(KINDS[kind][2]), f"{layer}.bias": torch.zeros(rows)}
    with opened(tmp_path, tensors) as source:
        assert source.spec(f"{layer}.weight").shape == (rows, DIM)
        assert torch.equal(source.read(f"{layer}.weight"), wanted[:rows])
        assert torch.equal(source.read(f"{layer}.weight", (rows - 3, rows)), wanted[rows - 3:rows])
        with pytest.raises(ValueError, match="rows within dim 0"):
            source.read(f"{layer}.weight", (0, stored_rows))


def says(**setting):
    return {"comfy_quant": quant(setting)}


LAYER = "blocks.0.self_attn.q"
CHANGES = {  # what is wrong: (kind, tensors that replace others, None removes one; what the refusal must say)
    "float scale": ("nvfp4", {"weight_scale": torch.ones(256, 16)}, r"weight_scale: expected F8_E4M3 \[256, 16\], found F32"),
    "short scale": ("nvfp4", {"weight_scale": torch.zeros(128, 16, dtype=torch.uint8)}, r"F8_E4M3 \[256, 16\], found U8 \[128"),
    "no scale": ("nvfp4", {"weight_scale": None}, "weight_scale: expected as a part of nvfp4, found none"),
    "no second scale": ("nvfp4", {"weight_scale_2": None}, "weight_scale_2: expected as a part of nvfp4"),
    "scale NaN": ("nvfp4", {"weight_scale_2": torch.tensor(torch.nan)}, "weight_scale_2: expected a finite scale above 0"),
    "smoothed": ("nvfp4", {"pre_quant_scale": torch.ones(DIM)}, "pre_quant_scale: weights are smoothed"),
    "no weight": ("nvfp4", {"weight": None}, "found no weight"),
    "16-bit weight": ("nvfp4", {"weight": torch.zeros(DIM, DIM, dtype=torch.bfloat16)}, r"expected U8 \[256, 256\], found BF16"),
    "five axes": ("nvfp4", {"weight": torch.zeros(DIM, 16, 1, 2, 2, dtype=torch.uint8)}, r"weight: .*\[256, 16, 1, 2, 2\]"),
    "odd bias": ("nvfp4", {"bias": torch.zeros(100)}, r"weight: expected U8 \[112, 128\], found U8 \[256, 128\]"),
    "scale a column": ("int8 row", {"weight_scale": torch.ones(DIM)}, r"weight_scale: expected F32 \[256, 1\], found F32 \[256\]"),
    "whole scale": ("int8 row", {"weight_scale": torch.ones(DIM, 1, dtype=torch.int32)}, r"expected F32 \[256, 1\], found I32"),
    "bytes": ("int8 row", {"weight": torch.zeros(DIM, DIM, dtype=torch.uint8)}, r"expected I8 \[256, 256\], found U8"),
    "scales of half the rows": ("convrot_w4a4", {"weight_scale": torch.ones(128)}, r"expected F32 \[256\], found F32 \[128\]"),
    "codebook inf": ("asym_w4a8_int8", {"weight_codebook": torch.full((16,), torch.inf)}, "weight_codebook: expected finite"),
    "offsets": ("asym_w4a8_int8", {"weight_correction": torch.ones(16, DIM)}, "weight_correction: weights have an offset"),
    "rotated by 64": ("int8 convrot", says(format="int8_tensorwise", convrot=True, convrot_groupsize=64),
                      "expected convrot_groupsize 256, found int8_tensorwise with convrot_groupsize 64"),
    "groups of 32": ("asym_w4a8_int8", says(format="asym_w4a8_int8", params={"group_size": 32}),
                     "expected group_size 16, found asym_w4a8_int8 with group_size 32"),
    "block FP8": ("mxfp8", says(format="float8_e4m3fn_blockwise"), "found float8_e4m3fn_blockwise, which"),
    "row FP8": ("mxfp8", says(format="float8_e4m3fn_rowwise"), "found float8_e4m3fn_rowwise, which"),
    "block INT8": ("int8 row", says(format="int8_blockwise"), "found int8_blockwise, which is not read back"),
}


@pytest.mark.parametrize("wrong", CHANGES)
def test_what_cannot_be_read_back_is_refused_by_its_name_even_when_lossy_is_allowed(tmp_path, wrong):
    kind, changes, message = CHANGES[wrong]
    tensors, _ = packed([kind], {LAYER: (DIM, DIM)})
    tensors |= {f"{LAYER}.{name}": tensor for name, tensor in changes.items()}
    with pytest.raises(SourceError, match=message) as caught:
        opened(tmp_path, {key: tensor for key, tensor in tensors.items() if tensor is not None})
    assert LAYER in str(caught.value)
