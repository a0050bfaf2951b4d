"""Every key of a LoRA ends applied or refused with the right reason; shapes are equal or refused, never reshaped."""
import pytest
import torch
from safetensors.torch import save_file
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.lora import Diff, Index, Pair, match, open_lora
from wan22_master.engine.specs import TensorSpec

SHAPES = {
    "blocks.0.self_attn.q.weight": (12, 12), "blocks.0.self_attn.q.bias": (12,), "blocks.0.ffn.0.weight": (20, 12),
    "blocks.0.modulation": (1, 6, 12), "blocks.0.norm3.weight": (12,), "patch_embedding.weight": (12, 5, 1, 2, 2),
    "blocks.1.ffn.0.weight": (20, 12),
}
INDEX = Index(SHAPES, {key: TensorSpec(shape, torch.bfloat16) for key, shape in SHAPES.items()})
Q, FFN = "diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.ffn.0"


def pair(module, out, columns, rank=4, names=("lora_up", "lora_down"), alpha=None):
    tensors = {f"{module}.{names[0]}.weight": torch.ones(out, rank), f"{module}.{names[1]}.weight": torch.ones(rank, columns)}
    return tensors | ({} if alpha is None else {f"{module}.alpha": alpha})


def laid(tmp_path, tensors):
    save_file(tensors, tmp_path / "some.safetensors")
    ledger = match(open_lora(tmp_path / "some.safetensors"), INDEX)
    refused = {one.key: one.reason for one in ledger.refused}
    assert sorted(key for group in ledger.groups for key in group.parts.values()) == sorted(tensors)
    assert len(refused) == len(ledger.refused)
    assert ledger.applied_keys | refused.keys() == tensors.keys()
    assert not ledger.applied_keys & refused.keys()
    return ledger, refused


@pytest.mark.parametrize(("module", "names"), [
    (Q, ("lora_B", "lora_A")), (Q, ("lora_up", "lora_down")), ("lora_unet_blocks_0_self_attn_q", ("lora_up", "lora_down")),
    ("transformer.blocks.0.attn1.to_q", ("lora_B", "lora_A")),
])
@pytest.mark.parametrize(("alpha", "factor"), [
    (None, 1.0), (torch.tensor(2.0), 0.5), (torch.tensor(2), 0.5), (torch.tensor([2.0], dtype=torch.bfloat16), 0.5),
    (torch.tensor([[2]], dtype=torch.int32), 0.5), (torch.tensor(0.0), 0.0),
])
def test_four_dialects_and_every_alpha_are_applied(tmp_path, module, names, alpha, factor):
    ledger, refused = laid(tmp_path, pair(module, 12, 12, names=names, alpha=alpha))
    [found] = ledger.applied["blocks.0.self_attn.q.weight"]
    assert (found.rank, found.factor, refused) == (4, factor, {})
    assert ledger.alpha_over_rank == (factor,)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_alpha_that_is_no_number_is_an_error(tmp_path, value):
    with pytest.raises(LoraError, match=r"some\.safetensors: .*self_attn\.q\.alpha: expected a finite number"):
        laid(tmp_path, pair(Q, 12, 12, alpha=torch.tensor(value)))


def test_an_alpha_of_several_numbers_refuses_the_module(tmp_path):
    _, refused = laid(tmp_path, pair(Q, 12, 12, alpha=torch.ones(4)) | pair(FFN, 20, 12))
    assert refused.keys() == {f"{Q}.lora_up.weight", f"{Q}.lora_down.weight", f"{Q}.alpha"}
    assert set(refused.values()) == {"alpha has shape (4,), expected one number"}


def test_spellings_of_one_module_are_all_kept(tmp_path):
    tensors = pair(Q, 12, 12, alpha=torch.tensor(2.0)) | pair("lora_unet_blocks_0_self_attn_q", 12, 12, rank=2)
    tensors |= pair(Q, 12, 12, rank=3, names=("lora_B", "lora_A")) | {f"{Q}.diff": torch.ones(12, 12)}
    ledger, refused = laid(tmp_path, tensors)
    modules = ledger.applied["blocks.0.self_attn.q.weight"]
    assert not refused
    assert sorted(module.rank for module in modules if isinstance(module, Pair)) == [2, 3, 4]
    assert Diff(f"{Q}.diff") in modules


def test_differences_go_to_weights_biases_norms_and_modulation(tmp_path):
    tensors = {f"{Q}.diff_b": torch.ones(12), "diffusion_model.blocks.0.norm3.diff": torch.ones(12),
               "diffusion_model.blocks.0.modulation.diff": torch.ones(1, 6, 12)}
    ledger, refused = laid(tmp_path, tensors)
    assert ledger.applied.keys() == {"blocks.0.self_attn.q.bias", "blocks.0.norm3.weight", "blocks.0.modulation"}
    assert not refused


@pytest.mark.parametrize(("tensors", "reason"), [
    (pair(FFN, 20, 16), "shape (20, 16) does not fit (20, 12)"),
    (pair(FFN, 12, 20), "shape (12, 20) does not fit (20, 12)"),
    (pair(FFN, 3072, 3072), "made for the 5B model"),
    (pair(FFN, 5120, 5120), "made for the 14B model"),
    ({f"{FFN}.lora_up.weight": torch.ones(4, 20), f"{FFN}.lora_down.weight": torch.ones(12, 4)}, "factors are transposed"),
    ({f"{Q}.lora_up.weight": torch.ones(4, 12), f"{Q}.lora_down.weight": torch.ones(12, 4)}, "factors are transposed"),
    ({f"{FFN}.lora_up.weight": torch.ones(20, 4), f"{FFN}.lora_down.weight": torch.ones(3, 12)}, "up has rank 4, down has rank 3"),
    ({f"{FFN}.lora_up.weight": torch.ones(20, 0), f"{FFN}.lora_down.weight": torch.ones(0, 12)}, "the factors have rank 0"),
    ({f"{FFN}.lora_up.weight": torch.ones(20, 4)}, "partner factor missing"),
    ({f"{FFN}.lora_A.weight": torch.ones(4, 12), f"{FFN}.lora_up.weight": torch.ones(20, 4)}, "partner factor missing"),
    ({f"{FFN}.alpha": torch.tensor(1.0)}, "alpha without factors"),
    ({f"{FFN}.diff": torch.ones(12, 20)}, "shape (12, 20) does not fit (20, 12)"),
    ({f"{FFN}.diff_b": torch.ones(20)}, "no bias in blocks.0.ffn.0"),
    ({f"{Q}.diff_b": torch.ones(1, 12)}, "shape (1, 12) does not fit (12,)"),
    (pair(FFN, 20, 12) | {f"{FFN}.dora_scale": torch.ones(7, 1)}, "shape (7, 1)"),
    ({f"{FFN}.lora_A.high.weight": torch.ones(4, 12), f"{FFN}.lora_B.high.weight": torch.ones(20, 4)}, "no such layer"),
    ({f"{FFN}.lora_up.weight": torch.ones(20, 4, dtype=torch.int8)}, "expected floating point"),
    ({"diffusion_model.blocks.0.diff_m": torch.ones(6, 12)}, "shape (6, 12) does not fit (1, 6, 12)"),
    ({f"{FFN}.what": torch.ones(20, 12)}, "not a key of a LoRA"),
    (pair("diffusion_model.blocks.7.ffn.0", 20, 12), "block 7, but the model has 2 blocks"),
    (pair("diffusion_model.blocks.0.cross_attn.k_img", 12, 12), "image branch"),
    (pair("diffusion_model.patch_embedding", 12, 6), "does not fit (12, 5, 1, 2, 2)"),
    ({"diffusion_model.patch_embedding.lora_up.weight": torch.ones(12, 4),
      "diffusion_model.patch_embedding.lora_down.weight": torch.ones(4, 5, 2, 2, 1)}, "does not fit (12, 5, 1, 2, 2)"),
])
def test_what_does_not_fit_is_refused_with_its_reason(tmp_path, tensors, reason):
    ledger, refused = laid(tmp_path, tensors | pair("diffusion_model.blocks.1.ffn.0", 20, 12))
    assert ledger.applied.keys() == {"blocks.1.ffn.0.weight"}
    assert any(reason in told for told in refused.values())
    assert refused.keys() == tensors.keys()


@pytest.mark.parametrize(("up", "down"), [((12, 4), (4, 5, 1, 2, 2)), ((12, 4, 1, 1, 1), (4, 5, 1, 2, 2)), ((12, 4), (4, 20))])
def test_a_convolution_takes_factors_whose_axes_all_agree(tmp_path, up, down):
    module = "diffusion_model.patch_embedding"
    ledger, refused = laid(tmp_path, {f"{module}.lora_B.weight": torch.ones(up), f"{module}.lora_A.weight": torch.ones(down)})
    assert ledger.applied.keys() == {"patch_embedding.weight"}
    assert not refused


@pytest.mark.parametrize(("tensors", "reason"), [
    (pair(FFN, 3072, 3072), "made for the 5B model"),
    (pair("diffusion_model.blocks.30.ffn.0", 20, 12), "block 30, but the model has 2 blocks"),
    (pair("lora_te1_q", 20, 12), "text encoder"),
    (pair(f"{Q}_loras", 12, 12, names=("up", "down")), "Stand-In"),
    (pair(Q, 12, 12) | {"dwpose_embedding.0.weight": torch.ones(3)}, "UniAnimate"),
    (pair(Q, 12, 12) | pair("img_in", 12, 12), "FLUX"),
    (pair(Q, 12, 12) | {"diffusion_model.patch_embedding.lora_up.weight": torch.ones(12, 4),
                        "diffusion_model.patch_embedding.lora_down.weight": torch.ones(4, 32, 1, 2, 2)}, "control LoRA"),
])
def test_a_lora_of_which_nothing_fits_is_an_error_that_says_why(tmp_path, tensors, reason):
    with pytest.raises(LoraError, match=r"some\.safetensors: nothing of it fits this model") as caught:
        laid(tmp_path, tensors)
    assert reason in str(caught.value)
