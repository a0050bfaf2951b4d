"""A gated LoRA as a LoRA."""
import torch
from wan22_master.engine.merging.adaptive.export import gated_lora

from . import oracle
from .fixtures import FFN_0, PATCH, SHAPES, Q, V, asked, base, delta64, measured, save, write_lora


def exported(folder, **fields):
    found = measured(folder, [(folder / "a.safetensors", -0.4, fields)])
    [what] = asked(found, Q)
    modules = {key: whats[0][1].modules for key, whats in found.contributions.items()}
    return {layer: (up, down) for layer, up, down in gated_lora(what.gated, what.lora, modules, SHAPES)}


def test_it_adds_what_the_gate_lets_through_at_strength_one(tmp_path):
    tensors = write_lora(tmp_path / "a.safetensors", 1, size=0.4, alpha=8.0)      # far above the limit, which is not applied
    found = exported(tmp_path)
    assert set(found) == {PATCH, FFN_0, Q}
    for layer, (up, down) in found.items():
        want = oracle.split_and_gate(delta64(tensors, layer), base()[f"{layer}.weight"].double().flatten(1))
        assert layer == FFN_0 or want["R"].any()   # there it is stronger than the base, hence new
        want = want["gated N"] + want["gated R"]
        assert ((up.double() @ down.double()) - want).norm() < 1e-5 * want.norm()
        assert up.dtype == down.dtype == torch.float32 and up.shape[1] == down.shape[0] <= 8


def test_both_factors_are_equally_long(tmp_path):
    write_lora(tmp_path / "a.safetensors", 1, size=1e-4)
    for up, down in exported(tmp_path).values():
        assert 0.49 < up.norm() / down.norm() < 2.01


def test_a_zero_delta_is_itself_and_dense_modules_are_left_out(tmp_path):
    tensors = write_lora(tmp_path / "a.safetensors", 1, layers=[Q, V])
    tensors[f"diffusion_model.{V}.lora_B.weight"].zero_()
    save(tmp_path / "a.safetensors", tensors | {f"diffusion_model.{FFN_0}.diff_b": torch.ones(640)})
    found = exported(tmp_path)
    assert set(found) == {Q, V}
    assert not found[V][0].any() and torch.equal(found[V][1], tensors[f"diffusion_model.{V}.lora_A.weight"])
