"""Prompt files in musubi-tuner's form. The examples are those of its documents, docs/wan.md and docs/wan_1f.md."""
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.calibration.prompt_file import MOST_SEED, PromptLine, parse, read
from wan22_master.engine.errors import RecipeError

FLAGS = {"width": "w", "height": "h", "frames": "f", "seed": "d", "steps": "s", "cfg": "l", "negative": "n", "image": "i"}
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="-#\ufeff"), min_size=1, max_size=20).map(
    str.strip).filter(bool)


def only(text: str) -> PromptLine:
    found, = parse(text, "a.txt").lines
    return found


def written(line: PromptLine) -> str:
    """A line as a person would write it."""
    options = [f" --{flag} {value}" for name, flag in FLAGS.items() if (value := getattr(line, name)) is not None]
    return line.prompt + "".join([*options, *(f" --{flag} {value}" for flag, value in line.kept)])


def test_a_line_is_a_prompt_and_what_differs_from_the_defaults():
    assert only("A cat walks. --w 832 --h 480 --f 81 --d 42 --s 20 --n low quality, blurry --l 5.5 --i path/to/my cat.png") == (
        PromptLine(1, "A cat walks.", "low quality, blurry", 832, 480, 81, 42, 20, 5.5, "path/to/my cat.png"))
    assert only("A cat walks.") == PromptLine(1, "A cat walks.")
    assert only("A cat  --n  low quality  --w  64 ") == PromptLine(1, "A cat", "low quality", 64)


def test_comments_and_blank_lines_are_no_prompts_and_numbers_count_them():
    found = parse("# first\n\n  \t \nA cat.\n  # a comment too\n#A dog.\n A bird. \n", "a.txt")
    assert [(line.number, line.prompt) for line in found.lines] == [(4, "A cat."), (7, "A bird.")]
    assert parse("", "a.txt").lines == ()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_any_line_end_and_a_byte_order_mark_read_alike(tmp_path, end, mark):
    path = tmp_path / "list.txt"
    path.write_bytes(mark + f"A cat. --w 64{end}一只猫 --n 模糊{end}".encode())
    assert read(str(path)).lines == (PromptLine(1, "A cat.", width=64), PromptLine(2, "一只猫", "模糊"))


def test_a_comment_behind_a_byte_order_mark_stays_a_comment():
    assert parse("\ufeff# list\nA cat.", "a.txt").lines == (PromptLine(2, "A cat."),)


def test_only_line_ends_that_python_reads_end_a_line():
    assert only("A cat\x0bwalks\u2028on.").prompt == "A cat\x0bwalks\u2028on."


def test_an_option_given_twice_counts_as_last_given_and_l_and_g_are_one():
    found = parse("A cat. --d 1111 --w 64 --d 1234 --l 6 --g 1", "a.txt")
    assert (found.lines[0].seed, found.lines[0].cfg) == (1234, 1.0)
    assert found.notices == ("a.txt: line 1: --d is given 2 times, the last one counts",
                             "a.txt: line 1: --l or --g is given 2 times, the last one counts")


def test_options_without_use_and_unknown_ones_are_kept_in_order_and_told():
    found = parse("A girl. --i a.png --ci b.png --ci c.png --fs 7 --cn walk.mp4 --zoom\nB. --ci d.png --W 64", "a.txt")
    assert found.lines[0].kept == (("ci", "b.png"), ("ci", "c.png"), ("fs", "7"), ("cn", "walk.mp4"), ("zoom", ""))
    assert found.lines[1].kept == (("ci", "d.png"), ("W", "64"))
    assert found.lines[1].width is None            # its options are lower case
    assert found.notices == (
        "a.txt: line 1 and 2 more: --ci (control image) is kept, and not used: b.png",
        "a.txt: line 1: --fs (flow shift) is kept, and not used: 7",
        "a.txt: line 1: --cn (control video) is kept, and not used: walk.mp4",
        "a.txt: line 1: --zoom (unknown) is kept, and not used",
        "a.txt: line 2: --W (unknown) is kept, and not used: 64")


def test_a_word_for_an_option_is_told_its_letter_and_the_prompt_stays_as_it_is():
    text = "A fox. --seed 5 --STEPS 4 --width=64 --height 48 --cfg 2 --zoom 1"
    found = parse(text, "a.txt")
    assert [notice.partition(" is kept")[0] for notice in found.notices] == [
        f"a.txt: line 1: --{said}" for said in ("seed (unknown: seed is --d)", "STEPS (unknown: steps is --s)",
                                                "width=64 (unknown: width is --w)", "height (unknown: height is --h)",
                                                "cfg (unknown: cfg is --l)", "zoom (unknown)")]
    assert (found.lines[0].prompt, found.lines[0].seed, found.lines[0].width) == ("A fox.", None, None)


def test_text_behind_a_lone_dash_pair_is_told_as_it_is_no_part_of_the_prompt():
    found = parse("A fox -- quick and red. --w 64 -- ", "a.txt")
    assert (found.lines[0].prompt, found.lines[0].kept) == ("A fox", (("", "quick and red."),))
    assert "text behind a -- that stands alone" in found.notices[0] and "quick and red." in found.notices[0]


def test_an_option_that_is_stuck_to_a_word_is_text_and_told():
    found = parse("A fox.--w 64 --n dull\t--h 64\nA well--known fox.", "a.txt")
    assert (found.lines[0].prompt, found.lines[0].width, found.lines[0].negative) == ("A fox.--w 64", None, "dull\t--h 64")
    assert [notice.partition(": ")[2].partition(" is text")[0] for notice in found.notices] == ["line 1: .--w", "line 1: --h"]


@pytest.mark.parametrize(("line", "told"), [
    ("A. --w wide", "--w: expected a whole number as width, found 'wide'"),
    ("A. --w 832.0", "--w: expected a whole number as width"),
    ("A. --w", "--w: expected a whole number as width, found ''"),
    ("A. --h 0", "--h: expected height of 1 to 16384, found 0"),
    ("A. --f 99999", "--f: expected frames of 1 to 16384, found 99999"),
    ("A. --d -1", "--d: expected seed of 0 to 18446744073709551615, found -1"),
    ("A. --s 0", "--s: expected steps of 1 to 10000, found 0"),
    ("A. --l strong", "--l: expected cfg of 0 to 100, found 'strong'"),
    ("A. --g nan", "--g: expected cfg of 0 to 100"),
    ("A. --l inf", "--l: expected cfg of 0 to 100"),
    ("--w 64 --h 64", "expected a prompt before its options, found '--w 64'"),
    ("-----", "expected a prompt before its options, found '-----'")])
def test_a_wrong_line_is_refused_with_file_line_and_option(line, told):
    with pytest.raises(RecipeError) as error:
        parse(f"# list\nfirst\n{line}", "a.txt")
    assert str(error.value).startswith(f"a.txt: line 3: {told}")


def test_a_file_that_is_not_utf_8_or_not_there_is_refused_by_name(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("A cat.\nein Kätzchen\n\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"^list.txt: line 2: expected UTF-8, found byte 0xe4"):
        read(str(path))
    with pytest.raises(RecipeError, match=r"^none.txt: expected a text file, but it cannot be read"):
        read(str(tmp_path / "none.txt"))
    path.write_bytes(b"x" * ((16 << 20) + 1))
    with pytest.raises(RecipeError, match="up to 16 MiB"):
        read(str(path))


SIDES, OPTIONAL = st.integers(1, 16384), st.none()


@given(st.builds(PromptLine, number=st.just(1), prompt=WORDS, negative=OPTIONAL | WORDS, width=OPTIONAL | SIDES,
                 height=OPTIONAL | SIDES, frames=OPTIONAL | SIDES, seed=OPTIONAL | st.integers(0, MOST_SEED),
                 steps=OPTIONAL | st.integers(1, 10000), cfg=OPTIONAL | st.floats(0, 100), image=OPTIONAL | WORDS,
                 kept=st.lists(st.tuples(st.sampled_from(["cn", "fs", "ci", "zoom"]), WORDS), max_size=3).map(tuple)))
def test_what_is_written_is_read_again(line):
    assert only(written(line)) == line
