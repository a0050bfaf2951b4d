import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.nodes.widgets import check_filled, check_within


def test_a_blank_widget_is_named():
    check_filled("save model: title", "mix")
    with pytest.raises(RecipeError, match="save model: title is empty"):
        check_filled("save model: title", " \n")


@pytest.mark.parametrize("value", [-0.1, 4.01, float("nan"), float("inf")])
def test_a_number_out_of_bounds_is_named_with_them(value):
    check_within("inject: global_factor", 4.0, 0.0, 4.0)
    with pytest.raises(RecipeError, match="inject: global_factor: expected 0 to 4, found"):
        check_within("inject: global_factor", value, 0.0, 4.0)
