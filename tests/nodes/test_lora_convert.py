import shutil

import pytest
from wan22_master.engine.errors import LoraError, PlanError, RecipeError
from wan22_master.engine.loras.lora import open_lora
from wan22_master.nodes.lora_halves import check_half, check_join, check_no_halves, known_role, named
from wan22_master.tests.engine import trainers


def test_a_file_is_never_taken_for_the_expert_that_it_is_not_made_for(tmp_path):
    paths = trainers.write_ai_toolkit(tmp_path)
    for path, own, other in zip(paths, ("high_noise", "low_noise"), ("low_noise", "high_noise"), strict=True):
        with open_lora(path) as lora:
            check_half(lora, own, "halves")
            assert known_role(lora) == own
            with pytest.raises(LoraError, match=f"{path.name}: halves takes it for {other}, but it is made for {own} \\(file name"):
                check_half(lora, other, "halves")


def test_a_file_that_says_nothing_is_what_the_user_says(tmp_path):
    [path] = trainers.write_peft(tmp_path)[:1]
    with open_lora(path) as lora:
        assert known_role(lora) is None
        check_half(lora, "high_noise", "halves")
        check_half(lora, "low_noise", "halves")


def test_two_files_are_joined_only_in_their_places_and_never_one_twice(tmp_path):
    high, low = trainers.write_ai_toolkit(tmp_path)
    copy = shutil.copy(high, tmp_path / "another.safetensors")
    with open_lora(high) as first, open_lora(low) as second, open_lora(copy) as twin:
        check_join(first, second)
        with pytest.raises(LoraError, match="it is made for low_noise"):
            check_join(second, first)
        for other in (first, twin):
            with pytest.raises(LoraError, match="found the same file twice; choose the low-noise file"):
                check_join(first, other)


def test_halves_beside_two_files_is_refused_and_not_ignored():
    check_no_halves("auto")
    for asked in ("split", "high_noise"):
        with pytest.raises(RecipeError, match=f"halves is {asked}, but lora_low is to be joined"):
            check_no_halves(asked)


@pytest.mark.parametrize(("stem", "role", "alone", "name"), [
    ("mine", None, True, "mine"), ("mine", "low_noise", True, "mine_low_noise"), ("mine_LOW", "low_noise", True, "mine_LOW"),
    ("merged_high_noise", "high_noise", True, "merged_high_noise"),
    ("mine_H_native", "high_noise", True, "mine_H_native_high_noise"),
    ("my_high", "high_noise", False, "my_high_high_noise"), ("my_high", "low_noise", False, "my_high_low_noise")])
def test_the_name_says_the_expert_wherever_it_is_known(stem, role, alone, name):
    assert named(stem, role, alone=alone) == name


def test_a_name_that_says_the_other_expert_is_refused():
    with pytest.raises(PlanError, match="expected a name that can be told to be high_noise"):
        named("mine_low_noise", "high_noise", alone=True)
