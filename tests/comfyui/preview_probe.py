"""A preview MODEL against the file that the engine bakes of the same merge, inside ComfyUI's own process; see in_process.py.

Prints one JSON line: what was found, by the name of the test that judges it.
"""
import json
import types

from in_process import (
    CPU,
    PREFIX,
    SIZES,
    LowVramPatch,
    baked,
    comfy,
    different,
    error_of,
    folder,
    forward,
    load_file,
    loaded,
    mm,
    plan_recipe,
    recipe,
    sampled,
    save_file,
    sys,
    torch,
    write_lora,
    write_model,
)
from wan22_master.engine.preview import Preview, settle
from wan22_master.nodes.preview import describe
from wan22_master.nodes.preview_adapter import PreviewAdapter, PreviewJob, preview_of, put_on
from wan22_master.nodes.preview_host import base_of, check_host, path_of

ROLES, DIALECTS = ("high_noise", "low_noise"), ("native", "kohya", "native", "kohya", "native")
FOUND: dict = {}


def base(role: str, dtype: str) -> str:
    """A tiny expert whose weights reach below float16's smallest, as real ones do."""
    path = folder / f"{role}_{dtype}.safetensors"
    if not path.exists():
        write_model(path, SIZES[dtype], role)
        weights = load_file(path)
        for key in list(weights):
            if key.endswith("ffn.0.weight"):
                weights[key][::7] *= 2.0**-13
        save_file(weights, path)
    return str(path)


def lora(number: int, role: str) -> str:
    path = folder / f"lora{number}_{role}.safetensors"
    if not path.exists():
        write_lora(path, SIZES["bf16"], DIALECTS[number], f"{number} {role}")
    return str(path)


def direct_lora(role: str) -> str:
    """Differences of what is no matrix: norm, bias, modulation of a block and of the head, as LightX2V's extractor names them."""
    draw, shapes = torch.Generator().manual_seed(5), load_file(base(role, "bf16"))
    names = {"blocks.1.norm3.diff": "blocks.1.norm3.weight", "blocks.0.ffn.0.diff_b": "blocks.0.ffn.0.bias",
             "blocks.1.diff_m": "blocks.1.modulation", "head.diff_m": "head.modulation",
             "patch_embedding.diff": "patch_embedding.weight"}
    path = folder / f"direct_{role}.safetensors"
    save_file({f"diffusion_model.{name}": 0.01 * torch.randn(shapes[key].shape, generator=draw) for name, key in names.items()},
              path)
    return str(path)


def one_pass(method: str, count: int, experts: dict, *, direct: bool = False) -> list[dict]:
    loras = [{"files": {role: lora(number, role) for role in experts}, "strength": dict.fromkeys(experts, 0.6 + 0.1 * number),
              "method": method} for number in range(count)]
    loras += [{"files": {role: direct_lora(role) for role in experts}}] if direct else []
    return [{"name": "Pass 1", "loras": loras, "method": method}]


def preview(experts: dict, passes: list, role: str, **options) -> Preview:
    plan = plan_recipe(recipe(experts, passes), folder / "reports")
    made = Preview(plan, role, **options)
    settle(plan, role, reports=folder / "reports")
    return made


def preview_model(experts: dict, passes: list, role: str, host=None, **options):
    host = comfy.sd.load_diffusion_model(experts[role]) if host is None else host
    return put_on(host, PreviewJob(preview(experts, passes, role, **options), None, role))


MERGES = {"addition": ("addition", 2, True), "classic": ("classic", 2, True), "adaptive": ("adaptive", 2, True),
          "five": ("addition", 5, False)}


def same_bits() -> None:
    """Every tensor of a preview against the baked file, for both experts, every method and dtype of the base."""
    for name, (method, count, direct) in MERGES.items():
        for dtype in ("bf16", "fp16", "fp32") if name == "addition" else ("bf16",):
            experts = {role: base(role, dtype) for role in ROLES}
            passes = one_pass(method, count, experts, direct=direct)
            files = baked(experts, passes)
            for role in ROLES:
                model, plain = preview_model(experts, passes, role), comfy.sd.load_diffusion_model(files[role])
                unmerged = comfy.sd.load_diffusion_model(experts[role])
                FOUND[f"same bits: {name} {dtype} {role}"] = {
                    "different": different(loaded(model), load_file(files[role])), "merged": len(preview_of(model).preview.keys),
                    "sampled": sampled(model) == sampled(plain), "moved": sampled(plain) != sampled(unmerged)}


def with_a_lora_behind(experts: dict, passes: list, file: str) -> None:
    behind = comfy.utils.load_torch_file(lora(3, "high_noise"))
    models = [comfy.sd.load_lora_for_models(model, None, behind, 0.7, 0.0)[0]
              for model in (preview_model(experts, passes, "high_noise", budget=1 << 30), comfy.sd.load_diffusion_model(file))]
    one, other = (loaded(model) for model in models)
    FOUND["lora behind"] = [key for key in one if not torch.equal(one[key], other[key])]
    FOUND["lora behind twice"] = [sampled(models[0]) == sampled(models[1]), preview_of(models[0]) is None]


def refusals(experts: dict, passes: list) -> None:
    before, path = comfy.utils.load_torch_file(lora(3, "high_noise")), experts["high_noise"]
    patched = comfy.sd.load_lora_for_models(comfy.sd.load_diffusion_model(path), None, before, 0.7, 0.0)[0]
    FOUND["lora before"] = error_of(preview_model, experts, passes, "high_noise", patched)
    twice = preview_model(experts, passes, "high_noise")
    FOUND["preview before"] = error_of(preview_model, experts, passes, "high_noise", twice)
    fp8 = comfy.sd.load_diffusion_model(path, {"dtype": torch.float8_e4m3fn})
    FOUND["fp8 weight_dtype"] = error_of(check_host, fp8, path, approximate=False)
    FOUND["other file"] = error_of(check_host, comfy.sd.load_diffusion_model(experts["low_noise"]), path, approximate=False)
    quantized = comfy.sd.load_diffusion_model(baked(experts, passes, "float8_e4m3fn")["high_noise"])
    FOUND["quantized host"] = [error_of(check_host, quantized, quantized.cached_patcher_init[1][0], approximate=each)
                               for each in (False, True)]
    FOUND["host"] = error_of(check_host, comfy.sd.load_diffusion_model(path), path, approximate=False)


def other_paths(experts: dict, passes: list, file: str) -> None:
    """What no card is needed for: float16 LoRA arithmetic, layers patched at every use, adapters that ComfyUI rebuilds."""
    want = load_file(file)
    mm.LORA_COMPUTE_DTYPES[CPU] = torch.float16
    FOUND["float16 arithmetic"] = different(loaded(preview_model(experts, passes, "high_noise")), want)
    del mm.LORA_COMPUTE_DTYPES[CPU]
    model, plain = preview_model(experts, passes, "high_noise"), comfy.sd.load_diffusion_model(file)
    mm.unload_all_models()
    model.patch_model(CPU, lowvram_model_memory=1)
    FOUND["low VRAM"] = [model.model.model_lowvram, forward(model)]
    model.unpatch_model(CPU)
    FOUND["low VRAM"].append(sampled(plain))
    key = f"{PREFIX}blocks.0.ffn.0.weight"
    patch = LowVramPatch(key, model.patches)
    patch.prepare(torch.empty(patch.memory_required(), dtype=torch.uint8), None)
    rebuilt = patch.prepared_patches[0][1]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given = patch(torch.zeros(256, 128, dtype=dtype))
        FOUND[f"rebuilt {dtype}"] = [given.dtype == dtype, torch.equal(given, want[key.removeprefix(PREFIX)].to(dtype))]
    FOUND["rebuilt adapter"] = [isinstance(rebuilt, PreviewAdapter), rebuilt is not model.patches[key][0][1],
                                rebuilt.job is model.patches[key][0][1].job]


def clones(experts: dict) -> None:
    """base, preview A, preview B, A, base in one process on one loaded base, each as in a run of its own."""
    host = comfy.sd.load_diffusion_model(experts["high_noise"])
    one, two = one_pass("addition", 2, experts, direct=True), one_pass("classic", 3, experts)
    models = {"base": host, "one": preview_model(experts, one, "high_noise", host),
              "two": preview_model(experts, two, "high_noise", host, budget=1 << 30)}
    alone = {"base": sampled(comfy.sd.load_diffusion_model(experts["high_noise"])),
             "one": sampled(preview_model(experts, one, "high_noise")), "two": sampled(preview_model(experts, two, "high_noise"))}
    order = ["base", "one", "two", "one", "base", "two", "base"]
    FOUND["clones"] = [[sampled(models[each]) for each in order], [alone[each] for each in order]]
    held = base_of(experts["high_noise"])
    FOUND["base_of"] = [base_of(experts["high_noise"]) is held, base_of(experts["low_noise"]) is not held]
    FOUND["preview_of"] = [preview_of(models["one"]) is not None, preview_of(models["base"]) is None]


def on_a_card(experts: dict, passes: list) -> None:
    """What the node tells of a card that holds all, a half, or nothing of the model."""
    made = preview(experts, passes, "high_noise", budget=100_000)
    size = sum(made.expert.specs[key].numel * 2 for key in made.keys)
    card = types.SimpleNamespace(load_device=torch.device("cuda"), object_patches={}, model_size=lambda: size)
    FOUND["no lora"] = describe(preview(experts, [], "high_noise"), card)[0]
    FOUND["one file"] = error_of(path_of, types.SimpleNamespace(experts=(("model", "m"),)), "high_noise")
    total, spare = mm.get_total_memory, mm.minimum_inference_memory()
    for name, room in (("all", size), ("half", size // 2), ("none", 0)):
        mm.get_total_memory = lambda device, room=room: room + spare
        FOUND[f"card holds {name}"] = describe(made, card)[1]
    mm.get_total_memory = total


def stopped(experts: dict, passes: list) -> None:
    """The wish to stop comes while ComfyUI loads the preview."""
    host = comfy.sd.load_diffusion_model(experts["high_noise"])
    before, asked = sampled(host), [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > 12

    model = preview_model(experts, passes, "high_noise", host, should_stop=stop)
    FOUND["stop"] = [error_of(mm.load_models_gpu, [model]), len(model.backup), sampled(host) == before]


def main() -> None:
    torch.set_num_threads(1)
    same_bits()
    experts = {role: base(role, "bf16") for role in ROLES}
    passes = one_pass("addition", 2, experts, direct=True)
    file = baked(experts, passes)["high_noise"]
    with_a_lora_behind(experts, passes, file)
    other_paths(experts, passes, file)
    clones(experts)
    on_a_card(experts, passes)
    stopped(experts, one_pass("addition", 2, experts))
    refusals(experts, passes)
    changed = preview(experts, passes, "high_noise")
    (folder / "lora0_high_noise.safetensors").touch()
    FOUND["changed file"] = error_of(changed.merged, "blocks.0.ffn.0.weight")
    sys.stdout.write(json.dumps(FOUND) + "\n")


main()
