"""What every format says alike."""
import pytest
import torch
from wan22_master.quant.formats import FORMATS, QUANTIZED, quantize
from wan22_master.quant.words import NOT_FINITE


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_refuses_what_is_no_number_in_the_same_words(name, number):
    weight = torch.ones(2, 256)
    weight[1, 3] = number
    with pytest.raises(ValueError) as told:
        quantize(weight, name)
    assert str(told.value) == NOT_FINITE


@pytest.mark.parametrize("name", sorted(QUANTIZED))
def test_an_entry_names_its_format_first_and_the_16_bit_product_only_when_asked(name):
    plain, wide = (FORMATS[name].comfy_quant(full_precision=is_wide) for is_wide in (False, True))
    assert next(iter(plain.items())) == ("format", name)
    assert list(wide.items()) == [*plain.items(), ("full_precision_matrix_mult", True)]


@pytest.mark.parametrize("name", FORMATS)
def test_what_lies_interleaved_cannot_be_changed(name):
    with pytest.raises(TypeError):
        FORMATS[name].GROUPS["_scale"] = 1
