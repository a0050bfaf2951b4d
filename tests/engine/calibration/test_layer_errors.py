"""Which figure counts for which product, by hand."""
import json
import math

import pytest
from wan22_master.engine.calibration.layer_errors import FormatErrors, LayerErrors, share_helped, spoiled


def layer(**formats: FormatErrors) -> LayerErrors:
    return LayerErrors(64, 0.09, 0.01, 0.03, 0.5, formats)


def test_a_product_in_16_bit_has_the_weights_error_and_of_two_searches_the_better():
    assert FormatErrors(0.08, 0.06, 0.12).stored == 0.06
    assert FormatErrors(0.08, 0.09, 0.12).stored == FormatErrors(0.08, None, 0.12).stored == 0.08
    errors = FormatErrors(0.08, 0.06, 0.12)
    assert errors.error("nvfp4", full_precision=False) == 0.12
    assert errors.error("nvfp4", full_precision=True) == 0.06
    assert errors.error("int8_tensorwise", full_precision=True) == 0.12   # it rounds its input whatever is said
    assert FormatErrors(0.08, 0.06).error("Q4_K", full_precision=False) == 0.06


@pytest.mark.parametrize(("errors", "form", "told"), [
    (FormatErrors(0.08, None, 0.2), "nvfp4", True),
    (FormatErrors(0.08, 0.06, 0.155), "nvfp4", True),
    (FormatErrors(0.08, None, 0.155), "nvfp4", False),              # not twice as much
    (FormatErrors(0.03, None, 0.14), "nvfp4", False),               # much more, but no more than nvfp4 has everywhere
    (FormatErrors(0.008, None, 0.3), "int8_tensorwise", False),     # nothing would change
    (FormatErrors(0.08, None, None), "nvfp4", False),
])
def test_inputs_spoil_a_layer_where_the_error_is_twice_as_much_and_large(errors, form, told):
    assert spoiled(errors, form) is told


def test_weighing_helps_where_the_mean_ratio_of_what_weighs_is_under_one():
    found = layer(nvfp4=FormatErrors(0.08, 0.06, 0.1), Q4_K=FormatErrors(0.07, 0.077), mxfp8=FormatErrors(0.026, None, 0.037))
    assert found.gain == pytest.approx(math.sqrt(0.75 * 1.1)) and found.weighing_helps
    worse = layer(nvfp4=FormatErrors(0.08, 0.09))
    assert not worse.weighing_helps and not layer(nvfp4=FormatErrors(0.08, 0.08)).weighing_helps
    blind = layer(mxfp8=FormatErrors(0.026, None))
    assert blind.gain is None and not blind.weighing_helps
    assert share_helped([found, worse, blind]) == (1, 2, pytest.approx(found.gain))
    assert share_helped([worse, blind]) == (0, 1, None)


def test_it_comes_back_from_json():
    found = layer(nvfp4=FormatErrors(0.08, 0.06, 0.1), mxfp8=FormatErrors(0.026))
    assert LayerErrors.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
