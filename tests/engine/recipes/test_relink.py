"""Files of a recipe, found again: a tiny folder of LoRAs, each of its own content, in every way a recipe may name them."""

import hashlib
import os

import pytest
from wan22_master.engine.errors import RecipeError, Stopped
from wan22_master.engine.hashes import HashCache
from wan22_master.engine.recipes import relink
from wan22_master.engine.recipes.library import Library, list_folders
from wan22_master.engine.recipes.recipe import parse

CONTENT = {
    "style.safetensors": b"one",
    "wan/style.safetensors": b"two",
    "wan/motion.safetensors": b"three",
    "Lighting.SAFETENSORS": b"four",
    "a/copy.safetensors": b"same",
    "b/copy.safetensors": b"same",
}


def digest(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    for name, content in CONTENT.items():
        path = tmp_path / "loras" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "loras"


@pytest.fixture
def there(folder):
    return Library(list_folders([folder]))


def find(library, asked, sha256=None):
    link = relink.find(asked, sha256, library)
    return link.state, link.path and os.path.relpath(link.path, os.path.dirname(library.files["style.safetensors"])).replace(
        "\\", "/"
    )


@pytest.mark.parametrize(
    ("asked", "state", "path"),
    [
        ("style.safetensors", "found", "style.safetensors"),
        ("wan/style.safetensors", "found", "wan/style.safetensors"),
        ("wan\\style.safetensors", "found", "wan/style.safetensors"),
        ("./style.safetensors", "found", "style.safetensors"),
        ("loras/wan/style.safetensors", "moved", "wan/style.safetensors"),
        ("C:\\x\\wan\\style.safetensors", "moved", "wan/style.safetensors"),
        ("motion.safetensors", "moved", "wan/motion.safetensors"),
        ("elsewhere/motion.safetensors", "moved", "wan/motion.safetensors"),
        ("MOTION.safetensors", "moved", "wan/motion.safetensors"),
        ("lighting.safetensors", "moved", "Lighting.SAFETENSORS"),
        ("elsewhere/style.safetensors", "ambiguous", None),
        ("STYLE.safetensors", "ambiguous", None),
        ("copy.safetensors", "moved", "a/copy.safetensors"),
        ("mo.safetensors", "missing", None),
        ("tion.safetensors", "missing", None),
        ("../loras/style", "missing", None),
        ("n/style.safetensors", "ambiguous", None),
    ],
)
def test_a_file_is_found_by_path_name_and_case_in_this_order(there, asked, state, path):
    assert find(there, asked) == (state, path)


def test_an_ambiguous_name_lists_its_candidates_and_is_never_chosen(there):
    link = relink.find("elsewhere/style.safetensors", None, there)
    assert link.candidates == ("style.safetensors", "wan/style.safetensors") and link.path is None
    assert relink.table([link])[1:] == ["  style.safetensors", "  wan/style.safetensors"]


def test_a_hash_decides_between_equal_names(there):
    assert find(there, "elsewhere/style.safetensors", digest(b"two")) == ("moved", "wan/style.safetensors")
    assert find(there, "style.safetensors", digest(b"two")) == ("moved", "wan/style.safetensors")


def test_a_file_of_the_name_and_another_content_is_not_taken(there):
    link = relink.find("style.safetensors", digest(b"other"), there)
    assert link.state == "missing" and "another content" in link.how and link.path is None


def test_a_renamed_file_is_found_by_a_known_hash_and_read_only_when_asked(folder):
    read = []
    for search, state in ((False, "missing"), (True, "moved")):
        library = Library(list_folders([folder]), search=search, tick=lambda: read.append(1))
        assert find(library, "gone.safetensors", digest(b"three")) == (state, "wan/motion.safetensors" if search else None)
        assert bool(read) == search
    (folder / "wan" / "motion.safetensors.sha256").write_text(digest(b"three"))
    assert find(Library(list_folders([folder])), "sha256:" + digest(b"three")) == ("moved", "wan/motion.safetensors")


def test_a_search_can_be_stopped_and_remembers(folder, tmp_path):
    def stop():
        raise Stopped("enough")

    cache = HashCache(tmp_path / "reports")
    with pytest.raises(Stopped):
        relink.find("sha256:" + digest(b"x"), None, Library(list_folders([folder]), cache, search=True, tick=stop))
    assert find(Library(list_folders([folder]), cache, search=True), "sha256:" + digest(b"four"))[0] == "moved"
    assert find(Library(list_folders([folder]), HashCache(tmp_path / "reports")), "sha256:" + digest(b"four"))[0] == "moved"


@pytest.mark.parametrize("sha256", ["x", "A" * 64, "0" * 63])
def test_a_hash_that_is_none_is_an_error(there, sha256):
    with pytest.raises(RecipeError, match="64 hexadecimal digits"):
        relink.find("style.safetensors", sha256, there)


def test_a_path_outside_is_used_only_where_that_is_allowed(folder, tmp_path):
    outside = tmp_path / "secret.safetensors"
    outside.write_bytes(b"x")
    files = list_folders([folder])
    assert find(Library(files), str(outside))[0] == "missing"
    assert find(Library(files), str(folder / "style.safetensors")) == ("found", "style.safetensors")
    assert find(Library(files), str(folder / ".." / "secret.safetensors"))[0] == "missing"
    assert relink.find(str(outside), None, Library(files, outside=True)).path == str(outside)
    assert relink.find("secret.safetensors", None, Library(files, folder=str(tmp_path), outside=True)).state == "found"


def test_a_recipe_comes_back_with_paths_and_what_is_missing_stays_and_is_told(there, folder):
    loras = [
        {"files": {"high_noise": "motion.safetensors", "low_noise": "gone.safetensors"}},
        {"files": {"low_noise": "motion.safetensors"}},
        {"files": {"low_noise": "STYLE.safetensors"}},
    ]
    recipe, links = relink.relink(
        parse({"version": 1, "title": "t", "experts": {"high_noise": "h", "low_noise": "l"}, "passes": [{"loras": loras}]}), there
    )
    first, second, third = recipe.passes[0].loras
    assert first.files == {"high_noise": str(folder / "wan" / "motion.safetensors"), "low_noise": "gone.safetensors"}
    assert second.files["low_noise"] == first.files["high_noise"] and third.files["low_noise"] == "STYLE.safetensors"
    assert [link.state for link in links] == ["moved", "missing", "ambiguous"]
    with pytest.raises(RecipeError, match=r"2 of 3 LoRAs cannot be linked: missing: gone\.safetensors") as told:
        relink.check(links)
    assert "ambiguous: STYLE.safetensors" in str(told.value) and "without" in str(told.value)
    relink.check(links[:1])


def test_of_two_folders_the_first_wins_as_in_comfyui(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.safetensors").write_bytes(name.encode())
        (tmp_path / name / "a.txt").write_bytes(b"")
    assert list_folders([tmp_path / "two", tmp_path / "one"]) == {"a.safetensors": str(tmp_path / "two" / "a.safetensors")}
