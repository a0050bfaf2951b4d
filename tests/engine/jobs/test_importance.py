"""Which layers of an output weigh their columns, and what is told where a file of importances serves none of them."""
import pytest
import torch
from wan22_master.engine.errors import SourceError
from wan22_master.engine.gguf_mix import MIXES
from wan22_master.engine.imatrix_writer import Sum, write_imatrix
from wan22_master.engine.jobs.importance import importances, weighing
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.stored_as import forms_of
from wan22_master.engine.recipes.output import parse_output
from wan22_master.quant.formats import weighs
from wan22_master.tests.engine import tiny

FFN = 512
LAYERS = ["blocks.0.self_attn.q", "blocks.0.self_attn.v", "blocks.0.ffn.2"]


def of(**fields):
    return parse_output({"experts": ["model"], **fields})


@pytest.mark.parametrize(("fields", "weighed"), [
    ({"format": "nvfp4"}, LAYERS), ({"format": "nvfp4", "search": "fast"}, []), ({"format": "int8_tensorwise"}, []),
    ({"format": "bf16"}, []), ({"format": "BF16"}, []), ({"format": "Q8_0"}, []),
    ({"format": "Q8_0", "gguf_setting": "max"}, LAYERS), ({"format": "Q4_K_M", "gguf_setting": "reference"}, []),
    ({"format": "nvfp4", "layers": {"model": {LAYERS[0]: "int8_tensorwise", LAYERS[1]: "keep"}}}, LAYERS[2:]),
    ({"format": "int8_tensorwise", "layers": {"model": {LAYERS[1]: "nvfp4"}}}, LAYERS[1:2]),
    ({"format": "Q4_K", "layers": {"model": {LAYERS[0]: "Q8_0"}}}, LAYERS[1:]), ({"format": "Q4_K_M"}, LAYERS)])
def test_layers_weigh_their_columns_where_their_format_searches(fields, weighed):
    assert weighing(of(**fields), "model", LAYERS) == weighed


@pytest.fixture
def expert(tmp_path):
    wide = {key: tuple({tiny.DIM: 256, 6 * tiny.DIM: 6 * 256}.get(size, size) for size in shape)    # rows of whole super-blocks
            for key, shape in tiny.shapes(1, FFN).items()}
    base = tiny.save(tmp_path / "m.safetensors", {key: torch.zeros(shape, dtype=tiny.dtype_of(key)) for key, shape in wide.items()})
    wish = tiny.recipe(tmp_path, {"model": base})
    with plan_recipe(wish, tmp_path / "r") as plan:
        yield plan.experts[0]


@pytest.mark.parametrize("name", [name for name in MIXES if not MIXES[name].is_plain])
def test_every_mix_weighs_where_the_saved_file_does(expert, name):
    output = of(format=name)
    linears = [key for key in expert.order if key in expert.block_linears]
    forms = forms_of(expert, output)
    saved = [key for key in linears if weighs(forms.of(key, expert.specs[key]))]
    names = [key.removesuffix(".weight") for key in linears]
    assert [f"{layer}.weight" for layer in weighing(output, "model", names)] == saved


def test_a_calibration_that_helps_only_where_nothing_weighs_is_not_used_and_no_error(expert, tmp_path):
    path, (first, *others) = tmp_path / "w.gguf", sorted(expert.block_linears)
    write_imatrix(path, {first: Sum(torch.ones(expert.specs[first].shape[1]), 1)})
    mixed = {first.removesuffix(".weight"): "int8_tensorwise"}
    found, told = importances(expert, of(format="nvfp4", layers={"model": mixed}, imatrix={"model": str(path)}))
    assert not found
    assert told == [f"w.gguf: not used: it holds none of the {len(others)} layers of nvfp4 whose formats weigh columns"]
    write_imatrix(path, {"blk.0.attn_q.weight": Sum(torch.ones(4), 1)})
    with pytest.raises(SourceError, match="choose one made with this model"):
        importances(expert, of(format="nvfp4", imatrix={"model": str(path)}))
