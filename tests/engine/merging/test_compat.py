"""`compat: comfyui` against ComfyUI's own loader, run by its own Python: the same bits, for every kind that it loads."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.errors import LoraError, RecipeError
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.merging.compat import lay_out, load_comfy_change
from wan22_master.engine.merging.contribution import Contribution, PassRule, Rules
from wan22_master.engine.merging.merge import merge_whole
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine.loras.adapters import cases, laid

SHAPES = {
    **cases.SHAPES,
    **cases.BIASES,
    "blocks.0.self_attn.q.weight": (16, 16),
    "blocks.0.self_attn.q.bias": (16,),
    "control_adapter.conv.weight": (8, 6, 2, 2),
}
INDEX = laid.index_of(SHAPES)
Q, FFN = "blocks.0.self_attn.q", "blocks.0.ffn.0"
RULES = Rules(compat="comfyui")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed)) * 0.3


def base():
    return {key: draw(*shape, seed=n) for n, (key, shape) in enumerate(SHAPES.items())}


def of_kind(kind, shapes=None):
    """The kind on every tensor it can exist on, in ComfyUI's dotted spelling."""
    tensors = {}
    for key, shape in (shapes or {key: SHAPES[key] for key in SHAPES if not key.endswith("bias")}).items():
        parts, change = cases.case(kind, shape)
        module = f"diffusion_model.{key.removesuffix('.weight')}"
        tensors |= {module + suffix: tensor for suffix, tensor in parts.items()} if change else {}
    return tensors


def pair(module, out, into, seed=1, **more):
    found = {f"{module}.lora_up.weight": draw(out, 4, seed=seed), f"{module}.lora_down.weight": draw(4, into, seed=seed + 1)}
    return found | {f"{module}.{name}": tensor for name, tensor in more.items()}


def only(tensors, suffix):
    """Without what the keys of another module would do."""
    return {key: tensor for key, tensor in tensors.items() if suffix in key}


def core(inner):
    """LoCon with a core of outer rank 4 on the 4-D convolution."""
    module = "diffusion_model.control_adapter.conv"
    return {
        f"{module}.lora_up.weight": draw(8, 4, 1, 1),
        f"{module}.lora_mid.weight": draw(4, inner, 2, 2, seed=2),
        f"{module}.lora_down.weight": draw(inner, 6, 1, 1, seed=3),
        f"{module}.alpha": torch.tensor(2.0),
    }


TWO_D = {key: shape for key, shape in SHAPES.items() if len(shape) == 2}
DOTTED, FLAT = f"diffusion_model.{FFN}", "lora_unet_blocks_0_ffn_0"
SENTINEL = "lora_unet__blocks_0_cross_attn_k.lora_down.weight"
CORES = ("LoHa Tucker", "LoKr Tucker")  # ComfyUI knows cores of two kernel axes only
FILES = {kind: of_kind(kind) for kind in cases.KINDS if not kind.endswith("Tucker") and "vector" not in kind}
FILES |= {kind: of_kind(kind, {key: shape for key, shape in SHAPES.items() if len(shape) == 4}) for kind in CORES}
FILES["LoCon Tucker"] = core(4)
FILES |= {
    "int alpha": pair(DOTTED, 24, 12, alpha=torch.tensor(3)),
    "double alpha": pair(DOTTED, 24, 12, alpha=torch.tensor(0.1, dtype=torch.float64)),
    "half factors": {key: tensor.half() for key, tensor in pair(DOTTED, 24, 12).items()},
    "transposed": {f"{DOTTED}.lora_up.weight": draw(12, 4, seed=3), f"{DOTTED}.lora_down.weight": draw(4, 24, seed=4)},
    "aliases": pair(DOTTED, 24, 12) | pair(FLAT, 24, 12, seed=7),
    "diff over LoRA": pair(DOTTED, 24, 12) | {f"{DOTTED}.diff": draw(24, 12, seed=9)},
    "set over all": pair(DOTTED, 24, 12) | {f"{DOTTED}.diff": draw(24, 12, seed=9), f"{DOTTED}.set_weight": draw(24, 12, seed=10)},
    "two families": pair(DOTTED, 24, 12) | only(of_kind("LoHa", TWO_D), "ffn.0.hada"),
    "biases": pair(DOTTED, 24, 12)
    | {
        f"{DOTTED}.diff_b": draw(24, seed=5),
        f"{DOTTED}.bias.diff": draw(24, seed=6),
        f"diffusion_model.{Q}.diff_b": draw(16, seed=7),
        f"{FLAT}.diff_b": draw(24, seed=8),
    },
    "norms": {"diffusion_model.blocks.0.norm3.w_norm": draw(24, seed=5), "diffusion_model.blocks.0.norm3.b_norm": draw(24, seed=6)},
    "modulation": {"diffusion_model.blocks.0.modulation.diff": draw(1, 6, 12, seed=5)},
    "Fun": pair("lora_unet__blocks_0_ffn_0", 24, 12) | {SENTINEL: draw(4, 4)},
    "misfit": pair(DOTTED, 24, 13) | pair(f"diffusion_model.{Q}", 16, 16),
    "unread": pair(DOTTED, 24, 12)
    | {
        "diffusion_model.blocks.0.diff_m": draw(1, 6, 12),
        f"{DOTTED}.lora_B.bias": draw(24),
        f"{DOTTED}.lora_magnitude_vector": draw(24),
        "blocks.0.self_attn.q.oft_R.weight": draw(4, 6),
    },
    "DoRA of LoHa": only(of_kind("LoHa", TWO_D), "ffn.0") | {f"{DOTTED}.dora_scale": draw(24, 1).abs()},
    "DoRA of GLoRA": only(of_kind("GLoRA", TWO_D), "ffn.0") | {f"{DOTTED}.dora_scale": draw(1, 12).abs()},
}
JOBS = {f"{name} {strength}": [(name, strength)] for name in FILES for strength in (1.0, -0.6)}
JOBS |= {
    "five": [("LoRA up/down", 0.7), ("DoRA outputs", 0.5), ("OFT", 0.3), ("set_weight", 0.2), ("LoHa", 1.2)],
    "GLoRA after LoRA": [("LoRA up/down", 0.7), ("GLoRA", 0.5), ("DoRA inputs", 1.0), ("LoKr whole", 0.4)],
}


@pytest.fixture(scope="module")
def comfyui_merged(tmp_path_factory, comfyui_path):
    """Folder of the LoRA files, and ComfyUI's results: job -> tensors, or its error."""
    python = comfyui_path / ".venv" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no Python environment in {comfyui_path / '.venv'}")
    folder = tmp_path_factory.mktemp("compat")
    (folder / "out").mkdir()
    numbers = {name: number for number, name in enumerate(FILES)}
    paths = {name: folder / f"{number}.safetensors" for name, number in numbers.items()}
    for name, tensors in FILES.items():
        laid.write(paths[name], tensors).close()
    save_file(base(), folder / "base.safetensors")
    jobs = {str(n): [(str(paths[name]), strength) for name, strength in loras] for n, loras in enumerate(JOBS.values())}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("comfyui_merge.py")
    command = [python, script, folder / "jobs.json", folder / "base.safetensors", folder / "out"]
    environment = {**os.environ, "PYTHONPATH": str(comfyui_path)}
    done = subprocess.run(command, cwd=comfyui_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for n, job in enumerate(JOBS):
        text = folder / "out" / f"{n}.txt"
        found[job] = text.read_text() if text.exists() else load_file(folder / "out" / f"{n}.safetensors")
    return paths, found


def ours(paths, loras):
    """(key -> merged tensor, refused keys)."""
    laid_out, refused = {}, set()
    for name, strength in loras:
        lora = open_lora(paths[name])
        applied, left = lay_out(lora, INDEX)
        refused |= {one.key for one in left}
        for key, modules in applied.items():
            laid_out.setdefault(key, []).append(Contribution(lora, modules, strength))
    weights, merged = base(), {}
    for key, contributions in laid_out.items():
        merged[key] = weights[key].clone()
        change = load_comfy_change(key, TensorSpec(SHAPES[key], torch.float32), contributions, RULES)
        merge_whole(change, merged[key])
    return merged, refused


@pytest.mark.comfyui
@pytest.mark.parametrize("job", JOBS)
def test_every_key_has_comfyuis_own_bits(comfyui_merged, job):
    paths, expected = comfyui_merged
    assert isinstance(expected[job], dict), expected[job]
    weights, (merged, _) = base(), ours(paths, JOBS[job])
    for key, tensor in expected[job].items():
        found = merged.get(key, weights[key])
        assert torch.equal(found, tensor), (key, (found - tensor).abs().max())
    assert merged.keys() <= expected[job].keys()


def read_back(tmp_path, tensors):
    lora = laid.write(tmp_path / "some.safetensors", tensors)
    applied, refused = lay_out(lora, INDEX)
    reasons = {one.key: one.reason for one in refused}
    assert {key for modules in applied.values() for module in modules for key in module.keys} | reasons.keys() == tensors.keys()
    return lora, applied, reasons


@pytest.mark.parametrize(
    ("name", "refused", "reason"),
    [
        (
            "unread",
            {
                "diffusion_model.blocks.0.diff_m",
                f"{DOTTED}.lora_B.bias",
                f"{DOTTED}.lora_magnitude_vector",
                "blocks.0.self_attn.q.oft_R.weight",
            },
            "ComfyUI 0.33 does not read it",
        ),
        ("IA3 inputs", set(FILES["IA3 inputs"]), "ComfyUI 0.33 does not read it"),
        ("LoRA A/B bare", set(), ""),
        ("OFT PEFT", set(FILES["OFT PEFT"]), "ComfyUI 0.33 does not read it"),
        ("aliases", set(only(FILES["aliases"], FLAT)), f"ComfyUI 0.33 lets {DOTTED}.lora_up.weight take its place"),
        ("diff over LoRA", set(only(FILES["diff over LoRA"], "lora")), f"ComfyUI 0.33 lets {DOTTED}.diff take its place"),
        ("misfit", set(only(FILES["misfit"], DOTTED)), "ComfyUI 0.33 fails here and leaves the layer as it is"),
    ],
)
def test_what_comfyui_does_not_apply_is_refused_with_the_reason(tmp_path, name, refused, reason):
    _, _, reasons = read_back(tmp_path, FILES[name])
    assert reasons.keys() == refused
    assert all(told.startswith(reason) for told in reasons.values())


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (of_kind("DoRA vector out", TWO_D), "dora_scale: expected two axes or more"),
        (core(3), "lora_up.weight: expected what ComfyUI 0.33 can load"),
        ({f"{DOTTED}.lora_up.weight": draw(24, 4)}, "lora_up.weight: expected what ComfyUI 0.33 can load"),
        ({f"{DOTTED}.hada_w1_a": draw(24, 4)}, "hada_w1_a: expected what ComfyUI 0.33 can load"),
        (pair(DOTTED, 24, 12, alpha=torch.ones(2)), "alpha: expected one number"),
    ],
)
def test_what_comfyui_fails_on_is_an_error_that_names_file_and_key(tmp_path, tensors, reason):
    with pytest.raises(LoraError, match=rf"some\.safetensors: .*{reason}"):
        read_back(tmp_path, tensors)


def test_only_addition_can_be_what_comfyui_does(tmp_path):
    lora, applied, _ = read_back(tmp_path, FILES["LoRA up/down"])
    [(key, modules), *_] = applied.items()
    spec = TensorSpec(SHAPES[key], torch.float32)
    ties, normalized = Rules((PassRule("ties"),)), Rules(normalize=True)
    for method, rules in (("classic", RULES), ("addition", ties), ("addition", normalized)):
        with pytest.raises(RecipeError, match="compat comfyui: expected addition"):
            load_comfy_change(key, spec, [Contribution(lora, modules, 1.0, method)], rules)


def test_energies_say_how_far_each_lora_went_and_all_together(tmp_path):
    lora, applied, _ = read_back(tmp_path, FILES["LoRA up/down"])
    key = "blocks.0.ffn.0.weight"
    parts = [Contribution(lora, applied[key], strength, protected=strength < 0) for strength in (0.7, -0.2)]
    weight = base()[key]
    merged = weight.clone()
    energies = merge_whole(load_comfy_change(key, TensorSpec(weight.shape, torch.float32), parts, RULES), merged)
    delta = cases.case("LoRA up/down", tuple(weight.shape))[1](weight, 1.0).norm().item() ** 2
    assert energies.gram[0][1] == energies.gram[1][0] == 0.0
    found = (energies.gram[0][0], energies.gram[1][1], energies.moved, energies.rest)
    assert found == pytest.approx([delta * s**2 for s in (0.7, 0.2, 0.5, 0.7)], rel=1e-5)  # float32 sums of weights about as large
    assert (merged.double() - weight.double()).norm().item() ** 2 == pytest.approx(energies.moved, rel=1e-9)
