"""Sets of shards: one model however it is chosen, and never with a part missing."""
import json
import os
import re

import pytest
import torch
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.errors import MergeError, SourceError
from wan22_master.tests.engine.stored_base import saved, wan


def sharded(folder, tensors, count=3, *, index=True, stem="diffusion_pytorch_model"):
    folder.mkdir()
    names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    weight_map = {key: names[position % count] for position, key in enumerate(tensors)}
    for name in names:
        saved(folder / name, {key: tensors[key] for key in tensors if weight_map[key] == name})
    if index:
        text = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
        (folder / f"{stem}.safetensors.index.json").write_text(text)
    return names


@pytest.mark.parametrize("chosen", ["index", "first shard", "last shard", "folder", "shard without index", "folder without index"])
def test_a_sharded_set_is_one_model_however_it_is_chosen(tmp_path, chosen):
    tensors = wan(torch.bfloat16)
    folder = tmp_path / "high_noise_model"
    names = sharded(folder, tensors, index="without" not in chosen)
    path = {"index": folder / "diffusion_pytorch_model.safetensors.index.json", "first shard": folder / names[0],
            "last shard": folder / names[2], "shard without index": folder / names[1]}.get(chosen, folder)
    with open_source(path) as source:
        assert set(source.keys()) == set(tensors)
        assert all(torch.equal(source.read(key), value.float()) for key, value in tensors.items())
        assert [file["name"] for file in source.identity()["files"]] == names


def test_a_folder_with_one_file_is_that_file_and_with_two_models_none(tmp_path):
    saved(tmp_path / "base.safetensors", wan())
    with open_source(tmp_path) as source:
        assert source.identity()["files"][0]["name"] == "base.safetensors"
    saved(tmp_path / "other.safetensors", wan())
    with pytest.raises(SourceError, match=r"2 models: base.safetensors, other.safetensors; choose the file"):
        open_source(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no \.safetensors file"):
        open_source(tmp_path / "empty")


@pytest.mark.parametrize("index", [True, False], ids=["index", "numbers"])
def test_a_missing_shard_is_named(tmp_path, index):
    names = sharded(tmp_path / "set", wan(), index=index)
    (tmp_path / "set" / names[1]).unlink()
    with pytest.raises(SourceError, match=f"missing {names[1]}"):
        open_source(tmp_path / "set" / names[0])


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path):
    sharded(tmp_path / "set", wan())
    index = tmp_path / "set" / "diffusion_pytorch_model.safetensors.index.json"
    found = json.loads(index.read_text())
    first, second = (found["weight_map"][key] for key in ("patch_embedding.weight", "head.modulation"))
    for change, message in [
        ({"blocks.9.ffn.0.weight": first}, r"blocks\.9\.ffn\.0\.weight: expected in .*: it is in none"),
        ({"patch_embedding.weight": second}, rf"patch_embedding\.weight: expected in {second}, found: it is in {first}"),
        ({"x": "../secret.safetensors"}, "beside the index"), ({"x": "C:\\secret.safetensors"}, "beside the index"),
        ({"x": 7}, "file names by key"), ({"x": "gone.safetensors"}, r"missing gone\.safetensors"),
    ]:
        index.write_text(json.dumps({"weight_map": found["weight_map"] | change}))
        with pytest.raises(SourceError, match=message):
            open_source(index)
    del found["weight_map"]["head.head.weight"]
    index.write_text(json.dumps(found))
    with pytest.raises(SourceError, match=r"head\.head\.weight: expected in the index, found only in"):
        open_source(index)
    for text in ("[", "[]", "{}", '{"weight_map": {}, "weight_map": {}}', "[" * 100_000):
        index.write_text(text)
        with pytest.raises(SourceError, match="expected"):
            open_source(index)


def test_another_models_broken_index_does_not_matter(tmp_path):
    path = saved(tmp_path / "base.safetensors", wan())
    (tmp_path / "other.safetensors.index.json").write_text("{")
    with open_source(path) as source:
        assert set(source.keys()) == set(wan())


def unlistable(monkeypatch):
    """Folders that may be entered but not listed, for whoever runs this."""
    def refuse(folder):
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "listdir", refuse)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    saved(tmp_path / "base.safetensors", wan())
    unlistable(monkeypatch)
    with pytest.raises(MergeError, match=rf"^{re.escape(str(tmp_path))}: cannot be listed: Permission denied, check the rights"):
        open_source(tmp_path)


def test_a_file_in_a_folder_that_cannot_be_listed_is_read(tmp_path, monkeypatch):
    path = saved(tmp_path / "base.safetensors", wan())
    names = sharded(tmp_path / "set", wan())
    unlistable(monkeypatch)
    for chosen in (path, tmp_path / "set" / names[1]):
        with open_source(chosen) as source:
            assert set(source.keys()) == set(wan())
