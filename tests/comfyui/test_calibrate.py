"""Calibrate in ComfyUI's own sampling: what it records is what a plain hook sees, and nothing of it stays on the model."""
import os
import signal
import time

import pytest
from comfy_server import Server
from graphs import node, plain_loader
from test_preview import probe
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.session import Session
from wan22_master.engine.synthetic import Sizes, write_model

HEADS = ("blocks", "head", "text_embedding", "time_embedding", "time_projection")
ALONE = ("i2v", "5B", "heun left over", "fp8", "int8", "gguf")
TINY = Sizes(dim=128, ffn=256, blocks=2, rank=8)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    return probe("calibrate_probe", tmp_path_factory.mktemp("calibrate"))


def case(probed, name: str) -> dict:
    if name == "gguf" and name not in probed:
        pytest.skip("no ComfyUI-GGUF")
    return probed["pair"][name] if name in ("high", "low") else probed[name]


@pytest.mark.parametrize("name", ["high", "low", *ALONE])
def test_every_linear_is_seen_under_its_name_and_its_amax_is_a_plain_hooks_to_the_bit(probed, name):
    found = case(probed, name)
    unseen = ["blocks.0.ffn.2", "blocks.1.ffn.2"] if name == "int8" else []   # linear_input_act calls no forward
    assert found["wrong"] == [] and found["names"] == unseen
    assert found["layers"] == found["oracle"] == 26 - len(unseen)             # 10 in a block, 6 around
    assert found["points"] == 19 - len(unseen)                                # 6 + 1 of all texts + 6 in a block


@pytest.mark.parametrize("name", ["pair", *ALONE])
def test_the_latent_is_the_same_with_and_without_and_no_hook_is_left(probed, name):
    found = probed["pair"] if name == "pair" else case(probed, name)
    assert found["same"] and found["hooks"] in (0, [0, 0])


def test_each_expert_has_its_steps_with_its_sigmas_and_cond_apart_from_uncond(probed):
    high, low = probed["pair"]["high"], probed["pair"]["low"]
    assert high["steps"] == low["steps"] == [0, 1] and high["calls"] == low["calls"] == [2, 2]
    assert high["finished"] and low["finished"] and high["parts"] == low["parts"] == ["cond", "uncond"]
    shifted = [5 * t / (1 + 4 * t) for t in (1.0, 0.75, 0.5, 0.25)]           # ComfyUI's shift of 5, four steps of `simple`
    assert high["sigmas"] + low["sigmas"] == pytest.approx([sigma for sigma in shifted for _ in range(2)])
    assert probed["i2v"]["parts"] == ["cond"] and probed["i2v"]["calls"] == [1, 1, 1, 1]   # cfg 1 leaves uncond out


def test_both_calls_of_a_step_of_heun_count_in_it_also_where_the_other_expert_goes_on(probed):
    assert probed["5B"]["calls"] == [4, 4, 4, 2] and probed["heun left over"]["calls"] == [4, 4]
    sigmas = probed["heun left over"]["sigmas"]
    assert sigmas[2:4] == sigmas[4:6] and sigmas[6] < sigmas[4]               # its second call is at the next step's sigma


@pytest.mark.parametrize("name", ["high", "low", *ALONE])
def test_the_asked_number_of_tokens_is_kept(probed, name):
    assert case(probed, name)["tokens"] == 8


def test_a_model_alone_has_the_role_that_its_name_tells_and_the_format_that_runs(probed):
    assert [probed[name]["role"] for name in ("i2v", "5B")] == ["high_noise", "model"]
    assert [probed[name]["stored"] for name in ("i2v", "fp8", "int8")] == ["bf16", "float8_e4m3fn", "int8_tensorwise"]
    assert case(probed, "gguf")["stored"] == "Q8_0"


def test_a_run_tells_size_seed_and_sampler(probed):
    facts = probed["5B"]["facts"]                  # 4 x 4 latent pixels of 16, 2 latent frames
    assert [facts[name] for name in ("width", "height", "frames", "seed", "cfg", "steps")] == [64, 64, 5, 42, 2.0, 4]
    assert facts["sampler"] == "heun" and facts["model"] == "small.safetensors" and len(facts["prompt_id"]) == 16
    assert [probed["i2v"]["facts"][name] for name in ("width", "height", "frames")] == [64, 64, 5]


def test_layers_that_comfyui_does_not_call_are_told_before_and_after(probed):
    for text in (probed["int8"]["info"], probed["int8"]["said"]):
        assert "2 layers (blocks.0.ffn.2, blocks.1.ffn.2) not seen: ComfyUI multiplies int8" in text
    assert "24 of 26 layers" in probed["int8"]["info"] and "not seen" not in probed["fp8"]["said"] + probed["fp8"]["info"]


@pytest.mark.parametrize(("name", "error"), [("error", "RuntimeError"), ("interrupt", "InterruptProcessingException")])
def test_a_stop_passes_through_keeps_the_finished_steps_and_leaves_no_hook(probed, name, error):
    found = probed[name]
    assert found["raised"] == error and found["during"] == [19 + 1]           # and the one that raises
    assert found["hooks"] == 0 and found["steps"] == [0, 1] and not found["finished"]
    assert found["again"] and found["runs"] == [[True, 4]]                    # the same prompt, finished: it counts once


def test_a_run_that_fails_before_its_first_step_leaves_nothing(probed):
    assert probed["before a step"] == ["ZeroDivisionError: division by zero", 0]


def test_a_block_with_a_text_of_its_own_gets_points_of_its_own_from_the_first_call_on(probed):
    found = probed["text"]
    assert found["wrong"] == [] and found["names"] == [] and found["points"] == 19 + 2 and found["same"]
    assert "2 layers (blocks.1.cross_attn.k, blocks.1.cross_attn.v) do not see what layers of their kind share" in found["said"]


def test_blocks_alone_and_no_tokens(probed):
    assert probed["blocks"] == [20, True, 0]


def test_the_log_has_a_line_for_each_layer_and_pass_with_the_larger_of_cond_and_uncond(probed):
    assert probed["log"] == [26, []]


def test_the_node_tells_step_inputs_calls_and_time_once_a_step(probed):
    said = probed["pair"]["said"]
    assert len(said) == 2 * (2 + 1)
    assert said[1].startswith("high_noise step 2/2, 19 inputs, 4 calls each, 0:00 left")
    assert said[2] == "high_noise done: all 26 layers, 1 run"


def test_settled_experts_leave_further_prompts_unsampled_and_low_what_high_left_out(probed):
    found = probed["settled"]
    assert found["high"] == found["low"] == [True, True, True, False, False] and found["runs"] == [3, 3]
    assert [line.partition(" ")[0] for line in found["said"]] == ["high_noise"] * 2 + ["low_noise"] * 2
    assert "NOT SAMPLED: settled, no largest input rose by more than 900.00% over its last 2 runs" in found["said"][0]
    assert "the high-noise expert has settled and left this prompt out" in found["said"][2]
    assert probed["unsettled"] == [4, []]


@pytest.mark.parametrize(("name", "message"), [
    ("nothing", "RecipeError: calibrate: expected a MODEL, found none"), ("stranger", "expected a Wan model, found"),
    ("swapped", "t2v_low_noise.safetensors: expected the high_noise expert, found low_noise"),
    ("compiled", "found one under torch.compile"), ("compiled behind", "found one under torch.compile"),
    ("base", "another base; take a new session, or turn allow_other_base on"), ("outside", "PlanError: calibrate: session: "),
    ("lone", "high_noise: expected a model of one file, as the session has runs of, found high_noise of a pair; take a new"),
    ("pair", "model: expected an expert of a pair, as the session has runs of high_noise, found a model of one file; take"),
    ("empty", "session is empty")])
def test_what_cannot_be_calibrated_is_refused_by_name(probed, name, message):
    assert message in probed["refused"][name]


def test_another_base_may_be_allowed_and_a_restart_forgets(probed):
    text, runs = probed["allowed"]
    assert "high_noise: allowed by allow_other_base: expected a record of" in text and runs == 2
    assert "recorded on task t2v, this is i2v" in text
    assert probed["restart"][0].startswith(
        "session taken, emptied first\nhigh_noise: will record the inputs of all 26 layers of t2v_high_noise.safetensors")
    assert probed["restart"][1] == 0


def test_a_lora_of_another_node_is_another_merge(probed):
    assert "lora of another node on 20 weights at 0.5 is in this merge, not in what was recorded" in probed["lora"]


def test_a_run_of_a_prompt_list_is_known_by_it_in_both_experts(probed):
    names, ids, said = probed["prompts"]
    assert names == ["prompt 2", "prompt 2"] and ids == 1
    assert said[0].startswith("prompt 2/3, high_noise step 1/2") and said[3].startswith("prompt 2/3, low_noise step 1/2")


def test_texts_come_from_the_graph_that_runs_and_a_repeated_prompt_counts_once(probed):
    assert probed["texts"] == [["a fox", "blurry"], ["", ""]] and probed["repeated"] == 2


def test_a_preview_its_saved_file_and_its_gguf_are_one_subject(probed):
    (errors, warnings), same, stored = probed["subjects"]
    assert errors == [] and all("known by its name" in line for line in warnings) and same and stored == ["bf16", "bf16"]


def test_a_gguf_model_is_known_by_the_file_that_the_graph_names_else_by_its_weights(probed):
    case(probed, "gguf")
    base, stored, (errors, warnings), itself, others = probed["gguf subject"]
    assert base == "t2v_high_noise.safetensors" and stored == "Q8_0" and errors == []
    assert any("recorded on Q8_0 weights, this is bf16" in line for line in warnings)
    assert itself == [[], []] and others == 1


def test_a_killed_server_loses_at_most_one_step_and_the_session_reopens(tmp_path):
    server = Server(tmp_path)
    write_model(server.models() / "wan_high_noise.safetensors", TINY, "kill")
    graph = {
        "1": plain_loader("wan_high_noise.safetensors"), "3": node("Wan22TestConditioning", seed=1),
        "2": node("Wan22Calibrate", model_high=["1", 0], session="killed", mode="append", layers="all linears", keep="stats",
                  tokens=16, stop_when_settled=False, settled_runs=4, settled_rise=0.01, allow_other_base=False),
        "4": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        "5": node("KSampler", model=["2", 0], seed=1, steps=5000, cfg=1.0, sampler_name="euler", scheduler="simple",
                  positive=["3", 0], negative=["3", 0], latent_image=["4", 0], denoise=1.0),
        "6": node("Wan22TestReport", latent=["5", 0])}
    folder = tmp_path / "user" / "default" / "wan22_master" / "calibration" / "killed"
    with server:
        server.queue(graph)
        give_up = time.monotonic() + 60
        while len(list(folder.glob("runs/*/step_*.safetensors"))) < 5 and time.monotonic() < give_up:
            time.sleep(0.005)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    written = len(list(folder.glob("runs/*/step_*.safetensors")))
    session = Session.open(folder)
    [run] = session.runs()
    assert written >= 5 and run.steps == tuple(range(written)) and not run.finished
    found = gather(session, "high_noise")
    assert len(found.calls) == written and len(found.layers()) == 26
    assert all(len(found.amax(layer)) == written for layer in found.layers())
