"""The sensitivity file: strict JSON in the original's schema, read by the plan that reads the original's."""
import json
from pathlib import Path

import pytest
import torch
from wan22_master.engine.calibration.layer_errors import FormatErrors, LayerErrors
from wan22_master.engine.calibration.sensitivity_json import Sensitivity, path_of, read, write
from wan22_master.engine.errors import HeaderError
from wan22_master.engine.plans import sensitivity
from wan22_master.engine.specs import TensorSpec

SAID = Sensitivity("wan.safetensors", "t2v", 3, "calib_01", "abc", 2.0, 5, "def", ("one",))
ORIGINAL = ["layer", "count", "rel_rmse_mean", "mean_abs_mean", "clip_rate_mean", "max_abs"]


def errors(rel_rmse: float) -> LayerErrors:
    return LayerErrors(64, rel_rmse, 0.01, 0.03, 0.5, {"nvfp4": FormatErrors(0.08, 0.06, 0.1)})


LAYERS = {"blocks.0.ffn.0": errors(0.09), "blocks.0.ffn.2": None, "blocks.1.ffn.0": errors(0.4)}


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


def test_rows_are_the_originals_sorted_by_error_and_unknown_is_null(tmp_path):
    path = write(tmp_path, "high_noise", SAID, LAYERS)
    found = json.loads(Path(path).read_text(), parse_constant=refuse)
    assert path == path_of(tmp_path, "high_noise") and {"model", "model_type", "samples", "layers"} <= set(found)
    assert [row["layer"] for row in found["layers"]] == ["blocks.1.ffn.0", "blocks.0.ffn.0", "blocks.0.ffn.2"]
    assert all(list(row)[:6] == ORIGINAL for row in found["layers"])
    assert found["layers"][2]["rel_rmse_mean"] is None and found["layers"][2]["count"] == 0
    assert found["layers"][0]["formats"]["nvfp4"] == {"weights": 0.08, "weighted": 0.06, "rounded": 0.1}


def test_a_plan_reads_it_as_it_reads_the_originals(tmp_path):
    found = json.loads(Path(write(tmp_path, "model", SAID, LAYERS)).read_text())
    model = {f"{layer}.weight": TensorSpec((16, 16), torch.bfloat16) for layer in LAYERS}
    over, notices = sensitivity.flagged(found, 0.1, model, "s.json")
    assert over == {"blocks.1.ffn.0": 0.4} and "1 of 3 layers have no finite rel_rmse_mean" in notices[-1]


def test_what_was_said_comes_back_and_another_file_is_refused(tmp_path):
    assert read(tmp_path, "model") is None
    path = write(tmp_path, "model", SAID, LAYERS)
    assert read(tmp_path, "model") == SAID and read(tmp_path, "low_noise") is None
    for wrong in ("[1]", "{}", '{"version": 2}', "{", json.dumps({**json.loads(Path(path).read_text()), "state": 5})):
        (tmp_path / "model_sensitivity.json").write_text(wrong)
        with pytest.raises(HeaderError, match="run Sensitivity again"):
            read(tmp_path, "model")
