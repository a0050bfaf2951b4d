"""Names that a workflow gives: sessions stay in their folder, and texts are found along the wires of a graph."""
import importlib
import sys
import types

import pytest
from wan22_master.engine.errors import PlanError, RecipeError


@pytest.fixture
def imported(monkeypatch, tmp_path):
    """Modules of nodes/ with stand-ins for the little of ComfyUI that they import."""
    def stand_in(name, **names):
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)

    stand_in("folder_paths", get_user_directory=lambda: str(tmp_path))
    stand_in("server", PromptServer=types.SimpleNamespace(instance=None))
    stand_in("comfy_execution")
    stand_in("comfy_execution.utils", get_executing_context=lambda: None)
    stand_in("wan22_master.nodes.model_role", model_name=lambda model: "model")
    names = ("plan_files", "calibration_files", "calibration_facts")
    for name in names:
        monkeypatch.delitem(sys.modules, f"wan22_master.nodes.{name}", raising=False)
    yield types.SimpleNamespace(**{name: importlib.import_module(f"wan22_master.nodes.{name}") for name in names[1:]})
    for name in names:
        sys.modules.pop(f"wan22_master.nodes.{name}", None)


def test_a_session_is_made_once_and_found_by_its_name(imported, tmp_path):
    files = imported.calibration_files
    assert files.names() == []
    made = files.create(" calib 01 ")
    assert files.create("calib 01") == made and files.names() == ["calib 01"]
    assert files.folder("calib 01") == made.folder == str(tmp_path / "default" / "wan22_master" / "calibration" / "calib 01")


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", "", "con", "x:y"])
def test_no_name_leaves_the_folder(imported, name):
    with pytest.raises(PlanError, match=r"^calibrate: session: .*expected a name that every system accepts"):
        imported.calibration_files.create(name)
    with pytest.raises(RecipeError, match="found none"):
        imported.calibration_files.folder(name)


def test_a_summary_in_the_same_folder_is_no_session(imported):
    files = imported.calibration_files
    files.create("there")
    (path := types.SimpleNamespace(name=files.root() + "/scales.json"))
    with open(path.name, "w") as file:
        file.write("{}")
    with pytest.raises(PlanError, match=r"^calibrate: session: .*found a file of that name"):
        files.create("scales.json")
    with pytest.raises(RecipeError, match="expected one in user/default/wan22_master/calibration, found there"):
        files.folder("scales.json")


GRAPH = {"encode": {"inputs": {"text": "a fox", "clip": ["clip", 0]}}, "bad": {"inputs": {"text": "blurry"}},
         "linked": {"inputs": {"text": ["list", 0]}}, "loop": {"inputs": {"positive": ["loop", 0]}},
         "i2v": {"inputs": {"positive": ["encode", 0], "negative": ["bad", 0], "vae": ["vae", 0]}},
         "scaled": {"inputs": {"conditioning": ["encode", 0], "strength": 1.0}},
         "guider": {"inputs": {"model": ["m", 0], "conditioning": ["scaled", 0]}},
         "sampler": {"inputs": {"positive": ["i2v", 0], "negative": ["i2v", 1]}}, "custom": {"inputs": {"guider": ["guider", 0]}},
         "from list": {"inputs": {"positive": ["linked", 0]}}, "round": {"inputs": {"positive": ["loop", 0]}}}


@pytest.mark.parametrize(("node", "name", "text"), [
    ("sampler", "positive", "a fox"), ("sampler", "negative", "blurry"), ("custom", "positive", "a fox"),
    ("from list", "positive", ""), ("round", "positive", ""), ("absent", "positive", "")])
def test_a_text_is_found_along_its_own_wire_or_not_at_all(imported, node, name, text):
    assert imported.calibration_facts.text_of(GRAPH, node, name) == text
