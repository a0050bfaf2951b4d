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


def stop_after(count, folder, monkeypatch):
    """The wish to stop comes with the count-th question that is asked once a file is begun in `folder`."""
    calls = []

    def asked(self):
        calls.extend([1] if list(folder.glob("*.part")) else [])
        return len(calls) > count

    monkeypatch.setattr(command.StopWish, "__call__", asked)


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
    assert "demo_t2v_fp32.safetensors" in told and any(line.startswith("does not fit: ") for line in told.splitlines())
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
    stop_after(30, out, monkeypatch)
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
    stop_after(30, recipe.parent / "out", monkeypatch)
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
    out = recipe.parent / "out"
    stop_after(5, out, monkeypatch)
    assert command.main(["run", str(recipe)]) == 130
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


def test_the_recipe_commands_read_relink_edit_and_take_out_of_a_model(recipe, tmp_path, capsys):
    assert command.main(["run", str(recipe)]) == 0
    model = next((recipe.parent / "out").glob("*high_noise_bf16*"))
    bytes_of, inside, made = model.read_bytes(), recipe.parent / "in", tmp_path / "made.json"
    assert command.main(["recipe", "from-model", str(model), "-o", str(made)]) == 0
    held = json.loads(made.read_text())
    assert held["experts"] == {"high_noise": "wan2.2_t2v_high_noise.safetensors"} and len(held["passes"]) == 2
    capsys.readouterr()
    assert command.main(["recipe", "check", str(made)]) == 2
    told = capsys.readouterr()
    assert told.out.count("missing: ") == 2 and "2 of 2 LoRAs cannot be linked" in told.err
    assert command.main(["recipe", "check", str(model), "--loras", str(inside)]) == 0
    told = capsys.readouterr().out
    assert told.count("found: ") == 2 and "#1 native_lora_high_noise.safetensors (high_noise; pass 1; " in told

    linked = tmp_path / "linked.json"
    base = str(inside / "wan2.2_t2v_high_noise.safetensors")
    assert command.main(["recipe", "relink", str(made), "--loras", str(inside), "-o", str(linked)]) == 0
    assert "base of high_noise: not found" in capsys.readouterr().out
    assert command.main(["recipe", "relink", str(made), "--loras", str(inside), "--high-base", base, "-o", str(linked)]) == 0
    assert "base of" not in capsys.readouterr().out
    said = json.loads(linked.read_text())
    linked.write_text(json.dumps({**said, "save": {**said["save"], "folder": str(tmp_path / "again")}}))
    assert command.main(["run", str(linked)]) == 0
    assert next((tmp_path / "again").glob("*.safetensors")).read_bytes() == bytes_of

    capsys.readouterr()
    assert command.main(["recipe", "without", str(made), "native_lora_high_noise"]) == 0
    assert [len(each["loras"]) for each in json.loads(capsys.readouterr().out)["passes"]] == [0, 1]
    assert command.main(["recipe", "without", str(made), "nothing"]) == 2 and "found none" in capsys.readouterr().err


def test_an_original_recipe_for_each_expert_becomes_one_of_this_pack(recipe, tmp_path, capsys):
    for role in ("high", "low"):
        (tmp_path / f"{role}.json").write_text(
            '{"paths": {"lora_dir": "in"}, // http://x\n "pipeline": [{"method": "injection", "features": [{"file": '
            f'"kohya_lora_{role}_noise.safetensors", "weight": 0.5}}]}}]}}')
    inside, out = recipe.parent / "in", tmp_path / "ours.json"
    bases = [f"--{role}-base={inside / f'wan2.2_t2v_{role}_noise.safetensors'}" for role in ("high", "low")]
    names = [str(tmp_path / "high.json"), "--low", str(tmp_path / "low.json")]
    assert command.main(["recipe", "relink", *names, "--loras", str(inside), *bases, "-o", str(out)]) == 0
    told = capsys.readouterr().out
    assert told.count("moved: ") == 2 and told.count("_noise: recipe of the original Action-Master") == 2
    [each] = json.loads(out.read_text())["passes"]
    assert each["method"] == "classic" and len(each["loras"]) == 1 and len(each["loras"][0]["files"]) == 2
    assert command.main(["run", str(out), "--plan-only"]) == 0 and capsys.readouterr().out.count("60 of 60 keys by classic") == 2
    (tmp_path / "bad.json").write_text('{"paths": {},\n "pipeline": [}')
    assert command.main(["recipe", "check", str(tmp_path / "bad.json")]) == 2 and "line 2 column 15" in capsys.readouterr().err
