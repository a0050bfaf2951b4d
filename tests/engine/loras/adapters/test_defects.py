"""What other mergers get wrong (verified in their sources), as tests of the way from a file to a merged tensor."""

import pytest
import torch
from wan22_master.engine.loras.dialects import Index
from wan22_master.engine.merging.contribution import Contribution
from wan22_master.engine.merging.merge import load_change, merge_whole
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine.loras.adapters import laid, oracle

SHAPES = {
    f"blocks.{n}.{name}.weight": shape
    for n in range(3)
    for name, shape in {"cross_attn.k": (12, 12), "self_attn.k": (12, 12), "ffn.0": (24, 12), "ffn.2": (12, 24)}.items()
}
SHAPES |= {
    "blocks.0.cross_attn.k_img.weight": (12, 12),
    "blocks.0.norm3.weight": (12,),
    "blocks.0.norm3.bias": (12,),
    "blocks.0.self_attn.norm_q.weight": (12,),
    "head.modulation": (1, 2, 12),
    "head.head.weight": (4, 12),
}
INDEX = Index(SHAPES, {key: TensorSpec(shape, torch.float32) for key, shape in SHAPES.items()})


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed)) * 0.2


def pair(module, out=12, into=12, seed=1, rank=4, **more):
    found = {f"{module}.lora_B.weight": draw(out, rank, seed=seed), f"{module}.lora_A.weight": draw(rank, into, seed=seed + 1)}
    return found | {f"{module}.{name}": tensor for name, tensor in more.items()}


def delta(tensors, module, alpha=None):
    up, down = tensors[f"{module}.lora_B.weight"], tensors[f"{module}.lora_A.weight"]
    return oracle.lora((up.shape[0], down.shape[1]), up, down, alpha)


def merge(tmp_path, files):
    """(key -> W' - W) of [(tensors, strength)], every key that some LoRA changes."""
    found = {}
    for n, (tensors, strength) in enumerate(files):
        lora = laid.write(tmp_path / f"{n}.safetensors", tensors)
        for key, modules in laid.lay(lora, INDEX)[0].items():
            found.setdefault(key, []).append(Contribution(lora, modules, strength))
    changes = {}
    for key, parts in found.items():
        weight = draw(*SHAPES[key], seed=99)
        merged = weight.clone()
        merge_whole(load_change(key, TensorSpec(SHAPES[key], torch.float32), parts, torch.device("cpu")), merged)
        changes[key] = merged.double() - weight.double()
    return changes


def close(found, expected):
    return (found - expected).norm() <= 1e-6 * max(1.0, expected.norm())  # the sum with the weight is rounded to float32


def test_two_loras_are_the_sum_of_two_products_without_cross_terms(tmp_path):
    # ai-toolkit's merge script and the LoRA Power-Merger add A to A and B to B
    module, key = "diffusion_model.blocks.0.self_attn.k", "blocks.0.self_attn.k.weight"
    one, two = pair(module), pair(module, seed=5)
    found = merge(tmp_path, [(one, 0.8), (two, -0.5)])[key]
    assert close(found, 0.8 * delta(one, module) - 0.5 * delta(two, module))


def test_alphas_are_never_dropped(tmp_path):
    # DaSiWa's last engine looks for `.alpha.weight`; LightX2V's merger ignores alpha
    module = "blocks.0.self_attn.k"
    tensors = pair(module, rank=4, alpha=torch.tensor(8, dtype=torch.int64))
    assert close(merge(tmp_path, [(tensors, 1.0)])[f"{module}.weight"], delta(tensors, module, 8))


def test_names_that_contain_each_other_are_not_mixed_up(tmp_path):
    # DaSiWa's last engine puts block 0's ffn.2 into block 2, and takes k_img for k; kijai's wrapper attn1 for cross_attn
    modules = {
        "diffusion_model.blocks.0.ffn.2": (12, 24),
        "diffusion_model.blocks.2.ffn.2": (12, 24),
        "diffusion_model.blocks.0.cross_attn.k": (12, 12),
        "diffusion_model.blocks.0.cross_attn.k_img": (12, 12),
    }
    tensors = {}
    for n, (module, shape) in enumerate(modules.items()):
        tensors |= pair(module, *shape, seed=10 * n + 1)
    found = merge(tmp_path, [(tensors, 1.0)])
    assert found.keys() == {module.removeprefix("diffusion_model.") + ".weight" for module in modules}
    for module in modules:
        assert close(found[module.removeprefix("diffusion_model.") + ".weight"], delta(tensors, module))


@pytest.mark.parametrize(
    ("other", "native"),
    [
        ("transformer.blocks.0.attn1.to_k", "blocks.0.self_attn.k"),
        ("transformer.blocks.0.attn2.to_k", "blocks.0.cross_attn.k"),
        ("transformer.blocks.0.attn2.add_k_proj", "blocks.0.cross_attn.k_img"),
        ("transformer.blocks.1.ffn.net.2", "blocks.1.ffn.2"),
        ("transformer.blocks.1.ffn.net.0.proj", "blocks.1.ffn.0"),
        ("transformer.proj_out", "head.head"),
    ],
)
def test_diffusers_names_go_where_they_belong(tmp_path, other, native):
    out, into = SHAPES[f"{native}.weight"]
    tensors = pair(other, out, into)
    found = merge(tmp_path, [(tensors, 1.0)])
    assert found.keys() == {f"{native}.weight"}
    assert close(found[f"{native}.weight"], delta(tensors, other))


def test_a_peft_file_is_no_rs_lora_unless_something_says_so(tmp_path):
    # kijai's wrapper takes every base_model.model. file for one
    module = "base_model.model.blocks.0.self_attn.k"
    tensors = pair(module, rank=4)
    assert close(merge(tmp_path, [(tensors, 1.0)])["blocks.0.self_attn.k.weight"], delta(tensors, module))


def test_differences_of_norms_biases_and_modulation_are_kept(tmp_path):
    # diffusers' converter drops them, DaSiWa's engine ignores them, ComfyUI does not read diff_m
    named = {
        "blocks.0.norm3.diff": (12,),
        "blocks.0.norm3.diff_b": (12,),
        "blocks.0.self_attn.norm_q.diff": (12,),
        "head.diff_m": (1, 2, 12),
    }
    tensors = {f"diffusion_model.{name}": draw(*shape, seed=n) for n, (name, shape) in enumerate(named.items())}
    found = merge(tmp_path, [(tensors, 0.5)])
    places = ("blocks.0.norm3.weight", "blocks.0.norm3.bias", "blocks.0.self_attn.norm_q.weight", "head.modulation")
    assert found.keys() == set(places)
    assert all(close(found[key], 0.5 * tensor.double()) for key, tensor in zip(places, tensors.values(), strict=True))


def test_a_difference_and_a_lora_of_one_module_add_up_and_so_do_two_spellings(tmp_path):
    # ComfyUI lets the last of them take the place of the others
    module = "blocks.0.self_attn.k"
    one, two = pair(f"diffusion_model.{module}"), pair(f"lora_unet_{module.replace('.', '_')}", seed=5)
    whole = draw(12, 12, seed=8)
    expected = whole.double() + delta(one, f"diffusion_model.{module}") + delta(two, f"lora_unet_{module.replace('.', '_')}")
    found = merge(tmp_path, [(one | two | {f"diffusion_model.{module}.diff": whole}, 1.0)])
    assert close(found[f"{module}.weight"], expected)


def test_the_strength_of_a_rotation_and_of_a_replacement_counts_once(tmp_path):
    # ComfyUI squares the first and ignores the second
    key = "blocks.0.self_attn.k.weight"
    weight, blocks, value = draw(12, 12, seed=99), draw(3, 4, 4), draw(12, 12, seed=7)
    found = merge(tmp_path, [({"diffusion_model.blocks.0.self_attn.k.oft_blocks": blocks}, 0.5)])[key]
    assert close(found, oracle.oft(weight, blocks, 0.5) - weight.double())
    found = merge(tmp_path, [({"diffusion_model.blocks.0.self_attn.k.set_weight": value}, 0.5)])[key]
    assert close(found, 0.5 * (value.double() - weight.double()))


def test_doras_of_several_loras_are_summed_against_the_original_base_in_any_order(tmp_path):
    module, key = "diffusion_model.blocks.0.ffn.0", "blocks.0.ffn.0.weight"
    files = [(pair(module, 24, 12, seed=n) | {f"{module}.dora_scale": draw(24, 1, seed=n + 3).abs() + 0.5}, 0.6) for n in (10, 20)]
    weight = draw(24, 12, seed=99)
    magnitude = f"{module}.dora_scale"
    expected = sum(0.6 * oracle.dora(weight, delta(one, module), one[magnitude].flatten(), 0) for one, _ in files)
    assert close(merge(tmp_path, files)[key], expected)
    assert close(merge(tmp_path, files[::-1])[key], expected)
