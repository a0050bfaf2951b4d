"""Causes are found by phrases of the reasons, so every phrase must be one that a real refusal still says."""
import pytest
import torch
from wan22_master.engine.loras.causes import CAUSES, cause_of
from wan22_master.engine.loras.lora import Index, match, open_lora
from wan22_master.engine.loras.strangers import stranger
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine import tiny

SPECS = {key: TensorSpec(shape, torch.bfloat16) for key, shape in tiny.shapes().items()}
Q = "diffusion_model.blocks.1.self_attn.q"
FFN = "diffusion_model.blocks.1.ffn.0"


def pair(stem: str, out: int = tiny.DIM, into: int = tiny.DIM) -> dict[str, torch.Tensor]:
    return {f"{stem}.lora_A.weight": torch.ones(4, into), f"{stem}.lora_B.weight": torch.ones(out, 4)}


TRANSPOSED = {f"{FFN}.lora_A.weight": torch.ones(tiny.DIM, 4), f"{FFN}.lora_B.weight": torch.ones(4, tiny.FFN)}
# phrase -> (tensors that are refused by it, the cause that the report names)
REFUSED = {
    "text encoder": (pair("lora_te1_q"), "text encoder"),
    "image branch": (pair("diffusion_model.blocks.0.cross_attn.k_img"), "image branch absent"),
    "but the model has": (pair("diffusion_model.blocks.9.ffn.0"), "wrong depth"),
    "transposed": (TRANSPOSED, "transposed"),
    "exists only in": (pair("diffusion_model.vace_blocks.0.after_proj"), "of another family"),
    "made for the": (pair(Q, 3072, 3072), "wrong width"),
    "does not fit": (pair(Q, 64, 64), "wrong shape"),
    "control LoRA": (pair("diffusion_model.patch_embedding", tiny.DIM, 32 * 4), "needs another model"),
    "which no merge can": ({"dwpose_embedding.0.weight": torch.ones(2, 2)}, "needs another model"),
    "no such layer": (pair("diffusion_model.blocks.1.ffn.3"), "unknown layer"),
    "not a key of a LoRA": ({"counter": torch.ones(1)}, "not a LoRA's"),
}


def reasons(path) -> set[str]:
    with open_lora(path) as lora:
        whole = stranger(lora.specs, 16)           # refuses every key, so that no ledger is left
        return {whole} if whole else {each.reason for each in match(lora, Index(SPECS, SPECS)).refused}


@pytest.mark.parametrize("phrase", [phrase for phrase, _ in CAUSES])
def test_every_phrase_is_what_sorts_a_real_refusal(tmp_path, phrase):
    tensors, cause = REFUSED[phrase]
    found = reasons(tiny.save(tmp_path / "a.safetensors", tiny.lora(layers=["blocks.0.ffn.0"]) | tensors))
    assert [next(each for each, _ in CAUSES if each in reason) for reason in found] == [phrase]
    assert [cause_of(reason) for reason in found] == [cause]


def test_a_factor_without_partner_is_incomplete(tmp_path):
    tensors = tiny.lora(layers=["blocks.0.ffn.0"]) | {f"{Q}.lora_A.weight": torch.ones(4, tiny.DIM)}
    assert [cause_of(each) for each in reasons(tiny.save(tmp_path / "a.safetensors", tensors))] == ["incomplete"]
