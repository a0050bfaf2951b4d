"""A part that does not hold what was computed never gets a model's name."""

import pytest
import torch
from comfy_kitchen.float_utils import to_blocked
from wan22_master.engine.errors import HeaderError, TensorError
from wan22_master.engine.jobs import verify, write_expert
from wan22_master.engine.jobs.sample import rows_of
from wan22_master.tests.engine import tiny

FORMATS = {name: {"format": name} for name in ("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "convrot_w4a4",
                                               "asym_w4a8_int8", "bf16", "fp32")}
FORMATS |= {f"int8 {scaling}": {"format": "int8_tensorwise", "int8_scaling": scaling} for scaling in ("convrot", "row", "tensor")}
LINEAR = "blocks.0.ffn.0.weight"
FFN = 512
# Scales by the suffix of their tensor: of the whole weight, of a row, of a block of it.
WHOLE = {"float8_e4m3fn": "_scale", "float8_e5m2": "_scale", "nvfp4": "_scale_2", "int8 tensor": "_scale"}
BY_ROW = {"int8 convrot": "_scale", "int8 row": "_scale", "convrot_w4a4": "_scale", "asym_w4a8_int8": "_s_channel"}
BY_BLOCK = {"nvfp4": "_scale", "mxfp8": "_scale", "asym_w4a8_int8": "_s_rel"}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Widths that the rotated formats take, 256 and 512; 4 tiles of 128 rows in ffn.0."""
    monkeypatch.setattr(tiny, "DIM", 256)


def tampering(monkeypatch, change):
    """Let `change(content, plan of the output)` loose on the part, after it is complete and before it is checked."""
    check = verify.check

    def faulty(part, out, *more):
        with open(part, "r+b") as file:
            content = bytearray(file.read())
            content = change(content, out) or content
            file.seek(0)
            file.write(content)
            file.truncate()
        return check(part, out, *more)

    monkeypatch.setattr(write_expert.verify, "check", faulty)


def flip(key, row):
    """Change the values of one row of a tensor: the top bit but one of every value, so that its size changes."""

    def change(content, out):
        spec, start = out.layout.tensors[key]
        nbytes, width = spec.nbytes // spec.shape[0], spec.dtype.itemsize
        for place in range(start + row * nbytes + width - 1, start + (row + 1) * nbytes, width):
            content[place] ^= 0x20

    return change


def flip_number(key, number):
    """Change one number of a stored tensor by a half of it or so: the top bit of a float32's fraction, the low bit of the exponent
    of a scale of one byte."""

    def change(content, out):
        spec, start = out.layout.tensors[key]
        place, bit = {torch.float32: (4 * number + 2, 0x40), torch.float8_e4m3fn: (number, 0x08)}.get(spec.dtype, (number, 0x01))
        content[start + place] ^= bit

    return change


def place_of(form, row, columns):
    """Number in the stored tensor of the scale of a row's first block; comfy-kitchen's own swizzle, of the scales' numbers."""
    blocks = columns // {"nvfp4": 16, "mxfp8": 32, "asym_w4a8_int8": 16}[form]
    if form == "asym_w4a8_int8":
        return row * blocks                        # not swizzled
    numbers = torch.arange(FFN * blocks, dtype=torch.float32).view(FFN, blocks)
    return to_blocked(numbers, flatten=False).flatten().tolist().index(row * blocks)


@pytest.fixture
def wish(tmp_path):
    lora = {"files": {"model": tiny.save(tmp_path / "l.safetensors", tiny.lora(ffn=FFN))}}
    path = tiny.save(tmp_path / "m.safetensors", tiny.base(ffn=FFN))
    return lambda form: tiny.recipe(tmp_path / "out", {"model": path}, [lora], [FORMATS[form]], save={"name": "%title%"})


def expect_found(tmp_path, recipe, key):
    """The run is refused because of this weight, and nothing is renamed."""
    with pytest.raises(TensorError, match=r"rows on disk decode to .* delete the \.part file") as told:
        tiny.go(recipe, tmp_path / "r")
    assert told.value.key == key and told.value.stage == "verify"
    assert sorted(tiny.files(tmp_path / "out")) == ["mix.safetensors.job.json", "mix.safetensors.part"]


@pytest.mark.parametrize(("form", "key"), [
    *((form, key) for form in FORMATS for key in (LINEAR, "blocks.1.self_attn.q.weight")),
    *((form, key) for form in ("float8_e4m3fn", "bf16", "fp32") for key in ("patch_embedding.weight", "head.modulation")),
])
def test_a_sampled_row_that_differs_on_disk_is_named_and_nothing_is_renamed(tmp_path, wish, monkeypatch, form, key):
    tampering(monkeypatch, flip(key, rows_of(key, tiny.shapes(ffn=FFN)[key][0])[-1]))
    expect_found(tmp_path, wish(form), key)


@pytest.mark.parametrize(("form", "suffix"), WHOLE.items())
def test_a_flipped_scale_of_the_tensor_is_found(tmp_path, wish, monkeypatch, form, suffix):
    tampering(monkeypatch, flip_number(LINEAR + suffix, 0))
    expect_found(tmp_path, wish(form), LINEAR)


@pytest.mark.parametrize(("form", "suffix"), BY_ROW.items())
def test_a_flipped_scale_of_a_sampled_row_is_found(tmp_path, wish, monkeypatch, form, suffix):
    tampering(monkeypatch, flip_number(LINEAR + suffix, rows_of(LINEAR, FFN)[-1]))
    expect_found(tmp_path, wish(form), LINEAR)


@pytest.mark.parametrize(("form", "suffix"), BY_BLOCK.items())
def test_a_flipped_scale_of_one_block_of_a_sampled_row_is_found(tmp_path, wish, monkeypatch, form, suffix):
    tampering(monkeypatch, flip_number(LINEAR + suffix, place_of(form, rows_of(LINEAR, FFN)[-1], tiny.DIM)))
    expect_found(tmp_path, wish(form), LINEAR)


@pytest.mark.parametrize("number", [0, 8, 15])
def test_a_flipped_value_of_the_codebook_is_found(tmp_path, wish, monkeypatch, number):
    tampering(monkeypatch, flip_number(f"{LINEAR}_codebook", number))
    expect_found(tmp_path, wish("asym_w4a8_int8"), LINEAR)


@pytest.mark.parametrize("form", FORMATS)
def test_an_untouched_part_passes(tmp_path, wish, monkeypatch, form):
    tampering(monkeypatch, lambda content, out: None)
    tiny.go(wish(form), tmp_path / "r")
    assert list(tiny.files(tmp_path / "out")) == ["mix.safetensors"]


def test_a_wrong_scale_is_found(tmp_path, wish, monkeypatch):
    def change(content, out):
        start = out.layout.tensors["blocks.0.ffn.2.weight_scale"][1]
        content[start : start + 4] = (torch.frombuffer(content[start : start + 4], dtype=torch.float32) * 1.01).numpy().tobytes()

    tampering(monkeypatch, change)
    with pytest.raises(TensorError, match=r"^blocks\.0\.ffn\.2\.weight: verify failed"):
        tiny.go(wish("float8_e4m3fn"), tmp_path / "r")


def test_a_part_cut_short_is_found(tmp_path, wish, monkeypatch):
    tampering(monkeypatch, lambda content, out: content[:-1])
    with pytest.raises(HeaderError, match="truncated"):
        tiny.go(wish("bf16"), tmp_path / "r")
    assert "mix.safetensors" not in tiny.files(tmp_path / "out")


def test_a_header_that_is_not_the_planned_one_is_found(tmp_path, wish, monkeypatch):
    def change(content, out):
        place = content.index(b'"blocks.0.ffn.0.bias"')
        content[place : place + 21] = b'"blocks.0.ffn.0.bIas"'

    tampering(monkeypatch, change)
    with pytest.raises(TensorError, match=r"^blocks\.0\.ffn\.0\.bIas: verify failed: .* delete the \.part file"):
        tiny.go(wish("bf16"), tmp_path / "r")


def test_a_part_that_failed_is_kept_and_can_be_looked_at_again(tmp_path, wish, monkeypatch):
    tampering(monkeypatch, flip(LINEAR, rows_of(LINEAR, FFN)[0]))
    with pytest.raises(TensorError):
        tiny.go(wish("bf16"), tmp_path / "r")
    monkeypatch.undo()
    report = tiny.go(wish("bf16"), tmp_path / "r")  # only what is whole is kept, the rest is made again
    [out] = report["experts"][0]["outputs"]
    assert 0 < out["resumed"] < len(tiny.shapes())
    damaged = tiny.files(tmp_path / "out")
    (tmp_path / "out" / "mix.safetensors").unlink()
    tiny.go(wish("bf16"), tmp_path / "r2")
    assert tiny.files(tmp_path / "out") == damaged
