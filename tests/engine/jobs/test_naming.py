"""Names: two halves that differ in one token and lead to each other, for every preset and for patterns of one's own."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.engine.bases.roles import partner, role_of
from wan22_master.engine.errors import PlanError
from wan22_master.engine.jobs.naming import FORMAT_TOKENS, PRESETS, check_names, name_file

VALUES = {"title": "my mix", "version": "1.0", "task": "i2v", "size": "14B", "format": "float8_e4m3fn"}
PAIR = ("high_noise", "low_noise")
PATTERNS = [*PRESETS, "%title%_%task%_%expert%_%format%", "%expert%", "wan-%expert%.%title%"]


def halves(pattern, values=None):
    return {role: name_file(pattern, VALUES | (values or {}), role) for role in PAIR}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("form", ["float8_e4m3fn", "bf16", "fp16", "fp32"])
@pytest.mark.parametrize("version", ["", "1.0"])
def test_the_halves_differ_in_one_token_and_lead_to_each_other(pattern, form, version):
    names = halves(pattern, {"format": form, "version": version})
    check_names(names)
    # `high_noise` and `HighNoise` as one word each
    tokens = [re.findall(r"high_?noise|low_?noise|[A-Za-z0-9]+|[^A-Za-z0-9]", name, re.IGNORECASE) for name in names.values()]
    differing = [pair for pair in zip(*tokens, strict=True) if pair[0] != pair[1]]
    assert len(differing) == 1
    for role, other in (PAIR, PAIR[::-1]):
        assert role_of(names[role], {}, exists=lambda _: False).role == role
        assert partner(names[role], exists=names[other].__eq__) == names[other]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("comfy", ["my mix_1.0_i2v_high_noise_14B_fp8_scaled.safetensors", "my mix_1.0_i2v_low_noise_14B_fp8_scaled.safetensors"]),
        (
            "quantstack",
            ["my mix-1.0-I2V-14B-HighNoise-FP8_SCALED.safetensors", "my mix-1.0-I2V-14B-LowNoise-FP8_SCALED.safetensors"],
        ),
        ("plain", ["my mix_high_fp8_scaled.safetensors", "my mix_low_fp8_scaled.safetensors"]),
    ],
)
def test_presets_spell_names_as_published_files_do(pattern, wanted):
    assert list(halves(pattern).values()) == wanted


def test_a_name_of_nothing_but_an_ending_is_refused():
    for pattern in ("%expert%", "%expert%_%version%", "-"):
        with pytest.raises(PlanError, match="nothing is left of it for this model; put %title% into it"):
            name_file(pattern, VALUES | {"version": ""}, "model")


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if "title" in PRESETS.get(pattern, (pattern,))[0]])
def test_a_model_that_stands_alone_has_no_word_of_an_expert(pattern):
    name = name_file(pattern, VALUES, "model")
    assert not re.search("high|low|expert|noise|%|model", name, re.IGNORECASE)
    assert role_of(name, {}).role is None and not re.search(r"__|--|_-|[-_ ]\.|^[-_. ]", name)


@pytest.mark.parametrize("title", ["HighNoise mix", "high", "my-low-mix", "LOW", "i2vHigh", "wan High Noise"])
def test_a_title_that_speaks_of_high_or_low_is_refused(title):
    with pytest.raises(PlanError, match="no loader can tell which is which; take words like high and low out of the title"):
        check_names(halves("plain", {"title": title}))


@pytest.mark.parametrize("pattern", ["comfy", "quantstack"])
def test_a_title_that_speaks_of_high_noise_is_refused_by_every_preset_and_one_of_high_where_it_confuses(pattern):
    for title in ("HighNoise mix", "wan High Noise", "low_noise"):
        with pytest.raises(PlanError, match="no loader can tell"):
            check_names(halves(pattern, {"title": title}))
    names = halves(pattern, {"title": "high"})  # `high` beside `low_noise` is about something else
    check_names(names)
    assert [role_of(name, {}).role for name in names.values()] == list(PAIR)


@pytest.mark.parametrize("title", ["slow flow", "highlight", "low_rank mix", "Yellow"])
def test_a_title_that_only_contains_the_letters_is_taken(title):
    names = halves("comfy", {"title": title})
    check_names(names)
    assert partner(names["high_noise"], exists=names["low_noise"].__eq__) == names["low_noise"]


@pytest.mark.parametrize(
    "names", [{}, {"model": "a.safetensors"}, {"high_noise": "high.safetensors"}, {"low_noise": "mix.safetensors"}]
)
def test_there_is_nothing_to_pair_without_both_halves(names):
    assert check_names(names) is None


@pytest.mark.parametrize(
    ("high", "low"), [("a_high", "b_low"), ("mix_low", "mix_high"), ("mix", "mix_low"), ("mix_high", "mix"), ("a_high", "a_LOW")]
)
def test_halves_that_do_not_lead_to_each_other_are_refused(high, low):
    with pytest.raises(PlanError, match="no loader can tell which is which"):
        check_names({"high_noise": f"{high}.safetensors", "low_noise": f"{low}.safetensors"})


def test_an_unknown_token_is_named_with_those_that_exist():
    with pytest.raises(PlanError, match=r"%titel% is not known; use %title% %version% %task% %size% %expert% %format%"):
        name_file("%titel%_%expert%", VALUES, "high_noise")


def test_a_pair_needs_the_experts_token():
    with pytest.raises(PlanError, match="put %expert% into it"):
        name_file("%title%_%format%", VALUES, "low_noise")
    assert name_file("%title%_%format%", VALUES, "model") == "my mix_fp8_scaled.safetensors"


@pytest.mark.parametrize("title", ["a/b", "a\\b", "a\0b", "a\nb", "x" * 201, "C:x", "what?"])
def test_a_title_that_no_folder_can_hold_is_refused(title):
    with pytest.raises(PlanError, match="file name"):
        name_file("plain", VALUES | {"title": title}, "high_noise")


def test_a_pattern_cannot_leave_the_folder():
    for pattern in ("../%title%_%expert%", "sub/%expert%", "..\\%expert%"):
        with pytest.raises(PlanError, match="file name"):
            name_file(pattern, VALUES, "high_noise")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12), st.sampled_from(sorted(PRESETS)), st.sampled_from(["", "2", "v1.1"]))
def test_whatever_the_title_the_names_pair_or_are_refused(title, pattern, version):
    try:
        names = halves(pattern, {"title": title, "version": version})
        check_names(names)
    except PlanError:
        return
    assert partner(names["high_noise"], exists=names["low_noise"].__eq__) == names["low_noise"] != names["high_noise"]
    assert all(name.endswith(".safetensors") and not set(name) & set('/\\<>:"|?*\0') for name in names.values())


def test_formats_without_a_published_spelling_keep_their_name():
    assert set(FORMAT_TOKENS) == {"float8_e4m3fn", "float8_e5m2", "int8_tensorwise"}
    for label, shown in (("bf16", "bf16"), ("nvfp4_balanced", "nvfp4_balanced"), ("float8_e4m3fn_b", "fp8_scaled_b"),
                         ("int8_tensorwise", "int8")):
        assert name_file("plain", VALUES | {"format": label}, "model") == f"my mix_{shown}.safetensors"
