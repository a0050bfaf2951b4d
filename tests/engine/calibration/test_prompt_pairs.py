"""Which prompt gets which start image."""
import pytest
from wan22_master.engine.calibration.prompt_file import parse
from wan22_master.engine.calibration.prompt_pairs import AUTO, BY_NUMBER, BY_OPTION, IN_ORDER, pair, settle
from wan22_master.engine.errors import RecipeError

THREE = parse("A.\nB.\nC.", "a.txt")
STATED = parse("A.\nB. --i C:\\pictures\\fox.png\nC. --i /home/somebody/dog.png", "a.txt")


def images(found, names, way=AUTO, **more):
    return dict(pair(found, names, way, **more).images)


def test_of_a_stated_path_the_last_part_counts():
    assert images(STATED, ["dog.png", "fox.png", "x.png"], BY_OPTION) == {2: "fox.png", 3: "dog.png"}


def test_a_number_in_a_name_is_a_place_and_its_last_digits_count():
    assert images(THREE, ["2_shot_003.png", "2026_1.png", "shot.png"], BY_NUMBER) == {1: "2026_1.png", 3: "2_shot_003.png"}


def test_an_ending_with_a_digit_is_no_number():
    assert images(THREE, ["a.jp2"], BY_NUMBER) == {}


def test_in_order_is_as_a_person_sorts():
    assert images(THREE, ["a10.png", "B1.png", "a9.png"], IN_ORDER) == {1: "a9.png", 2: "a10.png", 3: "B1.png"}


def test_auto_takes_stated_ones_first_and_gives_them_to_nobody_else():
    found = pair(STATED, ["fox.png", "yak.png", "zebra.png"], AUTO)
    assert dict(found.images) == {1: "yak.png", 2: "fox.png"} and found.missing == (3,)   # the dog is not replaced by a zebra


def test_auto_goes_by_number_only_when_every_other_prompt_has_its_own():
    assert images(THREE, ["3.png", "1.png", "2.png"]) == {1: "1.png", 2: "2.png", 3: "3.png"}
    assert images(THREE, ["img_7.png", "img_3.png", "img_1.png"]) == {1: "img_1.png", 2: "img_3.png", 3: "img_7.png"}
    assert images(THREE, ["a_1.png", "b_1.png", "c_2.png"]) == {1: "a_1.png", 2: "b_1.png", 3: "c_2.png"}


def test_two_images_of_one_number_are_an_error_when_numbers_are_asked_for():
    with pytest.raises(RecipeError, match=r"one image of each number, found a_1.png and b_01.png"):
        pair(THREE, ["a_1.png", "b_01.png"], BY_NUMBER)


def test_a_batch_goes_in_its_own_order_whatever_lines_state():
    batch = [f"image {place}" for place in range(1, 13)]
    found = pair(STATED, batch, BY_NUMBER, are_files=False)
    assert dict(found.images) == {1: "image 1", 2: "image 2", 3: "image 3"}
    assert found.notices[0] == "start images: 3 in order" and "--i is not used, 2 times" in found.notices[1]


def test_images_that_are_left_over_are_counted_and_named():
    found = pair(THREE, [f"{place}.png" for place in range(1, 11)], IN_ORDER)
    assert found.notices[1] == "start images: 7 of 10 are not used: 4.png, 5.png, 6.png, 7.png, 8.png, ..."
    assert len(pair(STATED, ["fox.png", "dog.png", "x.png"], BY_OPTION).notices) == 1   # a folder may hold other things


@pytest.mark.parametrize(("fate", "left_out", "told"), [
    ("skip", {1, 3}, "2 of 3 prompts have none and are left out, as in line 3: --i"),
    ("none", set(), "1 of 2 prompts with --i have none and are made without one, as in line 3: --i")])
def test_prompts_without_an_image_are_counted(fate, left_out, told):
    found = pair(STATED, ["fox.png"], BY_OPTION)
    assert found.missing == (1, 3)
    places, lines = settle(STATED, found, fate)
    assert places == left_out and told in lines[0]


def test_a_missing_image_is_refused_with_the_line_and_what_it_states():
    without_dog = pair(STATED, ["fox.png", "bear.png"], AUTO)
    with pytest.raises(RecipeError, match=r"^a.txt: line 3: expected a start image for --i /home/somebody/dog.png, found none "
                                          r"in the images \(1 of 3 prompts have none\)"):
        settle(STATED, without_dog, "error")
    assert settle(THREE, pair(THREE, ["1.png", "2.png", "3.png"], AUTO), "error") == (set(), [])


def test_only_prompts_that_ask_for_an_image_or_need_one_are_counted():
    one = parse("A.\nB. --i fox.png\nC.", "a.txt")
    with pytest.raises(RecipeError, match=r"^a.txt: line 2: .* --i fox.png, found none in the images \(1 of 1 prompts with --i"):
        settle(one, pair(one, ["dog.png"], BY_OPTION), "error")
    assert settle(one, pair(one, ["fox.png"], BY_OPTION), "none") == (set(), [])         # no other line asks for one
    with pytest.raises(RecipeError, match=r"^a.txt: line 1: .* 'A.', found none in the images \(2 of 3 prompts have none"):
        settle(one, pair(one, ["fox.png"], BY_OPTION), "error")                          # where another has one
    with pytest.raises(RecipeError, match=r"\(3 of 3 prompts have none"):
        settle(one, pair(one, [], AUTO), "error")                                        # images of a folder are for all


def test_a_stated_path_that_was_found_goes_before_a_name_and_nobody_else_gets_it():
    found = parse("A. --i one/fox.png\nB. --i two/fox.png\nC.\nD.", "a.txt")
    names, known = ["a.png", "fox.png"], {"one/fox.png": "../one/fox.png"}
    assert images(found, names, known=known) == {1: "../one/fox.png", 2: "fox.png", 3: "a.png"}
    assert images(found, names, known={"one/fox.png": "a.png"}) == {1: "a.png", 2: "fox.png"}
