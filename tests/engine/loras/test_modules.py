"""Every adapter's module says of itself what the merge and the report ask."""

import pytest
import torch
from wan22_master.engine.loras.delta import Delta, Transform
from wan22_master.engine.loras.modules import Diff, Pair
from wan22_master.tests.engine.loras.adapters import cases, laid

INDEX = laid.index_of()
KEY = "blocks.0.ffn.0.weight"
FORMS = {
    "LoRA": "factors",
    "LoCon": "factors",
    "LoKr": "factors",
    "DoRA": "base",
    "LoKr DoRA": "base",
    "LoHa": "dense",
    "OFT": "transform",
    "BOFT": "transform",
    "GLoRA": "transform",
    "IA3": "base",
    "diff": "dense",
    "w_norm": "dense",
    "set_weight": "transform",
}


@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_module_tells_kind_form_keys_and_what_it_loads(tmp_path, kind):
    parts, _ = cases.case(kind, (24, 12))
    tensors = {"diffusion_model.blocks.0.ffn.0" + suffix: tensor for suffix, tensor in parts.items()}
    lora = laid.write(tmp_path / "some.safetensors", tensors)
    [module] = laid.lay(lora, INDEX)[0][KEY]
    form = FORMS.get(kind) or FORMS[kind.split()[0]]
    form = "dense" if kind == "LoKr left" else form  # rank 2 x 6 is not under half of the 12 columns
    form = "dense" if kind == "LoKr whole" else form
    assert module.form == form
    assert set(module.keys) == tensors.keys()
    assert module.kind == module.kind.lower()
    assert isinstance(module.rank, int) and isinstance(module.factor, float) and isinstance(module.alpha_from, str)
    loaded = module.load(lora, (24, 12), torch.device("cpu"))
    assert isinstance(loaded, Transform if form == "transform" else Delta)
    if form == "factors":
        assert loaded.factors.up.shape == (24, module.rank)
        assert loaded.factors.down.shape == (module.rank, 12)
    elif form != "transform":
        assert loaded.factors is None
    assert hash(module) == hash(module)


def test_a_lokr_is_factors_up_to_a_bound(tmp_path):
    def form(out, into, w1, rank):
        shapes = {"lokr_w1": w1, "lokr_w2_a": (out // w1[0], rank), "lokr_w2_b": (rank, into // w1[1])}
        tensors = {f"diffusion_model.blocks.0.ffn.0.{name}": torch.zeros(shape) for name, shape in shapes.items()}
        lora = laid.write(tmp_path / "some.safetensors", tensors)
        [module] = laid.lay(lora, laid.index_of({KEY: (out, into)}))[0][KEY]
        return module.form, module.rank

    assert form(128, 128, (4, 4), 15) == ("factors", 60)
    assert form(128, 128, (4, 4), 16) == ("dense", 64)  # 2 x 64 is not under 128
    assert form(2048, 2048, (8, 8), 64) == ("factors", 512)
    assert form(2048, 2048, (8, 8), 65) == ("dense", 520)


def test_pair_and_diff_are_what_they_were():
    pair = Pair("u", "d", "a", 4, 0.5, "alpha tensors")
    assert (pair.kind, pair.form, pair.keys) == ("lora", "factors", ("u", "d", "a"))
    core = Pair("u", "d", None, 4, 1.0, "", "m")
    assert (core.kind, core.keys) == ("tucker", ("u", "d", "m"))
    assert (Diff("x").kind, Diff("x").form, Diff("x").keys, Diff("x").rank, Diff("x").factor) == ("diff", "dense", ("x",), 0, 1.0)
