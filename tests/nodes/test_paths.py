"""Labels of the folders to save into, whatever extra_model_paths.yaml adds; `folder_paths` is ComfyUI's and stands in here."""
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest
from wan22_master.engine.errors import SourceError


def fresh(monkeypatch, stand_in: types.ModuleType):
    """nodes/paths.py over this stand-in, until the test ends."""
    package = sys.modules["wan22_master.nodes"]
    for name in ("paths", "plan_files"):
        monkeypatch.delitem(sys.modules, f"wan22_master.nodes.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    monkeypatch.setitem(sys.modules, "folder_paths", stand_in)
    return import_module("wan22_master.nodes.paths")


@pytest.fixture(autouse=True)
def forgotten():
    """Nothing that holds a stand-in outlives its test."""
    yield
    for name in ("paths", "plan_files"):
        sys.modules.pop(f"wan22_master.nodes.{name}", None)
        vars(sys.modules["wan22_master.nodes"]).pop(name, None)


@pytest.fixture
def save_roots(monkeypatch):
    def labels(*roots: str) -> dict[str, str]:
        stand_in = types.ModuleType("folder_paths")
        stand_in.models_dir, stand_in.get_folder_paths = "/comfy/models", lambda name: list(roots)
        return fresh(monkeypatch, stand_in).save_roots()

    return labels


@pytest.mark.parametrize("extra", [(), ("/data/diffusion_models",), ("/a/diffusion_models", "/b/diffusion_models", "/c/unet")])
@pytest.mark.parametrize("is_default", [True, False])
def test_comfyuis_own_folder_comes_first_and_has_the_short_label(save_roots, extra, is_default):
    own = ("/comfy/models/unet", "/comfy/models/diffusion_models")
    labels = save_roots(*(extra + own if is_default else own + extra))
    assert next(iter(labels.items())) == ("diffusion_models", "/comfy/models/diffusion_models")
    assert sorted(labels.values()) == sorted(own + extra)


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """The module over two folders, ComfyUI's own calls standing in: diffusion_models, which lists no .gguf, and unet_gguf."""
    stand_in, kinds = types.ModuleType("folder_paths"), {"diffusion_models": [tmp_path / "models"], "checkpoints": []}
    (tmp_path / "models" / "sub").mkdir(parents=True)

    def get_full_path(kind: str, name: str) -> str | None:
        return next((str(root / name) for root in kinds.get(kind, []) if (root / name).is_file()), None)

    def recursive_search(root: str, excluded_dir_names=None) -> tuple[list[str], dict]:
        return [str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file()], {}

    def get_filename_list(kind: str) -> list[str]:
        found = [name for root in kinds[kind] for name in recursive_search(str(root))[0]]
        return [name for name in found if name.endswith(".safetensors")]

    stand_in.folder_names_and_paths, stand_in.recursive_search = kinds, recursive_search
    stand_in.get_full_path, stand_in.get_filename_list = get_full_path, get_filename_list
    stand_in.get_folder_paths = lambda kind: [str(root) for root in kinds[kind]]
    stand_in.is_within_directory = lambda root, path: Path(path).resolve().is_relative_to(Path(root).resolve())
    return fresh(monkeypatch, stand_in), tmp_path, kinds


def test_gguf_files_are_listed_once_after_the_others_and_resolved(folders):
    paths, folder, kinds = folders
    for name in ("b.safetensors", "A.gguf", "sub/c.GGUF", "d.txt"):
        (folder / "models" / name).touch()
    kinds["unet_gguf"] = kinds["diffusion_models"]                            # as ComfyUI-GGUF has it
    assert paths.diffusion_models() == ["b.safetensors", "A.gguf", "sub/c.GGUF"]
    assert paths.model_path("sub/c.GGUF") == str(folder / "models" / "sub" / "c.GGUF")
    assert paths.is_model(str(folder / "models" / "A.gguf")) and not paths.is_model(str(folder / "A.gguf"))


def test_a_gguf_of_another_root_is_found_and_what_lies_outside_is_not(folders):
    paths, folder, kinds = folders
    kinds["unet_gguf"] = [folder / "more"]
    (folder / "more").mkdir()
    (folder / "more" / "a.gguf").touch()
    (folder / "secret.gguf").touch()
    assert paths.diffusion_models() == ["a.gguf"] and paths.model_path("a.gguf") == str(folder / "more" / "a.gguf")
    (folder / "models" / "link.gguf").symlink_to(folder / "secret.gguf")
    for name in ("../secret.gguf", "link.gguf", "none.gguf"):
        with pytest.raises(SourceError, match=r"\.gguf: no such file in the diffusion_models folders"):
            paths.model_path(name)
