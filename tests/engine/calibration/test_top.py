"""The table of the layers that vary most, of a session that is recorded here."""
import math
from types import SimpleNamespace

import pytest
from wan22_master.engine.calibration.by_pass import by_pass
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.session import Session
from wan22_master.engine.calibration.summary import of_session, summarize
from wan22_master.engine.calibration.top import HEAD, as_text, most_varying, outlier_channels, table
from wan22_master.tests.engine.calibration.small_session import LAYERS, record


def test_the_most_varying_layers_come_first_with_their_outlier_channels(tmp_path):
    session = Session.create(tmp_path, "calib_01")
    record(session, "model", [1.0, 8.0], prompt="p")
    gathered = gather(session, "model")
    rows = summarize(of_session(by_pass(gathered)))["layers"]
    assert [row["layer"] for row in most_varying(rows, 1)] == ["blocks.0.ffn.0"]   # of equal ones by name
    shares = outlier_channels(rows, gathered)
    # one channel of 32 holds an input of 8 * 4 and 8 * 8 among 32 rows of about 1: an rms of 5.7 and 11
    assert shares == pytest.approx(dict.fromkeys(LAYERS[:3], 1 / 32))
    lines = as_text(table(most_varying(rows), shares))
    assert lines[0].split("  ")[0].strip() == HEAD[0] and len(lines) == 4 and "3.12%" in lines[1]


def test_the_largest_scale_cv_is_first_and_what_has_none_is_last():
    means = {"a": 4.0, "b": 0.0, "d": 2.0, "c": 2.0}
    rows = [{"layer": layer, "scale_mean": mean, "scale_std": 1.0} for layer, mean in means.items()]
    assert [row["layer"] for row in most_varying(rows)] == ["c", "d", "a", "b"]


def test_outlier_channels_go_by_rms_and_a_layer_without_any_input_has_no_share():
    shares = {"a": (0.25, 0.5), "b": (math.nan, math.nan)}
    assert outlier_channels([{"layer": "a"}, {"layer": "b"}], SimpleNamespace(outliers=shares.get)) == {"a": 0.25}


def test_what_a_table_does_not_know_is_a_dash():
    assert table([{"layer": "x", "count": 3}], {}) == [("x", "-", "-", "-", "-", "3")]
