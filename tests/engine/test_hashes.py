"""Hashes of LoRA files: hashlib is the oracle; the cache may save a reading, never tell an old hash."""

import hashlib
import os

import pytest
from wan22_master.engine import hashes
from wan22_master.engine.hashes import HashCache


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were really read."""
    found, real = [], hashes.hash_file
    monkeypatch.setattr(hashes, "hash_file", lambda path, *more: found.append(os.path.basename(path)) or real(path))
    return found


def oracle(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, (1 << 22) - 1, 1 << 22, (1 << 22) + 5])
def test_a_hash_is_hashlibs(tmp_path, size):
    (tmp_path / "lora").write_bytes(os.urandom(size))
    assert HashCache(tmp_path / "cache").sha256(str(tmp_path / "lora")) == oracle(tmp_path / "lora")


def test_a_file_is_read_once_and_remembered_by_the_next_session(tmp_path, reads):
    path = tmp_path / "lora"
    path.write_bytes(b"weights")
    first = HashCache(tmp_path / "cache")
    assert first.sha256(str(path)) == first.sha256(str(path)) == HashCache(tmp_path / "cache").sha256(str(path)) == oracle(path)
    assert reads == ["lora"]


def test_the_same_file_by_another_name_is_not_read_again(tmp_path, reads):
    (tmp_path / "lora").write_bytes(b"weights")
    os.symlink(tmp_path / "lora", tmp_path / "link")
    cache = HashCache(tmp_path / "cache")
    assert cache.sha256(str(tmp_path / "link")) == cache.sha256(str(tmp_path / "lora")) and reads == ["lora"]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_read_again(tmp_path, reads, change):
    path = tmp_path / "lora"
    path.write_bytes(b"weights")
    before = HashCache(tmp_path / "cache").sha256(str(path))
    stat = path.stat()
    path.write_bytes(b"weightS" if change == "time" else b"more weights")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + (change == "time")))
    assert before != HashCache(tmp_path / "cache").sha256(str(path)) == oracle(path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "7", "null", '{"x": 1}', "\ufeff{}"])
def test_an_unreadable_cache_is_made_anew(tmp_path, content):
    path, folder = tmp_path / "lora", tmp_path / "cache"
    path.write_bytes(b"weights")
    folder.mkdir()
    (folder / hashes.NAME).write_text(content, encoding="utf-8")
    assert HashCache(folder).sha256(str(path)) == oracle(path)
    assert HashCache(folder).known[os.path.realpath(path)][2] == oracle(path)


def test_an_entry_that_is_no_entry_is_made_anew(tmp_path):
    path, folder = tmp_path / "lora", tmp_path / "cache"
    path.write_bytes(b"weights")
    folder.mkdir()
    for wrong in ("7", '"text"', "[1]", "null", "{}"):
        (folder / hashes.NAME).write_text(f'{{"{os.path.realpath(path)}": {wrong}}}')
        assert HashCache(folder).sha256(str(path)) == oracle(path)


def test_without_a_folder_nothing_is_written(tmp_path, reads):
    (tmp_path / "lora").write_bytes(b"weights")
    cache = HashCache(None)
    assert cache.sha256(str(tmp_path / "lora")) == cache.sha256(str(tmp_path / "lora")) == oracle(tmp_path / "lora")
    assert reads == ["lora"] and [path.name for path in tmp_path.iterdir()] == ["lora"]


@pytest.mark.parametrize(("name", "text"), [("base.safetensors.sha256", "{}  base.safetensors\n"),
                                            ("base.metadata.json", '{{"sha256": "{}", "title": "x"}}')])
def test_a_bases_hash_is_taken_from_its_sidecar_and_never_computed(tmp_path, reads, name, text):
    base, digest = tmp_path / "base.safetensors", "ab" * 32
    base.write_bytes(b"weights")
    assert HashCache(tmp_path / "cache").known_sha256(str(base)) is None
    (tmp_path / name).write_text(text.format(digest.upper()))
    assert HashCache(tmp_path / "cache").known_sha256(str(base)) == digest
    os.utime(base, (2e9, 2e9))                     # the base was replaced after the sidecar was written
    assert HashCache(tmp_path / "cache").known_sha256(str(base)) is None
    assert reads == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"sha256": 7}', "deadbeef", "z" * 64])
def test_a_sidecar_that_says_no_hash_is_passed_over(tmp_path, text):
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"weights")
    for name in ("base.safetensors.sha256", "base.metadata.json"):
        (tmp_path / name).write_text(text)
    assert HashCache(None).known_sha256(str(base)) is None
