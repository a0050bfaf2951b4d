"""Ordinary MODELs with LoRAs of ComfyUI's own loaders, baked from every kind of base; see in_process.py. Prints one JSON line.

The oracle is written out here: the base as safetensors, comfy-kitchen or gguf-py decode it, plus the LoRAs in float64.
"""
import dataclasses
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor

from in_process import (
    LAYOUTS,
    PREFIX,
    SIZES,
    Path,
    QuantizedTensor,
    comfy,
    error_of,
    folder,
    folder_paths,
    load_file,
    loaded,
    mm,
    plan_recipe,
    recipe,
    run,
    sampled,
    save_file,
    sys,
    torch,
    write_lora,
    write_model,
)
from wan22_master.nodes.bakeable import told
from wan22_master.nodes.model_handle import AS_INTENDED, AS_SAMPLED, ModelDit
from wan22_master.nodes.model_role import model_name, role_of_model
from wan22_master.nodes.model_source import bake_lines, open_model

FOUND: dict = {}
LORA, STRENGTH = folder / "lora.safetensors", 0.8
FORMATS = ("float8_e4m3fn", "mxfp8", "nvfp4")


def is_block_linear(key: str, weight: torch.Tensor) -> bool:
    return key.startswith("blocks.") and weight.dim() == 2


def quantized_file(name: str, source: dict, smoothing: torch.Tensor | None = None) -> str:
    """A file as ComfyUI reads it, coded by comfy-kitchen; with an input_scale, and for one layer a pre_quant_scale."""
    weights, path = {}, folder / f"{name}{'' if smoothing is None else '_smooth'}.safetensors"
    for key, weight in source.items():
        if not is_block_linear(key, weight):
            weights[key] = weight
            continue
        weights |= QuantizedTensor.from_float(weight, LAYOUTS[name]).state_dict(key)
        layer = key.removesuffix(".weight")
        weights[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
        if name != "mxfp8":
            weights[f"{layer}.input_scale"] = torch.tensor(0.5)
        if smoothing is not None:
            weights[f"{layer}.pre_quant_scale"] = smoothing[:weight.shape[1]].clone()
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return str(path)


def decoded(name: str, source: dict) -> dict:
    """What comfy-kitchen makes of its own codes, in float32."""
    def one(key, weight):
        if not is_block_linear(key, weight):
            return weight.double()
        codes = QuantizedTensor.from_float(weight, LAYOUTS[name])
        params = dataclasses.replace(codes._params, orig_dtype=torch.float32)
        return QuantizedTensor(codes._qdata, LAYOUTS[name], params).dequantize().double()
    return {key: one(key, weight) for key, weight in source.items()}


def gguf_file(source: dict, kind: str) -> tuple[str, dict]:
    """(path, float64 weights) of a GGUF of gguf-py: block linears in `kind`, the rest in F32."""
    import gguf

    path, weights = folder / f"{kind}.gguf", {}
    writer = gguf.GGUFWriter(path=None, arch="wan")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, tensor in source.items():
        code = getattr(gguf.GGMLQuantizationType, kind if is_block_linear(key, tensor) else "F32")
        coded = gguf.quants.quantize(tensor.float().numpy(), code)
        writer.add_tensor(key, coded, raw_dtype=code)
        weights[key] = torch.from_numpy(gguf.quants.dequantize(coded, code).copy()).reshape(tensor.shape).double()
    writer.write_header_to_file(path=path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path), weights


def gguf_model(path: str):
    """By ComfyUI-GGUF's own loader."""
    pack = Path(sys.argv[1]) / "custom_nodes" / "ComfyUI-GGUF"
    folder_paths.add_model_folder_path("diffusion_models", str(folder))
    spec = importlib.util.spec_from_file_location("ComfyUI_GGUF", pack / "__init__.py", submodule_search_locations=[str(pack)])
    module = sys.modules.setdefault("ComfyUI_GGUF", importlib.util.module_from_spec(spec))
    if not hasattr(module, "NODE_CLASS_MAPPINGS"):
        spec.loader.exec_module(module)
    with torch.inference_mode():
        return module.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(Path(path).name)[0]


def with_lora(model, strength: float = STRENGTH):
    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(LORA)), strength, 0.0)[0]


def merged64(base: dict, strength: float = STRENGTH, columns: torch.Tensor | None = None) -> dict:
    """base + strength * alpha / rank * up @ down, float64; with columns, block linears are multiplied by them afterwards."""
    lora, out = {key: value.double() for key, value in load_file(LORA).items()}, {}
    for key, weight in base.items():
        stem = f"diffusion_model.{key.removesuffix('.weight')}"
        out[key] = weight.double()
        if f"{stem}.lora_A.weight" in lora:
            down, up = lora[f"{stem}.lora_A.weight"], lora[f"{stem}.lora_B.weight"]
            out[key] = out[key] + strength * lora[f"{stem}.alpha"] / down.shape[0] * (up @ down)
            out[key] = out[key] * columns[:weight.shape[1]] if columns is not None else out[key]
    return out


def bake(model, format_name: str = "fp32", ways: str = AS_SAMPLED) -> dict:
    """The baked file's tensors, written by the engine from the MODEL."""
    handle = ModelDit(model, model_name(model), ways)
    wish = recipe(dict(handle.experts), [], outputs=[{"format": format_name}], allow_quantized_source=True)
    with plan_recipe(wish, folder / "reports", sources={"model": open_model(handle)}) as plan:
        report = run(plan, reports=folder / "reports")
    return load_file(report["experts"][0]["outputs"][0]["path"])


def error(found: dict, want: dict) -> float:
    """Largest |found - want| by the largest |want| of its tensor; infinite where keys or shapes differ."""
    if set(found) != set(want) or any(found[key].shape != want[key].shape for key in want):
        return float("inf")
    return max(((found[key].double() - want[key]).abs().max() / want[key].abs().max()).item() for key in want)


def every_base(source: dict) -> None:
    models = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        kept = {key: value.to(dtype) for key, value in source.items()}
        save_file(kept, folder / f"{name}.safetensors")
        models[name] = comfy.sd.load_diffusion_model(str(folder / f"{name}.safetensors")), merged64(kept)
    for name in FORMATS:
        models[name] = comfy.sd.load_diffusion_model(quantized_file(name, source)), merged64(decoded(name, source))
    in_bf16 = comfy.sd.load_diffusion_model(str(folder / "nvfp4.safetensors"))
    for weight in in_bf16.model.parameters():
        if isinstance(weight, QuantizedTensor):    # as on a card, where the layers compute in 16 bit
            weight._params = dataclasses.replace(weight._params, orig_dtype=torch.bfloat16)
    models["nvfp4 in bf16"] = in_bf16, models["nvfp4"][1]
    smoothing = torch.linspace(0.5, 2.0, 256)
    smooth = comfy.sd.load_diffusion_model(quantized_file("nvfp4", source, smoothing))
    models["nvfp4 smoothed"] = smooth, merged64(decoded("nvfp4", source), columns=smoothing.double())
    for kind in ("Q8_0", "BF16", "F16") if (Path(sys.argv[1]) / "custom_nodes" / "ComfyUI-GGUF").is_dir() else ():
        path, weights = gguf_file(source, kind)
        models[f"GGUF {kind}"] = gguf_model(path), merged64(weights)
    for name, (model, want) in models.items():
        model = with_lora(model)
        before = bake(model)
        with torch.inference_mode():
            mm.load_models_gpu([model])
        after = bake(model)
        source_of = open_model(ModelDit(model, name))
        FOUND[f"base {name}"] = {"error": error(before, want), "loaded differs": [key for key in before
                                                                                  if not torch.equal(before[key], after[key])],
                                 "lossy": source_of.lossy, "described": source_of.describe()}
        mm.unload_all_models()


def merges_of_other_nodes(source: dict) -> None:
    """UNETLoader + LoraLoaderModelOnly + ModelMergeSimple, with the second model's modulation as sampled and as intended."""
    other = {key: value.double() * 1.25 for key, value in source.items()}
    save_file({key: value.float() for key, value in other.items()}, folder / "other.safetensors")
    one = with_lora(comfy.sd.load_diffusion_model(str(folder / "bf16.safetensors")))
    two = comfy.sd.load_diffusion_model(str(folder / "other.safetensors"))
    model = one.clone()
    for key, patch in two.get_key_patches("diffusion_model.").items():
        model.add_patches({key: patch}, 0.25, 0.75)   # ModelMergeSimple at ratio 0.75
    with_first = merged64(source)
    want = {key: 0.75 * with_first[key] + 0.25 * other[key] for key in source}
    still = {key: source[key].double() if key.endswith("modulation") else want[key] for key in want}
    as_sampled = bake(model)
    live = {key: value.float() for key, value in loaded(model).items()}
    FOUND["merge"] = {"sampled": error(as_sampled, still), "intended": error(bake(model, ways=AS_INTENDED), want),
                      "live": [key for key in live if not torch.equal(live[key], as_sampled[key].float())],
                      "skipped": open_model(ModelDit(model, "m")).skipped, "told": open_model(ModelDit(model, "m")).describe(),
                      "name": open_model(ModelDit(model, model_name(model))).name}
    bf16 = bake(model, "bf16")
    FOUND["rounded once"] = [key for key in bf16 if not torch.equal(bf16[key].float(), as_sampled[key].to(bf16[key].dtype).float())]


def clones_and_threads() -> None:
    """A clone is baked right while another one is loaded; bands of one key asked for by many threads are one tensor's."""
    base = comfy.sd.load_diffusion_model(str(folder / "bf16.safetensors"))
    weak, strong = with_lora(base, 0.5), with_lora(base, 2.0)
    strong.add_object_patch(f"{PREFIX}head.modulation", torch.nn.Parameter(torch.ones(1, 2, 128), requires_grad=False))
    alone = bake(weak)
    before = sampled(base)
    mm.load_models_gpu([strong])
    FOUND["clones"] = {"differs": [key for key, value in bake(weak).items() if not torch.equal(value, alone[key])],
                       "object": torch.equal(bake(strong)["head.modulation"], torch.ones(1, 2, 128)),
                       "live": sampled(base) == before}
    source, key = open_model(ModelDit(weak, "weak")), "blocks.0.ffn.0.weight"
    whole, bands = alone[key], [(start, start + 16) for start in range(0, 256, 16)]
    keys = [key, "blocks.0.ffn.2.weight"] * 40
    with ThreadPoolExecutor(8) as pool:
        got = [pool.submit(source.read, name, bands[number % 8]) for number, name in enumerate(keys)]
        FOUND["threads"] = all(torch.equal(each.result(), alone[name][slice(*bands[number % 8])])
                               for number, (name, each) in enumerate(zip(keys, got, strict=True)))
    FOUND["whole"] = torch.equal(source.read(key), whole)
    FOUND["identities"] = source.identity() != open_model(ModelDit(weak, "weak")).identity()


def refusals() -> None:
    base = comfy.sd.load_diffusion_model(str(folder / "bf16.safetensors"))

    def refused(name: str, change) -> None:
        model = base.clone()
        change(model)
        FOUND[f"refused {name}"] = error_of(open_model, ModelDit(model, "m"))

    lora = comfy.utils.load_torch_file(str(LORA))
    bypass = comfy.sd.load_bypass_lora_for_models(base, None, lora, 1.0, 0.0)[0]
    FOUND["refused bypass"] = error_of(open_model, ModelDit(bypass, "m"))
    refused("wrapper", lambda model: model.add_weight_wrapper(f"{PREFIX}blocks.0.ffn.0.weight", lambda weight: weight))
    refused("hooks", lambda model: model.hook_patches.update({"hook": {}}))
    refused("module", lambda model: model.add_object_patch(f"{PREFIX}blocks.0", torch.nn.Linear(2, 2)))
    refused("model_as_lora", lambda model: model.add_patches({f"{PREFIX}head.head.weight": ("model_as_lora", (torch.zeros(1),))}))
    refused("injection", lambda model: model.set_injections("other", [object()]))
    model = base.clone()
    model.model_options["transformer_options"]["patches_replace"] = {"attn1": 1}
    model.add_object_patch("model_sampling", torch.nn.Identity())
    FOUND["told"] = told(model)


def misfits(source: dict) -> None:
    """A LoRA of which nothing, or only a part, fits: ComfyUI logs it, and samples without it."""
    base = comfy.sd.load_diffusion_model(str(folder / "bf16.safetensors"))
    wide = {key: torch.cat([value, value]) if key.endswith("lora_B.weight") else value for key, value in load_file(LORA).items()}
    wide_model = comfy.sd.load_lora_for_models(base, None, wide, STRENGTH, 0.0)[0]
    FOUND["no patch fits"] = error_of(open_model, ModelDit(wide_model, "m"))
    one = "diffusion_model.blocks.0.ffn.0.lora_B.weight"
    partly = load_file(LORA) | {one: wide[one]}
    model = comfy.sd.load_lora_for_models(base, None, partly, STRENGTH, 0.0)[0]
    left = open_model(ModelDit(model, "m"))
    want = merged64({key: value.to(torch.bfloat16) for key, value in source.items()})
    want["blocks.0.ffn.0.weight"] = source["blocks.0.ffn.0.weight"].to(torch.bfloat16).double()
    found = {key: left.read(key) for key in want}
    FOUND["some do not fit"] = {"error": error(found, want), "name": left.name, "lines": bake_lines({"model": left})}


def roles() -> None:
    """A MODEL is the expert that its file tells, with and without LoRAs on it."""
    source = load_file(folder / "bf16.safetensors")
    for name, metadata in (("some_high_noise", None), ("some_other", {"modelspec.timestep_range": "0,875"}), ("plain", None)):
        save_file(source, folder / f"{name}.safetensors", metadata=metadata)
        model = with_lora(comfy.sd.load_diffusion_model(str(folder / f"{name}.safetensors")))
        FOUND[f"role {name}"] = role_of_model(model).role


def main() -> None:
    torch.set_num_threads(1)
    write_model(folder / "source.safetensors", SIZES["bf16"], "source")
    write_lora(LORA, SIZES["bf16"], "native", "one")
    source = load_file(folder / "source.safetensors")
    every_base(source)
    merges_of_other_nodes(source)
    clones_and_threads()
    refusals()
    misfits(source)
    roles()
    sys.stdout.write(json.dumps(FOUND) + "\n")


main()
