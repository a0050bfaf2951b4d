"""Runs of a list of prompts: defaults, sizes, the cheaper preset, and which are done."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.calibration.built_in_prompts import BUILT_IN, PROMPTS
from wan22_master.engine.calibration.prompt_file import parse
from wan22_master.engine.calibration.prompt_list import (
    AS_GIVEN,
    LOW_COST,
    Defaults,
    Entry,
    choose,
    costs,
    done,
    entries,
    low_cost,
    odd_for_5b,
    repeated,
)
from wan22_master.engine.errors import RecipeError

USUAL = Defaults("blurry", 832, 480, 81, 7, 20, 3.5)


def made(text: str, preset: str = AS_GIVEN, **changes) -> list[Entry]:
    return entries(parse(text, "a.txt"), replace(USUAL, **changes), preset)


def run(entry: Entry, role: str, *, finished: bool = True) -> SimpleNamespace:
    """As much of a session's run as is looked at."""
    return SimpleNamespace(role=role, facts=SimpleNamespace(prompt_id=entry.prompt_id), finished=finished)


def test_a_line_wins_over_the_defaults_also_where_it_says_nothing_or_zero():
    first, second = made("A. --w 64 --h 48 --f 5 --d 0 --s 4 --l 0 --n \nB.")
    assert first == Entry(1, "A.", "", 64, 48, 5, 0, 4, 0.0)
    assert second == Entry(2, "B.", "blurry", 832, 480, 81, 8, 20, 3.5)


def test_each_prompt_without_a_seed_gets_the_first_one_plus_its_place():
    assert [entry.seed for entry in made("A.\nB. --d 3\nC.")] == [7, 3, 9]
    assert [entry.seed for entry in made("A.\nB.", seed=2**64 - 1)] == [2**64 - 1, 0]


@pytest.mark.parametrize(("option", "told"), [
    ("--w 850", "expected a width that is a multiple of 16, found 850; take 848"),
    ("--h 4", "expected a height that is a multiple of 16, found 4; take 16"),
    ("--f 80", "expected frames of 4n + 1, as 33 or 81, found 80; take 81"), ("--f 2", "found 2; take 1")])
def test_a_size_that_wan_has_not_is_refused_with_its_line(option, told):
    with pytest.raises(RecipeError, match=r"^a.txt: line 3: .*" + told.replace("+", r"\+")):
        made(f"\nA.\nB. {option}")


def test_a_wrong_default_is_refused_too():
    with pytest.raises(RecipeError, match=r"^a.txt: line 1: expected frames"):
        made("A.", frames=32)


def test_tokens_are_those_of_wans_own_code():
    assert [entry.tokens for entry in made("A. --w 1280 --h 720\nB.")] == [75600, 32760]   # Wan2.2, generate.py: its seq_len


def test_tokens_are_told_of_a_14b_model_and_of_the_5b_where_it_takes_the_size():
    assert costs(made("A. --w 64 --h 64 --f 5")) == "32 tokens a forward pass of a 14B model, 8 of the 5B"
    # Wan2.2, textimage2video.py: VAE stride (4, 16, 16), patch (1, 2, 2): 21 * 22 * 40 of 1280 x 704 x 81
    assert made("A. --w 1280 --h 704")[0].tokens_5b == 18480
    assert costs(made("A. --w 64 --h 64 --f 5\nB. --w 1280 --h 704\nC. --w 1280 --h 720")) == (
        "32 to 75600 tokens a forward pass of a 14B model, 8 to 18480 of the 5B")
    assert costs(made("C. --w 1280 --h 720")) == "75600 tokens a forward pass of a 14B model"


def test_prompts_that_are_one_run_are_told():
    assert repeated(made("A.\nA.\nB.")) == []      # each has its own seed
    assert [line[:40] for line in repeated(made("A. --d 1\nB. --d 1\nA. --d 1\nB. --d 1 \nC.\nA. --d 1"))] == [
        "prompts 1, 3 and 6 are one run, seed and", "prompts 2 and 4 are one run, seed and al"]


def test_sizes_that_only_the_14b_models_take_are_named():
    assert odd_for_5b(made("A. --w 1280 --h 720\nB. --w 1280 --h 704\nC. --w 848")) == [1, 3]


@pytest.mark.parametrize(("width", "height", "frames", "cheap"), [
    (832, 480, 81, (480, 288, 33)), (480, 832, 81, (288, 480, 33)), (1280, 720, 81, (480, 256, 33)), (64, 64, 5, (64, 64, 5)),
    (480, 272, 33, (480, 272, 33)), (1280, 720, 17, (480, 256, 17)), (16, 16384, 5, (16, 11552, 5)), (32, 16384, 5, (32, 8160, 5))])
def test_low_cost_keeps_the_shape_and_never_enlarges(width, height, frames, cheap):
    entry, = made("A.", LOW_COST, width=width, height=height, frames=frames)
    assert (entry.width, entry.height, entry.frames) == cheap
    assert (entry.steps, entry.seed, entry.cfg) == (20, 7, 3.5)


@given(st.integers(1, 128), st.integers(1, 128), st.integers(0, 60))
def test_low_cost_is_a_size_of_wan_with_no_more_tokens(width, height, frames):
    entry = Entry(1, "A", "", width * 16, height * 16, frames * 4 + 1, 0, 20, 1.0)
    cheap = low_cost(entry)
    assert cheap.width % 16 == cheap.height % 16 == 0 and cheap.frames % 4 == 1
    assert cheap.tokens <= entry.tokens and low_cost(cheap).tokens <= cheap.tokens
    # each side is rounded by up to 16 pixels, a side of one token by more
    assert cheap.width * cheap.height <= (480 * 272) * 1.5 or min(cheap.width, cheap.height) == 32


@pytest.mark.parametrize("change", [{"prompt": "B."}, {"negative": "dull"}, {"width": 848}, {"height": 496}, {"frames": 77},
                                    {"seed": 8}, {"steps": 21}, {"cfg": 3.6}, {"image_digest": "ab"}])
def test_a_run_is_known_by_all_that_makes_its_result(change):
    entry, = made("A.")
    assert replace(entry, **change).prompt_id != entry.prompt_id


def test_a_run_is_the_same_at_another_place_under_another_image_name_and_with_a_whole_number_as_cfg():
    entry = replace(made("A. --l 4")[0], image_digest="ab")
    assert replace(entry, place=9, image="other.png", cfg=4).prompt_id == entry.prompt_id


def test_a_prompt_is_done_when_both_experts_finished_it():
    a, b, c, d = made("A.\nB.\nC.\nD.")
    runs = [run(a, "high_noise"), run(a, "low_noise"), run(b, "high_noise"), run(c, "high_noise"),
            run(c, "low_noise", finished=False), run(d, "low_noise")]
    assert done(runs) == {a.prompt_id}
    assert done(runs, ("high_noise",)) == {a.prompt_id, b.prompt_id, c.prompt_id}
    assert done([]) == set()


def test_a_model_of_one_file_has_no_other_expert_to_wait_for():
    a, b = made("A.\nB.")
    assert done([run(a, "model"), run(b, "model", finished=False)]) == {a.prompt_id}


def test_each_queue_takes_the_next_ones_that_are_not_done():
    a, b, c, d, e = found = made("A.\nB.\nC.\nD.\nE.")
    assert choose(found, 1, 0, set()) == (found, 0)
    assert choose(found, 1, 2, set()) == ([a, b], 0)
    assert choose(found, 1, 2, {a.prompt_id, b.prompt_id}) == ([c, d], 2)
    assert choose(found, 3, 2, {a.prompt_id, d.prompt_id}) == ([c, e], 1)
    assert choose(found, 1, 2, {entry.prompt_id for entry in found}) == ([], 5)
    with pytest.raises(RecipeError, match="first: expected 1 to 5, the number of prompts, found 6"):
        choose(found, 6, 0, set())


def test_the_built_in_list_is_32_different_prompts_of_5_to_90_words_without_options():
    found = parse(BUILT_IN, "built-in")
    assert {line.prompt for line in found.lines} == set(PROMPTS) and len(found.lines) == len(set(PROMPTS)) == 32
    assert not found.notices and all(line.kept == () and line.width is None for line in found.lines)
    lengths = [len(prompt.split()) for prompt in PROMPTS if prompt.isascii()]
    assert (min(lengths), max(lengths), len(lengths)) == (5, 90, 28)


def test_any_eight_of_the_built_in_list_in_a_row_are_short_and_long():
    lengths = [len(line.prompt) for line in parse(BUILT_IN, "built-in").lines]
    middle = sorted(lengths)[16]
    for start in range(25):
        assert min(lengths[start:start + 8]) < middle < max(lengths[start:start + 8])
