"""Where alpha comes from when no tensor says it: against plain float64 of PEFT's formula, on whole merges and module by module."""
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from wan22_master.engine.bases.names import to_diffusers
from wan22_master.engine.errors import LoraError
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.loras.lora import Index, match, open_lora
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine import tiny

SPECS = {key: TensorSpec(shape, torch.bfloat16) for key, shape in tiny.shapes().items()}
Q, FFN = "blocks.0.self_attn.q", "blocks.1.ffn.0"
LAYERS = [Q, "blocks.1.self_attn.q", "blocks.0.ffn.0", FFN]
PLAIN = {"r": 4, "lora_alpha": 2}


def told(settings, prefix="transformer."):
    return {"lora_adapter_metadata": json.dumps({prefix + key: value for key, value in settings.items()})}


def diffusers(tensors):
    """The same tensors under the names that diffusers gives them."""
    found = {}
    for key, tensor in tensors.items():
        layer, part = key.removeprefix("diffusion_model.").split(".lora_")
        found[f"transformer.{to_diffusers(layer)}.lora_{part}"] = tensor
    return found


def factors(path):
    """Layer -> (factor, where from) as the ledger has them."""
    with open_lora(path) as lora:
        applied = match(lora, Index(SPECS, SPECS)).applied
    return {key.removesuffix(".weight"): (pair.factor, pair.alpha_from) for key, [pair] in applied.items()}


@pytest.mark.parametrize(("settings", "scale"), [
    (PLAIN, 2 / 4), (PLAIN | {"use_rslora": True}, 2 / math.sqrt(4)), (PLAIN | {"use_rslora": False, "rank_pattern": {}}, 2 / 4),
    ({"r": 4, "lora_alpha": 6.5, "alpha_pattern": None}, 6.5 / 4),
])
@pytest.mark.parametrize("where", ["lora_adapter_metadata", "bare lora_adapter_metadata", "adapter_config.json"])
def test_the_merged_weights_are_those_of_peft(tmp_path, settings, scale, where):
    weights, tensors = tiny.base(), tiny.lora(layers=LAYERS)
    metadata = told(settings, "transformer." if where[0] == "l" else "") if "metadata" in where else None
    lora = tiny.save(tmp_path / "lora" / "adapter_model.safetensors", diffusers(tensors) if metadata else tensors, metadata)
    if not metadata:
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    model = tiny.save(tmp_path / "m.safetensors", weights)
    report = tiny.go(tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": lora}}], ["fp32"]), tmp_path / "r")
    merged = load_file(tmp_path / "out" / "mix_fp32.safetensors")
    for key, weight in tiny.merge64(weights, [(tensors, scale)]).items():
        # at most 5 roundings (4 products and the base) of float32, of sums below 0.3
        assert (merged[key].double() - weight).abs().max() <= 5 * 2 ** -24 * 0.3, key
    [ledger] = report["experts"][0]["ledger"]
    rs = ", rs-LoRA" if settings.get("use_rslora") else ""
    assert ledger["alpha_over_rank"] == [scale] and ledger["alpha_from"] == [where.removeprefix("bare ") + rs]
    [adapter] = ledger["adapters"].values()
    assert adapter["alpha"] == settings["lora_alpha"]


def test_an_alpha_tensor_comes_before_any_configuration(tmp_path):
    path = tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=LAYERS, alpha=1.0), {"lora_adapter_metadata": "broken"})
    assert set(factors(path).values()) == {(1 / 4, "alpha tensors")}


def test_metadata_comes_before_the_file_beside_and_nothing_means_that_alpha_is_the_rank(tmp_path):
    path = tiny.save(tmp_path / "a" / "l.safetensors", tiny.lora(layers=LAYERS), told(PLAIN))
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 100}))
    assert set(factors(path).values()) == {(2 / 4, "lora_adapter_metadata")}
    for name, metadata in (("b", None), ("c", {"lora_adapter_metadata": '{"text_encoder.r": 8, "text_encoder.lora_alpha": 1}'})):
        path = tiny.save(tmp_path / name / "l.safetensors", tiny.lora(layers=LAYERS), metadata)
        assert set(factors(path).values()) == {(1.0, "none given, so alpha is the rank")}


@pytest.mark.parametrize(("pattern", "layers"), [
    ("blocks.0.self_attn.q", [Q]), ("self_attn.q", [Q, "blocks.1.self_attn.q"]), ("ffn.0", ["blocks.0.ffn.0", FFN]),
    (r"blocks\.1\.ffn\.0", [FFN]), ("^blocks.1.ffn.0", [FFN]), ("^ffn.0", []), ("n.0", []), ("0.ffn", []),
])
def test_alpha_pattern_gives_modules_another_alpha_by_the_end_of_their_name(tmp_path, pattern, layers):
    settings = PLAIN | {"alpha_pattern": {pattern: 12}}
    found = factors(tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=LAYERS), told(settings)))
    assert {layer: scale for layer, (scale, _) in found.items()} == {layer: (12 if layer in layers else 2) / 4 for layer in LAYERS}


def test_the_first_pattern_that_fits_counts_and_rank_pattern_names_the_rank(tmp_path):
    tensors = tiny.lora(layers=[Q, "blocks.0.ffn.0"]) | tiny.lora(layers=[FFN], rank=8)
    patterns = {"rank_pattern": {"blocks.1.ffn.0": 8, "ffn.0": 4}, "alpha_pattern": {"blocks.1.ffn.0": 16, "ffn.0": 1}}
    found = factors(tiny.save(tmp_path / "l.safetensors", diffusers(tensors), told(PLAIN | {
        field: {to_diffusers(layer) if layer.startswith("blocks") else "ffn.net.0.proj": value for layer, value in table.items()}
        for field, table in patterns.items()})))
    assert {layer: scale for layer, (scale, _) in found.items()} == {Q: 2 / 4, "blocks.0.ffn.0": 1 / 4, FFN: 16 / 8}


@pytest.mark.parametrize(("settings", "field"), [
    ({"r": 4}, "lora_alpha: expected a finite number, found None"), ({"lora_alpha": 4}, "r: expected a finite number, found None"),
    ({"r": "4", "lora_alpha": 2}, "r: expected a finite number, found '4'"), ({"r": 4, "lora_alpha": True}, "lora_alpha"),
    ({"r": 4, "lora_alpha": float("nan")}, "lora_alpha: expected a finite"), ({"r": 4, "lora_alpha": [2]}, "lora_alpha"),
    (PLAIN | {"use_rslora": "yes"}, "use_rslora: expected true or false"),
    (PLAIN | {"alpha_pattern": ["q"]}, "alpha_pattern: expected numbers by module"),
    (PLAIN | {"alpha_pattern": {"q": "2"}}, "alpha_pattern: q: expected a finite number"),
    (PLAIN | {"alpha_pattern": {r"blocks\.(0|1)\..*": 2}}, "alpha_pattern: expected names of modules"),
    (PLAIN | {"rank_pattern": {".*": 2}}, "rank_pattern: expected names of modules"),
])
@pytest.mark.parametrize("beside", [False, True])
def test_a_malformed_configuration_is_refused_with_file_and_field(tmp_path, settings, field, beside):
    path = tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=LAYERS), None if beside else told(settings))
    if beside:
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    where = r"adapter_config\.json beside it: " if beside else r"metadata lora_adapter_metadata: transformer\."
    with pytest.raises(LoraError, match=rf"^l\.safetensors: {where}{field}"):
        factors(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"transformer.r": 1, "transformer.r": 2}'])
def test_text_that_is_no_configuration_is_refused(tmp_path, text):
    path = tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=LAYERS), {"lora_adapter_metadata": text})
    with pytest.raises(LoraError, match=r"l\.safetensors: metadata lora_adapter_metadata: expected"):
        factors(path)


def test_metadata_of_another_rank_than_the_tensors_is_refused(tmp_path):
    path = tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=LAYERS), told({"r": 8, "lora_alpha": 8}))
    with pytest.raises(LoraError, match=r"metadata lora_adapter_metadata: r: expected 4, the rank of diffusion_model\..*, found 8"):
        factors(path)


def test_patterns_say_nothing_about_names_without_dots_and_are_refused_there(tmp_path):
    tensors = {key.replace("diffusion_model.", "lora_unet_").replace(Q, Q.replace(".", "_")): tensor
               for key, tensor in tiny.lora(layers=[Q]).items()}
    assert factors(tiny.save(tmp_path / "a.safetensors", tensors, told(PLAIN)))[Q][0] == 2 / 4
    with pytest.raises(LoraError, match="alpha_pattern: expected names with dots"):
        factors(tiny.save(tmp_path / "b.safetensors", tensors, told(PLAIN | {"alpha_pattern": {"q": 1}})))


def test_the_file_beside_counts_only_where_it_can_be_no_other_loras(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN))
    path = tiny.save(tmp_path / "style.safetensors", tiny.lora(layers=LAYERS))
    assert set(factors(path).values()) == {(2 / 4, "adapter_config.json")}
    named = tiny.save(tmp_path / "adapter_model.safetensors", tiny.lora(layers=LAYERS))
    assert set(factors(path).values()) == {(1.0, "none given, so alpha is the rank")}
    assert set(factors(named).values()) == {(2 / 4, "adapter_config.json")}
    other = tiny.save(tmp_path / "adapter_model.safetensors", tiny.lora(layers=LAYERS, rank=6))
    assert set(factors(other).values()) == {(1.0, "none given, so alpha is the rank (adapter_config.json is for rank 4)")}


def test_a_file_beside_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    path = tiny.save(tmp_path / "adapter_model.safetensors", tiny.lora(layers=LAYERS))
    (tmp_path / "adapter_config.json").write_text(json.dumps(PLAIN))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with open_lora(path) as lora, monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(LoraError, match=r"adapter_config\.json beside it cannot be read: Permission denied"):
            match(lora, Index(SPECS, SPECS))


def test_the_plan_shows_which_configuration_was_used(tmp_path):
    model, tensors = tiny.save(tmp_path / "m.safetensors", tiny.base()), tiny.lora(layers=LAYERS)
    told_by = tiny.save(tmp_path / "a.safetensors", tensors, told(PLAIN | {"use_rslora": True}))
    silent = tiny.save(tmp_path / "b.safetensors", tensors)
    wish = tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": path}} for path in (told_by, silent)])
    with plan_recipe(wish, tmp_path / "r") as plan:
        first, second = plan.experts[0].ledgers
    [adapter] = first["adapters"].values()
    assert adapter == {"where": "lora_adapter_metadata", "rank": 4, "alpha": 2, "is_rs": True, "ranks": {}, "alphas": {},
                       "kind": "LORA"}
    assert second["adapters"] == {} and second["alpha_from"] == ["none given, so alpha is the rank"]


def lycoris(kind, layers):
    """What PEFT writes for a LoHa or a LoKr of r 4, without alpha tensors."""
    draw, found = torch.Generator().manual_seed(3), {}
    for layer in layers:
        out, into = tiny.shapes()[f"{layer}.weight"]
        shapes = {"hada_w1_a": (out, 4), "hada_w1_b": (4, into), "hada_w2_a": (out, 4), "hada_w2_b": (4, into)}
        if kind == "LOKR":
            shapes = {"lokr_w1": (8, 8), "lokr_w2_a": (out // 8, 4), "lokr_w2_b": (4, into // 8)}
        found |= {f"base_model.model.{layer}.{part}": torch.randn(shape, generator=draw) * 0.05 for part, shape in shapes.items()}
    return found


def lycoris64(tensors, layer):
    def part(name):
        return tensors[f"base_model.model.{layer}.{name}"].double()

    if f"base_model.model.{layer}.lokr_w1" in tensors:
        return torch.kron(part("lokr_w1"), part("lokr_w2_a") @ part("lokr_w2_b"))
    return (part("hada_w1_a") @ part("hada_w1_b")) * (part("hada_w2_a") @ part("hada_w2_b"))


def write_peft(folder, tensors, settings):
    path = tiny.save(folder / "adapter_model.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return path


@pytest.mark.parametrize("kind", ["LOHA", "LOKR"])
def test_lohas_and_lokrs_of_peft_are_merged_with_alpha_over_r_1_and_refused_where_it_would_be_lost(tmp_path, kind):
    weights, tensors = tiny.base(), lycoris(kind, LAYERS)
    model = tiny.save(tmp_path / "m.safetensors", weights)
    path = write_peft(tmp_path / "lora", tensors, {"peft_type": kind, "r": 4, "alpha": 4, "rank_pattern": {}, "alpha_pattern": {}})
    tiny.go(tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": path}}], ["fp32"]), tmp_path / "r")
    merged = load_file(tmp_path / "out" / "mix_fp32.safetensors")
    for layer in LAYERS:
        away = (merged[f"{layer}.weight"].double() - weights[f"{layer}.weight"].double() - lycoris64(tensors, layer)).abs().max()
        assert away <= 2 ** -22 * 0.5, layer                          # a few roundings of float32, of sums below 0.5
    for more in ({"alpha": 2}, {"alpha_pattern": {"q": 2}}):
        write_peft(tmp_path / "lora", tensors, {"peft_type": kind, "r": 4, "alpha": 4} | more)
        with pytest.raises(LoraError, match=r"^adapter_model\.safetensors: adapter_config\.json: expected alpha equal to r"):
            tiny.go(tiny.recipe(tmp_path / "no", {"model": model}, [{"files": {"model": path}}]), tmp_path / "r")


@pytest.mark.parametrize(("settings", "said"), [
    ({"peft_type": "OFT", "r": 0, "oft_block_size": 32, "alpha_pattern": {}}, None), ({"peft_type": "BOFT"}, None),
    ({"peft_type": "LOHA", "r": 4, "alpha": 2}, (4, 2)), ({"peft_type": "LOKR", "r": 8, "alpha": 1}, (8, 1)),
    ({"peft_type": "LORA", "r": 4, "lora_alpha": 2}, (4, 2)), ({"peft_type": None, "r": 4, "lora_alpha": 2}, (4, 2)),
])
def test_the_kind_of_adapter_decides_what_its_configuration_must_say(tmp_path, settings, said):
    with open_lora(write_peft(tmp_path, tiny.lora(layers=LAYERS), settings)) as lora:
        assert {name: (each.rank, each.alpha) for name, each in lora.adapters.items()} == ({"": said} if said else {})


@pytest.mark.parametrize(("settings", "field"), [
    ({"peft_type": "LOHA", "r": 4}, "alpha: expected a finite"), ({"peft_type": "LOKR", "alpha": 4}, "r: expected a finite"),
    ({"peft_type": "LORA", "r": 4, "alpha": 4}, "lora_alpha: expected a finite"),
    ({"peft_type": ["OFT"]}, "peft_type: expected a kind"),
    ({"peft_type": "LOHA", "r": 4, "alpha": 4, "init_weights": "abba"}, "init_weights: expected a LoHa"),
])
def test_a_configuration_that_its_kind_cannot_have_is_refused(tmp_path, settings, field):
    with (open_lora(write_peft(tmp_path, tiny.lora(layers=LAYERS), settings)) as lora,
          pytest.raises(LoraError, match=rf"^adapter_model\.safetensors: adapter_config\.json beside it: {field}")):
        _ = lora.adapters
