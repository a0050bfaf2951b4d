"""GGUF in the graph of a real ComfyUI that has ComfyUI-GGUF: out beside NVFP4 and FP8 from one run, sampled, and in as a base."""
import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from comfy_server import Server, find_comfyui, text_of
from graphs import SINGLE, lora_pair, node, plain_loader, quantize, sampling, save
from plan_models import HIGH, INJECT, LAYERS, LOAD, LORA, PAIR, QUANTIZE, ROLES, SAVE, merged, stored, write_eight
from safetensors.torch import load_file
from test_gguf import BF16_STEP, HALF_STEP, MISSING, WEIGHTS
from test_outputs import apart, latent, loaders, previews, saved

pytestmark = pytest.mark.skipif(MISSING, reason="no ComfyUI-GGUF in custom_nodes")
MODEL_LOG = ("[WARNING]", "[ERROR]", "unet unexpected", "unet missing", "Missing", "left over keys", "lora key not loaded")
Q4, NVFP4, FP8 = "Q4_K_M", "nvfp4", "float8_e4m3fn"


@pytest.fixture(scope="module")
def with_gguf(tmp_path_factory):
    """A server of its own: those of the other tests have no ComfyUI-GGUF."""
    server = Server(tmp_path_factory.mktemp("comfy_gguf"))
    (server.base / "custom_nodes" / "ComfyUI-GGUF").symlink_to(find_comfyui()[0] / "custom_nodes" / "ComfyUI-GGUF")
    write_eight(server)
    with server:
        yield server


@pytest.fixture
def server(with_gguf):
    given = set(with_gguf.models().iterdir())
    yield with_gguf
    for path in set(with_gguf.models().iterdir()) - given:
        path.unlink()
    shutil.rmtree(with_gguf.base / "user" / "default" / "wan22_master", ignore_errors=True)
    with_gguf.free()


def by_gguf(path: Path) -> dict:
    return node("UnetLoaderGGUF", unet_name=path.name)


def three(**changes) -> dict:
    """The merge in three formats, from one run."""
    return merged() | {"10": quantize([INJECT, 0], NVFP4), "11": quantize([INJECT, 0], FP8, more=["10", 0]),
                       QUANTIZE: quantize([INJECT, 0], Q4, more=["11", 0]), SAVE: save([QUANTIZE, 0], **changes),
                       "40": node("PreviewAny", source=[SAVE, 4])}


def complaints(server, since: int) -> list[str]:
    return [line for line in server.log()[since:].splitlines() if any(word in line for word in MODEL_LOG)]


def test_gguf_nvfp4_and_fp8_of_both_experts_come_from_one_run_and_all_sample(server):
    before, job = len(server.log()), three()
    outputs = server.run(job)
    files = saved(server, outputs)
    assert {label: path.name for label, path in files.items()} == {
        f"{role} {form}": f"my_mix_v1_t2v_{role}_d256_{name}" for role in ROLES
        for form, name in ((NVFP4, "nvfp4.safetensors"), (FP8, "fp8_scaled.safetensors"), (Q4, "Q4_K_M.gguf"))}
    assert "order: all at once" in text_of(outputs, SAVE) and text_of(outputs, SAVE).count(": written") == 6
    report = json.loads(text_of(outputs, "40"))
    assert [expert["role"] for expert in report["experts"]] == list(ROLES)     # one part an expert: read, merged, written once
    for expert in report["experts"]:
        formats = [{name: told["layers"] for name, told in out["formats"].items()} for out in expert["outputs"]]
        assert formats == [{NVFP4: LAYERS}, {FP8: LAYERS}, {"Q4_K": 56, "Q6_K": 24}]
        for out in expert["outputs"]:
            kept = out["survival"]                 # of the merge, in what was written
            assert abs(kept["projection"] - 1) < 5 * kept["standard_error"], out["file"]
        errors = [out["error"] for out in expert["outputs"]]
        in_4_bit = expert["outputs"][2]["formats"]["Q4_K"]["error"]
        assert errors[1] < errors[2] < errors[0] and in_4_bit < WEIGHTS["Q4_K"]
        assert f"56 Q4_K (error {in_4_bit:.2%}), 24 Q6_K (error" in text_of(outputs, SAVE)
    at_once = latent(server, job | sampling(*loaders(format=Q4)), "at_once")
    later = latent(server, sampling(*(by_gguf(files[f"{role} {Q4}"]) for role in ROLES)), "later")
    assert torch.equal(at_once, later)
    merge = latent(server, merged() | sampling(*previews()), "merge")
    distances = [apart(latent(server, sampling(*(plain_loader(files[f"{role} {form}"].name) for role in ROLES)), "other"), merge)
                 for form in (FP8, NVFP4)]
    assert 0 < distances[0] < apart(at_once, merge) < distances[1] < 0.1       # as their errors
    assert all(len(stored(files[f"{role} {form}"])) == LAYERS for role in ROLES for form in (FP8, NVFP4))
    assert complaints(server, before) == []


def test_a_preview_as_gguf_samples_as_the_saved_file_does(server):
    job = merged() | {QUANTIZE: quantize([INJECT, 0], Q4), SAVE: save([QUANTIZE, 0])}
    from_file = latent(server, job | sampling(*loaders()), "file")
    shown = latent(server, merged() | sampling(*previews(saved_as=Q4)), "shown")
    plain = latent(server, merged() | sampling(*previews()), "plain")
    # the preview's weights are rounded to BF16, ComfyUI-GGUF's to half precision
    assert apart(shown, from_file) < BF16_STEP + HALF_STEP < apart(plain, from_file)


def test_after_saving_a_gguf_is_loaded_and_asked(server):
    outputs = server.run(merged() | {QUANTIZE: quantize([INJECT, 0], Q4), SAVE: save([QUANTIZE, 0], after_save=True)})
    text = text_of(outputs, SAVE)
    assert "Q4_K_M.gguf: ComfyUI loads it; finite at sigma" in text and "PROBLEM" not in text


def test_another_file_of_that_name_is_never_loaded_in_its_place(server):
    """ComfyUI looks into models/unet before models/diffusion_models."""
    load = node("Wan22LoadDualDiT", high_noise=HIGH, low_noise="(none)", allow_quantized_source=False)
    job = {LOAD: load, QUANTIZE: quantize([LOAD, 0], "Q8_0"), SAVE: save([QUANTIZE, 0]), "20": loaders()[0],
           "31": node("Wan22TestReport", model=["20", 0])}
    path = saved(server, server.run(job))["high_noise Q8_0"]
    stale = shutil.copy(path, server.models("unet"))
    try:
        server.free()
        assert f"{path.name}: expected it to be the file that ComfyUI-GGUF finds under this name" in server.fail(job)
    finally:
        Path(stale).unlink()


def base_of(server) -> dict[str, Path]:
    """The pair as Q8_0, by our own encoder."""
    load = node("Wan22LoadDualDiT", high_noise=HIGH, low_noise="(auto pair)", allow_quantized_source=False)
    outputs = server.run({LOAD: load, QUANTIZE: quantize([LOAD, 0], "Q8_0"), SAVE: save([QUANTIZE, 0], title="packed")})
    return saved(server, outputs)


def decoded(path: Path) -> dict[str, torch.Tensor]:
    """Key -> float64 weights by the gguf library."""
    return {tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).double()
            for tensor in gguf.GGUFReader(path).tensors}


def test_a_lora_is_merged_onto_a_gguf_and_saved_as_bf16_and_as_gguf_again(server):
    bases, before = base_of(server), len(server.log())
    load = node("Wan22LoadDualDiT", high_noise=bases["high_noise Q8_0"].name, low_noise="(auto pair)", allow_quantized_source=True)
    job = {LOAD: load, PAIR: lora_pair(LORA), INJECT: merged()[INJECT], "10": quantize([INJECT, 0], "bf16"),
           QUANTIZE: quantize([INJECT, 0], "Q8_0", more=["10", 0]), SAVE: save([QUANTIZE, 0], title="onto"),
           "40": node("PreviewAny", source=[SAVE, 4])}
    outputs = server.run(job)
    assert "lossy source (Q8_0)" in text_of(outputs, LOAD)
    files = saved(server, outputs)
    for role in ROLES:
        packed, again, kept = (decoded(bases[f"{role} Q8_0"]), decoded(files[f"{role} Q8_0"]), load_file(files[f"{role} bf16"]))
        factors = load_file(server.models("loras") / LORA.replace(ROLES[0], role))
        for layer in ("blocks.0.self_attn.v", "blocks.3.cross_attn.q", "blocks.7.ffn.0", "blocks.7.ffn.2"):
            stem, key = f"diffusion_model.{layer}", f"{layer}.weight"          # its alpha is its rank
            exact = packed[key] + factors[f"{stem}.lora_B.weight"].double() @ factors[f"{stem}.lora_A.weight"].double()
            assert torch.allclose(kept[key].double(), exact, rtol=BF16_STEP, atol=1e-7)
            step = exact.abs().max() / 127         # of the block with the largest weight; its scale is rounded to half precision
            assert (again[key] - exact).abs().max() <= step * (0.5 + 127 * HALF_STEP)
            assert not torch.equal(again[key], packed[key])
        assert set(again) == set(packed) == set(kept)
    from_gguf = latent(server, sampling(*(by_gguf(files[f"{role} Q8_0"]) for role in ROLES)), "onto_gguf")
    from_bf16 = latent(server, sampling(*(plain_loader(files[f"{role} bf16"].name) for role in ROLES)), "onto_bf16")
    assert apart(from_gguf, from_bf16) < WEIGHTS["Q8_0"]
    assert complaints(server, before) == []


def test_where_comfyui_gguf_is_missing_the_file_is_saved_and_load_saved_says_what_to_install(clean):
    load = node("Wan22LoadDualDiT", high_noise=SINGLE, low_noise="(none)", allow_quantized_source=False)
    job = {LOAD: load, QUANTIZE: quantize([LOAD, 0], "Q8_0"), SAVE: save([QUANTIZE, 0])}
    told = clean.fail(job | {"20": node("Wan22LoadSaved", files=[SAVE, 0], expert="auto", format="any"),
                             "31": node("Wan22TestReport", model=["20", 0])})
    assert "Q8_0.gguf: expected ComfyUI-GGUF, which loads GGUF files, found it not installed; install ComfyUI-GGUF" in told
    assert "Q8_0.gguf: written" in text_of(clean.run(job), SAVE)
