"""Labels of the folders to save into, whatever extra_model_paths.yaml adds; `folder_paths` is ComfyUI's and stands in here."""
import sys
import types

import pytest


@pytest.fixture
def save_roots(monkeypatch):
    def labels(*roots: str) -> dict[str, str]:
        stand_in = types.ModuleType("folder_paths")
        stand_in.models_dir, stand_in.get_folder_paths = "/comfy/models", lambda name: list(roots)
        monkeypatch.setitem(sys.modules, "folder_paths", stand_in)
        monkeypatch.delitem(sys.modules, "wan22_master.nodes.paths", raising=False)
        from wan22_master.nodes.paths import save_roots

        return save_roots()

    yield labels
    sys.modules.pop("wan22_master.nodes.paths", None)


@pytest.mark.parametrize("extra", [(), ("/data/diffusion_models",), ("/a/diffusion_models", "/b/diffusion_models", "/c/unet")])
@pytest.mark.parametrize("is_default", [True, False])
def test_comfyuis_own_folder_comes_first_and_has_the_short_label(save_roots, extra, is_default):
    own = ("/comfy/models/unet", "/comfy/models/diffusion_models")
    labels = save_roots(*(extra + own if is_default else own + extra))
    assert next(iter(labels.items())) == ("diffusion_models", "/comfy/models/diffusion_models")
    assert sorted(labels.values()) == sorted(own + extra)
