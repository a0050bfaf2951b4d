"""Every mix of GGUF of five kinds of models through ComfyUI-GGUF's loader, ComfyUI's sampler and LoRA loader; see in_process.py.

Our engine writes the files here, in ComfyUI's Python, which need not have numba. Prints one JSON line: kind -> mix -> what was told
and found; of the mixes of T2V also what ComfyUI-GGUF decodes, beside our own decoders.
"""
import json

import gguf
import in_process  # before anything of ComfyUI: it finds it
import numpy
from gguf_probe_models import GGUF_NODES, KINDS, apart, installed, load, mm, sample, weights, with_lora
from in_process import Path, folder, plan_recipe, run, save_file, sys, torch, write_lora
from wan22_master.engine.gguf_mix import MIXES
from wan22_master.engine.synthetic import Sizes
from wan22_master.quant.formats import GGUF_TYPES

LORA, STRENGTH = "lora.safetensors", 4.0           # a shift of about 3 % of a weight
EXACT = "t2v"                                      # the kind whose weights are compared one by one
BLOCK_LINEARS = Sizes(dim=256, ffn=512, blocks=2, rank=8)


def write_files(kind: str) -> dict[str, Path]:
    """Mix -> file, all by one run of the engine; the model itself lies beside them as BF16."""
    base = folder / "out" / f"{kind.replace(' ', '_')}.safetensors"
    save_file(weights(kind, 1), base)
    wish = in_process.recipe({"model": str(base)}, [], outputs=[{"format": name} for name in MIXES])
    with plan_recipe(wish, folder / "reports") as plan:
        report = run(plan, reports=folder / "reports")
    return {"base": base} | {out["label"]: Path(out["path"]) for out in report["experts"][0]["outputs"]}


def decoded(path: Path) -> dict[str, torch.Tensor]:
    """Key -> float32 weights of a file by our own decoders, the bytes as the gguf library gives them."""
    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        name, shape = tensor.tensor_type.name, tuple(int(size) for size in reversed(tensor.shape))
        stored = torch.from_numpy(tensor.data.copy())
        if name == "BF16":
            stored = stored.view(torch.bfloat16)
        value = GGUF_TYPES[name].dequantize({"": stored}) if stored.dtype == torch.uint8 else stored.float()
        found[tensor.name] = value.reshape(shape).contiguous()
    return found


def weights_of(model, ours: dict[str, torch.Tensor]) -> dict:
    """How ComfyUI-GGUF's weights differ from ours: keys of unequal bits when it decodes in float32; as it does by default, the
    largest difference of a tensor over its largest weight."""
    dequantize = sys.modules[str(GGUF_NODES).replace(".", "_x_") + ".dequant"].dequantize_tensor
    found = {"unequal": [], "rounded": 0.0, "types": {}}
    for name, value in model.model.diffusion_model.named_parameters():
        kind = getattr(value, "tensor_type", None)
        found["types"][str(getattr(kind, "name", kind))] = found["types"].get(str(getattr(kind, "name", kind)), 0) + 1
        exact = dequantize(value, torch.float32, torch.float32)
        if not torch.equal(torch.Tensor(exact), ours[name]):
            found["unequal"].append(name)
        usual = torch.Tensor(dequantize(value, torch.float32, None))
        found["rounded"] = max(found["rounded"], float((usual - ours[name]).abs().max() / ours[name].abs().max()))
    return found


def main() -> None:
    complaints, found = installed(), {}
    write_lora(folder / "out" / LORA, BLOCK_LINEARS, "native", "lora")
    for kind in KINDS:
        files = write_files(kind)
        plain, moved = both(files["base"].name, kind)
        found[kind] = {"moved": apart(moved, plain)}
        for mix in MIXES:
            complaints.taken()
            model, told = load(files[mix].name), {}
            if kind == EXACT:                      # before a LoRA is put on the weights
                ours = decoded(files[mix])
                told = weights_of(model, ours)
                save_file(ours, folder / "out" / f"twin-{mix}.safetensors")
            latent = sample(model, kind)
            loading = complaints.taken()
            lora = sample(with_lora(model, LORA, STRENGTH), kind)
            told |= {"loading": loading, "lora": complaints.taken(), "class": type(model.model.model_config).__name__,
                     "apart": apart(latent, plain), "move": apart(lora - latent, moved - plain)}
            if kind == EXACT:
                twin, twin_moved = both(f"twin-{mix}.safetensors", kind)
                told |= {"twin": apart(latent, twin), "twin lora": apart(lora, twin_moved)}
            found[kind][mix] = told
            mm.unload_all_models()
    complaints.taken()
    found["stray"] = {name: complain(complaints, name) for name in ("missing", "unexpected")}
    sys.stdout.write(json.dumps(found) + "\n")


def complain(complaints, what: str) -> list[str]:
    """What is logged of a file that lacks a tensor of a block, or has one too many."""
    path, lacking = folder / "out" / f"{what}.gguf", "blocks.1.ffn.2.weight" if what == "missing" else ""
    writer = gguf.GGUFWriter(path, "wan")
    for key, value in weights("t2v", 1).items():
        if key != lacking:
            writer.add_tensor(key, value.float().numpy())
    if not lacking:
        writer.add_tensor("blocks.1.ffn.9.weight", numpy.ones((256, 256), numpy.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    load(path.name)
    return complaints.taken()


def both(name: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of a file, without and with the LoRA."""
    model = load(name)
    return sample(model, kind), sample(with_lora(model, LORA, STRENGTH), kind)


with torch.inference_mode():                       # as the server runs every node
    main()
