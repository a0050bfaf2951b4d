"""A delta that is added on a quantized base: what is said of it before the run, against plain float64 on finished files."""

import math
import re

import pytest
import torch
from wan22_master.engine.errors import Stopped
from wan22_master.engine.jobs import grade
from wan22_master.engine.jobs.carry import Ride
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.trial import tiles_of
from wan22_master.engine.merging.adaptive.store import ensure
from wan22_master.engine.progress import Clock, silent
from wan22_master.tests.engine import kitchen, tiny

LAYERS = sorted(tiny.linears(1))                   # as the safetensors library writes them
LOSSY = {"allow_quantized_source": True}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Two tiles of rows a layer, four in ffn.0; 256 columns are a group of the rotated formats."""
    monkeypatch.setattr(tiny, "DIM", 256)


def lora(**more):
    return tiny.lora(ffn=512, layers=LAYERS, **{"size": 5e-4, **more})


def weights(seed=0):
    return tiny.base(seed, blocks=1, ffn=512)


def base(tmp_path, formats):
    """A base whose layers comfy-kitchen quantized, and what it reads back from it."""
    tensors = kitchen.quantized(weights(), formats)
    shapes = {layer: tuple(weights()[f"{layer}.weight"].shape) for layer in LAYERS}
    return ({"model": tiny.save(tmp_path / "base.safetensors", tensors)},
            {layer: kitchen.decode(tensors, layer, shape).double() for layer, shape in shapes.items()})


def planned(tmp_path, formats, output, tensors=None, **more):
    """(what is said, weights of the base in float64) before the run."""
    experts, decoded = base(tmp_path, formats)
    entries = [{"files": {"model": tiny.save(tmp_path / "l.safetensors", tensors or lora())}}]
    wish = tiny.recipe(tmp_path / "out", experts, entries, [output], save={"name": "%title%"}, **LOSSY | more)
    with plan_recipe(wish, tmp_path / "r") as plan:
        return wish, [each for each in plan.notices if "the base is" in each], decoded


def figures(line):
    """(share, standard error) of every "keeps 1.2% (± 0.3%)" in a line."""
    return [(float(share) / 100, float(error) / 100) for share, error in re.findall(r"([\d.-]+)% \(± ([\d.]+)%\)", line)]


def kept(wish, tmp_path, decoded):
    """(projection, its standard error) of the finished file in float64, on the rows that were tried; and the report."""
    report = tiny.go(wish, tmp_path / "r")
    found, sums = tiny.load(tmp_path / "out", "mix.safetensors"), torch.zeros(3, dtype=torch.float64)
    for layer, before in decoded.items():
        rows = [row for first, stop in tiles_of(f"{layer}.weight", len(before)) for row in range(first, stop)]
        delta, after = tiny.delta64(lora(), layer)[rows], kitchen.decode(found, layer, tuple(before.shape)).double()[rows]
        before = before[rows]
        noise = after - before - delta
        sums += torch.stack([((after - before) * delta).sum(), delta.square().sum(), (noise * delta).square().sum()])
    return (sums[0] / sums[1]).item(), math.sqrt(sums[2].item()) / sums[1].item(), report


ALL = dict.fromkeys(LAYERS, "nvfp4")


def test_a_delta_on_nvfp4_rounded_back_to_nearest_is_lost_and_warned_of(tmp_path):
    wish, [line], decoded = planned(tmp_path, ALL, {"format": "nvfp4", "rounding": "nearest", "search": "fast"})
    assert line.startswith("warning: the base is nvfp4: of what is merged onto it, nvfp4 keeps ")
    assert line.endswith("most of the merge is rounded away; saved as bf16 it is 100%; the bf16 or fp16 file of this model loses "
                         "nothing that way")
    [(share, error)] = figures(line)
    projection, _, report = kept(wish, tmp_path, decoded)
    assert projection < 0.05 and abs(share - projection) < 3 * error + 5e-4  # a digit after the point is shown
    told = report["experts"][0]["outputs"][0]
    assert told["survival"]["projection"] < 0.05 and told["survival"]["unchanged"] > 0.9 and told["stochastic"] == 0


def test_stochastic_rounding_keeps_it_at_the_price_of_noise_and_is_no_warning(tmp_path):
    wish, [line], decoded = planned(tmp_path, ALL, {"format": "nvfp4"})
    assert line.startswith("the base is nvfp4") and "rounded stochastically, as is done here" in line
    assert 2 < float(re.search(r"with ([\d.]+) times the rounding error", line)[1]) < 6   # nearest falls back onto the base's grid
    (nearest, _), (noisy, error) = figures(line)
    projection, spread, report = kept(wish, tmp_path, decoded)
    # not quite all: what a delta adds to the 6 of a block, of which there is one in 16 at least, is clipped
    assert nearest < 0.05 and 0.9 < projection < 1 + 3 * spread and spread < 0.02
    assert abs(noisy - projection) < 3 * (error + spread) + 0.01  # percents are shown whole
    told = report["experts"][0]["outputs"][0]
    assert told["stochastic"] == len(LAYERS)
    assert abs(told["survival"]["projection"] - projection) < 3 * (told["survival"]["standard_error"] + spread)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "mxfp8", "int8_tensorwise", "convrot_w4a4"])
def test_the_figure_of_every_grid_is_that_of_its_file(tmp_path, name):
    same = dict.fromkeys(LAYERS, name)
    wish, [line], decoded = planned(tmp_path, same, {"format": name, "rounding": "nearest", "search": "fast"})
    [(share, error)] = figures(line)
    projection, spread, _ = kept(wish, tmp_path, decoded)
    assert abs(share - projection) < 3 * (error + spread) + 5e-4
    assert line.startswith("warning") == (share < grade.LOST)


def test_each_layer_is_graded_in_its_own_format(tmp_path):
    # fine steps first in the model and in the plan, coarse ones in all other layers: the figure is that of the mix
    fine = dict.fromkeys(LAYERS[:1], "int8_tensorwise")
    output = {"format": "nvfp4", "rounding": "nearest", "search": "fast", "layers": {"model": fine | {LAYERS[1]: "keep"}}}
    wish, [line], decoded = planned(tmp_path, ALL, output)
    [(share, error)] = figures(line)
    del decoded[LAYERS[1]]  # it is not rounded at all, so nothing is said of it
    projection, *_ = kept(wish, tmp_path, decoded)
    assert abs(share - projection) < 3 * error + 5e-4 and 0.05 < projection < 0.25  # a ninth of what is rounded is finer


SOME = dict.fromkeys(LAYERS[:3], "nvfp4")


@pytest.mark.parametrize(("formats", "output", "layers"), [
    (ALL, {"format": "bf16"}, LAYERS), ({}, {"format": "nvfp4"}, LAYERS), (SOME, {"format": "nvfp4"}, LAYERS[3:]),
    (SOME, {"format": "nvfp4", "layers": {"model": dict.fromkeys(SOME, "keep")}}, LAYERS)],
    ids=["stored wide", "wide base", "other layers", "kept layers"])
def test_nothing_is_said_where_nothing_is_rounded_back(tmp_path, formats, output, layers):
    assert planned(tmp_path, formats, output, tiny.lora(ffn=512, layers=layers))[1] == []


def test_a_quantized_base_that_is_merely_stored_anew_is_not_scolded(tmp_path):
    experts, _ = base(tmp_path, ALL)
    wish = tiny.recipe(tmp_path / "out", experts, formats=["nvfp4", "float8_e4m3fn"])
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert not [each for each in plan.notices if "the base is" in each]


def test_at_most_sixteen_layers_are_tried(tmp_path, monkeypatch):
    seen, really = [], grade.measure
    monkeypatch.setattr(grade, "measure", lambda *all, **more: seen.append(list(all[3])) or really(*all, **more))
    monkeypatch.setattr(grade, "LAYERS", 4)
    planned(tmp_path, ALL, {"format": "nvfp4"})
    assert seen == [LAYERS[::3]] * 2


def test_adaptive_injection_is_graded_when_it_has_been_measured(tmp_path):
    experts, _ = base(tmp_path, ALL)
    entry = {"files": {"model": tiny.save(tmp_path / "l.safetensors", lora())}, "method": "adaptive"}
    output = {"format": "nvfp4", "rounding": "nearest"}
    wish = tiny.recipe(tmp_path / "out", experts, [entry], [output], **LOSSY)
    said = []
    for _ in range(2):
        with plan_recipe(wish, tmp_path / "r") as plan:
            said += [each for each in plan.notices if "the base is" in each]
            ensure(plan.experts[0], Ride(plan.device, Clock(1, silent), bool, tmp_path / "r"))
    assert said[0] == ("the base is nvfp4: how much of what is merged onto it nvfp4 keeps is told when adaptive injection has been "
                       "measured, by the stability meter or the run")
    assert said[1].startswith("warning: ") and figures(said[1])[0][0] < 0.05


def test_a_stop_while_it_is_graded_stops(tmp_path, monkeypatch):
    experts, _ = base(tmp_path, ALL)
    entry = {"files": {"model": tiny.save(tmp_path / "l.safetensors", lora())}}
    wish, begun, really = tiny.recipe(tmp_path / "out", experts, [entry], ["nvfp4"], **LOSSY), [], grade.measure
    monkeypatch.setattr(grade, "measure", lambda *all: begun.append(1) or really(*all))
    with pytest.raises(Stopped):
        plan_recipe(wish, tmp_path / "r", should_stop=lambda: bool(begun))
    assert begun and not (tmp_path / "out").exists()
