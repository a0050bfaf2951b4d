"""Swizzle: comfy-kitchen's `to_blocked` and the formula of cuBLAS are the oracles."""
import pytest
import torch
from comfy_kitchen.float_utils import from_blocked, to_blocked
from wan22_master.quant.swizzle import padded_shape, swizzle, unswizzle

SHAPES = [(128, 4), (1, 1), (16, 3), (256, 8), (272, 13), (300, 40)]


def scales(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Every byte but those that are NaN in a float8 dtype: `torch.equal` cannot compare NaN."""
    codes = torch.randint(0, 120, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(sum(shape)))
    return codes.view(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn, torch.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_order_and_padding_are_comfy_kitchens(shape, dtype):
    plain = scales(shape, dtype)
    ours, theirs = swizzle(plain), to_blocked(plain.view(torch.uint8), flatten=False)
    assert ours.dtype == dtype and tuple(ours.shape) == padded_shape(*shape)
    assert torch.equal(ours.view(torch.uint8), theirs)
    back = unswizzle(ours, *shape)
    assert back.dtype == dtype
    assert torch.equal(back.view(torch.uint8), from_blocked(theirs, *shape))
    assert torch.equal(unswizzle(ours)[:shape[0], :shape[1]].view(torch.uint8), plain.view(torch.uint8))


def test_offsets_are_those_of_cublas():
    plain = scales((200, 9), torch.uint8)
    stored, tiles = swizzle(plain).flatten(), 3
    for r, c in [(0, 0), (31, 3), (32, 0), (127, 8), (128, 4), (199, 8)]:
        assert stored[((r // 128) * tiles + c // 4) * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4] == plain[r, c]


def test_runs_of_128_rows_make_the_bytes_of_the_whole():
    plain = scales((300, 7), torch.uint8)
    parts = [swizzle(plain[start:start + 128]) for start in (0, 128, 256)]
    assert torch.equal(torch.cat(parts), to_blocked(plain, flatten=False))


def test_the_argument_is_never_the_result():
    plain = scales((128, 4), torch.uint8)
    before = plain.clone()
    swizzle(plain).zero_()
    assert torch.equal(plain, before)


def test_a_shape_that_no_tile_has_is_refused():
    with pytest.raises(ValueError, match="steps of 128"):
        unswizzle(torch.zeros(100, 4, dtype=torch.uint8))
