"""Which tensor gets which format, on the names of every kind of Wan model."""

import pytest
import torch
from wan22_master.engine.jobs import layout
from wan22_master.engine.precision import Forms, block_of, is_block_linear, kept_dtype, processing_order
from wan22_master.engine.specs import TensorSpec
from wan22_master.quant import plain
from wan22_master.quant.formats import FORMATS
from wan22_master.tests.engine import tiny

BF16 = TensorSpec((128, 128), torch.bfloat16)
LAYERS = [f"blocks.7.{name}" for name in [*tiny.ATTENTION, "cross_attn.k_img", "cross_attn.v_img", "ffn.0", "ffn.2"]]
# What ComfyUI loads wrong, or does not gain from, when it is quantized: kept as it came.
KEPT = [
    "patch_embedding",
    "text_embedding.0",
    "text_embedding.2",
    "time_embedding.0",
    "time_projection.1",
    "head.head",
    "img_emb.proj.1",
    "vace_patch_embedding",
    "vace_blocks.0.before_proj",
    "vace_blocks.0.after_proj",
    "blocks.0.self_attn.norm_q",
    "blocks.0.norm3",
    "face_adapter.fuser_blocks.0.linear1_kv",
    "casual_audio_encoder.encoder.final_linear",
    "audio_injector.injector.0.q",
    "ref_conv",
    "xblocks.0.ffn.0",
    "blocks.0.ffn.0.lora",
    "blocks.0.ffn.1",
]


@pytest.mark.parametrize("layer", [*LAYERS, "vace_blocks.3.ffn.2", "vace_blocks.0.self_attn.q", "blocks.39.cross_attn.o"])
def test_the_linears_of_the_blocks_are_quantized(layer):
    assert is_block_linear(f"{layer}.weight", BF16)
    assert Forms("float8_e4m3fn").of(f"{layer}.weight", BF16) is FORMATS["float8_e4m3fn"]
    assert not is_block_linear(f"{layer}.bias", TensorSpec((128,), torch.bfloat16))
    assert not is_block_linear(f"{layer}.weight", TensorSpec((128, 128, 1, 1, 1), torch.bfloat16))


@pytest.mark.parametrize("layer", KEPT)
def test_nothing_else_is(layer):
    assert not is_block_linear(f"{layer}.weight", BF16)
    assert Forms("float8_e4m3fn").of(f"{layer}.weight", BF16) is plain.KEPT[torch.bfloat16]
    assert Forms("float8_e4m3fn").of(f"{layer}.weight", TensorSpec((128, 128), torch.float32)) is plain.KEPT[torch.float32]


@pytest.mark.parametrize("key", ["blocks.0.modulation", "head.modulation"])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "bf16", "fp16"])
def test_modulation_keeps_its_dtype_in_every_format_but_fp32(key, name):
    spec = TensorSpec((1, 6, 128), torch.float32)
    assert Forms(name).of(key, spec) is plain.KEPT[torch.float32]
    assert Forms("fp32").of(key, TensorSpec((1, 6, 128), torch.bfloat16)) is plain.FP32


@pytest.mark.parametrize(("name", "wanted"), [("bf16", plain.BF16), ("fp16", plain.FP16), ("fp32", plain.FP32)])
def test_a_plain_format_takes_every_matrix_and_fp32_takes_all(name, wanted):
    for layer in ("blocks.0.ffn.0", "text_embedding.0", "head.head"):
        assert Forms(name).of(f"{layer}.weight", TensorSpec((128, 64), torch.float32)) is wanted
    others = [
        Forms(name).of(key, TensorSpec(shape, torch.bfloat16))
        for key, shape in (
            ("patch_embedding.weight", (128, 16, 1, 2, 2)),
            ("blocks.0.ffn.0.bias", (320,)),
            ("blocks.0.norm3.weight", (128,)),
        )
    ]
    assert others == [plain.FP32 if name == "fp32" else plain.KEPT[torch.bfloat16]] * 3


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.float8_e4m3fn, torch.bfloat16),
        (torch.float8_e5m2, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_what_is_kept_keeps_its_dtype_unless_nothing_loads_it(stored, kept):
    assert kept_dtype(TensorSpec((1,), stored)) == kept


def test_block_and_kind_of_a_key():
    assert block_of("blocks.12.cross_attn.k_img.weight") == (12, "cross_attn") and block_of("blocks.0.ffn.2.weight") == (0, "ffn")
    for key in ("vace_blocks.0.ffn.2.weight", "blocks.0.ffn.2.bias", "head.head.weight", "blocks.0.modulation"):
        assert block_of(key) is None


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.float16),
        (torch.float64, torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize("name", ["float8_e4m3fn", "bf16", "fp16", "fp32"])
def test_every_order_of_odd_sizes_lies_aligned_without_a_hole(dtypes, name):
    # odd numbers of values, dtypes mixed: only the order can keep the offsets multiples of the item sizes
    specs = {
        key: TensorSpec((*shape[:-1], shape[-1] + 1 - shape[-1] % 2), dtypes[place % 2])
        for place, (key, shape) in enumerate(tiny.shapes().items())
    }
    order = processing_order(specs)
    assert sorted(order) == sorted(specs)
    body = {key: TensorSpec(specs[key].shape, Forms(name).of(key, specs[key]).outputs(specs[key].shape)[""][1]) for key in order}
    planned = layout.place(body, {}, {}, {})  # raises when one is misaligned
    ends = [start + spec.nbytes for spec, start in planned.tensors.values()]
    assert [start for _, start in planned.tensors.values()][1:] == ends[:-1] and (
        ends[0] - next(iter(body.values())).nbytes
    ) % 64 == 0


def test_block_linears_come_last_and_each_group_keeps_the_files_order():
    specs = {key: TensorSpec(shape, tiny.dtype_of(key)) for key, shape in tiny.shapes().items()}
    order = processing_order(specs)
    linears = [f"{layer}.weight" for layer in tiny.linears()]
    assert order[-len(linears) :] == [key for key in specs if key in linears]
    for dtype in (torch.float32, torch.bfloat16):
        group = [key for key in order[: -len(linears)] if specs[key].dtype == dtype]
        assert group == [key for key in specs if key in group]
