"""What Calibration Summary works with beside its schema: sources by expert, files that it writes, and its pictures.

`folder_paths` is ComfyUI's and stands in here; the node itself runs in a real ComfyUI.
"""
import json
import lzma
import os
import sys
import types
from importlib import import_module
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is ComfyUI's, and of the test extra")
from PIL import ImageDraw
from wan22_master.engine.calibration.session import Session
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans.scales_summary import from_summary, read_summary
from wan22_master.engine.synthetic import Sizes, write_model
from wan22_master.nodes.calibration_chart import KINDS, bounds_of, series
from wan22_master.nodes.calibration_plot import BAR, PLOTS, Drawn, draw
from wan22_master.tests.engine.calibration.small_session import LAYERS, record

OURS = ("plan_files", "calibration_files", "calibration_sources", "calibration_results")
LINE = "nvfp4\tdynamic\t{}\t0.001000\t{:.6f}\t(10, 4)\n"


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The user folder of a ComfyUI that stands in, and our modules over it, forgotten when the test ends."""
    stand_in = types.ModuleType("folder_paths")
    stand_in.get_user_directory, stand_in.folder_names_and_paths = lambda: str(tmp_path), {}
    package = sys.modules["wan22_master.nodes"]
    monkeypatch.setitem(sys.modules, "folder_paths", stand_in)
    for name in OURS:
        monkeypatch.delitem(sys.modules, f"wan22_master.nodes.{name}", raising=False)
    sources, results = (import_module(f"wan22_master.nodes.{name}") for name in OURS[2:])
    folder = tmp_path / "default" / "wan22_master" / "calibration"
    folder.mkdir(parents=True)
    yield types.SimpleNamespace(folder=folder, plans=folder.parent / "plans", sources=sources, results=results)
    for name in OURS:
        sys.modules.pop(f"wan22_master.nodes.{name}", None)
        vars(package).pop(name, None)


@pytest.fixture
def session(user) -> Session:
    session = Session.create(user.folder, "calib_01")
    for role, size in (("high_noise", 1.0), ("low_noise", 2.0)):
        record(session, role, [size, 2 * size], prompt="p")
    return session


def test_each_expert_has_its_numbers_from_the_session(user, session):
    found, lines = user.sources.collect(session, ("(none)", "(none)"), (), None)
    amax = {role: {row["layer"]: row["amax_max"] for row in source.rows} for role, source in found.items()}
    # the recorder's largest inputs: 4 times the size, and 8 times in the second point
    assert amax == {"high_noise": {LAYERS[0]: 8.0, LAYERS[1]: 8.0, LAYERS[2]: 16.0},
                    "low_noise": {LAYERS[0]: 16.0, LAYERS[1]: 16.0, LAYERS[2]: 32.0}}
    assert any(line.startswith("low_noise: 1 runs of 1 prompts") for line in lines)


def test_a_log_goes_before_the_session_for_its_expert_alone(user, session):
    (user.folder / "old.log").write_text(LINE.format("blocks.0.ffn.2", 3.0) * 2 + "hello\n")
    found, lines = user.sources.collect(session, ("(none)", "old.log"), ("high_noise", "low_noise"), 97.5)
    assert [(role, source.stem) for role, source in found.items()] == [("high_noise", "calib_01_high_noise"), ("low_noise", "old")]
    assert found["low_noise"].rows[0]["amax_p97_5"] == 3.0
    assert found["high_noise"].rows[0]["amax_p97_5"] == 15.8               # of ffn.0: 8 and 16
    assert "low_noise: 1 lines of the log are left out: they are no line of such a log" in lines
    assert any(line.startswith("low_noise: log old.log, 2 calls of each of 1 layers") for line in lines)
    assert not any(line.startswith("low_noise: 1 runs") for line in lines)


def test_calls_of_a_log_are_counted_by_layer(user):
    one, other = LINE.format("blocks.0.ffn.2", 3.0), LINE.format("blocks.0.ffn.0", 3.0)
    (user.folder / "even.log").write_text((one + other) * 3)
    (user.folder / "odd.log").write_text((one + other) * 3 + one)
    _, lines = user.sources.collect(None, ("even.log", "odd.log"), (), None)
    assert [line.split(", ")[1].partition(";")[0] for line in lines] == [
        "3 calls of each of 2 layers", "3 to 4 calls of each of 2 layers"]


def test_an_expert_that_a_log_stands_for_is_not_missed(user):
    half = Session.create(user.folder, "half")
    record(half, "low_noise", [1.0], prompt="p")
    (user.folder / "old.log").write_text(LINE.format("blocks.0.ffn.2", 3.0))
    pair = ("high_noise", "low_noise")
    said = {logs: any("one-sided" in line for line in user.sources.collect(half, logs, pair, None)[1])
            for logs in (("(none)", "(none)"), ("old.log", "(none)"))}
    assert list(said.values()) == [True, False]
    assert not any("one-sided" in line for line in user.sources.collect(half, ("(none)", "(none)"), ("low_noise",), None)[1])


def test_an_expert_that_was_recorded_is_not_missed_where_the_model_has_it_not(user, session):
    for wanted in (("high_noise",), ("low_noise",)):
        assert not any("one-sided" in line for line in user.sources.collect(session, ("(none)", "(none)"), wanted, None)[1])


@pytest.mark.parametrize(("logs", "wanted", "is_told"), [
    (("a.log", "(none)"), (), True), (("a.log", "(none)"), ("model",), False), (("a.log", "(none)"), ("high_noise",), False),
    (("a.log", "b.log"), (), False), (("(none)", "b.log"), (), False)])
def test_a_role_that_nothing_tells_is_said_to_be_taken(user, logs, wanted, is_told):
    for name in ("a.log", "b.log"):
        (user.folder / name).write_text(LINE.format("blocks.0.ffn.0", 3.0))
    _, lines = user.sources.collect(None, logs, wanted, None)
    assert ("a.log is taken as high_noise; connect dit for a model of one file" in lines) == is_told


@pytest.mark.parametrize("name", ["../secret.log", "gone.log", "calib_01"])
def test_a_file_outside_the_calibration_folder_is_refused(user, session, name):
    (user.folder.parent / "secret.log").write_text(LINE.format("blocks.0.ffn.0", 3.0))
    with pytest.raises(RecipeError, match="no such log or summary"):
        user.sources.collect(session, (name, "(none)"), (), None)


@pytest.mark.parametrize(("logs", "wanted", "said"), [
    (("(none)", "(none)"), (), "no session is connected"), (("(none)", "a.log"), ("model",), "a.log is chosen for an expert that")])
def test_what_has_no_numbers_says_what_to_connect(user, logs, wanted, said):
    (user.folder / "a.log").write_text(LINE.format("blocks.0.ffn.0", 3.0))
    with pytest.raises(RecipeError, match=said):
        user.sources.collect(None, logs, wanted, None)


def test_a_session_of_other_experts_than_the_model_s_is_an_error(user, session):
    with pytest.raises(RecipeError, match="session calib_01 has runs of high_noise and low_noise, not of model"):
        user.sources.collect(session, ("(none)", "(none)"), ("model",), None)


def test_scales_cover_the_layers_of_the_model_and_those_alone(user, session, tmp_path):
    model = tmp_path / "high.safetensors"
    write_model(model, Sizes(dim=128, ffn=256, blocks=1))
    found, _ = user.sources.collect(session, ("(none)", "(none)"), (), None)
    scales = user.results.scales_of(found["high_noise"], str(model), None, 2.0)
    assert scales.amax == {LAYERS[0]: 16.0, LAYERS[1]: 16.0, "blocks.0.self_attn.v": 16.0, LAYERS[2]: 32.0}
    assert user.results.scales_of(found["high_noise"], None, None, 1.0).amax == {LAYERS[0]: 8.0, LAYERS[1]: 8.0, LAYERS[2]: 16.0}


def test_files_are_written_where_input_scales_and_precision_plan_list_them(user, session):
    (user.folder / "old.log.xz").write_bytes(lzma.compress(LINE.format("blocks.0.ffn.2", 3.0).encode()))
    found, _ = user.sources.collect(session, ("(none)", "old.log.xz"), (), None)
    lines = user.results.written(session, found, {"high_noise": "# h\n", "low_noise": "# l\n"})
    summary = user.folder / "calib_01_high_noise_summary.json"
    assert from_summary(read_summary(summary), LAYERS, multiplier=1.0).amax[LAYERS[2]] == 16.0
    assert json.loads(summary.read_text()) == json.loads((Path(session.folder) / "high_noise_summary.json").read_text())
    assert (Path(session.folder) / "high_noise_summary.csv").is_file()
    assert sorted(path.name for path in user.folder.iterdir() if path.is_file()) == [
        "calib_01_high_noise_summary.json", "old.log.xz", "old_summary.csv", "old_summary.json"]
    assert (user.plans / "calib_01_high_noise_sensitive.txt").read_text() == "# h\n"
    assert lines == ["written: calib_01_high_noise_summary.json and old_summary.json for Input Scales; "
                     "calib_01_high_noise_sensitive.txt and old_sensitive.txt for Precision Plan"]


def test_a_summary_that_lies_there_is_not_written_again_and_its_list_has_its_name(user, session):
    found, _ = user.sources.collect(session, ("(none)", "(none)"), (), None)
    user.results.written(session, found, dict.fromkeys(found, "# l\n"))
    summary = user.folder / "calib_01_high_noise_summary.json"
    os.utime(summary, ns=(1, 1))
    again, _ = user.sources.collect(None, (summary.name, "(none)"), (), None)
    user.results.written(None, again, {"high_noise": "# again\n"})
    assert summary.stat().st_mtime_ns == 1 and again["high_noise"].rows == found["high_noise"].rows
    assert (user.plans / "calib_01_high_noise_sensitive.txt").read_text() == "# again\n"


def test_a_cached_node_runs_again_when_a_run_was_recorded_and_not_when_it_wrote_its_files(user, session):
    names = ["calib_01"]
    before, (found, _) = user.sources.state(names), user.sources.collect(session, ("(none)", "(none)"), (), None)
    user.results.written(session, found, dict.fromkeys(found, "# l\n"))
    assert user.sources.state(names) == before == user.sources.state(names)
    run = next(path for path in Path(session.folder, "runs").rglob("run.safetensors"))
    os.utime(run, ns=(1, 1))
    changed = user.sources.state(names)
    record(session, "low_noise", [3.0], prompt="q")
    assert len({before, changed, user.sources.state(names)}) == 3


def rows(blocks: int) -> list[dict]:
    return [{"layer": f"blocks.{block}.{kind}", "count": 9, "scale_mean": 1.0, "scale_std": 0.1 * (block + 1),
             "scale_kurtosis": None if block else 1.0, "scale_outlier_frac_3std": 0.01, "amax_max": 2.0 ** block}
            for block in range(blocks) for kind in KINDS]


@pytest.mark.parametrize("kind", PLOTS)
def test_every_plot_is_an_image_batch_with_a_part_for_each_expert(kind):
    one, both = (draw(kind, [Drawn(role, rows(4)) for role in roles], 0.11) for roles in (["model"], ["high_noise", "low_noise"]))
    assert one.shape == (1, both.shape[1], 960, 3) and both.shape[2:] == (1920, 3) and one.dtype == torch.float32
    assert both.min() >= 0.0 and both.max() <= 1.0
    halves = both[:, :, :960], both[:, :, 960:]
    assert all(half.std() > 0.01 for half in halves) and not torch.equal(*halves)          # the titles differ


def test_the_threshold_is_drawn_where_it_lies_within_the_histogram():
    shown = [Drawn("model", rows(4))]
    assert not torch.equal(draw("histograms", shown, 0.11), draw("histograms", shown, 0.3))
    assert torch.equal(draw("histograms", shown, 0.405), draw("histograms", shown, 0.46))  # scale_cv ends at 0.4


def test_both_experts_have_one_axis_and_a_block_that_no_model_has_is_left_out():
    wild = [*rows(2), {"layer": "blocks.999999999.ffn.0", "amax_max": 1e9}, {"layer": "blocks.1.ffn.0", "amax_max": float("nan")},
            {"layer": "head.head", "amax_max": 1e9}]
    shown = [series(rows(3)), series(wild)]
    assert bounds_of(shown) == (3, 4.0 * 1.1 / 10.0, 4.0 * 1.1) and bounds_of([series(rows(9))]) == (9, 1.0 / 1.1, 256.0 * 1.1)
    assert bounds_of([{}])[0] == 1


@pytest.mark.parametrize("found", [[], [{"layer": "x"}], [{"layer": "blocks.0.ffn.0", "amax_max": 0.0}], rows(1), rows(60)])
def test_a_summary_with_little_or_nothing_to_show_is_drawn_too(found):
    assert torch.isfinite(draw("all", [Drawn("model", found)], 0.1)).all()  # which the only scale_cv of one block is


@pytest.mark.parametrize("values", [(-2.0, -1.9999999999999998), (-2.0, -2.0), (0.0, 0.0), (1e300, 1e300), (1e-300, 2e-300)])
def test_values_that_are_all_but_equal_are_one_bar_with_one_number(monkeypatch, values):
    written, bars = [], []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, place, text, *more, **others: written.append(text))
    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", lambda pen, box, fill: bars.append(fill))
    found = [{"layer": f"blocks.{block}.ffn.0", "scale_kurtosis": value} for block, value in enumerate(values)]
    draw("histograms", [Drawn("model", found)], 0.1)
    shown = written[next(place for place, text in enumerate(written) if text.startswith("kurtosis: 2 layers")):]
    low, high = f"{values[0]:.3g}", f"{values[1]:.3g}"
    axis = [text for text in shown[2:] if not text.startswith("share of")]
    assert bars.count(BAR) == 1 and (axis == [low] if low == high else axis[0] == low)


def test_the_largest_of_far_values_is_in_the_last_bar(monkeypatch):
    bars = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", lambda pen, box, fill: bars.append(fill))
    draw("histograms", [Drawn("model", [{"layer": f"blocks.{block}.ffn.0", "scale_kurtosis": value}
                                        for block, value in enumerate((-2.6, 0.3))])], 0.1)
    assert bars.count(BAR) == 2        # in float64 -2.6 + (0.3 - -2.6) is below 0.3
