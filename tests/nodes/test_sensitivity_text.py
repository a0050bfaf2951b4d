"""What Sensitivity says, held against figures that were made by hand."""
import re

from wan22_master.engine.calibration.layer_errors import FormatErrors, LayerErrors
from wan22_master.engine.calibration.layer_inputs import Inputs
from wan22_master.engine.jobs.sensitivity import Assessed
from wan22_master.nodes.sensitivity_text import layer_list, lines


def layer(weights: float, weighted: float | None, rounded: float | None) -> LayerErrors:
    return LayerErrors(64, 0.09, 0.01, 0.03, 0.5, {"nvfp4": FormatErrors(weights, weighted, rounded), "Q8_0": FormatErrors(0.005)})


def assessed(role="high_noise", **layers) -> Assessed:
    return Assessed(role, layers, Inputs(None, session="calib_01", prompts=3))


FOUND = assessed(one=layer(0.08, 0.06, 0.1), two=layer(0.06, 0.08, 0.3), three=None)


def test_a_row_has_the_root_mean_squares_and_the_worst_layer():
    text = lines(FOUND)
    assert text[0].startswith("high_noise: 2 of 3 layers, 3 prompts, 64 held-out tokens")
    row = re.split(r"\s{2,}", next(line for line in text if "nvfp4" in line).strip())
    assert row == ["nvfp4", "0.0707", "0.0707", "0.2236", "two 0.300"]        # sqrt((.08² + .06²) / 2), sqrt((.1² + .3²) / 2)
    row = re.split(r"\s{2,}", next(line for line in text if "Q8_0" in line).strip())
    assert row == ["Q8_0", "0.0050", "-", "-", "one 0.005"]


def test_weighing_is_told_with_its_share_and_its_gain():
    text = "\n".join(lines(FOUND))
    assert "helps in 1 of 2 layers: their held-out error is 25% smaller" in text
    assert "helps in none of 1 layers" in "\n".join(lines(assessed(one=layer(0.06, 0.08, 0.1))))
    assert "there is nothing to weigh" in "\n".join(lines(assessed(one=layer(0.06, None, 0.1))))
    assert "note: 1 of 3 layers were not seen" in text


def test_layers_for_16_bit_are_a_list_that_precision_plan_reads():
    low = assessed("low_noise", two=layer(0.06, None, 0.3), four=layer(0.06, None, 0.4))
    wanted = ["# high_noise: 1 layers in nvfp4", "two", "# low_noise: 2 layers in nvfp4", "four"]
    assert layer_list([FOUND, low]).splitlines() == wanted
    assert layer_list([assessed(one=layer(0.08, 0.06, 0.1))]) == ""
    assert "two: 0.300, weights only 0.060: 16 bit" in "\n".join(lines(FOUND))


def test_a_session_that_saw_nothing_says_so():
    assert "no layer was seen" in lines(assessed(one=None))[0]


def test_a_layer_that_is_kept_is_called_so():
    found = LayerErrors(64, 0.09, 0.01, 0.03, 0.5, {"nvfp4": FormatErrors(0.08), "keep": FormatErrors(0.002)})
    text = "\n".join(lines(assessed(one=found)))
    assert re.search(r"^  kept \(bf16\)\s+0\.0020", text, re.M) and not re.search(r"^  keep\b", text, re.M)
