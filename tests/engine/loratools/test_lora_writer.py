import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine.errors import PlanError, RecipeError
from wan22_master.engine.loratools.lora_writer import LoraWriter
from wan22_master.engine.loratools.wish import Save
from wan22_master.engine.specs import TensorSpec

PLANNED = {"a": TensorSpec((8, 3), torch.float32), "b": TensorSpec((4,), torch.bfloat16), "c": TensorSpec((2,), torch.float32)}


def test_smaller_and_fewer_tensors_than_planned_make_a_sound_file(tmp_path):
    path, small = tmp_path / "x.safetensors", torch.randn(5, 3)
    with LoraWriter(Save(str(path)), PLANNED, {"name": "für"}) as writer:
        writer.add("a", small.t().contiguous().t())
        writer.add("b", torch.ones(4, dtype=torch.bfloat16))
        assert writer.place({"told": "later"}) == (str(path), None)
    found = load_file(path)
    assert torch.equal(found["a"], small) and torch.equal(found["b"], torch.ones(4, dtype=torch.bfloat16)) and len(found) == 2
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"name": "für", "told": "later"}
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(("key", "tensor"), [
    ("a", torch.ones(9, 3)), ("a", torch.ones(8, 3).bfloat16()), ("a", torch.ones(24)), ("b", torch.ones(3))])
def test_what_was_not_planned_is_not_written(tmp_path, key, tensor):
    with LoraWriter(Save(str(tmp_path / "x.safetensors")), PLANNED, {}) as writer, pytest.raises(ValueError, match="planned"):
        writer.add(key, tensor)
    assert not list(tmp_path.iterdir())


def test_a_misaligned_tensor_and_an_empty_file_are_refused(tmp_path):
    with LoraWriter(Save(str(tmp_path / "x.safetensors")), PLANNED, {}) as writer:
        with pytest.raises(PlanError, match="nothing to write"):
            writer.place({})
        writer.add("b", torch.ones(3, dtype=torch.bfloat16))
        with pytest.raises(ValueError, match="write wide dtypes first"):
            writer.add("c", torch.ones(2))
    assert not list(tmp_path.iterdir())


def test_a_part_that_a_killed_run_left_is_overwritten(tmp_path):
    (tmp_path / "x.safetensors.part").write_bytes(b"x" * 10**6)
    with LoraWriter(Save(str(tmp_path / "x.safetensors")), PLANNED, {}) as writer:
        writer.add("c", torch.ones(2))
        writer.place({})
    assert torch.equal(load_file(tmp_path / "x.safetensors")["c"], torch.ones(2))


def test_a_disk_without_room_is_told_before_anything_is_computed(tmp_path):
    with LoraWriter(Save(str(tmp_path / "x.safetensors")), PLANNED, {}) as writer, pytest.raises(PlanError, match="GB free"):
        writer.require(10**18)


@pytest.mark.parametrize("wrong", [{"dtype": "fp8"}, {"on_exists": "maybe"}])
def test_unknown_choices_are_named(wrong):
    with pytest.raises(RecipeError, match="expected one of"):
        Save("x.safetensors", **wrong)
    with pytest.raises(PlanError, match="ends in"):
        Save("x.pt")
