"""One key for a merge in memory and for every file of it, whatever its format; what is compared, and what is told."""
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file
from wan22_master.engine.calibration.compare import COSTS, compare_runs
from wan22_master.engine.calibration.subject import Subject, compare, header_digest, subject_of, subject_of_file
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.hashes import HashCache
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.tests.engine import tiny
from wan22_master.tests.engine.calibration.recorded import SUBJECT

FORMATS = ("bf16", "float8_e4m3fn", "Q8_0")


def passes(folder, *, strength=0.5, factor=0.75, method="classic", name="one"):
    """Three passes on one expert of a pair: two LoRAs, one for the other expert alone, one of strength 0."""
    few, high = ["blocks.0.ffn.0", "blocks.1.self_attn.q"], "high_noise"
    loras = [tiny.save(folder / f"{each}.safetensors", tiny.lora(number, few, alpha=2.0)) for number, each in enumerate("abcz", 1)]
    return [{"name": name, "method": method, "global_factor": factor,
             "loras": [{"files": {high: loras[3]}, "strength": {high: 0.0}},
                       {"files": {high: loras[0]}, "strength": {high: strength}},
                       {"files": {high: loras[1]}, "method": "addition", "scope": {"0-0": 0.5}}]},
            {"name": "low", "loras": [{"files": {"low_noise": loras[2]}}]},
            {"name": "last", "combine": "ties", "density": 0.5,
             "loras": [{"files": {high: loras[2]}}, {"files": {high: loras[0]}}]}]


def wish_of(tmp_path, experts, out="out", formats=FORMATS, **more):
    more.setdefault("passes", passes(tmp_path / "loras"))
    return tiny.recipe(tmp_path / out, experts, formats=formats, allow_twice=True, **more)


@contextmanager
def planned(tmp_path, wish):
    with plan_recipe(wish, tmp_path / "reports") as plan:
        yield plan


def subject(tmp_path, wish, sha256=None, **more):
    with planned(tmp_path, wish) as plan:
        return subject_of(plan.experts[0], plan.recipe, sha256, **more)


def made(tmp_path, wish):
    """Path of each file of the high expert, by format."""
    tiny.go(wish, tmp_path / "reports")
    found = [path for path in Path(wish.save.folder).iterdir() if "low" not in path.name]
    return {subject_of_file(path).stored_as: path for path in found}


@pytest.mark.parametrize("save", [{}, {"metadata": "private"}, {"lora_names": False}])
def test_every_file_of_a_merge_is_the_subject_of_its_plan(tmp_path, save):
    formats = FORMATS if not save else FORMATS[1:2]
    wish = wish_of(tmp_path, {"high_noise": tiny.write_pair(tmp_path)["high_noise"]}, formats=formats, save=save,
                   passes=[{**each, "loras": [lora for lora in each["loras"] if "low_noise" not in lora["files"]]}
                           for each in passes(tmp_path / "loras")])
    ours, files = subject(tmp_path, wish), made(tmp_path, wish)
    assert ours.stored_as == "bf16" and ours.task == "t2v" and len(ours.loras) == 4 and ours.recipe
    assert set(files) == set(formats)
    for stored_as, path in files.items():
        found = subject_of_file(path)
        assert found.recipe == ours.recipe and found.base_name == ours.base_name and found.task == ours.task
        assert [lora[1:] for lora in found.loras] == [lora[1:] for lora in ours.loras]
        errors, warnings = compare(found, ours)
        assert not errors and warnings[0].startswith("the base is known by its name and layout alone, tiny_high_noise.safetensors")
        assert len(warnings) == (1 if stored_as == "bf16" else 2)
        if stored_as != "bf16":
            assert warnings[1].startswith(f"recorded on {stored_as} weights, this is bf16: each layer's output was about ")
            assert f"{COSTS[stored_as]:.1%}" in warnings[1]


def test_a_base_whose_hash_was_known_is_the_same_for_sure(tmp_path):
    experts = tiny.write_pair(tmp_path)
    cache = HashCache(tmp_path / "reports")
    known = {path: cache.sha256(path) for path in experts.values()}
    wish = wish_of(tmp_path, experts, formats=("bf16",))
    ours, file = subject(tmp_path, wish, known), subject_of_file(made(tmp_path, wish)["bf16"])
    assert compare(file, ours) == ([], [])
    other = replace(ours, base=ours.base.replace(known[experts["high_noise"]], "0" * 64))
    assert compare(file, other)[0][0].endswith("found one of tiny_high_noise.safetensors, another base")   # no advice


def test_the_place_the_time_and_the_names_of_files_do_not_count(tmp_path):
    experts = tiny.write_pair(tmp_path)
    first = subject(tmp_path, wish_of(tmp_path, experts))
    moved = {role: str(shutil.copy(path, tmp_path / f"moved_{role}.safetensors")) for role, path in experts.items()}
    named = passes(tmp_path / "elsewhere", name="another name")
    for number, path in enumerate(sorted((tmp_path / "elsewhere").iterdir())):
        path.rename(path.with_name(f"renamed{number}.safetensors"))
    names = dict(zip("abcz", sorted(map(str, (tmp_path / "elsewhere").iterdir())), strict=True))
    text = json.dumps(named)
    for each, path in names.items():
        text = text.replace(json.dumps(str(tmp_path / "elsewhere" / f"{each}.safetensors")), json.dumps(path))
    second = subject(tmp_path, wish_of(tmp_path, moved, "other", ("Q8_0",), passes=json.loads(text), title="another"))
    assert second.recipe == first.recipe and second.base.split()[0] == first.base.split()[0]
    assert compare(first, second) == ([], [])


@pytest.mark.parametrize("change", [
    {"strength": 0.25}, {"factor": 0.5}, {"method": "addition"}])
def test_what_changes_the_merge_changes_the_recipe_and_is_a_warning(tmp_path, change):
    experts = tiny.write_pair(tmp_path)
    first = subject(tmp_path, wish_of(tmp_path, experts))
    second = subject(tmp_path, wish_of(tmp_path, experts, passes=passes(tmp_path / "loras", **change)))
    assert first.recipe != second.recipe
    errors, warnings = compare(first, second)
    assert not errors and warnings
    assert ("by other rules" in warnings[0]) == ("method" in change)


def test_constants_of_a_gate_count_where_it_is_used(tmp_path):
    experts, found = tiny.write_pair(tmp_path), []
    for method in ("addition", "classic"):
        for constants in ({}, {"novelty": 3.0}):
            told = [{**each, "classic": constants} for each in passes(tmp_path / "loras", method=method)]
            found.append(subject(tmp_path, wish_of(tmp_path, experts, passes=told)).recipe)
    assert found[0] == found[1] and len(set(found)) == 3


@pytest.mark.parametrize("more", [{"compat": "comfyui"}, {"normalize": True}])
def test_options_of_the_whole_merge_count(tmp_path, more):
    experts = tiny.write_pair(tmp_path)
    plain = passes(tmp_path / "loras", method="addition")
    first, second = (subject(tmp_path, wish_of(tmp_path, experts, passes=plain, **each)) for each in ({}, more))
    assert first.recipe != second.recipe and "by other rules" in compare(first, second)[1][0]


def test_loras_that_differ_are_named():
    one = replace(SUBJECT, base="sample:1", loras=(("a", "1" * 64, 0.5), ("b", "2" * 64, 1.0)), recipe="r1")
    other = replace(SUBJECT, base="sample:1", loras=(("b", "2" * 64, 0.5), ("c", "3" * 64, 1.0)), recipe="r2")
    assert compare(one, other) == ([], [
        "b: recorded at strength 1, merged here at 0.5", "c at 1 is in this merge, not in what was recorded",
        "a at 0.5 is in what was recorded, not in this merge"])
    assert compare(one, replace(one, task="i2v"))[1] == ["recorded on task t2v, this is i2v"]


def runs_of(*subjects):
    return [SimpleNamespace(subject=each) for each in subjects]


def test_runs_that_were_recorded_otherwise_are_told_with_their_number():
    """The first run is the model itself, so that a look at it alone says nothing."""
    plain = replace(SUBJECT, base="sample:1", loras=(("a", "1" * 64, 1.0),), recipe="r1")
    other = replace(plain, loras=(("b", "2" * 64, 0.5),), recipe="r2")
    assert compare_runs(runs_of(plain, plain), plain) == ([], [])
    assert compare_runs(runs_of(plain, plain, other, plain), plain) == ([], [
        "1 of 4 runs were recorded with other LoRAs: a at 1 is in this merge, not in what was recorded; "
        "b at 0.5 is in what was recorded, not in this merge"])
    assert compare_runs(runs_of(other, other), plain) == compare(other, plain)
    quick, ruled = replace(plain, stored_as="Q8_0"), replace(plain, recipe="r3")
    _, warnings = compare_runs(runs_of(plain, quick, replace(quick, task="i2v"), ruled), plain)
    assert [line[:38] for line in warnings] == ["2 of 4 runs: recorded on Q8_0 weights,", "1 of 4 runs: recorded on task i2v, thi",
                                                "1 of 4 runs: the LoRAs and strengths a"]


def test_another_base_in_a_later_run_is_an_error():
    mine, other = (replace(SUBJECT, base=f"sample:{n}", base_name=f"{n}.safetensors") for n in (1, 2))
    assert compare_runs(runs_of(mine, other, mine), mine) == (
        ["1 of 3 runs: expected a record of 1.safetensors, found one of 2.safetensors, another base"], [])


def test_another_base_is_an_error(tmp_path):
    experts = tiny.write_pair(tmp_path)
    other = {"high_noise": tiny.save(tmp_path / "other.safetensors", tiny.base(5, blocks=3))}
    first, second = subject_of_file(experts["high_noise"]), subject_of_file(other["high_noise"])
    errors, _ = compare(first, second)
    assert len(errors) == 1 and "expected a record of other.safetensors, found one of tiny_high_noise.safetensors" in errors[0]


def test_a_file_that_was_made_from_a_merged_file_serves_that_and_the_other_way_round(tmp_path):
    """Merge to bf16, quantize that file later without any LoRA: the new file knows the merged one as its base."""
    wish = wish_of(tmp_path, tiny.write_pair(tmp_path), formats=("bf16",))
    ours, merged = subject(tmp_path, wish), made(tmp_path, wish)["bf16"]
    later = wish_of(tmp_path, {"high_noise": str(merged)}, "later", ("bf16", "float8_e4m3fn"), passes=[])
    quantized = subject_of_file(made(tmp_path, later)["float8_e4m3fn"])
    planned_again, itself = subject(tmp_path, later), subject_of_file(merged)
    assert planned_again == itself
    for recorded, wanted in ((quantized, planned_again), (itself, planned_again), (itself, ours), (planned_again, ours)):
        assert not compare(recorded, wanted)[0] and not [line for line in compare(recorded, wanted)[1] if "merge" in line]


def test_a_merge_onto_a_merged_file_is_another_recipe(tmp_path):
    wish = wish_of(tmp_path, tiny.write_pair(tmp_path), formats=("bf16",))
    merged = made(tmp_path, wish)["bf16"]
    more = [{"loras": [{"files": {"high_noise": tiny.save(tmp_path / "loras" / "d.safetensors", tiny.lora(9))}}]}]
    onto = subject(tmp_path, wish_of(tmp_path, {"high_noise": str(merged)}, "onto", ("bf16",), passes=more))
    assert onto.itself == "" and onto.base_name == merged.name and len(onto.loras) == 1
    assert compare(subject_of_file(merged), onto) == ([], ["d.safetensors at 1 is in this merge, not in what was recorded"])


def test_a_mix_of_checkpoints_counts(tmp_path):
    experts = {"high_noise": tiny.write_pair(tmp_path)["high_noise"]}
    other = tiny.save(tmp_path / "other.safetensors", tiny.base(5))
    mix = {"method": "weighted_sum", "files": {"high_noise": [other]}, "strength": {"high_noise": 0.5}}
    wish = wish_of(tmp_path, experts, formats=("bf16", "float8_e4m3fn"), passes=[], mix=mix)
    ours, bare = subject(tmp_path, wish), subject(tmp_path, wish_of(tmp_path, experts, "bare", ("bf16",), passes=[]))
    assert ours.recipe and not bare.recipe and ours.base == bare.base
    for path in made(tmp_path, wish).values():
        assert subject_of_file(path).recipe == ours.recipe


@pytest.mark.parametrize("entry", [None, "no json", "{}", '{"recipe": {}, "expert": "high_noise", "base": {}}'])
def test_a_file_that_is_not_ours_is_a_base(tmp_path, entry):
    path = tmp_path / "m high.safetensors"
    save_file(tiny.base(), path, {} if entry is None else {"wan22_master": entry})
    found = subject_of_file(path)
    assert found.recipe == "" and not found.loras and found.base == found.itself and found.base_name == path.name
    assert compare(found, found) == ([], [])


def test_two_models_of_one_layout_are_told_apart(tmp_path):
    """As two fine-tunes, and the two experts of a pair, whose headers are the same."""
    one, other = (subject_of_file(tiny.save(tmp_path / f"{n}.safetensors", tiny.base(n))) for n in (1, 2))
    assert one.base.split()[1] == other.base.split()[1] and compare(one, other)[0]


def test_a_base_is_the_same_however_it_is_packed_into_files(tmp_path):
    whole = tiny.base()
    one = tiny.save(tmp_path / "one.safetensors", whole)
    folder, names = tmp_path / "parts", [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    keys = list(whole)
    parts = {names[0]: keys[:9], names[1]: keys[9:]}
    for name, part in parts.items():
        tiny.save(folder / name, {key: whole[key] for key in part})
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert compare(subject_of_file(one), subject_of_file(folder)) == ([], [])


def test_the_digest_of_a_header_does_not_know_path_or_time():
    files = [{"name": "a", "size": 3, "mtime_ns": 1, "header_sha256": "ff"}]
    assert header_digest(files) == header_digest([{**files[0], "name": "b", "mtime_ns": 2}])
    assert header_digest(files) != header_digest([{**files[0], "size": 4}])
    assert header_digest(files) != header_digest([{**files[0], "header_sha256": "fe"}])


def test_a_subject_comes_back_from_json_and_nothing_else_does():
    found = replace(SUBJECT, loras=(("a", "1" * 64, 0.5),), itself="header:9 name:x")
    assert Subject.from_json(json.loads(json.dumps(found.to_json()))) == found
    for wrong in ({}, {"loras": 3}, {"loras": [["a"]]}, {"loras": [], "base": "x"}, []):
        with pytest.raises(RecipeError, match="expected what was calibrated"):
            Subject.from_json(wrong)
