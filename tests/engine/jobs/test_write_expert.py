"""What goes wrong in one file of a job ends that file: the others are finished, and the next run makes what is missing."""

import errno
import shutil

import pytest
from wan22_master.engine import open_file
from wan22_master.engine.bases.stored import StoredTensors
from wan22_master.engine.errors import MergeError, PlanError, TensorError
from wan22_master.engine.jobs import write_expert, writer
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.tests.engine import tiny

FP8, MX = "float8_e4m3fn", "mxfp8"
NAMES = {FP8: "mix_fp8_scaled.safetensors", MX: "mix_mxfp8.safetensors", "fp16": "mix_fp16.safetensors"}
ORDERS = ["all at once", "file by file"]


@pytest.fixture
def model(tmp_path):
    return {"model": tiny.save(tmp_path / "m.safetensors", tiny.base())}


@pytest.fixture
def entry(tmp_path):
    return {"files": {"model": tiny.save(tmp_path / "l.safetensors", tiny.lora())}}


def no_space(monkeypatch, name):
    """The disk is full as soon as 200 kB of a file are written."""
    monkeypatch.setattr(writer, "STRETCH", 100_000)
    real, room = open_file.WriteFile._write_some, [200_000]

    def write_some(self, content, offset):
        if self.path.endswith(f"{name}.part"):
            if len(content) > room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            room[0] -= len(content)
        return real(self, content, offset)

    monkeypatch.setattr(open_file.WriteFile, "_write_some", write_some)
    return "the disk is full"


def not_begun(monkeypatch, name):
    """The system refuses to reserve its bytes."""
    real = open_file.WriteFile.preallocate

    def preallocate(self, nbytes):
        if self.path.endswith(f"{name}.part"):
            with open_file.naming(self.path, "written"):
                raise OSError(errno.EFBIG, "File too large")
        real(self, nbytes)

    monkeypatch.setattr(open_file.WriteFile, "preallocate", preallocate)
    return "takes no file of this size"


def not_verified(monkeypatch, name):
    """What is read back is not what was written."""
    real = write_expert.verify.check

    def check(part, *more):
        if part.endswith(f"{name}.part"):
            raise TensorError("blocks.0.ffn.0.weight", "verify", ValueError("faulty disk"))
        return real(part, *more)

    monkeypatch.setattr(write_expert.verify, "check", check)
    return "verify failed: faulty disk"


def not_renamed(monkeypatch, name):
    """Its name cannot be given to it."""
    real = writer.replace

    def replace(part, target):
        if target.endswith(name):
            raise PlanError(f"{target}: cannot be renamed")
        return real(part, target)

    monkeypatch.setattr(writer, "replace", replace)
    return "cannot be renamed"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("fault", [no_space, not_begun, not_verified, not_renamed])
def test_a_fault_in_one_file_loses_no_other_and_only_the_missing_one_is_made_again(tmp_path, model, entry, monkeypatch, fault,
                                                                                   place, order):
    wish = tiny.recipe(tmp_path / "out", model, [entry], [FP8, MX], save={"order": order})
    tiny.go(wish, tmp_path / "r1")
    unbroken = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    broken, whole = (NAMES[name] for name in ([FP8, MX] if not place else [MX, FP8]))
    with monkeypatch.context() as patch:
        said = fault(patch, broken)
        with pytest.raises(PlanError, match=rf"{said}.*; finished all the same: {whole}; .*run the same again") as told:
            tiny.go(wish, tmp_path / "r2")
    assert str(told.value).startswith(f"{broken}: ")
    found = tiny.files(tmp_path / "out")
    assert found[whole] == unbroken[whole] and broken not in found
    assert set(found) - {whole} == (set() if fault is not_begun else {f"{broken}.part", f"{broken}.job.json"})
    before = (tmp_path / "out" / whole).stat()
    report = tiny.go(wish, tmp_path / "r2")
    assert tiny.files(tmp_path / "out") == unbroken
    after = (tmp_path / "out" / whole).stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert [out.get("up_to_date", False) for out in report["experts"][0]["outputs"]] == [place == 1, place == 0]
    resumed = report["experts"][0]["outputs"][place]["resumed"]
    assert resumed == 0 if fault is not_begun else 0 < resumed <= len(tiny.shapes())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("formats", [("fp16", MX), (MX, "fp16")])
def test_a_value_that_one_format_cannot_hold_ends_that_file_alone(tmp_path, model, order, formats):
    lora = tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=["blocks.0.ffn.0"], size=3000.0))
    entry = {"files": {"model": lora}, "strength": {"model": 100.0}}
    wish = tiny.recipe(tmp_path / "out", model, [entry], formats, save={"order": order})
    for _ in range(2):                             # again, and the finished one is left alone
        with pytest.raises(PlanError, match=rf"{NAMES['fp16']}: .*blocks\.0\.ffn\.0\.weight: quantize failed: .* does not fit into "
                                            rf"fp16; .*finished all the same: {NAMES[MX]}"):
            tiny.go(wish, tmp_path / "r")
        found = tiny.files(tmp_path / "out")
    tiny.go(tiny.recipe(tmp_path / "alone", model, [entry], (MX,)), tmp_path / "r2")
    assert found[NAMES[MX]] == tiny.files(tmp_path / "alone")[NAMES[MX]] and NAMES["fp16"] not in found


@pytest.mark.parametrize("order", ORDERS)
def test_a_fault_in_every_file_names_each_and_reads_no_base(tmp_path, model, monkeypatch, order):
    wish, read = tiny.recipe(tmp_path / "out", model, formats=[FP8, MX], save={"order": order}), []
    real = StoredTensors.read
    monkeypatch.setattr(StoredTensors, "read", lambda self, key, *a, **more: read.append(key) or real(self, key, *a, **more))
    not_begun(monkeypatch, "safetensors")
    with pytest.raises(PlanError, match=rf"{NAMES[FP8]}: .*; {NAMES[MX]}: .*finished all the same: none"):
        tiny.go(wish, tmp_path / "r")
    assert not read and not tiny.files(tmp_path / "out")


def test_an_expert_whose_file_cannot_be_begun_does_not_lose_the_other(tmp_path, monkeypatch):
    pair = tiny.write_pair(tmp_path / "in")
    not_begun(monkeypatch, "high_bf16.safetensors")
    with pytest.raises(PlanError, match=r"^mix_high_bf16.safetensors: .*finished all the same: mix_low_bf16.safetensors"):
        tiny.go(tiny.recipe(tmp_path / "out", pair), tmp_path / "r")
    assert list(tiny.files(tmp_path / "out")) == ["mix_low_bf16.safetensors"]


def test_a_fault_of_a_lone_file_is_raised_as_it_is(tmp_path, model, monkeypatch):
    not_verified(monkeypatch, NAMES[MX])
    with pytest.raises(TensorError, match=r"^blocks\.0\.ffn\.0\.weight: verify failed: faulty disk$"):
        tiny.go(tiny.recipe(tmp_path / "out", model, formats=[MX]), tmp_path / "r")


def test_one_more_output_is_all_that_a_later_run_writes_from_one_reading(tmp_path, model, entry, monkeypatch):
    tiny.go(tiny.recipe(tmp_path / "out", model, [entry], [FP8]), tmp_path / "r")
    before, read = (tmp_path / "out" / NAMES[FP8]).stat(), []
    wish = tiny.recipe(tmp_path / "out", model, [entry], [FP8, MX, "fp16"])
    real = StoredTensors.read
    monkeypatch.setattr(StoredTensors, "read", lambda self, key, *a, **more: read.append(key) or real(self, key, *a, **more))
    done = []
    report = tiny.go(wish, tmp_path / "r", on_progress=lambda told: done.append((told.done_bytes, told.total_bytes)))
    after = (tmp_path / "out" / NAMES[FP8]).stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino) and len(tiny.files(tmp_path / "out")) == 3
    assert sorted(read) == sorted(tiny.shapes())   # each tensor is one band here, and read once
    assert [out.get("up_to_date", False) for out in report["experts"][0]["outputs"]] == [True, False, False]
    assert done[-1][0] == done[-1][1] == sum(tensor.nbytes for tensor in tiny.base().values())


def test_the_plan_says_what_is_finished_and_what_is_left(tmp_path, model, monkeypatch):
    wish = tiny.recipe(tmp_path / "out", model, formats=[FP8, MX])
    with monkeypatch.context() as patch:
        no_space(patch, NAMES[MX])
        with pytest.raises(MergeError):
            tiny.go(wish, tmp_path / "r")
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert [row["state"] for row in plan.rows()] == ["done", "resume"]
