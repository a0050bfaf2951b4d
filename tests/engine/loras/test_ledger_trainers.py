"""A LoRA as each trainer writes it: every key applied, each delta the one that was planted; seeded mistakes reported exactly."""
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.lora import Index, LoraFile, match, open_lora
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine import tiny, trainers

HIGH, LOW = tiny.PAIR
SPECS = {key: TensorSpec(shape, torch.bfloat16) for key, shape in tiny.shapes().items()}
INDEX = Index(SPECS, SPECS)
LAYERS = ["blocks.0.self_attn.q", "blocks.0.cross_attn.k", "blocks.1.cross_attn.o", "blocks.1.ffn.0", "blocks.0.ffn.2"]
CPU = torch.device("cpu")


def accounted(lora: LoraFile, role=None, index=INDEX, **options):
    """The ledger, after checking that every key of the file ended in one place."""
    ledger = match(lora, index, role, **options)
    ended = [*ledger.applied_keys, *(one.key for one in (*ledger.refused, *ledger.elsewhere))]
    assert sorted(ended) == sorted(lora.header.entries)
    return ledger


def delta(lora: LoraFile, modules, key: str) -> torch.Tensor:
    """What the modules of one tensor add, through the engine, float64."""
    shape = SPECS[key].shape
    rows, columns = (0, shape[0]), math.prod(shape[1:])
    total = torch.zeros(shape[0], columns, dtype=torch.float64)
    for module in modules:
        out = torch.empty(shape[0], columns)
        module.load(lora, shape, CPU).write(rows, slice(0, columns), None, out)
        total += out.double()
    return total.reshape(shape)


def check(path: Path, role=None, *, factor=1.0, planted=HIGH, rank=tiny.RANK, dtype=torch.bfloat16):
    """The ledger of a file of plain pairs, whose deltas are those planted for `planted`."""
    with open_lora(path) as lora:
        ledger = accounted(lora, role)
        assert ledger.applied.keys() == {f"{layer}.weight" for layer in LAYERS} and not ledger.refused
        for layer in LAYERS:
            expected = factor * trainers.delta64(layer, 1, planted, rank, dtype)
            found = delta(lora, ledger.applied[f"{layer}.weight"], f"{layer}.weight")
            # a float32 sum of 64 products, and one rounding of the factor
            assert torch.linalg.norm(found - expected) <= 1e-6 * torch.linalg.norm(expected), layer
    return ledger


def test_ai_toolkit_in_two_files_and_in_one(tmp_path):
    for path, role in zip(trainers.write_ai_toolkit(tmp_path / "two", LAYERS), tiny.PAIR, strict=True):
        assert not check(path, role, planted=role).converted
    [path] = trainers.write_ai_toolkit(tmp_path / "one", LAYERS, split=False)
    for role in tiny.PAIR:
        ledger = check(path, role, planted=role)
        assert len(ledger.elsewhere) == len(ledger.converted) == 2 * len(LAYERS)
        assert not any(f"transformer_{1 + (role == LOW)}." in one.key for one in ledger.elsewhere)


@pytest.mark.parametrize("omi", [True, False])
def test_onetrainer_holds_both_experts_in_both_of_its_formats(tmp_path, omi):
    [path] = trainers.write_onetrainer(tmp_path, LAYERS, omi=omi)
    for role in tiny.PAIR:
        ledger = check(path, role, planted=role, factor=1 / 4)
        assert len(ledger.elsewhere) == 3 * len(LAYERS)
        assert len(ledger.converted) == (0 if omi and role == HIGH else 3 * len(LAYERS))


@pytest.mark.parametrize("role", [None, "model"])
@pytest.mark.parametrize("write", [trainers.write_onetrainer, lambda *given: trainers.write_diffusers(*given, both=True)])
def test_a_file_of_both_experts_is_never_laid_on_a_model_of_unknown_role(tmp_path, write, role):
    [path] = write(tmp_path, LAYERS)
    with open_lora(path) as lora, pytest.raises(LoraError, match=r"holds both experts.*split it into a file for each"):
        match(lora, INDEX, role)


def test_half_a_file_of_onetrainer_belongs_to_that_half_alone(tmp_path):
    [path] = trainers.write_onetrainer(tmp_path, LAYERS, roles=(LOW,))
    check(path, LOW, planted=LOW, factor=1 / 4)
    with open_lora(path) as lora, pytest.raises(LoraError, match="expected keys for high_noise, found them all for low_noise"):
        match(lora, INDEX, HIGH)


@pytest.mark.parametrize("stray", ["lora_unet_blocks_0_self_attn_k", "blocks.0.self_attn.k", "pipe.dit.blocks.0.self_attn.k"])
def test_a_key_of_no_expert_in_a_file_of_both_is_an_error_and_no_guess(tmp_path, stray):
    [path] = trainers.write_onetrainer(tmp_path, LAYERS)
    pair = {f"{stray}.lora_down.weight": torch.ones(4, 128), f"{stray}.lora_up.weight": torch.ones(128, 4)}
    save_file(load_file(path) | pair, path)
    with open_lora(path) as lora, pytest.raises(LoraError, match=rf"one\.safetensors: {stray}: expected a name that tells its exp"):
        match(lora, INDEX, HIGH)


def test_a_native_key_beside_both_halves_of_ai_toolkit_is_an_error(tmp_path):
    [path] = trainers.write_ai_toolkit(tmp_path, LAYERS, split=False)
    stray = {f"diffusion_model.blocks.0.self_attn.k.lora_{side}.weight": torch.ones(4, 128) for side in "A"}
    save_file(load_file(path) | stray, path)
    with open_lora(path) as lora, pytest.raises(LoraError, match="expected a name that tells its expert"):
        match(lora, INDEX, HIGH)


def test_musubi_with_its_bfloat16_alpha(tmp_path):
    for path, role in zip(trainers.write_musubi(tmp_path, LAYERS), tiny.PAIR, strict=True):
        assert not check(path, role, planted=role, factor=2 / 4).converted


@pytest.mark.parametrize("prefixed", [True, False])
def test_seko_has_an_int64_alpha_of_8_at_rank_64(tmp_path, prefixed):
    for path, role in zip(trainers.write_seko(tmp_path, LAYERS, prefixed=prefixed), tiny.PAIR, strict=True):
        ledger = check(path, role, planted=role, factor=8 / 64, rank=64, dtype=torch.float32)
        assert len(ledger.converted) == (0 if prefixed else 3 * len(LAYERS))


def test_lightx2v_differences_of_weights_biases_norms_and_modulation_are_all_applied(tmp_path):
    path, _ = trainers.write_lightx2v(tmp_path, LAYERS)
    with open_lora(path) as lora:
        ledger = accounted(lora)
        whole = [key for key in SPECS if not key.endswith(".weight") or len(SPECS[key].shape) == 1 or key == "head.head.weight"]
        assert ledger.applied.keys() == {*whole, *(f"{layer}.weight" for layer in LAYERS)} and not ledger.refused
        for key in whole:
            expected = trainers.differences(key).bfloat16().double()
            assert torch.equal(delta(lora, ledger.applied[key], key), expected), key


@pytest.mark.parametrize(("options", "factor"), [
    ({}, 1.0), ({"alpha": 2}, 2 / 4), ({"alpha": 2, "rslora": True}, 2 / math.sqrt(4)), ({"alpha": 64, "dim": 32}, 1.0),
])
def test_diffusion_pipe_keeps_alpha_beside_the_file_and_another_ranks_is_not_believed(tmp_path, options, factor):
    for path, role in zip(trainers.write_diffusion_pipe(tmp_path, LAYERS, **options), tiny.PAIR, strict=True):
        check(path, role, planted=role, factor=factor)


@pytest.mark.parametrize(("rslora", "asked", "factor"), [
    (False, None, 2 / 4), (True, None, 2 / 2), (False, True, 2 / 2), (True, False, 2 / 4), (True, True, 2 / 2),
])
def test_diffusers_keeps_alpha_and_rs_lora_in_the_metadata_and_the_user_may_say_otherwise(tmp_path, rslora, asked, factor):
    [path] = trainers.write_diffusers(tmp_path, LAYERS, rslora=rslora)
    with open_lora(path) as lora:
        assert accounted(lora, rs_lora=asked).alpha_over_rank == (factor,)
    if asked is None:
        assert len(check(path, factor=factor).converted) == 2 * len(LAYERS)


def test_each_expert_of_diffusers_has_its_own_configuration(tmp_path):
    [path] = trainers.write_diffusers(tmp_path, LAYERS, both=True)
    told = ('{"transformer.r": 4, "transformer.lora_alpha": 2, "transformer_2.r": 4, "transformer_2.lora_alpha": 12,'
            ' "transformer_2.use_rslora": true}')
    save_file(load_file(path), path, {"lora_adapter_metadata": told})
    check(path, HIGH, planted=HIGH, factor=2 / 4)
    check(path, LOW, planted=LOW, factor=12 / 2)


def test_fun_peft_and_its_adapter_name(tmp_path):
    assert not check(*trainers.write_fun(tmp_path, LAYERS), factor=2 / 4).converted
    ledger = check(*trainers.write_fun(tmp_path / "b", LAYERS), factor=2 / 4)
    assert ledger.dialects == {"VideoX-Fun (lora_unet__)": 3 * len(LAYERS)}
    for named in (True, False):
        assert len(check(*trainers.write_peft(tmp_path, LAYERS, named=named)).converted) == 2 * len(LAYERS)


@pytest.mark.parametrize("diffusers", [True, False])
def test_lokr_with_an_infinite_alpha(tmp_path, diffusers):
    [path] = trainers.write_lokr(tmp_path, LAYERS, diffusers=diffusers)
    with open_lora(path) as lora:
        ledger = accounted(lora)
        assert ledger.applied.keys() == {f"{layer}.weight" for layer in LAYERS} and not ledger.refused
        for layer in LAYERS:
            first, second = (factor.double() for factor in trainers.kron_factors(layer))
            found = delta(lora, ledger.applied[f"{layer}.weight"], f"{layer}.weight")
            assert torch.allclose(found, torch.kron(first, second), rtol=2 ** -23, atol=0)   # one float32 product


def test_two_spellings_of_one_module_add_up_and_each_is_told(tmp_path):
    [first] = trainers.write_fun(tmp_path / "a", LAYERS)
    [second] = trainers.write_peft(tmp_path / "b", LAYERS)
    save_file(load_file(first) | load_file(second), tmp_path / "both.safetensors")
    with open_lora(tmp_path / "both.safetensors") as lora:
        ledger = accounted(lora)
        for layer in LAYERS:
            parts = ((2 / 4, torch.bfloat16), (1.0, torch.bfloat16))
            expected = sum(scale * trainers.delta64(layer, dtype=dtype) for scale, dtype in parts)
            found = delta(lora, ledger.applied[f"{layer}.weight"], f"{layer}.weight")
            assert torch.linalg.norm(found - expected) <= 1e-6 * torch.linalg.norm(expected)
    assert set(ledger.dialects.values()) == {3 * len(LAYERS), 2 * len(LAYERS)} and len(ledger.converted) == 2 * len(LAYERS)


@pytest.mark.parametrize(("change", "reason"), [
    ((".self_attn.q.", ".self_attn.qq."), "no such layer in this model"),
    (("blocks.0.", "blocks.7."), "block 7, but the model has 2 blocks"),
    (("diffusion_model.", "diffusion_modl."), "no such layer in this model"),
    ((".lora_A.", ".lora_C."), "unknown"),
])
def test_one_renamed_key_is_reported_with_its_partner_and_nothing_else_is_lost(tmp_path, change, reason):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    tensors = load_file(path)
    key = "diffusion_model.blocks.0.self_attn.q.lora_A.weight"
    new = key.replace(*change)
    tensors[new] = tensors.pop(key)
    save_file(tensors, path)
    with open_lora(path) as lora:
        ledger = accounted(lora)
    refused = {one.key: one.reason for one in ledger.refused}
    assert refused.keys() == {new, key.replace("lora_A", "lora_B")}
    assert refused[key.replace("lora_A", "lora_B")] == "partner factor missing"
    assert reason in refused[new] or reason == "unknown"
    assert ledger.applied.keys() == {f"{layer}.weight" for layer in LAYERS[1:]}


def test_one_transposed_pair_is_reported_exactly_even_where_the_layer_is_square(tmp_path):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    for layer in LAYERS:
        tensors, stem = load_file(path), f"diffusion_model.{layer}.lora_"
        for side in "AB":
            tensors[f"{stem}{side}.weight"] = tensors[f"{stem}{side}.weight"].t().contiguous()
        save_file(tensors, tmp_path / "t.safetensors")
        with open_lora(tmp_path / "t.safetensors") as lora:
            ledger = accounted(lora)
        assert {one.key for one in ledger.refused} == {f"{stem}A.weight", f"{stem}B.weight"}
        assert {group.cause for group in ledger.groups if group.state == "refused"} == {"transposed"}
        assert f"{layer}.weight" not in ledger.applied and len(ledger.applied) == len(LAYERS) - 1


def test_a_lora_with_the_image_branch_of_2_1_loses_exactly_that(tmp_path):
    path, _ = trainers.write_ai_toolkit(tmp_path, LAYERS)
    sides = {"A": torch.ones(4, 128), "B": torch.ones(128, 4)}
    images = {f"diffusion_model.blocks.{n}.cross_attn.{name}.lora_{side}.weight": tensor.clone()
              for n in range(2) for name in ("k_img", "v_img") for side, tensor in sides.items()}
    others = ("img_emb.proj.1.diff_b", "blocks.0.cross_attn.norm_k_img.diff")
    images |= {f"diffusion_model.{name}": torch.ones(128) for name in others}
    save_file(load_file(path) | images, path)
    with open_lora(path) as lora:
        ledger = accounted(lora)
    assert {one.key for one in ledger.refused} == images.keys()
    assert {group.cause for group in ledger.groups if group.state == "refused"} == {"image branch absent"}
    assert ledger.applied.keys() == {f"{layer}.weight" for layer in LAYERS}


def test_a_lora_for_the_5b_model_says_so(tmp_path):
    stem = f"diffusion_model.{LAYERS[0]}.lora_"
    save_file({f"{stem}A.weight": torch.ones(4, 3072), f"{stem}B.weight": torch.ones(3072, 4)}, tmp_path / "x.safetensors")
    with open_lora(tmp_path / "x.safetensors") as lora, pytest.raises(LoraError, match="made for the 5B model"):
        match(lora, INDEX)
