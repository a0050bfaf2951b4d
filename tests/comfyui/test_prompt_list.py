"""Prompt List in a real ComfyUI: what the nodes behind it get, and what happens when nothing is left."""
import hashlib
import shutil

import numpy
import pytest
import torch
from comfy_server import text_of
from graphs import node
from PIL import Image
from wan22_master.engine.calibration.bins import BINS
from wan22_master.engine.calibration.prompt_file import parse
from wan22_master.engine.calibration.prompt_list import Defaults, entries
from wan22_master.engine.calibration.records import Call, StepRecord
from wan22_master.engine.calibration.session import RunFacts, Session
from wan22_master.engine.calibration.subject_record import Subject

LIST, INFO, SIZES, TEXTS = "1", "2", "3", "4"
POINT = "blocks.0.ffn.0"
PROMPTS = "\ufeff# mine\r\nA cat. --w 64 --h 48 --f 5 --cn x.mp4\r\n\r\nA dog. --w 80 --f 9 --i starts/red.png\r\nA bird.\r\n"


def prompt_list(**changes) -> dict:
    """Prompt List with its defaults, small."""
    return node("Wan22PromptList", **({
        "file": "mine.txt", "text": "", "negative": "", "preset": "as given", "width": 64, "height": 64, "frames": 5, "steps": 2,
        "cfg": 1.0, "seed": 5, "limit": 0, "first": 1, "skip_done": False, "session": "tried", "experts": "both",
        "image_folder": "", "pair": "auto", "on_missing_image": "none"} | changes))


def graph(**changes) -> dict:
    """Report of an empty latent for each prompt, and its text."""
    return {LIST: prompt_list(**changes), INFO: node("PreviewAny", source=[LIST, 9]), TEXTS: node("PreviewAny", source=[LIST, 0]),
            "5": node("EmptyHunyuanLatentVideo", width=[LIST, 2], height=[LIST, 3], length=[LIST, 4], batch_size=1),
            SIZES: node("Wan22TestReport", latent=["5", 0])}


def empty(frames: int, height: int, width: int) -> str:
    """Hash of the latent that ComfyUI makes for such a video."""
    return hashlib.sha256(numpy.zeros((1, 16, (frames - 1) // 4 + 1, height // 8, width // 8), numpy.float32).tobytes()).hexdigest()


@pytest.fixture
def listed(clean):
    """The server, with a list of three prompts."""
    folder = clean.base / "user" / "default" / "wan22_master" / "prompts"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_bytes(PROMPTS.encode())
    yield clean
    shutil.rmtree(clean.base / "input" / "starts", ignore_errors=True)
    for name in ("red.png", "zebra.png"):
        (clean.base / "input" / name).unlink(missing_ok=True)


def finish(session: Session, prompt_id: str, role: str) -> None:
    record = StepRecord(0, (Call(1.0, "cond"),), (POINT,), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int64),
                        {POINT: torch.ones(4, dtype=torch.float64)}, {POINT: 1}, {POINT: torch.ones(4)},
                        torch.zeros(1, BINS, dtype=torch.int64), {POINT: torch.ones(1, 4)})
    run = session.begin_run(role, Subject("base", "base"), RunFacts(prompt_id=prompt_id), {POINT: (POINT,)}, allow_other_base=True)
    run.write_step(record)
    run.finish()


def test_each_prompt_reaches_the_nodes_behind_with_its_own_size(listed):
    outputs = listed.run(graph())
    assert outputs[TEXTS]["text"] == ["A cat.", "A dog.", "A bird."]
    assert [each.split('"latent": ')[1][1:65] for each in outputs[SIZES]["text"]] == [
        empty(5, 48, 64), empty(9, 64, 80), empty(5, 64, 64)]
    info = text_of(outputs, INFO)
    assert "line 2: --cn (control video) is kept, and not used: x.mp4" in info
    assert "3: 64 x 64 x 5, seed 7, 2 steps, cfg 1: A bird." in info
    assert "24 to 60 tokens a forward pass of a 14B model, 8 of the 5B" in info
    outputs = listed.run(graph(text="Other. --d 1\nOther. --d 1"))
    assert outputs[TEXTS]["text"] == ["Other."] * 2 and "prompts 1 and 2 are one run, seed and all" in text_of(outputs, INFO)


def test_start_images_come_from_the_input_folder_and_from_nowhere_else(listed):
    for place, name in enumerate(("starts/red.png", "starts/shot_10.png", "starts/shot_9.png", "red.png", "zebra.png"), 1):
        path = listed.base / "input" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (16 * place, 16), (200, 0, 0)).save(path)
    paired = graph(image_folder="starts") | {"6": node("GetImageSize", image=[LIST, 8]), "7": node("PreviewAny", source=["6", 0])}
    assert listed.run(paired)["7"]["text"] == ["48", "16", "32"]   # shot_9, what the line states, shot_10
    paired[LIST] = prompt_list(on_missing_image="skip")
    outputs = listed.run(paired)
    assert (outputs["7"]["text"], outputs[TEXTS]["text"]) == (["16"], ["A dog."])   # by its path; the zebra is nobody's
    for changes, told in (({"image_folder": "../user"}, "expected a folder inside"), ({"image_folder": "none"}, "no folder"),
                          ({"on_missing_image": "error"}, "mine.txt: line 2: expected a start image"),
                          ({"on_missing_image": "error", "text": "A.\nB. --i ../secret.png"},
                           "--i ../secret.png, found none in ComfyUI's input folder, by path and by name (1 of 1 prompts with --i"),
                          ({"text": "A. --w 50"}, "take 48"), ({"text": "#"}, "expected a prompt a line")):
        assert told in listed.fail(graph(**changes))
    (listed.base / "input" / "starts" / "shot_9.png").unlink()
    (listed.base / "input" / "starts" / "shot_9.png").symlink_to(listed.base / "server.log")
    assert "found a link out of it" in listed.fail(graph(image_folder="starts"))


def test_done_prompts_are_skipped_and_a_queue_with_none_left_ends_well(listed):
    text = "A cat.\nA dog.\nA bird."
    cat, dog, bird = (entry.prompt_id for entry in entries(parse(text, "text"), Defaults("", 64, 64, 5, 5, 2, 1.0)))
    assert "session tried: not there yet" in text_of(listed.run(graph(skip_done=True, text=text)), INFO)
    session = Session.create(listed.base / "user" / "default" / "wan22_master" / "calibration", "tried")
    for prompt_id, role in ((cat, "high_noise"), (cat, "low_noise"), (bird, "high_noise")):
        finish(session, prompt_id, role)
    assert listed.run(graph(skip_done=True, text=text))[TEXTS]["text"] == ["A dog.", "A bird."]
    assert listed.run(graph(skip_done=True, text=text, experts="high_noise"))[TEXTS]["text"] == ["A dog."]
    for prompt_id, role in ((dog, "high_noise"), (dog, "low_noise"), (bird, "low_noise")):
        finish(session, prompt_id, role)
    outputs = listed.run(graph(skip_done=True, text=text))   # another state of the session: not taken from the cache
    assert "nothing is left to run" in text_of(outputs, INFO)
    assert TEXTS not in outputs and SIZES not in outputs
