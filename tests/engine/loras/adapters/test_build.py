"""What the parts of a module become: every alpha, every refusal with its reason, two spellings side by side, energies."""

import json
import math

import pytest
import torch
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.adapters import SUFFIXES, energy
from wan22_master.engine.loras.adapters.spelling import PAIRS
from wan22_master.tests.engine.loras.adapters import cases, laid, oracle

INDEX = laid.index_of()
FFN, CONV = "diffusion_model.blocks.0.ffn.0", "diffusion_model.patch_embedding"
KEY = "blocks.0.ffn.0.weight"
INF = math.inf


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def pair(module=FFN, out=24, into=12, rank=4, names=PAIRS["lora"], **more):
    found = {module + names[0]: draw(out, rank, seed=1), module + names[1]: draw(rank, into, seed=2)}
    return found | {f"{module}.{name}": tensor for name, tensor in more.items()}


def of(kind, key=KEY):
    module = f"diffusion_model.{key.removesuffix('.weight')}"
    return {module + suffix: tensor for suffix, tensor in cases.case(kind, cases.SHAPES[key])[0].items()}


def lay(tmp_path, tensors, metadata=None, **more):
    return (lora := laid.write(tmp_path / "some.safetensors", tensors, metadata)), *laid.lay(lora, INDEX, **more)


def test_no_suffix_hides_a_longer_one():
    order = list(SUFFIXES)
    assert not [(one, other) for n, one in enumerate(order) for other in order[n + 1 :] if other.endswith(one)]
    assert len(set(SUFFIXES.values())) == len(SUFFIXES)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32])
def test_alpha_is_honoured_whatever_it_is_stored_as(tmp_path, dtype, shape):
    lora, applied, _ = lay(tmp_path, pair(alpha=torch.full(shape, 8).to(dtype), rank=2))
    [module] = applied[KEY]
    assert (module.rank, module.factor, module.alpha_from) == (2, 4.0, "alpha tensors")
    tensors = pair(rank=2)
    expected = oracle.lora((24, 12), *tensors.values(), alpha=8)
    assert laid.error(laid.change_of(module, lora, torch.zeros(24, 12)), expected) < 1e-6


@pytest.mark.parametrize("kind", ["LoRA up/down", "LoHa", "LoKr left", "GLoRA"])
@pytest.mark.parametrize("value", [INF, math.nan])
def test_an_alpha_that_is_no_number_is_an_error_where_it_counts(tmp_path, kind, value):
    with pytest.raises(LoraError, match=r"some\.safetensors: .*ffn\.0\.alpha: expected a finite number"):
        lay(tmp_path, of(kind) | {f"{FFN}.alpha": torch.tensor(value)})


def test_an_endless_limit_of_a_rotation_is_none(tmp_path):
    _, applied, _ = lay(tmp_path, of("OFT") | {f"{FFN}.alpha": torch.tensor(INF)})
    lora, again, _ = lay(tmp_path, of("OFT"))
    weight = draw(24, 12)
    first, second = (laid.change_of(found[KEY][0], lora, weight) for found in (applied, again))
    assert torch.equal(first, second)
    with pytest.raises(LoraError, match="alpha: expected a number, found nan"):
        lay(tmp_path, of("OFT") | {f"{FFN}.alpha": torch.tensor(math.nan)})


@pytest.mark.parametrize("alpha", [INF, 9999999999.0, 4.0])
def test_alpha_means_nothing_where_both_matrices_of_a_lokr_are_whole(tmp_path, alpha):
    lora, applied, _ = lay(tmp_path, of("LoKr whole") | {f"{FFN}.alpha": torch.tensor(alpha)})
    expected = cases.case("LoKr whole", (24, 12))[1](None, 1.0)
    assert laid.error(laid.change_of(applied[KEY][0], lora, torch.zeros(24, 12)), expected) < 1e-6


@pytest.mark.parametrize(
    ("is_rs", "rs_lora", "expected", "told"),
    [
        (None, None, 1.0, "none given, so alpha is the rank"),
        (None, True, 2.0, "none given, so alpha is the rank, rs-LoRA switched on"),
        (True, None, 4.0, "lora_adapter_metadata, rs-LoRA"),
        (True, False, 2.0, "lora_adapter_metadata, rs-LoRA switched off"),
        (True, True, 4.0, "lora_adapter_metadata, rs-LoRA"),
        (False, True, 4.0, "lora_adapter_metadata, rs-LoRA switched on"),
    ],
)
def test_rs_lora_is_the_metadatas_word_or_the_users(tmp_path, is_rs, rs_lora, expected, told):
    config = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": is_rs}
    metadata = None if is_rs is None else {"lora_adapter_metadata": json.dumps(config)}
    tensors = pair("transformer.blocks.0.ffn.net.0.proj", names=PAIRS["peft"])
    lora, applied, _ = lay(tmp_path, tensors, metadata, rs_lora=rs_lora)
    [module] = applied[KEY]
    assert (module.factor, module.alpha_from) == (pytest.approx(expected, rel=1e-15), told)
    wanted = oracle.lora((24, 12), *tensors.values(), None if is_rs is None else 8, root=told.endswith(("rs-LoRA", "on")))
    assert laid.error(laid.change_of(module, lora, torch.zeros(24, 12)), wanted) < 1e-6


def test_an_alpha_tensor_with_rs_lora_switched_on_is_over_the_root(tmp_path):
    _, applied, _ = lay(tmp_path, pair(alpha=torch.tensor(3.0)), rs_lora=True)
    assert applied[KEY][0].factor == 1.5


def test_the_bias_of_a_lora_is_scaled_with_it(tmp_path):
    bias = draw(24, seed=5)
    tensors = pair(names=PAIRS["peft"], alpha=torch.tensor(2.0)) | {f"{FFN}.lora_B.bias": bias}
    lora, applied, _ = lay(tmp_path, tensors)
    [module] = applied["blocks.0.ffn.0.bias"]
    assert (module.kind, module.form, module.factor) == ("bias", "dense", 0.5)
    assert torch.equal(laid.change_of(module, lora, torch.zeros(24)), 0.5 * bias.double())


def test_biases_and_norms_and_modulation_get_their_differences(tmp_path):
    norm = "diffusion_model.blocks.0.norm3"
    tensors = {
        f"{FFN}.diff_b": draw(24),
        f"{norm}.b_norm": draw(24),
        f"{norm}.w_norm": draw(24),
        "diffusion_model.blocks.0.diff_m": draw(1, 6, 12),
    }
    lora, applied, refused = lay(tmp_path, tensors)
    assert applied.keys() == {"blocks.0.ffn.0.bias", "blocks.0.norm3.bias", "blocks.0.norm3.weight", "blocks.0.modulation"}
    assert not refused
    found = laid.change_of(applied["blocks.0.modulation"][0], lora, torch.zeros(1, 6, 12))
    assert torch.equal(found, tensors["diffusion_model.blocks.0.diff_m"].double())


def test_two_spellings_in_one_module_add_up(tmp_path):
    tensors = pair() | pair(names=PAIRS["peft"], rank=2) | of("LoHa") | {f"{FFN}.diff": draw(24, 12)}
    _, applied, _ = lay(tmp_path, tensors | {f"{FFN}.alpha": torch.tensor(1.0)})
    assert sorted((module.kind, module.rank) for module in applied[KEY]) == [("diff", 0), ("loha", 3), ("lora", 2), ("lora", 4)]


SQUARE = {"blocks.0.self_attn.q.weight": (12, 12), **cases.SHAPES}


@pytest.mark.parametrize(
    ("suffix", "shape", "axis"),
    [
        (".dora_scale", (12,), 0),
        (".lora_magnitude_vector", (12,), 0),
        (".lora_magnitude_vector.weight", (12,), 0),
        (".lora_magnitude_vector.default.weight", (12,), 0),
        (".dora_scale", (12, 1), 0),
        (".dora_scale", (1, 12), 1),
    ],
)
def test_a_magnitude_of_a_square_layer_is_per_output_unless_its_shape_says_otherwise(tmp_path, suffix, shape, axis):
    module = "diffusion_model.blocks.0.self_attn.q"
    tensors = pair(module, 12, 12)
    magnitude, weight = draw(12, seed=8).abs() + 1, draw(12, 12, seed=9)
    lora = laid.write(tmp_path / "some.safetensors", tensors | {module + suffix: magnitude.reshape(shape)})
    applied, _ = laid.lay(lora, laid.index_of(SQUARE))
    [found] = applied["blocks.0.self_attn.q.weight"]
    expected = oracle.dora(weight, oracle.lora((12, 12), *tensors.values()), magnitude, axis)
    assert laid.error(laid.change_of(found, lora, weight), expected) < 1e-6


def test_a_direction_of_length_zero_stays_zero(tmp_path):
    tensors = pair() | {f"{FFN}.dora_scale": draw(24, 1).abs()}
    delta = oracle.lora((24, 12), *pair().values())
    weight = draw(24, 12, seed=4)
    weight[3], tensors[f"{FFN}.lora_up.weight"][3] = 0, 0
    delta[3] = 0
    lora, applied, _ = lay(tmp_path, tensors)
    found = laid.change_of(applied[KEY][0], lora, weight)
    assert torch.equal(found[3], torch.zeros(12, dtype=torch.float64))
    expected = oracle.dora(weight, delta, tensors[f"{FFN}.dora_scale"].reshape(-1), 0)
    assert laid.error(found[4:], expected[4:]) < 1e-6


def test_the_exact_rotation_of_peft_is_taken_where_its_configuration_says_so(tmp_path):
    packed, weight = draw(3, 6) * 0.2, draw(24, 12)
    for terms in (None, 1, 2, 3, 5, 7):
        config = {"use_cayley_neumann": terms is not None} | ({} if terms is None else {"num_cayley_neumann_terms": terms})
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        lora = laid.write(tmp_path / "adapter_model.safetensors", {"base_model.model.blocks.0.ffn.0.oft_R.weight": packed})
        [module] = laid.lay(lora, INDEX)[0][KEY]
        expected = oracle.peft_oft(weight, packed, 4, 0.7, terms) - weight.double()
        assert laid.error(laid.change_of(module, lora, weight, 0.7), expected) < 1e-5, terms
    (tmp_path / "adapter_config.json").write_text('{"use_cayley_neumann": "yes"}')
    with pytest.raises(LoraError, match=r"adapter_model\.safetensors: adapter_config\.json beside it: expected PEFT's OFT"):
        laid.lay(lora, INDEX)


MODULATED = {"diffusion_model.blocks.0.modulation.diff": draw(1, 6, 12)}  # something that fits


def less(tensors, *suffixes):
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(suffixes)}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (pair(into=16), "shape (24, 16) does not fit (24, 12)"),
        (pair(out=12, into=24), "shape (12, 24) does not fit (24, 12)"),
        ({f"{FFN}.lora_up.weight": draw(4, 24), f"{FFN}.lora_down.weight": draw(12, 4)}, "factors are transposed"),
        (less(pair(), "lora_down.weight"), "partner factor missing"),
        ({**pair(), f"{FFN}.lora_mid.weight": draw(4, 3)}, "the core has inner rank 3, its factor has rank 4"),
        ({f"{FFN}.lora_mid.weight": draw(4, 4)}, "core without factors"),
        ({**pair(CONV, 16, 6), f"{CONV}.lora_mid.weight": draw(4, 4, 1, 2)}, "shape (16, 6, 1, 2) does not fit (16, 6, 1, 2, 2)"),
        (pair(alpha=torch.ones(4)), "alpha has shape (4,), expected one number"),
        (of("LoKr whole") | {f"{FFN}.alpha": torch.ones(2)}, "alpha has shape (2,), expected one number"),
        ({f"{FFN}.alpha": torch.tensor(1.0)}, "alpha without factors"),
        (pair(dora_scale=draw(7, 1)), "DoRA's magnitude has shape (7, 1), expected a number per output or per input of (24, 12)"),
        (pair(lora_magnitude_vector=draw(12)), "DoRA's magnitude has shape (12,)"),
        (pair(dora_scale=draw(24, 1), lora_magnitude_vector=draw(24)), "DoRA with two magnitudes"),
        (pair(dora_scale=draw(24, 1)) | pair(names=PAIRS["peft"]), "DoRA's magnitude beside two products"),
        ({f"{FFN}.dora_scale": draw(24, 1)}, "DoRA's magnitude without factors"),
        ({f"{FFN}.lora_B.bias": draw(24)}, "bias of a LoRA without its factors"),
        (pair(names=PAIRS["peft"], into=16) | {f"{FFN}.lora_B.bias": draw(24)}, "does not fit"),
        (less(of("LoHa"), "hada_w2_b"), "hada_w2_b is missing"),
        (less(of("LoHa Tucker"), "hada_t2"), "one of the two cores is missing"),
        (of("LoHa") | {f"{FFN}.hada_w1_a": draw(12, 3)}, "does not fit (24, 12)"),
        (less(of("LoKr left"), "lokr_w1_b"), "lokr_w1: partner factor missing"),
        (less(of("LoKr left"), "lokr_w2"), "lokr_w2 is missing"),
        (of("LoKr left") | {f"{FFN}.lokr_w1": draw(4, 2)}, "lokr_w1 is there whole and factored"),
        ({f"{FFN}.lokr_w1": draw(2, 4), f"{FFN}.lokr_w2": draw(6, 6)}, "factors are transposed: their kron has shape (12, 24)"),
        ({f"{FFN}.lokr_w1": draw(8, 2), f"{FFN}.lokr_w2": draw(6, 6)}, "shape (48, 12) does not fit (24, 12)"),
        ({f"{CONV}.lokr_w1": draw(4, 4), f"{CONV}.lokr_w2": draw(4, 6)}, "shape (16, 24) does not fit (16, 6, 1, 2, 2)"),
        ({f"{FFN}.oft_blocks": draw(5, 4, 4)}, "oft_blocks of shape (5, 4, 4) do not rotate the outputs of (24, 12)"),
        ({f"{FFN}.oft_blocks": draw(6, 4, 4), f"{FFN}.rescale": draw(12, 1)}, "rescale has shape (12, 1)"),
        ({f"{FFN}.oft_blocks": draw(4, 6, 4, 4)}, "butterfly of 4 stages and blocks of 4 does not divide 24 outputs"),
        ({f"{FFN}.rescale": draw(24, 1)}, "rescale without oft_blocks"),
        ({f"{FFN}.oft_R.weight": draw(3, 5)}, "oft_R of shape (3, 5) does not rotate the 12 inputs"),
        (less(of("GLoRA"), "b1.weight"), "b1 is missing"),
        (of("GLoRA") | {f"{FFN}.a1.weight": draw(24, 3)}, "a1 (24, 3) and a2 (3, 12)"),
        ({f"{FFN}.weight": draw(24, 12)}, "a whole weight, as a model has"),
        ({f"{FFN}.on_input": torch.tensor(1)}, "on_input without weight"),
        (
            {f"{FFN}.weight": draw(24), f"{FFN}.on_input": torch.tensor(1)},
            "IA3 of shape (24,) is no number for each input of (24, 12)",
        ),
        ({f"{FFN}.diff": draw(12, 24)}, "shape (12, 24) does not fit (24, 12)"),
        ({f"{FFN}.set_weight": draw(24, 11)}, "shape (24, 11) does not fit (24, 12)"),
        ({"diffusion_model.blocks.0.modulation.diff_b": draw(12)}, "no bias in blocks.0.modulation"),
        ({f"{FFN}.lora_up.weight": draw(24, 4).to(torch.int8)}, "expected floating point, found torch.int8"),
        (pair(reshape_weight=torch.tensor([24, 20])), "reshape_weight asks for a layer of shape (24, 20), found (24, 12)"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(tmp_path, tensors, reason):
    _, applied, refused = lay(tmp_path, tensors | MODULATED)
    assert applied.keys() == {"blocks.0.modulation"}
    assert any(told.startswith(reason) or reason in told for told in refused.values()), refused
    assert refused.keys() == tensors.keys()


@pytest.mark.parametrize("kind", list(cases.KINDS))
def test_a_number_that_is_not_finite_is_an_error_that_names_file_and_key(tmp_path, kind):
    whole = of(kind)
    for key in (key for key, tensor in whole.items() if not key.endswith(("alpha", "on_input"))):
        tensors = {name: tensor.clone() for name, tensor in whole.items()}
        tensors[key].view(-1)[-1] = math.nan
        lora, applied, _ = lay(tmp_path, tensors)
        with pytest.raises(LoraError, match=rf"some\.safetensors: {key}: expected finite numbers"):
            laid.change_of(applied[KEY][0], lora, draw(24, 12))


@pytest.mark.parametrize("key", cases.SHAPES)
@pytest.mark.parametrize("kind", cases.ADDED)
def test_the_energy_is_that_of_the_delta_without_any_base(tmp_path, kind, key):
    tensors, change = of(kind, key), cases.case(kind, cases.SHAPES[key])[1]
    lora = laid.write(tmp_path / "some.safetensors", tensors | {f"{FFN}.diff_b": draw(24)})
    parts = {part: key for _, own in laid.sort(lora, INDEX) for part, key in own.items() if key in tensors}
    if change is not None:
        assert energy(lora, parts) == pytest.approx(change(None, 1.0).square().sum().item(), rel=1e-6)


def test_what_says_nothing_without_a_base_has_no_energy_and_stand_ins_have_theirs(tmp_path):
    for kind in ("OFT", "BOFT", "OFT PEFT", "IA3 inputs", "set_weight"):
        lora = laid.write(tmp_path / "some.safetensors", of(kind))
        assert energy(lora, laid.sort(lora, INDEX)[0][1]) is None
    tensors = of("DoRA outputs")
    lora = laid.write(tmp_path / "some.safetensors", tensors)
    inner = oracle.lora((24, 12), tensors[f"{FFN}.lora_up.weight"], tensors[f"{FFN}.lora_down.weight"], 2.0)
    assert energy(lora, laid.sort(lora, INDEX)[0][1]) == pytest.approx(inner.square().sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    "tensors",
    [
        {"lokr_w1": draw(4, 4), "lokr_w2_a": draw(6, 3), "lokr_w2_b": torch.tensor(1.0)},
        {"lokr_w1_a": torch.tensor(1.0), "lokr_w1_b": torch.tensor(1.0), "lokr_w2": draw(6, 3)},
        {"hada_w1_a": draw(24, 1), "hada_w1_b": torch.tensor(1.0), "hada_w2_a": draw(24, 1), "hada_w2_b": torch.tensor(1.0)},
        {"lora_up.weight": torch.tensor(1.0), "lora_down.weight": torch.tensor(1.0)},
    ],
)
def test_factors_without_axes_are_of_unknown_weight(tmp_path, tensors):
    tensors = {f"{FFN}.{name}": tensor for name, tensor in (tensors | {"alpha": torch.tensor(2.0)}).items()}
    lora, applied, refused = lay(tmp_path, tensors)
    assert not applied and set(refused) == set(tensors)
    assert energy(lora, laid.sort(lora, INDEX)[0][1]) is None


@pytest.mark.parametrize(
    "tensors",
    [
        {"alpha": torch.tensor(2.0)},
        {"lora_up.weight": torch.zeros(24, 0), "lora_down.weight": torch.zeros(0, 12), "alpha": torch.tensor(2.0)},
        {"lokr_w1": draw(4, 4), "lokr_w2_a": torch.zeros(6, 0), "lokr_w2_b": torch.zeros(0, 3), "alpha": torch.tensor(2.0)},
    ],
)
def test_what_moves_nothing_weighs_nothing(tmp_path, tensors):
    tensors = {f"{FFN}.{name}": tensor for name, tensor in tensors.items()} | pair(CONV)
    lora = laid.write(tmp_path / "some.safetensors", tensors)
    assert energy(lora, dict(laid.sort(lora, INDEX))["blocks.0.ffn.0"]) == 0.0


@pytest.mark.parametrize("rs_lora", [None, True, False])
@pytest.mark.parametrize("is_rs", [None, True, False])
def test_the_energy_follows_the_rs_lora_switch_as_the_delta_does(tmp_path, is_rs, rs_lora):
    config = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": is_rs}
    tensors = pair("transformer.blocks.0.ffn.net.0.proj", names=PAIRS["peft"])
    lora = laid.write(tmp_path / "a.safetensors", tensors, None if is_rs is None else {"lora_adapter_metadata": json.dumps(config)})
    root = rs_lora if rs_lora is not None else bool(is_rs)
    expected = oracle.lora((24, 12), *tensors.values(), None if is_rs is None else 8, root=root).square().sum().item()
    assert energy(lora, laid.sort(lora, INDEX)[0][1], rs_lora=rs_lora) == pytest.approx(expected, rel=1e-6)


def test_refused_modules_have_an_energy_too(tmp_path):
    lora = laid.write(tmp_path / "some.safetensors", pair(into=99, alpha=torch.tensor(2.0)))
    expected = oracle.lora((24, 99), *pair(into=99).values(), 2.0).square().sum().item()
    assert energy(lora, laid.sort(lora, INDEX)[0][1]) == pytest.approx(expected, rel=1e-6)
