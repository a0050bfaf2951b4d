"""What is planned from headers is what lies on the disk in the end, as the safetensors library reads it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from wan22_master.engine.errors import LoraError, PlanError, SourceError
from wan22_master.engine.jobs import file_plan, order
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import run
from wan22_master.engine.specs import NAMES
from wan22_master.tests.engine import tiny

FORMATS = ("float8_e4m3fn", "bf16", "fp16", "fp32")


@pytest.fixture
def pair(tmp_path):
    return tiny.write_pair(tmp_path / "in")


def both(path: str, **more) -> dict:
    return {"files": dict.fromkeys(tiny.PAIR, path), **more}


@pytest.mark.parametrize("metadata", ["publish", "none"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_name_dtype_shape_offset_and_byte_is_as_planned(tmp_path, pair, form, metadata):
    wish = tiny.recipe(
        tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", tiny.lora()))], [form], save={"metadata": metadata}
    )
    with plan_recipe(wish, tmp_path / "r") as plan:
        planned = {out.target.path: out.layout for expert in plan.experts for out in expert.outputs}
        rows = {str(tmp_path / "out" / row["file"]): row for row in plan.rows()}
        run(plan, reports=tmp_path / "r")
    assert len(planned) == 2
    for path, layout in planned.items():
        content = Path(path).read_bytes()
        assert len(content) == layout.size == rows[path]["bytes"]
        with safe_open(path, framework="pt") as file:
            assert list(file.offset_keys()) == list(layout.tensors)  # the library's own order of offsets
            assert {name: (NAMES[spec.dtype], list(spec.shape)) for name, (spec, _) in layout.tensors.items()} == {
                name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in layout.tensors
            }
            for name in layout.tensors:
                spec, start = layout.tensors[name]
                tensor = file.get_tensor(name).reshape(-1)
                assert content[start : start + spec.nbytes] == bytes(memoryview(tensor.view(torch.uint8).numpy()))
                assert start % spec.dtype.itemsize == 0
            for name, known in layout.constants.items():
                assert content[layout.tensors[name][1] :][: len(known)] == known
            assert bool(file.metadata()) == (metadata == "publish")
        head = len(layout.header)
        said = json.loads(content[8:head])
        planned_said = json.loads(layout.header[8:])
        for each in (said, planned_said):
            each.pop("__metadata__", None)
        assert said == planned_said and head == 8 + int.from_bytes(content[:8], "little")
        assert content[8:head].endswith(b" " * 64 * 1024)  # room for later edits


def test_planning_writes_nothing_but_hashes_and_energies_of_loras(tmp_path, pair):
    wish = tiny.recipe(tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", tiny.lora()))], FORMATS)
    with plan_recipe(wish, tmp_path / "r") as plan:
        rows = plan.rows()
    kept = [name.split("-")[0] for name in tiny.files(tmp_path / "r")]
    assert not (tmp_path / "out").exists() and kept == ["energy", "hashes.json"]
    assert [(row["expert"], row["format"], row["state"]) for row in rows] == [
        (role, form, "new") for role in tiny.PAIR for form in FORMATS
    ]
    assert all(row["seconds"] >= 0 and row["memory_bytes"] > 0 and row["free_bytes"] > 0 for row in rows)


def test_no_weight_is_read_while_planning(tmp_path, pair, monkeypatch):
    def refuse(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("wan22_master.engine.bases.stored.StoredTensors.read", refuse)
    with plan_recipe(tiny.recipe(tmp_path / "out", pair, formats=FORMATS), tmp_path / "r") as plan:
        assert len(plan.rows()) == 8


def test_an_output_may_be_for_one_expert_only(tmp_path, pair):
    wish = tiny.recipe(tmp_path / "out", pair, formats=[{"format": "bf16", "experts": ["low_noise"]}, "fp16"])
    tiny.go(wish, tmp_path / "r")
    assert sorted(tiny.files(tmp_path / "out")) == [
        "mix_high_fp16.safetensors",
        "mix_low_bf16.safetensors",
        "mix_low_fp16.safetensors",
    ]


def test_two_outputs_under_one_name_are_refused_with_the_way_out(tmp_path, pair):
    wish = tiny.recipe(tmp_path / "out", pair, formats=("bf16", "fp16"), save={"name": "%title%_%expert%"})
    with pytest.raises(PlanError, match=r"two outputs would get this name; put %format% into the name"):
        plan_recipe(wish, tmp_path / "r")


@pytest.mark.parametrize(
    ("made_for", "why"), [("width", "does not fit"), ("depth", "block 7, but the model has 2 blocks"), ("text", "text encoder")]
)
def test_a_lora_of_which_nothing_fits_is_an_error_before_anything_is_written(tmp_path, pair, made_for, why):
    tensors = tiny.lora(layers=["blocks.0.ffn.0"])
    if made_for == "width":
        tensors = {key: tensor.repeat(1, 2) if "lora_A" in key else tensor for key, tensor in tensors.items()}
    names = {
        "width": "diffusion_model.blocks.0.ffn.0",
        "depth": "diffusion_model.blocks.7.ffn.0",
        "text": "lora_te_text_model_layers_0_fc1",
    }
    tensors = {key.replace("diffusion_model.blocks.0.ffn.0", names[made_for]): tensor for key, tensor in tensors.items()}
    with pytest.raises(LoraError, match=f"nothing of it fits this model.*{why}"):
        plan_recipe(tiny.recipe(tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", tensors))]), tmp_path / "r")
    assert not (tmp_path / "out").exists()


def test_every_refused_key_is_told_with_its_reason(tmp_path, pair):
    tensors = tiny.lora(layers=["blocks.0.ffn.0"])
    tensors |= {key.replace("blocks.0", "blocks.9"): tensor.clone() for key, tensor in tensors.items()}
    report = tiny.go(tiny.recipe(tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", tensors))]), tmp_path / "r")
    for expert in report["experts"]:
        [entry] = expert["ledger"]
        assert (entry["keys"], entry["applied"], len(entry["refused"])) == (4, 2, 2)
        assert {each["key"] for each in entry["refused"]} == {key for key in tensors if "blocks.9" in key}
        assert all("block 9, but the model has 2 blocks" in each["reason"] for each in entry["refused"])


def test_one_file_twice_or_swapped_halves_are_refused(tmp_path, pair):
    same = dict.fromkeys(tiny.PAIR, pair["low_noise"])
    for wrong, why in ((same, "same file twice"), ({"high_noise": pair["low_noise"], "low_noise": pair["high_noise"]}, "swapped")):
        with pytest.raises(SourceError, match=why):
            plan_recipe(tiny.recipe(tmp_path / "out", wrong), tmp_path / "r")


def test_a_refused_plan_leaves_no_file_open(tmp_path, pair, monkeypatch):
    closed = []
    monkeypatch.setattr("wan22_master.engine.bases.stored.StoredTensors.close", lambda self: closed.append(self.name))
    lora = tiny.save(tmp_path / "l.safetensors", tiny.lora())
    with pytest.raises(PlanError):
        plan_recipe(tiny.recipe(tmp_path / "out", pair, [both(lora)], title="a/b"), tmp_path / "r")
    assert sorted(closed) == ["tiny_high_noise.safetensors", "tiny_low_noise.safetensors"]


def test_what_is_left_out_of_an_all_in_one_file_is_said(tmp_path):
    tensors = {f"model.diffusion_model.{key}": tensor for key, tensor in tiny.base().items()}
    tensors["first_stage_model.decoder.conv1.weight"] = tensors["model.diffusion_model.head.head.bias"].clone()
    save_file(tensors, tmp_path / "aio.safetensors")
    with plan_recipe(tiny.recipe(tmp_path / "out", {"model": str(tmp_path / "aio.safetensors")}), tmp_path / "r") as plan:
        assert any(notice.startswith("aio.safetensors: 1 tensors") and "left out" in notice for notice in plan.notices)


def test_another_version_of_the_merge_or_of_torch_is_another_job(tmp_path, pair, monkeypatch):
    def ids() -> list[str]:
        with plan_recipe(tiny.recipe(tmp_path / "out", pair), tmp_path / "r") as plan:
            return [out.job_id for expert in plan.experts for out in expert.outputs]

    first = ids()
    assert first == ids() and len(set(first)) == 2
    monkeypatch.setattr(file_plan, "MERGE", file_plan.MERGE + 1)
    assert not set(ids()) & set(first)


def test_another_strength_on_one_half_leaves_the_other_halfs_job_as_it_is(tmp_path, pair):
    loras = {role: tiny.save(tmp_path / f"l_{role}.safetensors", tiny.lora()) for role in pair}

    def ids(low: float) -> dict[str, str]:
        entry = {"files": loras, "strength": {"high_noise": 1.0, "low_noise": low}}
        with plan_recipe(tiny.recipe(tmp_path / "out", pair, [entry]), tmp_path / "r") as plan:
            return {expert.role: expert.outputs[0].job_id for expert in plan.experts}

    first, second = ids(1.0), ids(0.5)
    assert first["high_noise"] == second["high_noise"] and first["low_noise"] != second["low_noise"]


def test_what_is_on_disk_already_needs_no_room(tmp_path, pair, monkeypatch):
    wish = tiny.recipe(tmp_path / "out", pair)
    tiny.go(wish, tmp_path / "r")
    monkeypatch.setattr(order, "free_bytes", lambda path: 0)
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert [row["state"] for row in plan.rows()] == ["done", "done"]


@pytest.fixture
def two(tmp_path):
    """A base, and entries of two LoRAs."""
    model = {"model": tiny.save(tmp_path / "m.safetensors", tiny.base())}
    return model, [{"files": {"model": tiny.save(tmp_path / f"l{n}.safetensors", tiny.lora(n))}} for n in (1, 2)]


def planned(tmp_path, model, passes, **more):
    """The one output of a recipe whose file tells nothing of it."""
    wish = tiny.recipe(tmp_path / "out", model, passes=passes, save={"metadata": "none"}, **more)
    with plan_recipe(wish, tmp_path / "r") as plan:
        return plan.experts[0].outputs[0]


@pytest.mark.parametrize("rules", [{"combine": "ties", "density": 0.3}, {"combine": "orthogonal"}])
def test_where_a_pass_ends_makes_another_job(tmp_path, two, rules):
    model, (one, other) = two
    together, apart = [{"loras": [one, other], **rules}], [{"loras": [one], **rules}, {"loras": [other], **rules}]
    wishes = [tiny.recipe(tmp_path / "out", model, passes=each, save={"metadata": "none"}) for each in (together, apart)]
    first, second = (tiny.go(wish, tmp_path / "r")["experts"][0]["outputs"][0] for wish in wishes)
    assert not second.get("up_to_date") and first["data_sha256"] != second["data_sha256"]
    empty = planned(tmp_path, model, [{"loras": []}, *together, {"loras": [], "scope": {"ffn": 0.5}}])
    assert empty.job_id == first["job_id"]  # passes without a LoRA are in none of the bytes


@pytest.mark.parametrize(
    "change",
    [
        {"pass": {"scope": {"ffn": 0.5}}},
        {"pass": {"combine": "ties"}},
        {"pass": {"dense_density": 0.5}},
        {"lora": {"scope": {"0": 0.5}}},
        {"lora": {"protected": True}},
        {"lora": {"rs_lora": True}},
        {"lora": {"method": "adaptive"}},
        {"compat": "comfyui"},
        {"normalize": True},
        {"mix": {"strength": {"model": 0.25}}},
        {"mix": {"scope": {"ffn": 0.5}}},
    ],
)
def test_what_decides_the_bytes_makes_another_job_and_another_wish(tmp_path, two, change):
    model, (one, other) = two
    more = {name: value for name, value in change.items() if name in ("compat", "normalize")}
    mix = {"method": "weighted_sum", "files": {"model": [tiny.save(tmp_path / "b.safetensors", tiny.base(1))]}}
    before = planned(tmp_path, model, [{"loras": [one, other]}], mix=mix)
    passes = [{"loras": [one | change.get("lora", {}), other], **change.get("pass", {})}]
    after = planned(tmp_path, model, passes, mix=mix | change.get("mix", {}), **more)
    assert before.job_id != after.job_id and before.wish != after.wish
