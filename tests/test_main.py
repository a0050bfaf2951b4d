"""The command line, from the arguments to the exit status and the files."""
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from wan22_master import __main__ as command
from wan22_master.engine import demo
from wan22_master.engine.synthetic import Sizes

ROOT = Path(__file__).resolve().parents[1]
TINY = Sizes(dim=256, ffn=512, blocks=2, rank=4)


@pytest.fixture(autouse=True)
def keep_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def recipe(tmp_path):
    return demo.prepare(tmp_path / "demo", TINY)


def test_the_demo_writes_four_files_that_load_and_a_second_one_finds_them_done(tmp_path, monkeypatch, capsys):
    prepare = demo.prepare
    monkeypatch.setattr(demo, "prepare", lambda folder: prepare(folder, TINY))
    assert command.main(["demo", str(tmp_path / "d")]) == 0
    files = sorted((tmp_path / "d" / "out").glob("*.safetensors"))
    assert [path.name for path in files] == [f"demo_t2v_{role}_noise_{name}.safetensors" for role in ("high",
        "low") for name in ("bf16", "fp8_scaled")]
    assert all(load_file(path) for path in files)
    before = [path.stat().st_mtime_ns for path in files]
    told = capsys.readouterr().out
    assert "verified: 4 files" in told and told.count("60 of 60 keys by") == 4
    assert command.main(["demo", str(tmp_path / "d")]) == 0
    assert capsys.readouterr().out.count("(already there)") == 4
    assert before == [path.stat().st_mtime_ns for path in files]


def test_plan_only_tells_files_and_bytes_and_writes_no_model(recipe, capsys):
    assert command.main(["run", str(recipe), "--plan-only"]) == 0
    told = capsys.readouterr().out
    assert told.count("demo_t2v_high_noise_fp8_scaled.safetensors") == 1 and "bytes" in told
    assert not list(recipe.parent.glob("out/*.safetensors*"))


def test_plan_only_tells_the_table_where_the_disk_is_too_small_and_run_refuses(recipe, capsys, write_huge_model):
    huge_model = write_huge_model(recipe.parent / "huge.safetensors")
    said = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**said, "experts": {"model": str(huge_model)}, "passes": [], "outputs": [{"format": "fp32"}]}))
    assert command.main(["run", str(recipe), "--plan-only"]) == 0
    told = capsys.readouterr().out
    assert "demo_t2v_fp32.safetensors" in told and told.splitlines()[-1].startswith("does not fit: ")
    assert command.main(["run", str(recipe)]) == 2 and "are needed" in capsys.readouterr().err


def test_a_mistake_in_the_recipe_is_one_line_and_status_2(recipe, capsys):
    said = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**said, "experts": {"model": "gone.safetensors"}, "passes": []}))
    assert command.main(["run", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "gone.safetensors" in error and error.count("\n") == 1


def test_a_device_on_the_command_line_goes_before_the_recipes(recipe, capsys):
    assert command.main(["run", str(recipe), "--device", "gpu"]) == 2
    assert "device 'gpu'" in capsys.readouterr().err


def test_inspect_tells_lines_or_json(recipe, capsys):
    path = str(recipe.parent / "in" / "wan2.2_t2v_low_noise.safetensors")
    assert command.main(["inspect", path]) == 0 and "role: low_noise" in capsys.readouterr().out
    assert command.main(["inspect", path, "--json"]) == 0 and json.loads(capsys.readouterr().out)["role"] == "low_noise"


def test_a_stopped_job_is_listed_resumed_and_ends_as_if_never_stopped(recipe, capsys, monkeypatch):
    out = recipe.parent / "out"
    assert command.main(["run", str(recipe)]) == 0
    whole = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    for path in [*out.glob("*.safetensors"), *out.glob("reports/*")]:
        path.unlink()
    calls = []
    monkeypatch.setattr(command.StopWish, "__call__", lambda self: calls.append(1) or len(calls) > 30)
    assert command.main(["run", str(recipe)]) == 130
    assert "resume" in capsys.readouterr().err
    parts = sorted(path.name for path in out.glob("*.part"))
    assert parts and not set(parts) & set(whole)
    assert command.main(["leftovers", str(out)]) == 0
    assert parts[0].removesuffix(".part") in capsys.readouterr().out
    monkeypatch.setattr(command.StopWish, "__call__", lambda self: False)
    for part in parts:
        assert command.main(["resume", str(out / part)]) == 0
    assert {name: (out / name).read_bytes() for name in (part.removesuffix(".part") for part in parts)} == {
        part.removesuffix(".part"): whole[part.removesuffix(".part")] for part in parts}


def test_resume_uses_the_reports_folder_it_was_begun_with_and_names_a_changed_lora(recipe, tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(command.StopWish, "__call__", lambda self: calls.append(1) or len(calls) > 30)
    assert command.main(["run", str(recipe), "--reports", str(tmp_path / "told")]) == 130
    lora = recipe.parent / "in" / "native_lora_high_noise.safetensors"
    body = bytearray(lora.read_bytes())
    body[-1] ^= 1
    lora.write_bytes(body)
    part = next((recipe.parent / "out").glob("*.part"))
    monkeypatch.setattr(command.StopWish, "__call__", lambda self: False)
    capsys.readouterr()
    assert command.main(["resume", str(part)]) == 0
    told = capsys.readouterr().out
    assert f"note: {part.name.removesuffix('.part')}: changed since it was begun: {lora.name}" in told
    assert list((tmp_path / "told").glob("report-*.json")) and not (recipe.parent / "out" / "reports").exists()


def test_the_hint_names_the_example_and_the_files_that_the_demo_wrote(recipe, tmp_path, monkeypatch):
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    told = "\n".join(command.as_graph(command.load(recipe)))
    assert str(tmp_path / "custom_nodes") in told and "merge_two_loras_save_fp8.json" in told and command.EXAMPLE.is_file()
    for name in ("wan2.2_t2v_high_noise", "native_lora_high_noise", "kohya_lora_high_noise"):
        assert f"{name}.safetensors" in told and (recipe.parent / "in" / f"{name}.safetensors").is_file()
    monkeypatch.setattr(command, "find_comfyui", lambda: None)
    assert command.as_graph(command.load(recipe)) == []


def test_a_leftover_is_deleted_by_name_and_another_name_is_refused(recipe, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(command.StopWish, "__call__", lambda self: calls.append(1) or len(calls) > 5)
    assert command.main(["run", str(recipe)]) == 130
    out = recipe.parent / "out"
    part = next(out.glob("*.part"))
    assert command.main(["leftovers", str(out), "--delete", "other"]) == 2 and "expected one of" in capsys.readouterr().err
    assert command.main(["leftovers", str(out), "--delete", part.name]) == 0 and not part.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_keeps_the_job_and_ends_with_130(tmp_path):
    demo.prepare(tmp_path, Sizes(dim=1024, ffn=4096, blocks=6, rank=16))
    running = subprocess.Popen([sys.executable, str(ROOT), "run", str(tmp_path / "recipe.json"), "--device", "cpu"], cwd=tmp_path,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in running.stderr:
        if line.startswith("["):
            break
    running.send_signal(signal.SIGINT)
    told = running.stderr.read()
    running.stderr.close()
    assert running.wait(60) == 130 and "to go on" in told
    assert list((tmp_path / "out").glob("*.part"))


def test_started_by_path_it_leaves_the_name_nodes_alone(tmp_path):
    (tmp_path / "nodes.py").write_text("HERE = 1")
    script = (f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['x', '--help']\n"
              f"try:\n    runpy.run_path({str(ROOT)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
              "import nodes; assert nodes.HERE == 1")
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "inspect" in done.stdout
