"""Recipe Load and Recipe Save, run as ComfyUI runs them; ComfyUI itself stands in, so that only its folders are needed."""
import hashlib
import json
import os
import sys
import types
from unittest.mock import MagicMock

import pytest
from safetensors import safe_open
from wan22_master.engine.errors import PlanError, RecipeError
from wan22_master.engine.recipes.recipe import load
from wan22_master.tests.engine import tiny

PAIR = {"high_noise": "base_high.safetensors", "low_noise": "base_low.safetensors"}


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The two node classes over a ComfyUI whose folders lie in tmp_path."""
    loras = tmp_path / "models" / "loras"
    loras.mkdir(parents=True)
    folders = types.ModuleType("folder_paths")
    folders.get_user_directory = lambda: str(tmp_path / "user")
    folders.get_folder_paths = lambda name: [str(loras)]
    folders.get_filename_list = lambda name: sorted(str(path.relative_to(loras)) for path in loras.rglob("*.*"))
    folders.get_full_path = lambda name, file: str(loras / file) if (loras / file).is_file() else None
    folders.is_within_directory = lambda root, path: os.path.realpath(path).startswith(os.path.realpath(root) + os.sep)
    api = MagicMock()
    api.io.ComfyNode, api.io.NodeOutput = object, lambda *values, ui: (values, ui)
    comfy = MagicMock()
    comfy.model_management.processing_interrupted = lambda: False
    stand_ins = {"folder_paths": folders, "comfy_api": api, "comfy_api.latest": api, "server": MagicMock(), "comfy": comfy,
                 "comfy.utils": comfy.utils, "comfy.model_management": comfy.model_management}
    fresh = types.ModuleType("wan22_master.nodes")
    fresh.__path__ = sys.modules["wan22_master.nodes"].__path__
    before = [name for name in sys.modules if name.startswith("wan22_master.nodes.")]
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    for name, module in (stand_ins | {"wan22_master.nodes": fresh}).items():
        monkeypatch.setitem(sys.modules, name, module)
    from wan22_master.nodes.recipe_load import Wan22RecipeLoad
    from wan22_master.nodes.recipe_save import Wan22RecipeSave

    Wan22RecipeSave.hidden = MagicMock(unique_id="7")
    recipes = tmp_path / "user" / "default" / "wan22_master" / "recipes"
    yield types.SimpleNamespace(load=Wan22RecipeLoad, save=Wan22RecipeSave, loras=loras, recipes=recipes)
    for name in [name for name in sys.modules if name.startswith("wan22_master.nodes.")]:
        del sys.modules[name]                      # monkeypatch puts back those that were there before


def dit():
    from wan22_master.nodes.handles import Dit

    return Dit(tuple(PAIR.items()), "Wan 2.2")


def original(*features, **paths):
    return json.dumps({"paths": paths, "pipeline": [{"method": "injection", "features": [
        {"file": f"{name}.safetensors", "weight": weight} for name, weight in features]}]})


def run(node, text="", text_low="", *, recipe="(text below)", without="", search=False, **more):
    return node.execute(recipe, text, text_low, without, search, **more)


def test_an_original_recipe_becomes_the_handle_that_inject_takes(nodes):
    style = tiny.save(nodes.loras / "wan" / "style.safetensors", tiny.lora())
    (handle, report), told = run(nodes.load, original(("style", "1;0.5"), base_model="old.safetensors"), dit=dit())
    [each] = handle.passes
    [lora] = each.loras
    assert (each.method, lora.high, lora.low, lora.strength_high, lora.strength_low) == ("classic", style, style, 1.0, 0.5)
    assert told["text"] == (report,)
    for word in ("recipe of the original", "moved: style.safetensors: by its file name, as wan/style.safetensors", "#1 style",
                 "was made for the base 'old.safetensors'"):
        assert word in report, word


def test_a_saved_recipe_is_loaded_again_after_its_lora_was_moved_and_renamed(nodes):
    style = tiny.save(nodes.loras / "style.safetensors", tiny.lora())
    (handle, _), _ = run(nodes.load, original(("style", 0.5)))
    (path, text), told = nodes.save.execute(handle, "mine", "number", True)
    assert path == str(nodes.recipes / "mine.json") and told["text"] == ("mine.json: 1 pass",)
    [lora] = json.loads(text)["passes"][0]["loras"]
    assert lora["files"] == dict.fromkeys(PAIR, "style.safetensors")
    with open(style, "rb") as file:
        assert lora["sha256"] == dict.fromkeys(PAIR, hashlib.sha256(file.read()).hexdigest())
    assert str(nodes.loras) not in text and load(path).passes[0].loras[0].sha256 == lora["sha256"]
    os.rename(style, nodes.loras / "other.safetensors")
    assert nodes.load.validate_inputs("mine.json", "", "", "") is True   # the hash may find it
    (again, report), _ = run(nodes.load, recipe="mine.json", search=True)
    assert again.passes[0].loras[0].high == str(nodes.loras / "other.safetensors") and "by its SHA-256" in report
    assert again.passes[0].classic == handle.passes[0].classic and again.options == handle.options


def test_hashes_are_written_only_on_wish_and_the_names_of_a_wired_model(nodes):
    tiny.save(nodes.loras / "style.safetensors", tiny.lora())
    (handle, _), _ = run(nodes.load, original(("style", 0.5)))
    (_, text), _ = nodes.save.execute(handle, "mine", "number", False, dit())
    assert json.loads(text)["passes"][0]["loras"][0]["sha256"] == {} and json.loads(text)["experts"] == PAIR


def test_a_name_that_is_taken_is_numbered_replaced_or_refused(nodes):
    tiny.save(nodes.loras / "style.safetensors", tiny.lora())
    one, two = (run(nodes.load, original(("style", weight)))[0][0] for weight in (0.5, 0.25))
    first = nodes.save.execute(one, "mine", "error", False)[0][0]
    assert nodes.save.execute(one, "mine", "number", False)[0][0] == first   # the very same is there
    assert nodes.save.execute(two, "mine", "number", False)[0][0] == str(nodes.recipes / "mine-2.json")
    with pytest.raises(PlanError, match="exists already"):
        nodes.save.execute(two, "mine", "error", False)
    assert nodes.save.execute(two, "mine.json", "overwrite", False)[0][0] == first
    assert load(first).passes[0].loras[0].strength["high_noise"] == 0.25
    assert sorted(path.name for path in nodes.recipes.iterdir()) == ["mine-2.json", "mine.json"]


@pytest.mark.parametrize("name", ["../x", "a/b", "con", " ", "x\0"])
def test_a_name_stays_in_its_folder(nodes, name):
    (handle, _), _ = run(nodes.load, original())
    with pytest.raises((PlanError, RecipeError)):
        nodes.save.execute(handle, name, "number", False)


def test_a_workflow_cannot_name_a_recipe_outside(nodes, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    nodes.recipes.mkdir(parents=True)
    for name in ("../../../../secret.json", str(tmp_path / "secret.json"), "gone.json"):
        assert "no such recipe" in nodes.load.validate_inputs(name, "", "", "")
        with pytest.raises(RecipeError, match="no such recipe"):
            run(nodes.load, recipe=name)


def test_a_recipe_cannot_reach_a_file_outside_the_lora_folders(nodes, tmp_path):
    outside = tiny.save(tmp_path / "outside.safetensors", tiny.lora())
    loras = [{"files": {"model": outside}}]
    text = json.dumps({"version": 1, "title": "t", "experts": {"model": "m"}, "passes": [{"loras": loras}]})
    with pytest.raises(RecipeError, match=r"missing: outside\.safetensors"):
        run(nodes.load, text)


def test_validation_tells_line_and_column_and_what_is_missing_before_anything_runs(nodes):
    tiny.save(nodes.loras / "style.safetensors", tiny.lora())
    check = nodes.load.validate_inputs
    assert "line 2 column 14" in check("(text below)", '{\n"pipeline": [,]}', "", "")
    assert check("(text below)", original(("style", 1)), "", "") is True
    said = check("(text below)", original(("style", 1), ("gone", 1), ("lost", 1)), "", "")
    assert "missing: gone.safetensors" in said and "missing: lost.safetensors" in said and "style" not in said
    assert check("(text below)", original(("style", 1), ("gone", 1)), "", "gone") is True
    assert "found none" in check("(text below)", original(("style", 1)), "", "other")
    assert "found nothing" in check("(text below)", " ", "", "") and check("(text below)", None, "", "") is True


def test_loras_are_left_out_by_number_and_name_and_missing_ones_are_an_error_until_then(nodes):
    tiny.save(nodes.loras / "style.safetensors", tiny.lora())
    text = original(("style", 1), ("gone", 1), ("lost", 1))
    with pytest.raises(RecipeError, match="2 of 3 LoRAs cannot be linked"):
        run(nodes.load, text)
    (handle, report), _ = run(nodes.load, text, without="#2; lost")
    assert [lora.name for lora in handle.passes[0].loras] == ["style.safetensors"] and "left out: #2" in report


def test_a_finished_model_gives_its_recipe_back(nodes, tmp_path):
    lora = tiny.save(nodes.loras / "style.safetensors", tiny.lora())
    experts = tiny.write_pair(tmp_path / "in")
    loras = [{"files": dict.fromkeys(PAIR, lora), "strength": "1;0.5"}]
    wish = tiny.recipe(tmp_path / "out", experts, loras, title="Mix", allow_twice=True)
    tiny.go(wish, tmp_path / "r")
    texts = []
    for role in ("high", "low"):
        with safe_open(tmp_path / "out" / f"Mix_{role}_bf16.safetensors", framework="pt") as file:
            texts.append(file.metadata()["wan22_master"])
    (handle, report), _ = run(nodes.load, *texts, dit=dit())
    [each] = handle.passes
    assert [(each.high, each.low, each.strength_high, each.strength_low) for each in each.loras] == [(lora, lora, 1.0, 0.5)]
    assert json.loads(handle.options)["allow_twice"] is True
    assert "choose in Quantize: bf16 (fast_uncalibrated); in Save Model: title 'Mix'" in report
    assert "high_noise: was made for the base 'tiny_high_noise.safetensors'" in report


def test_the_cache_is_told_when_a_recipe_or_a_lora_changes(nodes):
    style = tiny.save(nodes.loras / "style.safetensors", tiny.lora())
    nodes.recipes.mkdir(parents=True)
    (nodes.recipes / "a.json").write_text(original())

    def mark(recipe="a.json"):
        return nodes.load.fingerprint_inputs(recipe)

    first = mark()
    assert mark() == first
    (nodes.recipes / "a.json").write_text(original(("style", 1)))
    second = mark()
    os.rename(style, nodes.loras / "other.safetensors")
    assert len({first, second, mark()}) == 3 and mark(None) == mark("(text below)")
