"""What a finished file says of itself: secrets are planted everywhere, then the raw bytes are searched."""

import hashlib
import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from wan22_master.engine.jobs.metadata import config_notice
from wan22_master.engine.version import MERGE
from wan22_master.tests.engine import tiny

SECRET = "s3cr3t"
CONFIG = json.dumps({"transformer": {"patch": [1, 2, 2]}, "note": "ünïcode  and   spaces"})
NEVER = ("_quantization_metadata", "prompt", "workflow", "modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")
FORMATS = ("bf16", "float8_e4m3fn")


def plant(tmp_path, experts=tiny.PAIR):
    """(experts, LoRA entry, out folder) with a secret in every folder's name and every header."""
    hidden = {
        name: f"{SECRET} {name}" for name in (*NEVER[1:], "title", "modelspec.title", "modelspec.author", "author", "ss_comment")
    }
    folder = tmp_path / f"{SECRET}_bases"
    paths = {
        role: tiny.save(folder / f"tiny_{role}.safetensors", tiny.base(number), hidden | {"config": CONFIG})
        for number, role in enumerate(experts)
    }
    told = {"ss_output_name": SECRET, "ss_sd_model_name": f"/home/{SECRET}/x", "workflow": SECRET, "modelspec.title": SECRET}
    lora = tiny.save(tmp_path / f"{SECRET}_loras" / "style.safetensors", tiny.lora(), told)
    return paths, {"files": dict.fromkeys(experts, lora)}, tmp_path / f"{SECRET}_out"


def passes(entry):
    return [{"name": f"{SECRET} pass", "global_factor": 0.5, "loras": [entry]}]


def metadata_of(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


@pytest.mark.parametrize("level", ["publish", "none"])
@pytest.mark.parametrize("experts", [tiny.PAIR, ("model",)])
def test_no_byte_of_a_secret_is_in_a_published_file(tmp_path, level, experts):
    paths, entry, out = plant(tmp_path, experts)
    tiny.go(tiny.recipe(out, paths, passes=passes(entry), formats=FORMATS, save={"metadata": level}), tmp_path / "r")
    written = list(out.iterdir())
    assert len(written) == 2 * len(experts)
    for path in written:
        content = path.read_bytes()
        for secret in (SECRET, str(tmp_path), "/home", "pytest", "safetensors_rust"):
            assert secret.encode() not in content, (path.name, secret)


@pytest.mark.parametrize("level", ["publish", "private"])
@pytest.mark.parametrize("kind", ["one file", "shards"])
def test_a_base_chosen_by_its_folder_is_named_by_a_file_of_it(tmp_path, level, kind):
    folder, weights = tmp_path / f"{SECRET}_folder", tiny.base()
    names = ["model.safetensors"] if kind == "one file" else ["part-00001-of-00002.safetensors", "part-00002-of-00002.safetensors"]
    for number, name in enumerate(names):
        tiny.save(
            folder / name, {key: tensor for place, (key, tensor) in enumerate(weights.items()) if place % len(names) == number}
        )
    tiny.go(tiny.recipe(tmp_path / "out", {"model": str(folder)}, save={"metadata": level}), tmp_path / "r")
    [path] = (tmp_path / "out").iterdir()
    assert json.loads(metadata_of(path)["wan22_master"])["base"] == {"name": names[0]}
    assert (SECRET.encode() in path.read_bytes()) == (level == "private")


def test_private_holds_the_paths_and_what_the_source_said(tmp_path):
    paths, entry, out = plant(tmp_path)
    tiny.go(tiny.recipe(out, paths, passes=passes(entry), formats=FORMATS, save={"metadata": "private"}), tmp_path / "r")
    for path in out.iterdir():
        found = metadata_of(path)
        said = json.loads(found["wan22_master"])
        recipe, role = said["recipe"], said["expert"]
        assert recipe["experts"] == {role: paths[role]} and recipe["passes"][0]["name"] == f"{SECRET} pass"
        assert recipe["passes"][0]["loras"][0]["files"] == {role: entry["files"][role]} and recipe["save"]["folder"] == str(out)
        assert found["author"] == f"{SECRET} author" and found["ss_comment"] == f"{SECRET} ss_comment"
        assert found["modelspec.title"] == "mix" and "modelspec.author" not in found


@pytest.mark.parametrize("level", ["publish", "private", "none"])
def test_config_goes_through_untouched_and_what_would_be_wrong_never_does(tmp_path, level):
    paths, entry, out = plant(tmp_path)
    tiny.go(tiny.recipe(out, paths, passes=passes(entry), formats=FORMATS, save={"metadata": level}), tmp_path / "r")
    for path in out.iterdir():
        found = metadata_of(path)
        assert found["config"] == CONFIG
        assert not set(found) & set(NEVER) - {"modelspec.hash_sha256"}
        assert SECRET not in found.get("modelspec.hash_sha256", "")
        assert level != "none" or set(found) == {"config"}


def test_a_quantized_sources_marks_are_not_carried(tmp_path):
    weights = tiny.base()
    layer = "blocks.0.ffn.0"
    weights |= {f"{layer}.weight": weights[f"{layer}.weight"].to(torch.float8_e4m3fn), f"{layer}.weight_scale": torch.tensor(0.5)}
    marks = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {layer: {"format": "float8_e4m3fn"}}})}
    path = tiny.save(tmp_path / "m.safetensors", weights, marks)
    tiny.go(
        tiny.recipe(tmp_path / "out", {"model": path}, allow_quantized_source=True, save={"metadata": "private"}), tmp_path / "r"
    )
    [path] = (tmp_path / "out").iterdir()
    assert "_quantization_metadata" not in metadata_of(path) and f"{layer}.weight_scale" not in tiny.load(
        tmp_path / "out", path.name
    )
    assert torch.equal(
        tiny.load(tmp_path / "out", path.name)[f"{layer}.weight"], (weights[f"{layer}.weight"].float() * 0.5).bfloat16()
    )


def test_nothing_is_said_at_none_where_the_source_has_no_config(tmp_path):
    paths = tiny.write_pair(tmp_path / "in")
    tiny.go(tiny.recipe(tmp_path / "out", paths, save={"metadata": "none"}), tmp_path / "r")
    assert all(metadata_of(path) == {} for path in (tmp_path / "out").iterdir())


def test_published_files_name_base_loras_hashes_strengths_and_methods(tmp_path):
    paths, entry, out = plant(tmp_path)
    lora = entry["files"]["high_noise"]
    entry |= {"strength": {"high_noise": 0.25, "low_noise": 2.0}, "method": "classic"}
    tiny.go(tiny.recipe(out, paths, passes=passes(entry), formats=FORMATS, title="Täst", title_version="2.1"), tmp_path / "r")
    for path in out.iterdir():
        role = "high_noise" if "high" in path.name else "low_noise"
        told = json.loads(metadata_of(path)["wan22_master"])
        assert told["base"] == {"name": f"tiny_{role}.safetensors"} and told["expert"] == role and told["title_version"] == "2.1"
        assert told["format"] == ("bf16" if "bf16" in path.name else "float8_e4m3fn")
        with open(lora, "rb") as file:
            sha256 = hashlib.sha256(file.read()).hexdigest()
        wanted = {
            "name": "style.safetensors",
            "sha256": sha256,
            "strength": {"high_noise": 0.25, "low_noise": 2.0}[role],
            "method": "classic",
        }
        constants = {"novelty": 1.5, "sensitivity_new": 0.4, "sensitivity_refine": 1.8, "limit_new": 0.08, "limit_refine": 0.05}
        assert told["passes"] == [{"global_factor": 0.5, "loras": [wanted], "classic": constants}]
        assert told["merge"] == MERGE
        assert metadata_of(path)["modelspec.title"] == "Täst"


def test_without_lora_names_only_their_hashes_are_told(tmp_path):
    paths, entry, out = plant(tmp_path)
    tiny.go(tiny.recipe(out, paths, passes=passes(entry), save={"lora_names": False}), tmp_path / "r")
    for path in out.iterdir():
        assert b"style" not in path.read_bytes()[:200_000]
        [told] = json.loads(metadata_of(path)["wan22_master"])["passes"][0]["loras"]
        assert re.fullmatch("[0-9a-f]{64}", told["sha256"]) and "name" not in told


def test_the_hash_is_of_the_data_as_modelspec_defines_it(tmp_path):
    paths, entry, out = plant(tmp_path)
    tiny.go(tiny.recipe(out, paths, passes=passes(entry), formats=(*FORMATS, "fp32")), tmp_path / "r")
    hashes = set()
    for path in out.iterdir():
        content = path.read_bytes()
        data = content[8 + int.from_bytes(content[:8], "little") :]
        assert metadata_of(path)["modelspec.hash_sha256"] == "0x" + hashlib.sha256(data).hexdigest()
        hashes.add(metadata_of(path)["modelspec.hash_sha256"])
    assert len(hashes) == 6


@pytest.mark.parametrize("date", [None, "2026-11-21"])
def test_the_date_is_the_recipes_or_none(tmp_path, date):
    paths = tiny.write_pair(tmp_path / "in")
    tiny.go(tiny.recipe(tmp_path / "out", paths, **({"date": date} if date else {})), tmp_path / "r")
    assert all(metadata_of(path).get("modelspec.date") == date for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(("channels", "spans"), [(16, ("875,1000", "0,875")), (36, ("900,1000", "0,900"))])
def test_each_half_says_its_steps_and_its_architecture(tmp_path, channels, spans):
    paths = {}
    for role in tiny.PAIR:
        weights = tiny.base()
        weights["patch_embedding.weight"] = weights["patch_embedding.weight"][:, :1].repeat(1, channels, 1, 1, 1)
        paths[role] = str(tmp_path / f"m_{role}.safetensors")
        save_file(weights | {"head.head.bias": weights["head.head.bias"] + len(role)}, paths[role])
    tiny.go(tiny.recipe(tmp_path / "out", paths), tmp_path / "r")
    task = "t2v" if channels == 16 else "i2v"
    for name, span in zip(("mix_high_bf16.safetensors", "mix_low_bf16.safetensors"), spans, strict=True):
        found = metadata_of(tmp_path / "out" / name)
        assert found["modelspec.timestep_range"] == span and found["modelspec.sai_model_spec"] == "1.0.1"
        assert found["modelspec.architecture"].startswith(f"wan2.2-{task}-")


def test_a_model_alone_speaks_of_no_noise_and_no_version_it_cannot_know(tmp_path):
    path = tiny.save(tmp_path / "m.safetensors", tiny.base())
    tiny.go(tiny.recipe(tmp_path / "out", {"model": path}), tmp_path / "r")
    found = metadata_of(tmp_path / "out" / "mix_bf16.safetensors")
    assert "modelspec.timestep_range" not in found and "2.2" not in found["modelspec.architecture"]
    assert not re.search("noise|high|low", re.sub("Wan-Video|allow_", "", json.dumps(found)))


def test_constants_are_told_only_where_classic_was_used(tmp_path):
    paths, entry, out = plant(tmp_path, ("model",))
    changed = {"novelty": 2.0, "limit_new": 0.125}
    entries = [{"loras": [entry | {"method": method}], "classic": changed} for method in ("addition", "classic")]
    tiny.go(tiny.recipe(out, paths, passes=entries, allow_twice=True), tmp_path / "r")
    [path] = out.iterdir()
    added, gated = json.loads(metadata_of(path)["wan22_master"])["passes"]
    assert "classic" not in added and gated["classic"].items() >= changed.items()


@pytest.mark.parametrize("zero", ["strength", "global_factor"])
def test_a_lora_of_strength_0_is_not_told(tmp_path, zero):
    paths, entry, out = plant(tmp_path, ("model",))
    dead = {"loras": [entry | {"strength": {"model": 0.0}}]} if zero == "strength" else {"loras": [entry], "global_factor": 0.0}
    tiny.go(tiny.recipe(out, paths, passes=[dead, {"loras": [entry | {"strength": {"model": -0.5}}]}]), tmp_path / "r")
    [path] = out.iterdir()
    [told] = json.loads(metadata_of(path)["wan22_master"])["passes"]
    assert [lora["strength"] for lora in told["loras"]] == [-0.5]


FOREIGN = ("hash", "Hash", "sha256", "SHA-256", "sha", "ss_sd_model_hash", "sshs_model_hash", "md5", "model.checksum", "file_size",
           "fileSize", "total_size", "size", "Prompt", "prompt", "Workflow", "extra_pnginfo", "EXTRA_PNGINFO", "modelspec.author",
           "_Quantization_Metadata", "quantization_config", "format", "autov2_hash")
OWN = ("author", "comment", "shape", "resized", "ss_network_dim", "information", "shading")


def test_private_carries_nothing_that_is_wrong_in_another_file(tmp_path):
    said = dict.fromkeys(FOREIGN, SECRET) | dict.fromkeys(OWN, "kept") | {"format": "pt"}
    path = tiny.save(tmp_path / "m.safetensors", tiny.base(), said | {"_Quantization_Metadata": "{}"})
    tiny.go(tiny.recipe(tmp_path / "out", {"model": path}, save={"metadata": "private"}), tmp_path / "r")
    found = metadata_of(tmp_path / "out" / "mix_bf16.safetensors")
    assert not set(found) & set(FOREIGN) and SECRET not in json.dumps(found)
    assert {key: found.get(key) for key in OWN} == dict.fromkeys(OWN, "kept")


@pytest.mark.parametrize(("config", "named"), [
    ({"transformer": {}, "_name_or_path": "/home/x"}, ["_name_or_path"]), ({"vae": {}, "note": 1}, ["vae", "note"]),
    ({"transformer": {"_name_or_path": "me/wan"}}, ["_name_or_path"]), ({"transformer": {"a": {"b": [1, "/data/x"]}}}, ["b"]),
    ({"transformer": {"a": ["C:\\models"], "b": "~/m"}}, ["a", "b"]),
    ({"transformer": {"a": "file:///x", "b": "..\\x"}}, ["a", "b"]),
    ({"transformer": {"model_type": "t2v", "source": "Wan-AI/Wan2.2-T2V-A14B", "patch_size": [1, 2, 2], "x_path": ""}}, None),
    ({}, None),
])
def test_what_a_carried_config_gives_away_is_named(config, named):
    told = config_notice({"config": json.dumps(config)})
    assert told is None if named is None else all(f"`{name}`" in told for name in named) and told.count("`") == 2 * len(named)
    assert config_notice({"config": "{"}) is None and config_notice({"other": "/home/x"}) is None


def test_a_published_recipe_is_the_same_whether_the_other_half_is_made_or_not(tmp_path):
    paths, entry, out = plant(tmp_path)
    tiny.go(tiny.recipe(out, paths, passes=passes(entry)), tmp_path / "r")
    half = {role: {"high_noise": value} for role, value in (("files", entry["files"]["high_noise"]),)}
    tiny.go(tiny.recipe(tmp_path / "half", {"high_noise": paths["high_noise"]}, passes=passes(half)), tmp_path / "r2")
    assert (out / "mix_high_bf16.safetensors").read_bytes() == (tmp_path / "half" / "mix_high_bf16.safetensors").read_bytes()


def test_a_loras_hash_in_the_recipe_is_of_the_file_that_was_merged(tmp_path):
    paths, entry, out = plant(tmp_path, ("model",))
    tiny.go(tiny.recipe(out, paths, passes=passes(entry | {"sha256": {"model": "e" * 64}})), tmp_path / "r")
    [path] = out.iterdir()
    with open(entry["files"]["model"], "rb") as file:
        sha256 = hashlib.sha256(file.read()).hexdigest()
    assert json.loads(metadata_of(path)["wan22_master"])["recipe"]["passes"][0]["loras"][0]["sha256"] == {"model": sha256}
