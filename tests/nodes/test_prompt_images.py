"""Start images below ComfyUI's input folder: a path that a line states is found there, and none out of it.

`folder_paths` and `nodes` are ComfyUI's and stand in here; the node itself runs in a real ComfyUI.
"""
import importlib
import os
import sys
import types
from pathlib import Path

import pytest
from wan22_master.engine.calibration.prompt_file import parse


@pytest.fixture
def imported(monkeypatch, tmp_path):
    """prompt_images over an input folder with a few files, and a secret beside it."""
    def stand_in(name, **names):
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)

    root = tmp_path / "input"
    for name in ("input/fox.png", "input/starts/a_1.png", "input/starts/fox.png", "input/more/b.png", "input/starts/note.txt",
                 "secret.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    (root / "starts" / "link.png").symlink_to(tmp_path / "secret.png")
    stand_in("folder_paths", get_input_directory=lambda: str(root),
             is_within_directory=lambda folder, path: Path(os.path.realpath(path)).is_relative_to(folder),
             filter_files_content_types=lambda names, kinds: [name for name in names if name.endswith(".png")])
    stand_in("nodes", LoadImage=object)
    monkeypatch.delitem(sys.modules, "wan22_master.nodes.prompt_images", raising=False)
    yield importlib.import_module("wan22_master.nodes.prompt_images")
    sys.modules.pop("wan22_master.nodes.prompt_images", None)


def found_for(imported, path: str, folder: str = "") -> str | None:
    """Which file the prompt that states `path` gets, by its SHA-256."""
    found = parse(f"A. --i {path}", "a.txt")
    images = imported.images_for(found, None, folder)
    name = imported.paired(found, images, "auto", folder).images.get(1)
    root = Path(imported.folder_paths.get_input_directory())
    files = {imported.hash_file(str(file)): file.relative_to(root).as_posix() for file in root.rglob("*.*")}
    return None if name is None else files[images.digest(name)]


@pytest.mark.parametrize(("path", "folder", "file"), [
    ("starts/a_1.png", "", "starts/a_1.png"), ("starts\\a_1.png", ".", "starts/a_1.png"), ("more/b.png", "starts", "more/b.png"),
    ("starts/fox.png", "", "starts/fox.png"), ("fox.png", "", "fox.png"), ("fox.png", "starts", "starts/fox.png"),
    ("starts/fox.png", "starts", "starts/fox.png"), ("C:/somewhere/fox.png", "starts", "starts/fox.png"),
    ("/home/somebody/fox.png", "", "fox.png"), ("gone/fox.png", "", "fox.png"), ("a_1.png", "", None),
    ("../secret.png", "", None), ("starts/link.png", "", None), ("starts/note.txt", "", None), ("starts", "", None)])
def test_a_stated_path_is_looked_up_in_the_input_folder_then_by_its_name(imported, path, folder, file):
    assert found_for(imported, path, folder) == file


def test_a_list_that_states_a_file_is_read_again_when_that_changes(imported):
    images = imported.images_for(parse("A. --i starts/a_1.png", "a.txt"), None, "")
    before = images.states()
    (Path(imported.folder_paths.get_input_directory()) / "starts" / "a_1.png").write_text("another one")
    assert images.states() != before


def test_what_is_missing_says_where_it_was_looked_for(imported):
    found = parse("A. --i gone.png", "a.txt")
    told = {folder: imported.paired(found, imported.images_for(found, None, folder), "auto", folder).looked
            for folder in ("", "more")}
    assert told == {"": "ComfyUI's input folder, by path and by name",
                    "more": "ComfyUI's input folder by path, nor in its folder more by name"}
