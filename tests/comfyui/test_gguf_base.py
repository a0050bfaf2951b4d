"""A GGUF pair as base in a real ComfyUI without ComfyUI-GGUF: listed, paired, refused unless allowed, read as gguf decodes it."""
import gguf
import graphs
import pytest
import torch
from comfy_server import text_of
from graphs import INJECT, LOAD, QUANTIZE, SAVE, node
from safetensors import safe_open
from safetensors.torch import load_file

HIGH, LOW = "Wan2.2-T2V-A14B-HighNoise-Q8_0.gguf", "Wan2.2-T2V-A14B-LowNoise-Q8_0.gguf"
Q8_0, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32


@pytest.fixture
def pair(clean):
    """The tiny pair as GGUF, by the library's own encoder and writer, in a folder of its own."""
    (clean.models() / "quants").mkdir()
    for name, source in ((HIGH, graphs.HIGH), (LOW, graphs.LOW)):
        writer = gguf.GGUFWriter(clean.models() / "quants" / name, "wan")
        for key, value in load_file(clean.models() / source).items():
            kind = Q8_0 if key.startswith("blocks.") and value.dim() == 2 else F32
            writer.add_tensor(key, gguf.quants.quantize(value.float().numpy(), kind), raw_dtype=kind)
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
            step()
    return clean


def load(**changes) -> dict:
    return node("Wan22LoadDualDiT", **({"high_noise": f"quants/{HIGH}", "low_noise": "(auto pair)", "allow_quantized_source": True}
                                       | changes))


def test_a_pair_is_listed_after_the_others_and_saved_as_it_is_decoded(pair):
    listed = pair.get("/object_info/Wan22LoadDualDiT")["Wan22LoadDualDiT"]["input"]["required"]["high_noise"][1]["options"]
    assert [name for name in listed if name.endswith(".gguf")] == [f"quants/{HIGH}", f"quants/{LOW}"]
    assert listed.index(f"quants/{HIGH}") > listed.index(graphs.LOW)
    outputs = pair.run({LOAD: load(), QUANTIZE: graphs.quantize([LOAD, 0], "bf16"), SAVE: graphs.save([QUANTIZE, 0])})
    assert f"low_noise: {LOW}" in text_of(outputs, LOAD) and "lossy source (Q8_0)" in text_of(outputs, LOAD)
    saved = [path for path in pair.models().iterdir() if path.name.startswith("my_mix") and "low_noise" in path.name]
    decoded = {tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
               for tensor in gguf.GGUFReader(pair.models() / "quants" / LOW).tensors}
    with safe_open(saved[0], framework="pt") as file:
        assert set(file.keys()) == set(decoded)
        key = "blocks.3.self_attn.q.weight"
        assert torch.equal(file.get_tensor(key), decoded[key].bfloat16())


def test_it_is_refused_unless_allowed_and_no_model_of_comfyui(pair):
    graph = graphs.main_job()
    graph[LOAD] = load(allow_quantized_source=False)
    assert "found Q8_0; use the bf16 or fp16 file of this model, or turn on allow_quantized_source" in pair.fail(graph)
    graph[LOAD] = load()
    preview = node("Wan22MergePreview", dit=[INJECT, 0], expert="high_noise", saved_as="bf16", cache_gb=8.0, approximate=False,
                   device="cpu")
    shown = {key: graph[key] for key in (LOAD, graphs.LORA_1, graphs.LORA_2, INJECT)} | {
        "20": preview, "21": node("PreviewAny", source=["20", 1])}
    told = pair.fail(shown)
    assert f"{HIGH}: expected a file that ComfyUI loads as a MODEL, found a GGUF file; save the merge" in told
    assert "value_not_in_list" in pair.fail({LOAD: load(high_noise="../secret.gguf"), QUANTIZE: graphs.quantize([LOAD, 0], "bf16"),
                                             SAVE: graphs.save([QUANTIZE, 0])})
