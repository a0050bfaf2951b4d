"""Reading weights: the values are those safetensors reads, in whole, in bands, and from many threads."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.bases.stored import PIECE
from wan22_master.engine.errors import MergeError
from wan22_master.tests.engine.stored_base import read_at_once

DIM, FFN = 128, 192
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def wan(dtype=torch.float32, blocks=2):
    """A tiny base: real names, odd sizes, one tensor larger than a read piece, one 0-d and one empty."""
    random = torch.Generator().manual_seed(7)
    shapes = {"patch_embedding.weight": (DIM, 16, 1, 2, 2), "patch_embedding.bias": (DIM,), "head.modulation": (1, 2, DIM),
              "head.head.weight": (64, DIM), "time_projection.1.weight": (3001, 6 * DIM)}
    for number in range(blocks):
        shapes |= {f"blocks.{number}.self_attn.q.weight": (DIM, DIM), f"blocks.{number}.ffn.0.weight": (FFN, DIM),
                   f"blocks.{number}.ffn.0.bias": (FFN,), f"blocks.{number}.modulation": (1, 6, DIM),
                   f"blocks.{number}.norm3.weight": (DIM,)}
    made = {key: (torch.randn(shape, generator=random) * 3).to(dtype) for key, shape in shapes.items()}
    return made | {"zero_axes": torch.tensor(-1.5, dtype=dtype), "empty": torch.zeros(0, 5, dtype=dtype)}


def saved(path, tensors, metadata=None):
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return path


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_value_is_the_one_safetensors_reads(tmp_path, dtype):
    path = saved(tmp_path / "base.safetensors", wan(dtype))
    oracle = load_file(path)
    assert oracle["time_projection.1.weight"].nbytes > 2 * PIECE
    with open_source(path) as source:
        assert set(source.keys()) == set(oracle)
        assert (source.name, source.path, source.lossy, source.left_out) == ("base.safetensors", str(path), None, {})
        assert source.formats == {}
        for key, wanted in oracle.items():
            assert (source.spec(key).shape, source.spec(key).dtype) == (tuple(wanted.shape), dtype)
            assert source.nbytes(key) == wanted.nbytes
            read = source.read(key)
            assert read.dtype == torch.float32
            assert torch.equal(read, wanted.float())


def test_float64_is_rounded_once_to_float32(tmp_path):
    path = saved(tmp_path / "base.safetensors", wan(torch.float64))
    with open_source(path) as source:
        assert torch.equal(source.read("head.head.weight"), load_file(path)["head.head.weight"].float())


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_bands_are_slices_of_the_whole(tmp_path, dtype):
    path = saved(tmp_path / "base.safetensors", wan(dtype))
    oracle = load_file(path)
    with open_source(path) as source:
        for key in ("time_projection.1.weight", "patch_embedding.weight", "blocks.0.ffn.0.bias", "head.modulation"):
            count = oracle[key].shape[0]
            for start, stop in {(0, count), (0, 1), (count - 1, count), (count // 3, count // 2 + 1), (0, 0), (count, count)}:
                assert torch.equal(source.read(key, (start, stop)), oracle[key][start:stop].float())


def test_a_band_is_read_into_the_buffer_that_is_given(tmp_path):
    path = saved(tmp_path / "base.safetensors", wan(torch.bfloat16))
    with open_source(path) as source:
        whole = torch.full((10, 6 * DIM), torch.nan)
        assert source.read("time_projection.1.weight", (5, 9), out=whole[2:6]).data_ptr() == whole[2].data_ptr()
        assert torch.equal(whole[2:6], load_file(path)["time_projection.1.weight"][5:9].float())
        assert torch.isnan(whole[:2]).all()
        assert torch.isnan(whole[6:]).all()


@pytest.mark.parametrize("out", [
    torch.empty(3, 6 * DIM), torch.empty(4 * 6 * DIM), torch.empty(4, 6 * DIM, dtype=torch.float64), torch.empty(6 * DIM, 4).T,
    torch.empty(4, 6 * DIM, device="meta"),
], ids=["rows", "axes", "dtype", "strides", "device"])
def test_a_buffer_that_does_not_fit_is_refused(tmp_path, out):
    with open_source(saved(tmp_path / "base.safetensors", wan())) as source, pytest.raises(ValueError, match="float32 CPU buffer"):
        source.read("time_projection.1.weight", (0, 4), out=out)


@pytest.mark.parametrize("rows", [(-1, 2), (2, 1), (0, 3002)])
def test_rows_outside_the_tensor_are_refused(tmp_path, rows):
    with open_source(saved(tmp_path / "base.safetensors", wan())) as source:
        with pytest.raises(ValueError, match="rows within dim 0"):
            source.read("time_projection.1.weight", rows)
        with pytest.raises(ValueError, match="rows within dim 0"):
            source.read("zero_axes", (0, 1))
        source.advise("time_projection.1.weight", (0, 7))
        source.advise("zero_axes")


def test_threads_that_read_at_once_read_the_same(tmp_path):
    """Bands of all dtypes at once: a buffer shared between threads or dtypes would mix them."""
    mixed = wan(torch.bfloat16, blocks=3)
    mixed |= {"head.head.weight": wan(torch.float16)["head.head.weight"], "blocks.2.ffn.0.weight": wan()["blocks.1.ffn.0.weight"]}
    mixed |= {"blocks.0.ffn.0.weight": mixed["blocks.0.ffn.0.weight"].to(torch.float8_e4m3fn), "scaled_fp8": torch.zeros(0)}
    mixed |= {"blocks.1.ffn.0.weight": mixed["blocks.1.ffn.0.weight"].to(torch.float8_e5m2)}
    mixed |= {"blocks.0.ffn.0.scale_weight": torch.tensor(0.3)}
    source = open_source(saved(tmp_path / "base.safetensors", mixed), allow_lossy=True)
    bands = [(key, (start, min(start + 17, source.spec(key).shape[0])))
             for key in source.keys() if source.spec(key).shape for start in range(0, source.spec(key).shape[0], 17)] * 4  # noqa: SIM118
    alone = [source.read(*band) for band in bands]
    together = read_at_once(source, bands)
    source.close()
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_file_cut_while_it_is_open_is_an_error_and_not_zeros(tmp_path):
    path = saved(tmp_path / "base.safetensors", wan())
    with open_source(path) as source:
        key = source.keys()[-1]
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(MergeError, match=r"base\.safetensors"):
            source.read("time_projection.1.weight" if source.spec(key).numel == 0 else key)
