"""Read-back: what comfy-kitchen's layouts stored, decoded whole by those layouts, is the oracle; no encoder of ours is asked."""
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from comfy_kitchen import tensor as layouts
from wan22_master.quant.plain import PLAIN
from wan22_master.quant.readback import decode_rows

ROTATED = (200, 512)                               # two groups of 256 columns
LAYOUTS = {
    "float8_e4m3fn": ("TensorCoreFP8Layout", {}, (300, 70), {}),
    "float8_e5m2": ("TensorCoreFP8Layout", {"dtype": torch.float8_e5m2}, (300, 70), {}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}, (300, 70), {}),
    "mxfp8, wide": ("TensorCoreMXFP8Layout", {}, (256, 640), {}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}, (300, 70), {}),
    "nvfp4, wide": ("TensorCoreNVFP4Layout", {}, (256, 640), {}),
    "int8_tensorwise": ("TensorWiseINT8Layout", {}, (300, 70), {}),
    "int8_tensorwise, rows": ("TensorWiseINT8Layout", {"per_channel": True}, (300, 70), {}),
    "int8_tensorwise, convrot": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True}, ROTATED,
                                 {"convrot": True, "convrot_groupsize": 256}),
    "int8_tensorwise, convrot 64": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
                                    ROTATED, {"convrot": True, "convrot_groupsize": 64}),
    "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", {}, ROTATED, {"convrot_groupsize": 256}),
    "asym_w4a8_int8": ("AsymW4A8Int8Layout", {}, ROTATED, {"group_size": 16, "convrot_groupsize": 256}),
    "asym_w4a8_int8, 32": ("AsymW4A8Int8Layout", {"group_size": 32, "convrot_groupsize": 64}, ROTATED,
                           {"group_size": 32, "convrot_groupsize": 64}),
}
cases = pytest.mark.parametrize("case", LAYOUTS)
ROWS = [7, 0, 131, 132, 199, 7]                    # any order, neighbours, twice, either side of a tile of scales


class File:
    """Stored tensors, and what was asked of them."""

    def __init__(self, parts: dict[str, torch.Tensor]):
        self.parts, self.asked = parts, []

    def __call__(self, suffix, first, stop):
        self.asked.append((suffix, first, stop))
        return self.parts[suffix] if first is None else self.parts[suffix][first:stop]


@cache
def stored(case: str):
    """(form, shape, parts, the whole weight decoded) of a Gaussian weight that a layout of comfy-kitchen stored."""
    layout, options, shape, extras = LAYOUTS[case]
    layout, name = getattr(layouts, layout), case.split(",")[0]
    weight = 0.03 * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    codes, params = layout.quantize(weight, **options)
    parts = {"": codes, "_scale": params.scale} if name.startswith("int8") else layout.state_dict_tensors(codes, params)
    constants = tuple(suffix for suffix, part in parts.items() if not part.dim() or suffix == "_codebook")
    form = SimpleNamespace(
        NAME=name, CONSTANTS=constants, GROUPS={"_scale": 128} if name in ("mxfp8", "nvfp4") else {},
        outputs=lambda shape: {suffix: (tuple(part.shape), part.dtype) for suffix, part in parts.items()},
        comfy_quant=lambda *, full_precision: {"format": name, **extras})
    return form, shape, parts, layout.dequantize(codes, params)[:shape[0], :shape[1]]


@cases
def test_rows_are_those_of_comfy_kitchens_whole_weight(case):
    form, shape, parts, whole = stored(case)
    found = decode_rows(form, shape, ROWS, File(parts))
    # A rotated weight is a sum of 256 products, whose order depends on how many rows there are: sqrt(256) roundings of 2**-24 of
    # values around 0.1 are 1e-7, and this is ten times that.
    assert found.dtype == torch.float32 and found.shape == (len(ROWS), shape[1])
    assert torch.allclose(found, whole[ROWS], rtol=0, atol=1e-6) if shape == ROTATED else torch.equal(found, whole[ROWS])
    last = shape[0] - 1
    assert torch.allclose(decode_rows(form, shape, [last], File(parts)), whole[last:], rtol=0, atol=1e-6)


@cases
def test_only_the_rows_asked_for_are_fetched(case):
    form, shape, parts, _ = stored(case)
    file = File(parts)
    decode_rows(form, shape, ROWS, file)
    alone, tiles = [(0, 1), (7, 8), (131, 133), (199, 200)], [(0, 256)]
    for suffix in parts:
        expected = [(None, None)] if suffix in form.CONSTANTS else tiles if suffix in form.GROUPS else alone
        assert [asked[1:] for asked in file.asked if asked[0] == suffix] == expected


def test_far_tiles_are_fetched_apart_and_with_their_padding():
    form, shape, parts, _ = stored("mxfp8")
    file = File(parts)
    decode_rows(form, shape, [299, 5], file)
    assert file.asked == [("", 5, 6), ("", 299, 300), ("_scale", 0, 128), ("_scale", 256, 384)]


@cases
def test_bytes_that_were_stored_as_uint8_are_read_alike(case):
    form, shape, parts, _ = stored(case)
    as_bytes = {suffix: part.view(torch.uint8) if part.itemsize == 1 else part for suffix, part in parts.items()}
    assert torch.equal(decode_rows(form, shape, ROWS, File(as_bytes)), decode_rows(form, shape, ROWS, File(parts)))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_weights_of_any_shape_are_widened(name):
    weight = torch.randn(20, 3, 1, 2, 2).to(PLAIN[name].STORED)
    assert torch.equal(decode_rows(PLAIN[name], tuple(weight.shape), [19, 3], File({"": weight})), weight[[19, 3]].float())


@pytest.mark.parametrize("rows", [[300], [0, -1], []])
def test_rows_that_the_weight_does_not_have_are_refused(rows):
    form, shape, parts, _ = stored("mxfp8")
    with pytest.raises(ValueError, match="row numbers of a weight of 300 rows"):
        decode_rows(form, shape, rows, File(parts))


def test_an_unknown_format_is_refused():
    form, shape, parts, _ = stored("mxfp8")
    form = SimpleNamespace(**vars(form) | {"NAME": "mxfp4"})
    with pytest.raises(ValueError, match="mxfp4: expected one of"):
        decode_rows(form, shape, [0], File(parts))
