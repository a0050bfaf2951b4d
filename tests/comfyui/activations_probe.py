"""MODELs that round activations as other cards do, against comfy-kitchen's quantizer; see in_process.py. Prints one JSON line."""
import json
import types
from contextlib import contextmanager

from in_process import (
    LAYOUTS,
    QuantizedTensor,
    baked,
    comfy,
    error_of,
    folder,
    load_file,
    mm,
    plan_recipe,
    recipe,
    save_file,
    sys,
    torch,
    write_lora,
    write_model,
)
from wan22_master.engine.preview import Preview, settle
from wan22_master.engine.synthetic import Sizes
from wan22_master.nodes import activations, rounded_input
from wan22_master.nodes.activations import EMULATIONS, LayerActivations, describe, emulate, emulated, layers_of
from wan22_master.nodes.handles import Files
from wan22_master.nodes.load_saved import Wan22LoadSaved, io
from wan22_master.nodes.preview_adapter import PreviewJob, preview_of, put_on
from wan22_master.nodes.rounded_input import rounded

FOUND: dict = {}
TINY = Sizes(dim=256, ffn=512, blocks=2, rank=8)   # ConvRot turns groups of 256
SOURCE = folder / "base.safetensors"


def quantized(name: str, formats, scales=None, **conf) -> str:
    """A file coded by comfy-kitchen. formats: layer -> format or None; scales: layer -> input_scale; conf: more of comfy_quant."""
    weights, path = {}, folder / f"{name}.safetensors"
    for key, weight in load_file(SOURCE).items():
        layer, linear = key.removesuffix(".weight"), key.startswith("blocks.") and weight.dim() == 2 and key.endswith(".weight")
        form = formats(layer) if linear else None
        if form is None:
            weights[key] = weight
            continue
        options = {"per_channel": True, "convrot": conf.get("convrot", False)} if form == "int8_tensorwise" else {}
        options |= {"scale": "recalculate"} if form.startswith("float8") else {}
        weights |= QuantizedTensor.from_float(weight.float(), LAYOUTS[form], **options).state_dict(key)
        weights[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": form, **conf}).encode()), dtype=torch.uint8)
        if scales and layer in scales:
            weights[f"{layer}.input_scale"] = torch.tensor(scales[layer])
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return str(path)


def load(path):
    return comfy.sd.load_diffusion_model(str(path))


def sample(model, cfg: float = 1.0) -> torch.Tensor:
    """What the MODEL answers at one sigma, through ComfyUI's own sampling: with cfg 2 as a batch of cond and uncond."""
    draw = torch.Generator().manual_seed(3)
    noise, image = (torch.randn(1, 16, 1, 8, 8, generator=draw) for _ in range(2))
    texts = [[[torch.randn(1, 6, 4096, generator=draw), {}]] for _ in range(2)]

    def ask(asked, x, sigmas, extra_args=None, **rest):
        return asked(x, sigmas[0] * x.new_ones(1), **extra_args)

    sampler, sigmas = comfy.samplers.KSAMPLER(ask), torch.tensor([0.9, 0.0])
    return comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, *texts, image, disable_pbar=True)


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def hooks_left(model) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.model.diffusion_model.modules())


@contextmanager
def watched(model, layers):
    """[layer, input before any rounding, input that the product got] of every call inside."""
    seen, hooks, raw = [], [], {}
    for name in layers:
        module = model.model.diffusion_model.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: raw.update({name: args[0].clone()})))
        hooks.append(module.register_forward_hook(lambda _, args, out, name=name: seen.append([name, raw[name], args[0].clone()])))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def want(x: torch.Tensor, form: str, scale: float | None) -> torch.Tensor:
    """comfy-kitchen's own answer, shaped as ComfyUI's Linear shapes it."""
    given = None if scale is None else torch.tensor(scale)
    return QuantizedTensor.from_float(x.reshape(-1, x.shape[-1]), LAYOUTS[form], scale=given).dequantize().reshape(x.shape)


def same_bits() -> None:
    draw, whole = torch.Generator().manual_seed(1), rounded_input.BAND
    for form, scales in {"nvfp4": (None, 0.002, 0.5), "float8_e4m3fn": (None, 0.01, 1.0), "float8_e5m2": (None, 0.01),
                         "mxfp8": (None, 0.01)}.items():
        wrong = []
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for shape in ((2, 200, 256), (300, 40), (1, 1, 64), (3, 2, 7, 48)):
                x = (8 * torch.randn(shape, generator=draw) ** 3).to(dtype)
                for scale in scales:
                    for rounded_input.BAND in (whole, 1):
                        before, got = x.clone(), rounded(x, LayerActivations(form, input_scale=scale))
                        ok = torch.equal(got, want(x, form, scale)) and got.dtype == dtype and torch.equal(x, before)
                        wrong += [] if ok else [[str(dtype), shape, scale]]
        FOUND[f"bits {form}"] = wrong
    rounded_input.BAND = whole
    zeros = [rounded(torch.zeros(2, 5, 64), LayerActivations(form)) for form in LAYOUTS if form not in rounded_input.ROTATED]
    FOUND["zeros"] = all(torch.equal(each, torch.zeros(2, 5, 64)) for each in zeros)
    FOUND["one dimension"] = torch.equal(rounded(torch.arange(64.0), LayerActivations("nvfp4")), torch.arange(64.0))


def mixed_file() -> tuple[str, dict]:
    """ffn.0 as FP8, the rest NVFP4 but cross_attn.k, of which every layer of block 0 has an input scale."""
    names = [f"blocks.{block}.{place}" for block in range(2) for place in
             (*(f"{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in "qkvo"), "ffn.0", "ffn.2")]
    forms = {name: "float8_e4m3fn" if name.endswith("ffn.0") else "nvfp4" for name in names if not name.endswith("cross_attn.k")}
    scales = {name: 0.003 for name in forms if name.startswith("blocks.0")}
    return quantized("mixed", forms.get, scales), {name: (form, scales.get(name)) for name, form in forms.items()}


def inside_a_model() -> None:
    path, forms = mixed_file()
    model = load(path)
    layers = layers_of(model)
    FOUND["layers_of"] = [name for name, (form, scale) in forms.items() if layers[name] != (
        form, False, None if scale is None else float(torch.tensor(scale)), 0)] + sorted(set(layers) ^ set(forms))
    for card in ("rtx50", "rtx40"):
        clone = emulate(model, layers, card)
        with watched(model, forms) as seen:
            sample(clone, cfg=2.0)
        native = {name for name, (form, _) in forms.items() if card == "rtx50" or form != "nvfp4"}
        FOUND[f"in the model {card}"] = {
            "calls": len(seen), "batch": sorted({raw.shape[0] for _, raw, _ in seen}), "hooks left": hooks_left(model),
            "wrong": [name for name, raw, got in seen
                      if not torch.equal(got, want(raw, *forms[name]) if name in native else raw)],
            "rounded": len({name for name, raw, got in seen if not torch.equal(raw, got)}), "text": describe(model, layers, card)}
    FOUND["here"] = [emulated(model, layers, None) == {}, describe(model, layers, None), sample(emulate(model, layers, None)).equal(
        sample(model))]
    FOUND["unknown layer"] = error_of(emulate, model, {"blocks.9.ffn.0": LayerActivations("nvfp4")}, "rtx50")


def clones() -> None:
    """Emulations of one MODEL in turn, a second emulation on an emulated one, and an error in the middle of the model."""
    model = load(mixed_file()[0])
    layers = layers_of(model)
    fifty, forty = emulate(model, layers, "rtx50"), emulate(model, layers, "rtx40")
    again = emulate(fifty, layers, "rtx40")
    alone = {"plain": sample(load(mixed_file()[0])), "fifty": sample(emulate(load(mixed_file()[0]), layers, "rtx50")),
             "forty": sample(emulate(load(mixed_file()[0]), layers, "rtx40"))}
    order = [(model, "plain"), (fifty, "fifty"), (forty, "forty"), (fifty, "fifty"), (again, "forty"), (model, "plain")]
    FOUND["clones"] = [name for each, name in order if not torch.equal(sample(each), alone[name])]
    FOUND["all differ"] = [apart(alone["fifty"], alone["plain"]), apart(alone["forty"], alone["plain"])]
    held = []

    def stop(module, args):
        held.append(hooks_left(model))
        raise RuntimeError("in the middle")

    broken = model.model.diffusion_model.head.register_forward_pre_hook(stop)
    FOUND["after an error"] = [error_of(sample, fifty)]
    broken.remove()
    FOUND["after an error"] += [held[0], hooks_left(model), torch.equal(sample(model), alone["plain"])]


def scales_of_inputs(model, names) -> dict[str, float]:
    """amax / 2688 of what each layer is given."""
    with watched(model, names) as seen:
        sample(model)
    return {name: max(float(raw.abs().amax()) for each, raw, _ in seen if each == name) / 2688 for name in names}


def input_scales() -> None:
    """NVFP4 with the right input scale, none, one eight times too small, one sixteen times too large."""
    plain = load(quantized("nvfp4", lambda layer: "nvfp4"))
    right = scales_of_inputs(plain, list(layers_of(plain)))
    want_of = sample(plain)
    for name, factor in (("right", 1.0), ("none", None), ("small", 1 / 8), ("large", 16.0)):
        scales = None if factor is None else {layer: scale * factor for layer, scale in right.items()}
        model = load(quantized("nvfp4", lambda layer: "nvfp4", scales))
        FOUND[f"scale {name}"] = apart(sample(emulate(model, layers_of(model), "rtx50")), want_of)
        FOUND["unused here"] = FOUND.get("unused here", True) and torch.equal(sample(model), want_of)


def native_fp8() -> None:
    """FP8 that ComfyUI itself multiplies here (--supports-fp8-compute), against our emulation on a MODEL that is read back."""
    forms, scales = (lambda layer: "float8_e4m3fn"), {f"blocks.{block}.ffn.0": 0.02 for block in range(2)}
    path = quantized("fp8", forms, scales)
    plain = load(path)
    layers, native_of = layers_of(plain), mm.SUPPORT_FP8_OPS
    ours, without = sample(emulate(plain, layers, "rtx40")), sample(plain)
    mm.SUPPORT_FP8_OPS = True
    native = load(path)
    FOUND["native fp8"] = [apart(ours, sample(native)), apart(without, sample(native)), len(emulated(native, layers, "rtx40")),
                           len(emulated(plain, layers, None))]
    forty, activations.NATIVE_UNITS["rtx40"] = activations.NATIVE_UNITS["rtx40"], {}
    FOUND["read back"] = [torch.equal(sample(emulate(native, layers, "rtx40")), without), describe(native, layers, "rtx40"),
                          torch.equal(sample(native), without)]
    activations.NATIVE_UNITS["rtx40"], mm.SUPPORT_FP8_OPS = forty, native_of
    fives = {name: layer._replace(format="float8_e5m2") for name, layer in layers.items()}
    FOUND["e5m2"] = [list(emulated(plain, fives, card)) for card in ("rtx40", "rtx50")]
    whole = load(quantized("fp8_whole", forms, scales, full_precision_matrix_mult=True))
    FOUND["full precision"] = [len(layers_of(whole)), len(emulated(whole, layers_of(whole), "rtx50"))]


def integers() -> None:
    """Formats that every machine multiplies in integers: a plain MODEL of the weights read back, emulated, against the file."""
    for name, form, conf in (("int8", "int8_tensorwise", {}), ("rotated", "int8_tensorwise", {"convrot": True}),
                             ("w4a4", "convrot_w4a4", {}), ("w4a8", "asym_w4a8_int8", {}),
                             ("int8 whole", "int8_tensorwise", {"full_precision_matrix_mult": True})):
        file = load(quantized(name, lambda layer, form=form: form, **conf))
        layers, weights = layers_of(file), load_file(SOURCE)
        for layer in layers:
            weights[f"{layer}.weight"] = file.model.diffusion_model.get_submodule(layer).weight.dequantize()
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / "plain.safetensors")
        plain, answer = load(folder / "plain.safetensors"), sample(file)
        one = file.model.diffusion_model.get_submodule("blocks.0.ffn.2").weight
        x = torch.randn(2, 9, 512, generator=torch.Generator().manual_seed(2))
        product = torch.nn.functional.linear(rounded(x, layers["blocks.0.ffn.2"]), one.dequantize())
        FOUND[f"product {name}"] = apart(product, torch.nn.functional.linear(x, one))
        if form == "convrot_w4a4":                 # INT4 on RTX 40, INT8 with 8-bit inputs on RTX 50
            FOUND["w4a4 inputs"] = [sorted({each.format for each in emulated(plain, layers, card).values()})
                                    for card in ("rtx40", "rtx50")] + [describe(plain, layers, "rtx50")]
        FOUND[f"integers {name}"] = [apart(sample(emulate(plain, layers, None)), answer), apart(sample(plain), answer),
                                     len(emulated(plain, layers, None)), len(emulated(file, layers, "rtx50"))]


def smoothed() -> None:
    """A layer whose file has a pre_quant_scale: ComfyUI multiplies the input by it, and rounds then."""
    weights, layer = load_file(quantized("nvfp4", lambda layer: "nvfp4")), "blocks.0.self_attn.q"
    smooth = weights[f"{layer}.pre_quant_scale"] = torch.linspace(0.25, 3.0, 256)
    save_file(weights, folder / "smooth.safetensors")
    model, outs = load(folder / "smooth.safetensors"), []
    module = model.model.diffusion_model.get_submodule(layer)
    hook = module.register_forward_hook(lambda _, args, out: outs.append(out.clone()))
    clone = emulate(model, layers_of(model), "rtx50")
    with watched(model, [layer]) as seen:
        sample(clone)
    hook.remove()
    mm.unload_all_models()
    product = torch.nn.functional.linear(want(seen[0][1] * smooth, "nvfp4", None), module.weight.dequantize(), module.bias)
    FOUND["smoothed"] = apart(outs[0], product)


def previews() -> None:
    """A preview MODEL: its weights are plain, with patches; the layers are those of the file that would be saved."""
    lora = folder / "lora.safetensors"
    write_lora(lora, TINY, "native", "one")
    experts, passes = {"model": str(SOURCE)}, [{"name": "Pass 1", "loras": [{"files": {"model": str(lora)}}]}]
    with torch.inference_mode(False):              # as our nodes run the engine
        plan = plan_recipe(recipe(experts, passes), folder / "reports")
        preview = Preview(plan, "model")
        settle(plan, "model", reports=folder / "reports")
        saved = baked(experts, passes)["model"]
    shown, file = put_on(load(SOURCE), PreviewJob(preview, None, "model")), load(saved)
    names = layers_of(load(quantized("nvfp4", lambda layer: "nvfp4")))
    layers = {name: LayerActivations("nvfp4", input_scale=0.002) for name in names}
    made = emulate(shown, layers, "rtx50")
    FOUND["preview"] = [torch.equal(sample(made), sample(emulate(file, layers, "rtx50"))), preview_of(made) is not None,
                        apart(sample(made), sample(shown)) > 0, len(emulated(shown, layers, None))]
    smooth = {name: layer._replace(full_precision=True) for name, layer in layers.items()}
    FOUND["preview 16 bit"] = len(emulated(shown, smooth, "rtx50"))


def node() -> None:
    saved = Files((types.SimpleNamespace(name="mixed.safetensors", path=mixed_file()[0], role="model", format="plan",
                                        label="plan"),))
    clone = Wan22LoadSaved.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
    for name in EMULATIONS:
        told = clone.EXECUTE_NORMALIZED(files=saved, expert="auto", format="any", activations=name)
        wrappers = told.args[0].get_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, activations.WRAPPER)
        FOUND[f"node {name}"] = [told.ui["text"][0], len(wrappers)]
    FOUND["node as before"] = clone.EXECUTE_NORMALIZED(files=saved, expert="auto", format="any").ui["text"][0]


def main() -> None:
    torch.set_num_threads(1)
    write_model(SOURCE, TINY, "base")
    with torch.inference_mode():                   # as ComfyUI runs every node
        for part in (same_bits, inside_a_model, clones, input_scales, native_fp8, integers, smoothed, previews, node):
            part()
    sys.stdout.write(json.dumps(FOUND) + "\n")


main()
