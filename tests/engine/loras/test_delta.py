"""Deltas tile by tile: any tiles, any threads, the same numbers; and no more memory than tiles."""

import threading

import pytest
import torch
from wan22_master.engine.loras.delta import Delta, FactorDelta, StoredDelta, Transform, flat_shape
from wan22_master.engine.loras.factors import Factors
from wan22_master.tests.engine.loras.adapters import cases, laid

CPU = torch.device("cpu")
INDEX = laid.index_of()
KEYS = ("blocks.0.ffn.0.weight", "patch_embedding.weight", "blocks.0.modulation")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def module_of(tmp_path, kind, key):
    parts, change = cases.case(kind, cases.SHAPES[key])
    if change is None:
        return None, None
    module = f"diffusion_model.{key.removesuffix('.weight')}"
    lora = laid.write(tmp_path / "some.safetensors", {module + suffix: tensor for suffix, tensor in parts.items()})
    return lora, laid.lay(lora, INDEX)[0][key][0]


@pytest.mark.parametrize("kind", cases.KINDS)
def test_the_tiles_do_not_matter(tmp_path, kind):
    for key in KEYS:
        lora, module = module_of(tmp_path, kind, key)
        if module is None:
            continue
        weight = draw(*cases.SHAPES[key], seed=3)
        whole = laid.change_of(module, lora, weight, 0.7, tile=(1000, 1000))
        assert laid.error(laid.change_of(module, lora, weight, 0.7, tile=(1, 3)), whole) < 1e-6
        assert laid.error(laid.change_of(module, lora, weight, 0.7, tile=(7, 1)), whole) < 1e-6


@pytest.mark.parametrize("kind", ["LoRA up/down", "LoHa", "LoKr whole", "DoRA inputs", "diff", "IA3 outputs"])
def test_threads_that_share_a_delta_write_the_same_bits(tmp_path, kind):
    lora, module = module_of(tmp_path, kind, "blocks.0.ffn.0.weight")
    base = draw(24, 12, seed=3)
    delta = module.load(lora, (24, 12), CPU)
    delta.settle([delta.observe((0, 24), base)])
    places = laid.tiles(24, 12, 3, 5)

    def fill(out, mine):
        for rows, columns in mine:
            delta.write(rows, columns, base[rows[0] : rows[1]], out[rows[0] : rows[1], columns])

    expected, found = torch.empty(24, 12), torch.empty(24, 12)
    fill(expected, places)
    threads = [threading.Thread(target=fill, args=(found, places[n::4])) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["OFT", "OFT rescaled", "BOFT", "OFT PEFT", "GLoRA", "set_weight"])
def test_a_transform_at_strength_zero_changes_no_bit(tmp_path, kind):
    for key in KEYS[:2]:
        lora, module = module_of(tmp_path, kind, key)
        weight = draw(*cases.SHAPES[key], seed=3)
        assert not laid.change_of(module, lora, weight, 0.0).any()


def test_a_replacement_at_strength_one_is_the_value_itself(tmp_path):
    value, weight = draw(24, 12, seed=1), draw(24, 12, seed=2) * 1e6
    lora = laid.write(tmp_path / "some.safetensors", {"diffusion_model.blocks.0.ffn.0.set_weight": value})
    [module] = laid.lay(lora, INDEX)[0]["blocks.0.ffn.0.weight"]
    merged = weight.clone()
    module.load(lora, (24, 12), CPU).apply(merged, (0, 24), slice(0, 12), 1.0)
    assert torch.equal(merged, value)


def test_stored_rows_are_read_when_asked_for_and_once_per_band(tmp_path):
    lora = laid.write(tmp_path / "some.safetensors", {"diffusion_model.blocks.0.ffn.0.diff": draw(24, 12)})
    asked = []

    class Counting:
        name = lora.name

        def read(self, key, rows=None):
            asked.append(rows)
            return lora.read(key, rows)

    delta, out = StoredDelta(Counting(), "diffusion_model.blocks.0.ffn.0.diff", CPU, 0.5), torch.empty(8, 4)
    for rows, columns in laid.tiles(24, 12, 8, 4):
        delta.write(rows, columns, None, out)
    assert asked == [(0, 8), (8, 16), (16, 24)]


def test_a_dense_delta_costs_its_factors_and_a_tile_of_memory():
    shape, rank = (2048, 4096), 4
    first, second = (Factors(draw(shape[0], rank), draw(rank, shape[1])) for _ in "12")
    from wan22_master.engine.loras.adapters.loha import HadamardDelta
    from wan22_master.engine.loras.adapters.lokr import KronDelta

    for delta in (HadamardDelta(first, second), KronDelta(draw(32, 64), draw(64, 64)), FactorDelta(first)):
        out = torch.empty(128, 1280)
        held = sum(each.numel() for each in vars(delta).values() if isinstance(each, torch.Tensor))
        assert held < shape[0] * shape[1] / 100
        delta.write((128, 256), slice(1280, 2560), None, out)
        assert torch.isfinite(out).all()


def test_shapes_are_seen_as_rows_and_columns():
    assert [flat_shape(shape) for shape in ((), (5,), (4, 3), (4, 3, 1, 2, 2))] == [(1, 1), (5, 1), (4, 3), (4, 12)]


def test_the_base_classes_promise_nothing_but_their_names():
    with pytest.raises(NotImplementedError):
        Delta().write((0, 1), slice(0, 1), None, torch.empty(1, 1))
    with pytest.raises(NotImplementedError):
        Transform().apply(torch.empty(1, 1), (0, 1), slice(0, 1), 1.0)
    assert Delta().observe((0, 1), torch.empty(1, 1)) is None
