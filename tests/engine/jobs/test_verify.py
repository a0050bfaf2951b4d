"""A part that does not hold what was computed never gets a model's name."""

import pytest
import torch
from wan22_master.engine.errors import HeaderError, TensorError
from wan22_master.engine.jobs import verify, write_expert
from wan22_master.engine.jobs.sample import rows_of
from wan22_master.tests.engine import tiny

FORMATS = ["float8_e4m3fn", "bf16", "fp32"]


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


@pytest.fixture
def wish(tmp_path):
    lora = {"files": {"model": tiny.save(tmp_path / "l.safetensors", tiny.lora())}}
    path = tiny.save(tmp_path / "m.safetensors", tiny.base())
    return lambda form: tiny.recipe(tmp_path / "out", {"model": path}, [lora], [form], save={"name": "%title%"})


@pytest.mark.parametrize(
    "key", ["blocks.0.ffn.0.weight", "blocks.1.self_attn.q.weight", "patch_embedding.weight", "head.modulation"]
)
@pytest.mark.parametrize("form", FORMATS)
def test_a_sampled_row_that_differs_on_disk_is_named_and_nothing_is_renamed(tmp_path, wish, monkeypatch, form, key):
    row = rows_of(key, tiny.shapes()[key][0])[-1]
    tampering(monkeypatch, flip(key, row))
    with pytest.raises(TensorError, match=r"rows on disk decode to .* delete the \.part file") as told:
        tiny.go(wish(form), tmp_path / "r")
    assert told.value.key == key and told.value.stage == "verify"
    assert sorted(tiny.files(tmp_path / "out")) == ["mix.safetensors.job.json", "mix.safetensors.part"]


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
    tampering(monkeypatch, flip("blocks.0.ffn.0.weight", rows_of("blocks.0.ffn.0.weight", tiny.FFN)[0]))
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
