"""Files on three systems: Linux for real, Windows and macOS by taking away what they lack and raising what they raise."""
import errno
import hashlib
import json
import os
import sys
import threading
import types

import pytest
from wan22_master.engine import open_file, system
from wan22_master.engine.errors import MergeError, PlanError
from wan22_master.engine.system import open_read, open_write

BYTES = bytes(range(256)) * 40
MISSING = {
    "linux": (),
    "macos": ("preadv", "posix_fallocate", "posix_fadvise", "fdatasync"),
    "windows": ("preadv", "pread", "pwrite", "posix_fallocate", "posix_fadvise", "fdatasync"),
}


def windows_error(winerror: int, number: int = errno.EACCES) -> OSError:
    """As Windows raises it: `winerror` is set, and PermissionError follows from the errno."""
    error = OSError(number, f"winerror {winerror}")
    error.winerror = winerror
    return error


@pytest.fixture(params=MISSING)
def platform(request, monkeypatch):
    for name in MISSING[request.param]:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(open_file, "WINDOWS", request.param == "windows")
    return request.param


@pytest.fixture
def path(tmp_path):
    (tmp_path / "file.bin").write_bytes(BYTES)
    return tmp_path / "file.bin"


def test_any_range_reads_as_the_file_has_it(platform, path):
    with open_read(path) as file:
        for offset, count in ((0, 1), (255, 2), (1000, len(BYTES) - 1000), (7, 0)):
            buffer = bytearray(count)
            file.advise(offset, count)
            file.read_into(offset, buffer)
            assert buffer == BYTES[offset:offset + count]


def test_short_reads_are_continued(platform, path, monkeypatch):
    monkeypatch.setattr(open_file, "PIECE", 7)
    buffer = bytearray(1000)
    with open_read(path) as file:
        file.read_into(3, buffer)
    assert buffer == BYTES[3:1003]


def test_a_file_that_ends_early_is_named_with_both_counts(platform, path):
    with open_read(path) as file, pytest.raises(MergeError, match=r"file.bin: expected 100 bytes at 10200, found 40, .*again"):
        file.read_into(10200, bytearray(100))


def test_advising_beyond_the_end_ends(platform, path):
    with open_read(path) as file:
        file.advise(10000, 1 << 22)


def test_threads_do_not_read_each_others_places(platform, path):
    wrong = []

    def reader(start: int) -> None:
        buffer = bytearray(100)
        for turn in range(200):
            offset = (start + turn * 37) % 10000
            file.read_into(offset, buffer)
            if buffer != BYTES[offset:offset + 100]:
                wrong.append(offset)

    with open_read(path) as file:
        threads = [threading.Thread(target=reader, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_writes_land_at_their_place_in_any_order_and_read_back(platform, tmp_path, monkeypatch):
    monkeypatch.setattr(open_file, "PIECE", 11)  # every write is short
    with open_write(tmp_path / "out", resume=False) as file:
        file.preallocate(300)
        file.write_at(200, memoryview(BYTES[200:300]))
        file.write_at(0, BYTES[:200])
        file.write_at(5, b"")
        assert file.read_at(190, 20) == BYTES[190:210]
        file.sync()
    assert (tmp_path / "out").read_bytes() == BYTES[:300]


def test_resuming_keeps_what_is_there_and_preallocating_cuts_the_rest(platform, path):
    with open_write(path, resume=True) as file:
        file.preallocate(5000)
        file.write_at(0, b"xyz")
    assert path.read_bytes() == b"xyz" + BYTES[3:5000]


def test_a_new_file_is_empty_even_where_an_old_one_was(platform, path):
    open_write(path, resume=False).close()
    assert path.read_bytes() == b""


def test_preallocating_gives_the_full_size_where_that_is_free(platform, tmp_path):
    with open_write(tmp_path / "out", resume=False) as file:
        file.preallocate(4096)
    assert (tmp_path / "out").stat().st_size == (0 if platform == "windows" else 4096)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve")
@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve_still_gets_the_size(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(code, "no")))
    with open_write(tmp_path / "out", resume=False) as file:
        file.preallocate(4096)
    assert (tmp_path / "out").stat().st_size == 4096


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve")
def test_reserving_more_than_the_disk_has_says_so(tmp_path):
    with open_write(tmp_path / "out", resume=False) as file, pytest.raises(PlanError, match="disk is full"):
        file.preallocate(system.free_bytes(tmp_path) + (1 << 33))
    (tmp_path / "out").unlink()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), windows_error(112, errno.EIO)], ids=["linux", "windows"])
def test_a_disk_that_fills_up_while_writing_says_so(tmp_path, monkeypatch, error):
    with open_write(tmp_path / "out", resume=False) as file:
        monkeypatch.setattr(file, "_write_some", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(PlanError, match="out: cannot be written: the disk is full, free some space and resume"):
            file.write_at(0, b"abc")


@pytest.mark.parametrize("error", [windows_error(1455, errno.EINVAL), OSError(errno.ENOMEM, "no"), MemoryError()], ids=str)
def test_lack_of_memory_stays_lack_of_memory(path, monkeypatch, error):
    with open_read(path) as file:
        monkeypatch.setattr(file, "_read_some", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(MemoryError):
            file.read_into(0, bytearray(4))


def test_a_failing_drive_is_named_with_the_file(path, monkeypatch):
    with open_read(path) as file:
        monkeypatch.setattr(file, "_read_some", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "input/output error")))
        with pytest.raises(MergeError, match=r"file\.bin: cannot be read: input/output error, check the disk"):
            file.read_into(0, bytearray(4))


@pytest.mark.parametrize("opening", [lambda path: open_read(path), lambda path: open_write(path, resume=True)])
def test_a_missing_file_is_named(tmp_path, opening):
    with pytest.raises(MergeError, match="gone: cannot be opened"):
        opening(tmp_path / "gone")


def test_closing_twice_is_allowed(path):
    file = open_read(path)
    file.close()
    file.close()


def test_macos_syncs_through_the_drive_and_falls_back_where_the_file_system_cannot(tmp_path, monkeypatch):
    calls = []

    def full(fd, command):
        calls.append(command)
        if len(calls) > 1:
            raise OSError(errno.ENOTSUP, "no")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "fcntl", types.SimpleNamespace(fcntl=full, F_FULLFSYNC=51))
    monkeypatch.setattr(os, "fdatasync", lambda fd: calls.append("sync"), raising=False)
    with open_write(tmp_path / "out", resume=False) as file:
        file.sync()
        assert calls == [51]
        file.sync()
        assert calls == [51, 51, "sync"]


def held(monkeypatch, target, error, times):
    """os.replace onto `target` fails `times` times with `error`, as while a program holds it open."""
    left, real = [times], os.replace

    def replace(source, to):
        if to == os.fspath(target) and left[0]:
            left[0] -= 1
            raise error
        return real(source, to)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(system, "WAITS", (0, 0, 0, 0, 0))


@pytest.mark.parametrize("error", [PermissionError(13, "x"), *(windows_error(code, errno.EINVAL) for code in (5, 32, 1224))],
    ids=str)
def test_a_target_let_go_in_time_is_replaced(tmp_path, path, monkeypatch, error):
    (tmp_path / "model.bin").write_bytes(b"old")
    held(monkeypatch, tmp_path / "model.bin", error, 5)
    assert system.replace(path, tmp_path / "model.bin") == (str(tmp_path / "model.bin"), None)
    assert (tmp_path / "model.bin").read_bytes() == BYTES


def test_a_target_held_for_good_keeps_its_bytes_and_the_next_free_name_is_told(tmp_path, path, monkeypatch):
    for name in ("model.bin", "model-2.bin"):
        (tmp_path / name).write_bytes(b"old")
    held(monkeypatch, tmp_path / "model.bin", windows_error(1224, errno.EINVAL), 99)
    used, why = system.replace(path, tmp_path / "model.bin")
    assert used == str(tmp_path / "model-3.bin") and "model.bin is held open" in why and "model-3.bin" in why
    assert (tmp_path / "model-3.bin").read_bytes() == BYTES
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "model-2.bin").read_bytes() == b"old"


def test_no_other_name_is_tried_where_the_folder_is_the_problem(tmp_path, path, monkeypatch):
    held(monkeypatch, tmp_path / "model.bin", PermissionError(13, "permission denied"), 99)
    with pytest.raises(MergeError, match=r"model.bin: cannot be put in place: permission denied, check the rights of the folder"):
        system.replace(path, tmp_path / "model.bin")
    assert path.read_bytes() == BYTES


def test_json_is_replaced_whole_and_nothing_else_stays(tmp_path):
    system.write_json(tmp_path / "job.json", {"名": [1, 0.1, None, "\udcff"]})
    assert json.loads((tmp_path / "job.json").read_text()) == {"名": [1, 0.1, None, "\udcff"]}
    with pytest.raises(ValueError, match="JSON compliant"):
        system.write_json(tmp_path / "job.json", float("nan"))
    system.write_json(tmp_path / "job.json", [])
    assert os.listdir(tmp_path) == ["job.json"] and (tmp_path / "job.json").read_text() == "[]"


def test_json_keeps_the_old_text_when_the_disk_is_full(tmp_path, monkeypatch):
    system.write_json(tmp_path / "job.json", [1])
    monkeypatch.setattr(open_file.WriteFile, "_write_some", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "x")))
    with pytest.raises(PlanError, match="disk is full"):
        system.write_json(tmp_path / "job.json", [2])
    assert (tmp_path / "job.json").read_text() == "[\n 1\n]"


def test_json_lies_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls, sync, replace = [], open_file.WriteFile.sync, os.replace
    monkeypatch.setattr(open_file.WriteFile, "sync", lambda self: (calls.append("sync"), sync(self)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    system.write_json(tmp_path / "job.json", {})
    assert calls == ["sync", "replace"]


def test_json_is_read_back_and_is_none_where_it_cannot_be(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    assert system.read_json(path) is None and system.read_json(tmp_path) is None     # a folder raises OSError
    system.write_json(path, {"é": [1, None]})
    assert system.read_json(path) == {"é": [1, None]}
    for damaged in (b"{", b"\xff\xfe", b""):
        path.write_bytes(damaged)
        assert system.read_json(path) is None


def test_syncing_a_folder_is_left_out_on_windows(tmp_path, monkeypatch):
    system.sync_folder(tmp_path)
    if not open_file.WINDOWS:
        with pytest.raises(MergeError, match="cannot be synced"):
            system.sync_folder(tmp_path / "gone")
    monkeypatch.setattr(open_file, "WINDOWS", True)
    system.sync_folder(tmp_path / "gone")


def test_free_space_is_known_before_the_folder_exists(tmp_path):
    stat = os.statvfs(tmp_path) if hasattr(os, "statvfs") else None
    free = system.free_bytes(tmp_path / "not" / "yet" / "made")
    assert free > 0 and (stat is None or abs(free - stat.f_bavail * stat.f_frsize) < 1 << 30)  # others write meanwhile


@pytest.mark.parametrize("name", ["wan2.2_t2v_high_noise_fp8.safetensors", "混合 v1.0.safetensors", "com10.x", "a" * 200])
def test_ordinary_names_pass_unchanged(name):
    assert system.legal_name(name) == name


@pytest.mark.parametrize(("name", "said"), [
    ("", "empty"), (".", "only dots"), ("..", "only dots"), ("../x", "'/'"), ("a\\b", r"\\"), ("C:x", "':'"), ("a\nb", r"\\n"),
    ("a\x7f", "x7f"), ("what?", r"\?"),
    ("a\x85b", "x85"), ("CON", "device"), ("nul.safetensors", "device"), ("Com1", "device"), ("LPT³.x", "device"),
    ("aux .x", "device"), ("x.", "dot or a space"), ("x ", "dot or a space"), ("é" * 101, "202 bytes"),
    ("\udcff", "no file system"),
])
def test_a_name_some_system_refuses_is_refused_with_the_reason(name, said):
    with pytest.raises(PlanError, match=said):
        system.legal_name(name)


def test_hash_is_that_of_hashlib_over_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "PIECE", 1000)
    (tmp_path / "x").write_bytes(BYTES)
    assert system.hash_file(tmp_path / "x") == hashlib.sha256(BYTES).hexdigest()
    with pytest.raises(MergeError, match="cannot be hashed"):
        system.hash_file(tmp_path / "gone")
