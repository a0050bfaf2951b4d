"""Files of tensors: as the safetensors library reads them, whole or not at all."""
import pytest
import torch
from safetensors import safe_open
from wan22_master.engine.calibration import tensors
from wan22_master.engine.calibration.tensors import Stored, write
from wan22_master.engine.errors import HeaderError, PlanError
from wan22_master.engine.specs import TensorSpec

HELD = {"odd": torch.arange(3, dtype=torch.bfloat16), "scalar": torch.tensor(2.5), "none": torch.zeros(0, 7, dtype=torch.float16),
        "wide": torch.randn(4, 5, dtype=torch.float64), "counts": torch.arange(6).reshape(2, 3), "turned": torch.randn(3, 4).T}
SPECS = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in HELD.items()}


def test_the_safetensors_library_reads_what_was_written_and_so_do_we(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, SPECS, HELD.__getitem__, {"said": "ü"})
    stored = Stored(path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(HELD) == set(stored.specs) and file.metadata() == {"said": "ü"} == stored.metadata
        for name, tensor in HELD.items():
            assert torch.equal(file.get_tensor(name), tensor) and torch.equal(stored.read(name), tensor)
            assert stored.read(name).dtype is tensor.dtype
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors"]


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, SPECS, HELD.__getitem__, {})
    before = path.read_bytes()

    def fill(name):
        if name == "odd":
            raise KeyboardInterrupt
        return HELD[name]
    with pytest.raises(KeyboardInterrupt):
        write(path, SPECS, fill, {})
    assert path.read_bytes() == before


def test_a_tensor_of_another_spec_is_refused(tmp_path):
    with pytest.raises(ValueError, match="odd: expected"):
        write(tmp_path / "a", {"odd": SPECS["odd"]}, lambda _: torch.zeros(3), {})
    with pytest.raises(ValueError, match="odd: expected"):
        write(tmp_path / "a", {"odd": SPECS["odd"]}, lambda _: torch.zeros(4, dtype=torch.bfloat16), {})


def test_a_file_that_is_held_open_is_told_and_no_other_name_is_taken(tmp_path, monkeypatch):
    """Windows: a program that maps the file keeps it from being replaced."""
    path = tmp_path / "a.safetensors"
    write(path, SPECS, HELD.__getitem__, {})
    real = tensors.replace
    monkeypatch.setattr(tensors, "replace", lambda source, target: (real(source, str(target) + "-2")[0], "is held open"))
    with pytest.raises(PlanError, match="another program holds it open"):
        write(path, SPECS, HELD.__getitem__, {})
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.safetensors"]


def test_a_name_that_is_not_there_is_told(tmp_path):
    write(tmp_path / "a", SPECS, HELD.__getitem__, {})
    with pytest.raises(HeaderError, match="expected a tensor x, found none"):
        Stored(tmp_path / "a").read("x")
