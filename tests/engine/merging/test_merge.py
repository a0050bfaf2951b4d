"""Merged weights and their energies against plain float64 torch on the same tensors, and against ComfyUI's own LoRA code."""
import json
import subprocess
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine import bands
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.lora import Index, match, open_lora
from wan22_master.engine.merging.merge import CORRECT, Contribution, load_change, merge_whole
from wan22_master.engine.specs import TensorSpec

KEY, LAYER = "blocks.0.ffn.0.weight", "diffusion_model.blocks.0.ffn.0"
CPU = torch.device("cpu")


def normal(*shape, scale=1.0, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed)) * scale


def factors(shape, rank, size, seed, module=LAYER, alpha=None):
    """A LoRA's tensors, bf16, whose delta has elements of rms `size`."""
    tensors = {f"{module}.lora_up.weight": normal(shape[0], rank, seed=seed).bfloat16(),
               f"{module}.lora_down.weight": normal(rank, *shape[1:], scale=size / rank ** 0.5, seed=seed + 1).bfloat16()}
    return tensors | ({} if alpha is None else {f"{module}.alpha": torch.tensor(alpha)})


def delta64(tensors, module=LAYER):
    """The oracle for one LoRA: alpha / rank * up @ down in float64."""
    up, down = tensors[f"{module}.lora_up.weight"].double(), tensors[f"{module}.lora_down.weight"].double()
    scale = tensors[f"{module}.alpha"].double().item() / down.shape[0] if f"{module}.alpha" in tensors else 1.0
    return (scale * up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def contribution(path, tensors, spec, strength=1.0, method="addition", key=KEY):
    save_file(tensors, path)
    lora = open_lora(path)
    return Contribution(lora, match(lora, Index([key], {key: spec})).applied[key], strength, method)


def contributions(tmp_path, loras, shape, strengths, method="addition", key=KEY):
    spec = TensorSpec(shape, torch.bfloat16)
    return [contribution(tmp_path / f"{n}.safetensors", tensors, spec, strength, method, key)
            for n, (tensors, strength) in enumerate(zip(loras, strengths, strict=True))]


def total(energies):
    return sum(map(sum, energies.gram))


def on_threads(threads):
    """`run` on so many threads, each taking every so-manieth band."""
    def run(compute, spans):
        results = {}

        def work(mine):
            for span in mine:
                results[span] = compute(span)

        workers = [threading.Thread(target=work, args=(spans[n::threads],)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return [results[span] for span in spans]
    return run


@pytest.fixture(autouse=True)
def bands_of_128_rows(monkeypatch):
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 1)


def merge(base, parts, threads=1, key=KEY, rules=CORRECT):
    """The engine, band by band of 128 rows, as the run loop does it. Returns (merged float32, energies, change)."""
    change = load_change(key, TensorSpec(tuple(base.shape), torch.bfloat16), parts, CPU, rules)
    merged = base.float().clone()
    return merged, merge_whole(change, merged, on_threads(threads)), change


def round_once(wide):
    """float64 -> the nearest bf16, without float32 in between."""
    near = wide.to(torch.float32).to(torch.bfloat16)
    bits = near.view(torch.int16)
    around = torch.stack([near, (bits - 1).view(torch.bfloat16), (bits + 1).view(torch.bfloat16)])
    return around.gather(0, (around.double() - wide).abs().argmin(0, keepdim=True))[0]


def assert_rounds_to(merged, exact, base):
    """>= 99.99 % bit-equal to float64 rounded once; the rest within one bf16 ulp or float32's own error of the sum."""
    expected, found = round_once(exact), merged.bfloat16()
    differ = expected != found
    assert differ.double().mean() <= 1e-4
    ulp = 2.0 ** (torch.frexp(expected.double()).exponent - 8)  # bf16 has 8 significant bits
    allowed = torch.maximum(ulp, 2.0 ** -22 * (base.double().abs() + (exact - base.double()).abs()))
    assert ((found.double() - expected.double()).abs() <= allowed).all()


@pytest.mark.parametrize("shape", [(300, 200), (130, 64), (7, 33), (128, 257)])
@pytest.mark.parametrize("alphas", [(None,), (8, 4.0, None)])
def test_addition_is_float64_rounded_once(tmp_path, shape, alphas):
    base = normal(*shape, scale=0.03).bfloat16()
    loras = [factors(shape, rank, 1e-3, 10 * rank, alpha=alpha) for rank, alpha in zip((16, 4, 8), alphas, strict=False)]
    strengths = (0.7, -1.3, 3.0)[:len(loras)]
    merged, _, _ = merge(base, contributions(tmp_path, loras, shape, strengths))
    assert_rounds_to(merged, base.double() + sum(s * delta64(t) for s, t in zip(strengths, loras, strict=True)), base)


def test_ten_loras_lose_no_more_than_one_rounding(tmp_path):
    shape = (256, 256)
    base = normal(*shape, scale=0.03).bfloat16()
    loras = [factors(shape, 8, 0.03 * 0.01 / 10 ** 0.5, 100 * n) for n in range(10)]
    delta = sum(delta64(tensors) for tensors in loras)
    assert 0.008 < delta.norm() / base.double().norm() < 0.012
    merged, _, _ = merge(base, contributions(tmp_path, loras, shape, [1.0] * 10))
    exact = base.double() + delta
    lost, least = ((rounded.double() - exact).norm() / delta.norm() for rounded in (merged.bfloat16(), round_once(exact)))
    assert lost <= least * (1 + 1e-5)
    one_by_one = base.clone()
    for tensors in loras:
        one_by_one = (one_by_one.double() + delta64(tensors)).bfloat16()
    assert lost < 0.5 * (one_by_one.double() - exact).norm() / delta.norm()


def test_two_loras_add_up_in_either_order(tmp_path):
    shape = (256, 128)
    base = normal(*shape, scale=0.03).bfloat16()
    parts = contributions(tmp_path, [factors(shape, 16, 1e-3, 1), factors(shape, 4, 2e-3, 5)], shape, (1.0, 0.5))
    one, other = merge(base, parts)[0], merge(base, parts[::-1])[0]
    # each float32 sum of 20 products and the base is off by at most 21 roundings of its largest partial sum, here below 0.2
    assert (one - other).abs().max() <= 2 * 21 * 2 ** -24 * 0.2
    assert (one.bfloat16() != other.bfloat16()).double().mean() <= 1e-4


def test_two_spellings_of_a_module_add_up(tmp_path):
    shape, other = (64, 48), "lora_unet_blocks_0_ffn_0"
    tensors = factors(shape, 4, 1e-2, 1, alpha=2) | factors(shape, 3, 1e-2, 7, module=other, alpha=6.0)
    base = normal(*shape, scale=0.03).bfloat16()
    [part] = contributions(tmp_path, [tensors], shape, [0.5])
    merged, energies, _ = merge(base, [part])
    delta = 0.5 * (delta64(tensors) + delta64(tensors, other))
    assert_rounds_to(merged, base.double() + delta, base)
    assert total(energies) == pytest.approx(delta.square().sum().item(), rel=1e-6)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8, 0.125), (torch.tensor([8]), 0.125)])
def test_alpha_of_lightning_is_an_eighth(tmp_path, alpha, scale):
    shape = (128, 64)
    tensors = factors(shape, 64, 1e-2, 3)
    up, down = (tensors[f"{LAYER}.{name}.weight"].double() for name in ("lora_up", "lora_down"))
    stored = tensors | ({} if alpha is None else {f"{LAYER}.alpha": torch.as_tensor(alpha)})
    merged, _, change = merge(torch.zeros(shape), contributions(tmp_path, [stored], shape, [1.0]))
    assert torch.allclose(merged.double(), scale * up @ down, rtol=0, atol=64 * 2 ** -24 * 0.1)
    assert change.describe() == [{"lora": "0.safetensors", "method": "addition", "rank": 64, "alpha_over_rank": [scale]}]


@pytest.mark.parametrize(("key", "suffix", "shape"), [
    ("blocks.0.ffn.0.bias", "blocks.0.ffn.0.diff_b", (300,)),
    ("blocks.0.self_attn.norm_q.weight", "blocks.0.self_attn.norm_q.diff", (40,)),
    ("blocks.0.modulation", "blocks.0.modulation.diff", (1, 6, 40)), ("head.head.weight", "head.head.diff", (64, 40)),
])
@pytest.mark.parametrize("method", ["addition", "classic"])
def test_differences_are_added_directly(tmp_path, key, suffix, shape, method):
    base, diffs = normal(*shape, scale=0.03), [normal(*shape, scale=1e-3, seed=seed) for seed in (1, 2, 3)]
    loras = [{f"diffusion_model.{suffix}": diff} for diff in diffs]
    merged, energies, change = merge(base, contributions(tmp_path, loras, shape, (0.5, 2.0, 1.0), method, key), key=key)
    delta = 0.5 * diffs[0].double() + 2.0 * diffs[1].double() + diffs[2].double()
    assert not change.needs_whole
    assert torch.allclose(merged.double(), base.double() + delta, rtol=0, atol=4 * 2 ** -24 * 0.2)
    assert total(energies) == pytest.approx(delta.square().sum().item(), rel=1e-6)


@pytest.mark.parametrize("up_tail", [(), (1, 1, 1)])
@pytest.mark.parametrize("method", ["addition", "classic"])
def test_the_patch_embedding_takes_a_lora(tmp_path, up_tail, method):
    key, shape, module = "patch_embedding.weight", (140, 36, 1, 2, 2), "diffusion_model.patch_embedding"
    tensors = factors(shape, 4, 1e-2, 3, module, alpha=2.0)
    tensors[f"{module}.lora_up.weight"] = tensors[f"{module}.lora_up.weight"].reshape(140, 4, *up_tail)
    base = normal(*shape, scale=0.03).bfloat16()
    merged, _, _ = merge(base, contributions(tmp_path, [tensors], shape, [0.8], method, key), key=key)
    delta = delta64(tensors, module)
    exact = base.double() + 0.8 * (classic(delta, base)[0] if method == "classic" else delta)
    assert torch.allclose(merged.double(), exact, rtol=0, atol=2e-7)


@pytest.mark.parametrize("methods", [("addition",), ("addition", "addition", "addition"), ("classic", "addition", "classic")])
def test_energies_are_the_norms_of_the_full_deltas(tmp_path, methods):
    shape = (300, 200)
    base, strengths = normal(*shape, scale=0.03).bfloat16(), (0.7, -1.2, 0.3)[:len(methods)]
    loras = [factors(shape, 8 + 4 * n, 1e-3 * (n + 1), 20 * n, alpha=4.0) for n in range(len(methods))]
    spec = TensorSpec(shape, torch.bfloat16)
    parts = [contribution(tmp_path / f"{n}.safetensors", loras[n], spec, strengths[n], method) for n, method in enumerate(methods)]
    _, energies, _ = merge(base, parts)
    deltas = [strength * (classic(delta64(tensors), base)[0] if method == "classic" else delta64(tensors))
              for strength, tensors, method in zip(strengths, loras, methods, strict=True)]
    assert total(energies) == pytest.approx(sum(deltas).square().sum().item(), rel=1e-6)
    for j, one in enumerate(deltas):
        assert energies.gram[j][j] == pytest.approx(one.square().sum().item(), rel=1e-6)
        for k, other in enumerate(deltas):
            assert energies.gram[j][k] == pytest.approx((one * other).sum().item(), abs=1e-6 * (one.norm() * other.norm()).item())


def test_opposite_loras_move_nothing(tmp_path):
    shape = (256, 128)
    parts = contributions(tmp_path, [factors(shape, 8, 1e-3, 1)] * 2, shape, (1.0, -1.0))
    _, energies, _ = merge(normal(*shape, scale=0.03), parts)
    assert total(energies) <= 1e-6 * energies.gram[0][0]


def classic(delta, base):
    """action_master's formula in float64: (gated, threshold, is_new, limit_hit)."""
    base = base.double()
    is_new = bool(delta.var() > 1.5 * base.var())
    threshold = (0.4 if is_new else 1.8) * delta.abs().mean()
    gated = torch.where(delta.abs() > threshold, delta, 0.0)
    limit, peak = 0.08 if is_new else 0.05, gated.abs().max()
    return gated * (limit / peak if peak > limit else 1.0), threshold, is_new, bool(peak > limit)


@pytest.mark.parametrize("size", [1e-3, 2e-2, 0.05, 0.2])
def test_classic_is_the_formula_in_float64(tmp_path, size):
    shape, strengths = (300, 200), (0.9, 1.5)
    base = normal(*shape, scale=0.03).bfloat16()
    loras = [factors(shape, 8, size, 1, alpha=4.0), factors(shape, 16, 2 * size, 5)]
    merged, _, change = merge(base, contributions(tmp_path, loras, shape, strengths, "classic"))
    exact, sure = base.double(), torch.ones(shape, dtype=torch.bool)
    for told, tensors, strength in zip(change.describe(), loras, strengths, strict=True):
        delta = delta64(tensors)
        gated, threshold, is_new, limit_hit = classic(delta, base)
        exact, sure = exact + strength * gated, sure & ((delta.abs() - threshold).abs() > 1e-6 * threshold)
        assert (told["tier"], told["limit_hit"]) == ("new" if is_new else "refine", limit_hit)
        assert told["kept"] == pytest.approx((gated != 0).double().mean().item(), abs=2 / delta.numel())
    assert sure.double().mean() > 0.999
    # a few float32 roundings of the base and of the largest |X| before the limiter
    assert torch.allclose(merged.double()[sure], exact[sure], rtol=2 ** -21, atol=2 ** -22)


def test_a_product_that_overflows_is_refused_by_classic_and_its_lora_named(tmp_path):
    shape = (64, 32)
    mild, wild = factors(shape, 4, 1e-3, 1), factors(shape, 4, 1.0, 3, alpha=3e38)
    parts = contributions(tmp_path, [mild, wild], shape, (1.0, 1e-30), "classic")
    assert delta64(wild).abs().max() > torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match=r"^the delta overflows float32; lower the strength, or replace the LoRA 1\.safetensors$"):
        merge(normal(*shape, scale=0.03).bfloat16(), parts)


def test_classic_judges_by_the_original_base_whatever_came_before(tmp_path):
    shape = (128, 64)
    base = normal(*shape, scale=0.03).bfloat16()
    loras = [factors(shape, 8, 0.1, 1), factors(shape, 8, 0.0385, 5)]
    first, second = map(delta64, loras)
    assert classic(second, base)[2] and not classic(second, base.double() + classic(first, base)[0])[2]
    parts = contributions(tmp_path, loras, shape, (1.0, 1.0), "classic")
    forward, backward = (merge(base, order)[2].describe() for order in (parts, parts[::-1]))
    assert forward == backward[::-1]
    assert forward[1]["tier"] == "new"


def test_the_bytes_do_not_depend_on_the_threads(tmp_path):
    shape = (700, 300)
    base = normal(*shape, scale=0.03).bfloat16()
    loras = [factors(shape, 32, 1e-3, 1), factors(shape, 16, 2e-3, 5)]
    for method in ("addition", "classic"):
        parts = contributions(tmp_path, loras, shape, (1.0, 0.5), method)
        results = [merge(base, parts, threads)[:2] for threads in (1, 2, 5)]
        assert all(torch.equal(results[0][0], merged) and results[0][1] == energies for merged, energies in results[1:])


def test_a_factor_that_is_not_finite_is_an_error_that_names_file_and_key(tmp_path):
    tensors = factors((64, 32), 4, 1e-3, 1)
    tensors[f"{LAYER}.lora_down.weight"][2, 3] = float("inf")
    with pytest.raises(LoraError, match=r"0\.safetensors: .*ffn\.0\.lora_down\.weight: expected finite"):
        merge(torch.zeros(64, 32), contributions(tmp_path, [tensors], (64, 32), [1.0]))
    diff = {f"{LAYER}.diff": torch.full((64, 32), float("nan"))}
    with pytest.raises(LoraError, match=r"1\.safetensors: .*diff: expected finite"):
        part = contribution(tmp_path / "1.safetensors", diff, TensorSpec((64, 32), torch.bfloat16))
        load_change(KEY, TensorSpec((64, 32), torch.bfloat16), [part], CPU).add(torch.zeros(64, 32), (0, 64), torch.empty(64, 32))


def test_gates_must_be_decided_before_adding(tmp_path):
    parts = contributions(tmp_path, [factors((8, 8), 2, 1e-3, 1)], (8, 8), [1.0], "classic")
    change = load_change(KEY, TensorSpec((8, 8), torch.bfloat16), parts, CPU)
    with pytest.raises(RuntimeError, match="gates have not been decided"):
        change.add(torch.zeros(8, 8), (0, 8), torch.empty(8, 8))


COMFYUI = """
import json, sys, types
sys.argv = sys.argv[:1] + ["--cpu"] + sys.argv[1:]
import comfy.options
sys.argv, args = sys.argv[:2], sys.argv[2:]
comfy.options.enable_args_parsing()
import comfy.lora
from safetensors.torch import load_file, save_file
base, strength = load_file(args[0]), json.loads(args[2])
model = types.SimpleNamespace(state_dict=lambda: {"diffusion_model." + key: base[key] for key in base},
                              model_config=types.SimpleNamespace(unet_config={}))
patches = comfy.lora.load_lora(load_file(args[1]), comfy.lora.model_lora_keys_unet(model, {}))
merged = {key: comfy.lora.calculate_weight([(strength, patches["diffusion_model." + key], 1.0, None, None)], base[key].clone(), key)
          for key in base if "diffusion_model." + key in patches}
save_file(merged, args[3])
"""


@pytest.mark.comfyui
def test_comfyui_merges_plain_loras_to_the_same_weights(tmp_path, comfyui_path):
    python = comfyui_path / ".venv" / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"no Python environment in {comfyui_path / '.venv'}")
    shapes = {KEY: (96, 64), "blocks.0.ffn.0.bias": (96,), "blocks.0.self_attn.q.weight": (64, 64),
              "patch_embedding.weight": (64, 5, 1, 2, 2)}
    base = {key: normal(*shape, scale=0.03, seed=n) for n, (key, shape) in enumerate(shapes.items())}
    tensors = factors(shapes[KEY], 8, 1e-2, 11, alpha=4) | {f"{LAYER}.diff_b": normal(96, scale=1e-3, seed=12)}
    tensors |= factors((64, 64), 4, 1e-2, 13, "lora_unet_blocks_0_self_attn_q", alpha=2.0)
    tensors |= factors(shapes["patch_embedding.weight"], 4, 1e-2, 14, "diffusion_model.patch_embedding")
    for name, content in (("base", base), ("lora", tensors)):
        save_file(content, tmp_path / f"{name}.safetensors")
    command = [python, "-c", COMFYUI, *(str(tmp_path / f"{name}.safetensors") for name in ("base", "lora")), json.dumps(0.7),
               str(tmp_path / "out.safetensors")]
    subprocess.run(command, cwd=comfyui_path, check=True, capture_output=True, timeout=300)
    expected, lora = load_file(tmp_path / "out.safetensors"), open_lora(tmp_path / "lora.safetensors")
    ledger = match(lora, Index(shapes, {key: TensorSpec(shape, torch.float32) for key, shape in shapes.items()}))
    assert ledger.applied.keys() == expected.keys() == shapes.keys()
    for key, modules in ledger.applied.items():
        merged, _, _ = merge(base[key], [Contribution(lora, modules, 0.7)], key=key)
        # both in float32, the products summed and scaled in another order
        assert torch.allclose(merged, expected[key], rtol=0, atol=8 * 2 ** -24 * 0.2), key
