"""The part: its bytes against safetensors' own reader, its resuming against an unbroken run."""
import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine.errors import PlanError
from wan22_master.engine.jobs import job as jobs
from wan22_master.engine.jobs import layout, writer
from wan22_master.engine.specs import TensorSpec

BODY = {
    "patch_embedding.weight": torch.randn(6, 4, 1, 2, 2),
    "blocks.0.norm3.bias": torch.randn(7).to(torch.bfloat16),
    "blocks.0.ffn.0.weight": torch.randn(6, 5).to(torch.float8_e4m3fn),
    "blocks.1.ffn.0.weight": torch.randn(3, 5).to(torch.float8_e4m3fn),
}
ENTRIES = {"blocks.0.ffn.0.comfy_quant": {"format": "float8_e4m3fn"}, "blocks.1.ffn.0.comfy_quant": {"format": "float8_e4m3fn"}}
SCALES = {"blocks.0.ffn.0.weight_scale": torch.tensor(0.25), "blocks.1.ffn.0.weight_scale": torch.tensor(0.5)}
LINEARS = [key for key in BODY if "ffn" in key]


def plan(metadata=None) -> layout.Layout:
    body = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in BODY.items()}
    scales = {name: TensorSpec((), torch.float32) for name in SCALES}
    scales |= {"blocks.0.ffn.0.input_scale": torch.ones(1).numpy().tobytes()}
    return layout.place(body, ENTRIES, scales, {"modelspec.hash_sha256": layout.HASH_SLOT} if metadata is None else metadata)


def job(tmp_path) -> jobs.Job:
    made = {"role": "model", "format": "float8_e4m3fn", "bytes": plan().size}
    return jobs.Job(str(tmp_path / "model.safetensors"), "id", "wish", {"title": "mix"}, [], made, str(tmp_path))


def write(out: writer.PartWriter, keys=tuple(BODY)) -> None:
    for key in keys:
        out.hash(out.write(key, 0, BODY[key]))
        scale = key + "_scale"
        out.finish_key(key, key, {scale: SCALES[scale]} if scale in SCALES else {}, {"base": 1.0})


def finish(out: writer.PartWriter) -> str:
    sha256 = out.complete()
    assert out.place({"file": "model.safetensors"}, overwrite=False) == (out.job.target, None)
    out.job.discard()                              # what a run does when it has recorded the file as finished
    return sha256


def test_the_reference_reader_finds_every_tensor(tmp_path):
    out = writer.PartWriter(plan(), job(tmp_path))
    write(out)
    sha256 = finish(out)
    loaded = load_file(tmp_path / "model.safetensors")
    for key, tensor in (BODY | SCALES).items():
        assert torch.equal(loaded[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert json.loads(bytes(loaded["blocks.1.ffn.0.comfy_quant"].tolist())) == {"format": "float8_e4m3fn"}
    assert loaded["blocks.0.ffn.0.input_scale"].item() == 1.0
    content = (tmp_path / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert hashlib.sha256(content[start:]).hexdigest() == sha256
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata()["modelspec.hash_sha256"] == f"0x{sha256}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_every_tensor_is_aligned_and_the_header_can_grow(tmp_path):
    planned = plan()
    assert all(start % spec.dtype.itemsize == 0 for spec, start in planned.tensors.values())
    text = planned.header[8:]
    assert len(text) - len(text.rstrip(b" ")) >= layout.PADDING
    assert (8 + len(text)) % layout.ALIGNMENT == 0


def test_bands_written_out_of_order_lie_where_they_belong(tmp_path):
    out = writer.PartWriter(plan(), job(tmp_path))
    key = "blocks.0.ffn.0.weight"
    late, early = out.write(key, 4, BODY[key][4:]), out.write(key, 0, BODY[key][:4])
    assert bytes(early) + bytes(late) == BODY[key].view(torch.uint8).numpy().tobytes()
    out.close()
    spec, start = plan().tensors[key]
    assert (tmp_path / "model.safetensors.part").read_bytes()[start:start + spec.nbytes] == bytes(early) + bytes(late)


@pytest.mark.parametrize("stop_after", range(1, len(BODY)))
def test_a_resumed_part_ends_with_the_same_bytes(tmp_path, stop_after):
    keys = list(BODY)
    (tmp_path / "a").mkdir()
    whole = writer.PartWriter(plan(), job(tmp_path / "a"))
    write(whole)
    finish(whole)
    first = writer.PartWriter(plan(), job(tmp_path))
    write(first, keys[:stop_after])
    first.close()
    assert not (tmp_path / "model.safetensors").exists()
    again = writer.PartWriter(plan(), jobs.load(str(tmp_path / "model.safetensors")))
    assert list(again.done) == keys[:stop_after]
    write(again, keys[stop_after:])
    finish(again)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("damaged", ["blocks.0.norm3.bias", "blocks.0.ffn.0.weight_scale"])
def test_a_part_that_was_damaged_is_trusted_only_up_to_the_damage(tmp_path, damaged):
    out = writer.PartWriter(plan(), job(tmp_path))
    write(out)
    out.close()
    part = tmp_path / "model.safetensors.part"
    content = bytearray(part.read_bytes())
    content[plan().tensors[damaged][1]] ^= 1
    part.write_bytes(content)
    again = writer.PartWriter(plan(), jobs.load(str(tmp_path / "model.safetensors")))
    assert list(again.done) == list(BODY)[:1 if damaged.endswith("bias") else 2]
    again.close()


def test_nothing_is_entered_before_its_stretch_is_synced(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(writer, "STRETCH", 40)
    out = writer.PartWriter(plan(), job(tmp_path))
    sync, save = out.file.sync, out.job.save
    monkeypatch.setattr(out.file, "sync", lambda: (order.append("sync"), sync()))
    monkeypatch.setattr(out.job, "save", lambda: (order.append(len(out.job.finished)), save()))
    write(out)
    out.close()
    assert order[0] == "sync" and [each for each in order if each != "sync"] == sorted(set(order) - {"sync"})
    assert all(order[place - 1] == "sync" for place, each in enumerate(order) if each != "sync")


def test_what_the_plan_did_not_promise_is_refused(tmp_path):
    out = writer.PartWriter(plan(), job(tmp_path))
    for wrong in (torch.zeros(6, 5), torch.zeros(6, 4).to(torch.float8_e4m3fn), torch.zeros(7, 5).to(torch.float8_e4m3fn)):
        with pytest.raises(ValueError, match="planned"):
            out.write("blocks.0.ffn.0.weight", 0, wrong)
    out.close()


def test_leftovers_are_listed_and_deleted_and_foreign_parts_are_not(tmp_path):
    out = writer.PartWriter(plan(), job(tmp_path))
    write(out, list(BODY)[:2])
    out.close()
    (tmp_path / "other.safetensors.part").write_bytes(b"somebody else's")
    (tmp_path / "model-2.safetensors").write_bytes(b"finished")
    found, foreign = jobs.find_leftovers(str(tmp_path))
    assert (found.title, found.target, found.problem) == ("mix", str(tmp_path / "model.safetensors"), None) and 0 < found.done < 1
    assert foreign.target == str(tmp_path / "other.safetensors") and "no .job.json file beside it" in foreign.problem
    jobs.delete_leftover(found)
    with pytest.raises(PlanError, match="no unfinished job of this pack"):
        jobs.delete_leftover(foreign)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-2.safetensors", "other.safetensors.part"]


def test_an_unreadable_job_file_is_named(tmp_path):
    (tmp_path / "model.safetensors.job.json").write_text("{")
    with pytest.raises(PlanError, match=r"model\.safetensors\.job\.json: not a job file"):
        jobs.load(str(tmp_path / "model.safetensors"))


def test_listing_leftovers_never_fails_on_one_that_is_damaged(tmp_path):
    for name, text in (("a", "{"), ("b", '{"version": 2}'), ("c", "[]")):
        (tmp_path / f"{name}.safetensors.job.json").write_text(text)
    assert [bool(each.problem) for each in jobs.find_leftovers(str(tmp_path))] == [True, True, True]


def test_two_runs_never_write_one_part(tmp_path):
    first = writer.PartWriter(plan(), job(tmp_path))
    write(first, list(BODY)[:2])
    with pytest.raises(PlanError, match="another run is writing it"):
        writer.PartWriter(plan(), job(tmp_path))
    write(first, list(BODY)[2:])
    finish(first)
    assert load_file(tmp_path / "model.safetensors").keys() >= BODY.keys()


def test_a_part_that_lost_its_end_is_trusted_up_to_there(tmp_path):
    out = writer.PartWriter(plan(), job(tmp_path))
    write(out)
    out.close()
    part = tmp_path / "model.safetensors.part"
    spec, start = plan().tensors["blocks.0.norm3.bias"]
    part.write_bytes(part.read_bytes()[:start + spec.nbytes])
    again = writer.PartWriter(plan(), jobs.load(str(tmp_path / "model.safetensors")))
    assert list(again.done) == list(BODY)[:2]
    write(again, list(BODY)[2:])
    finish(again)
    assert load_file(tmp_path / "model.safetensors")["blocks.0.ffn.0.input_scale"].item() == 1.0


def test_a_file_that_came_meanwhile_is_not_replaced_unless_asked(tmp_path):
    for overwrite, expected in ((False, "model-2.safetensors"), (True, "model.safetensors")):
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        out = writer.PartWriter(plan(), job(tmp_path))
        write(out)
        out.complete()
        (tmp_path / "model.safetensors").write_bytes(b"somebody else's")
        used, why = out.place({}, overwrite=overwrite)
        assert used == str(tmp_path / expected) and (why is None) == overwrite
        assert ((tmp_path / "model.safetensors").read_bytes() == b"somebody else's") != overwrite
        out.job.discard()


def test_a_part_never_lies_there_without_its_record(tmp_path, monkeypatch):
    seen, real = [], writer.open_write

    def opened(path, **how):
        seen.append((tmp_path / "model.safetensors.job.json").exists())
        return real(path, **how)

    monkeypatch.setattr(writer, "open_write", opened)
    writer.PartWriter(plan(), job(tmp_path)).close()
    assert seen == [True]
