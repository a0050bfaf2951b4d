"""The recipe in a finished file: read by the safetensors library, without secrets, and enough to make the same bytes again."""

import dataclasses
import hashlib
import json
import shutil
import typing
from pathlib import Path

import jsonschema
import pytest
from safetensors import safe_open
from wan22_master.engine.errors import HeaderError, RecipeError
from wan22_master.engine.recipes import embedded, recipe_parts, relink
from wan22_master.engine.recipes.library import Library, list_folders
from wan22_master.engine.recipes.recipe import Recipe, parse
from wan22_master.tests.engine import tiny

SECRET = "s3cr3t"
SCHEMA = json.loads((Path(embedded.__file__).parent / "recipe.schema.json").read_text())
FORMATS = ("bf16", {"format": "float8_e4m3fn", "activations": "16-bit"})


def told(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["wan22_master"])


def make(tmp_path, formats=FORMATS[:1], **save):
    """A pair, five LoRAs and three passes that differ by expert; returns the files that come of it."""
    loras = {}
    for number, name in enumerate(("lightning/a_high", "lightning/a_low", "b", "c", "zero"), 1):
        loras[name] = tiny.save(tmp_path / f"{SECRET}_loras" / f"{name}.safetensors", tiny.lora(number, alpha=2.0))
    both = dict.fromkeys(tiny.PAIR, loras["b"])
    passes = [
        {
            "name": f"{SECRET} one",
            "method": "classic",
            "global_factor": 0.75,
            "loras": [
                {"files": {"high_noise": loras["lightning/a_high"], "low_noise": loras["lightning/a_low"]}, "strength": "1.0;0.5"},
                {"files": both, "strength": {"high_noise": -0.25}},
            ],
        },
        {"name": "low only", "classic": {"novelty": 3.0}, "loras": [{"files": {"low_noise": loras["c"]}, "method": "classic"}]},
        {
            "name": "last",
            "loras": [
                {"files": dict.fromkeys(tiny.PAIR, loras["c"]), "strength": "0.5;0"},
                {"files": {"high_noise": loras["zero"]}, "strength": {"high_noise": 0.0}},
            ],
        },
    ]
    experts = tiny.write_pair(tmp_path / f"{SECRET}_bases")
    wish = tiny.recipe(
        tmp_path / "out",
        experts,
        passes=passes,
        formats=formats,
        title="Mix",
        title_version="3",
        date="2026-11-21",
        save=save,
        allow_twice=True,
    )
    tiny.go(wish, tmp_path / "reports")
    return sorted((tmp_path / "out").iterdir())


def again(tmp_path, path, *, search=False):
    """The path of what the recipe in a finished file makes, from the other places where things are now."""
    found = embedded.read(path)
    library = Library(list_folders([tmp_path / "moved"]), search=search)
    recipe, links = relink.relink(found.recipe, library)
    relink.check(links)
    experts = {role: str(tmp_path / "elsewhere" / Path(base).name) for role, base in recipe.experts.items()}
    recipe = dataclasses.replace(
        recipe, experts=experts, device="cpu", save=dataclasses.replace(recipe.save, folder=str(tmp_path / "anew"), name="plain")
    )
    tiny.go(recipe, tmp_path / "reports_anew")
    return tmp_path / "anew" / path.name


def move(tmp_path, *, rename=False):
    """Bases and LoRAs into other folders, the LoRAs under other names too."""
    shutil.move(tmp_path / f"{SECRET}_bases", tmp_path / "elsewhere")
    for number, path in enumerate(sorted((tmp_path / f"{SECRET}_loras").rglob("*.safetensors"))):
        target = tmp_path / "moved" / str(number) / (f"renamed{number}.safetensors" if rename else path.name)
        target.parent.mkdir(parents=True)
        shutil.move(path, target)


@pytest.mark.parametrize("names", [True, False])
def test_the_recipe_in_a_file_makes_the_same_bytes_again(tmp_path, names):
    files = make(tmp_path, FORMATS if names else FORMATS[:1], lora_names=names)
    assert len(files) == (4 if names else 2)
    move(tmp_path, rename=not names)
    for path in files:
        assert again(tmp_path, path, search=not names).read_bytes() == path.read_bytes(), path.name


LAYERS = tiny.linears()
MIXED = {
    "format": "nvfp4", "plan": "mix", "kept_dtype": "fp16", "activations": "16-bit", "search": "fast", "suffix": "b",
    "layers": {"high_noise": dict(zip(LAYERS, ["mxfp8", "float8_e4m3fn", "keep", "float8_e5m2"] * 2, strict=False)),
               "low_noise": {LAYERS[-1]: "keep", LAYERS[3]: "mxfp8"}},
    "full_precision": {"low_noise": [LAYERS[5]]}, "input_amax": {"high_noise": {LAYERS[1]: 3.7}, "low_noise": {LAYERS[8]: 12.5}},
}


@pytest.mark.parametrize("level", ["publish", "private"])
def test_the_recipe_of_a_plan_makes_the_same_bytes_again_with_its_own_experts_layers(tmp_path, level):
    files = make(tmp_path, [MIXED], metadata=level)
    high, low = (told(path)["recipe"]["outputs"] for path in files)
    for [output], role in ((high, "high_noise"), (low, "low_noise")):
        assert output["layers"] == {role: MIXED["layers"][role]} and output["input_amax"] == {role: MIXED["input_amax"][role]}
        jsonschema.validate(told(files[role == "low_noise"])["recipe"], SCHEMA)
    assert [path.name for path in files] == ["Mix_high_nvfp4_mix_b.safetensors", "Mix_low_nvfp4_mix_b.safetensors"]
    if level == "publish":
        move(tmp_path)
        for path in files:
            assert again(tmp_path, path).read_bytes() == path.read_bytes(), path.name


def test_the_private_recipe_still_has_its_paths_and_the_hashes(tmp_path):
    for path in make(tmp_path, metadata="private"):
        found, content = embedded.read(path), told(path)
        assert found.recipe.experts == {found.role: str(tmp_path / f"{SECRET}_bases" / f"tiny_{found.role}.safetensors")}
        first = found.recipe.passes[0].loras[0]
        lora = Path(first.files[found.role])
        assert lora.parts[-3:-1] == (f"{SECRET}_loras", "lightning") and first.sha256 == {found.role: sha256(lora)}
        assert found.recipe.passes[0].name == f"{SECRET} one" and content["recipe"]["save"]["folder"] == str(tmp_path / "out")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_embedded_is_our_format_for_this_expert_with_every_hash(tmp_path):
    for path in make(tmp_path, FORMATS):
        content = told(path)
        recipe, role = content["recipe"], content["expert"]
        jsonschema.validate(recipe, SCHEMA)
        assert embedded.read(path).recipe == parse(recipe) and recipe["experts"] == {role: f"tiny_{role}.safetensors"}
        assert recipe["outputs"] == [
            {
                "format": content["format"],
                "experts": [role],
                "activations": "16-bit" if content["format"] != "bf16" else "fast_uncalibrated",
            }
        ]
        assert [recipe[name] for name in ("title", "title_version", "date", "allow_twice")] == ["Mix", "3", "2026-11-21", True]
        is_high, loras = role == "high_noise", tmp_path / f"{SECRET}_loras"
        first, lone, last = [*recipe["passes"], *[{"loras": []}] * (3 - len(recipe["passes"]))]
        name = f"a_{'high' if is_high else 'low'}.safetensors"
        assert [lora.pop("protected", False) for lora in first["loras"]] == [True, False]
        assert first["loras"] == [
            {
                "files": {role: name},
                "strength": {role: 1.0 if is_high else 0.5},
                "method": "addition",
                "resolved": "addition",
                "sha256": {role: sha256(loras / "lightning" / name)},
            },
            {
                "files": {role: "b.safetensors"},
                "strength": {role: -0.25 if is_high else 1.0},
                "method": "classic",
                "resolved": "classic",
                "sha256": {role: sha256(loras / "b.safetensors")},
            },
        ]
        assert (first["global_factor"], first["classic"]["sensitivity_refine"], "adaptive" in first) == (0.75, 1.8, False)
        assert [each["files"][role] for each in lone["loras"]] == ([] if is_high else ["c.safetensors"])
        assert [each["strength"][role] for each in last["loras"]] == ([0.5] if is_high else [])
        assert is_high or (lone["classic"]["novelty"] == 3.0 and len(recipe["passes"]) == 2)


def test_a_method_does_not_change_with_the_name_of_a_moved_file(tmp_path):
    # as `lightning/a_high` it was added, though the pass asks for classic; as `a_high` alone nothing says that it must be
    [path] = [each for each in make(tmp_path) if "high_bf16" in each.name]
    move(tmp_path)
    assert told(again(tmp_path, path))["passes"][0]["loras"][0]["method"] == "addition"


@pytest.mark.parametrize("names", [True, False])
def test_no_secret_of_any_text_field_is_embedded(tmp_path, names):
    texts = {
        f"{kind.__name__}.{name}"
        for kind in (Recipe, recipe_parts.Pass, recipe_parts.LoraEntry, recipe_parts.Mix, recipe_parts.Output, recipe_parts.Save)
        for name, hint in typing.get_type_hints(kind).items()
        if "str" in str(hint)
    }
    choices = {
        "Recipe.compat",
        "Pass.method",
        "Pass.combine",
        "Pass.dense_mode",
        "LoraEntry.method",
        "LoraEntry.resolved",
        "Mix.method",
        "Output.format",
        "Output.activations",
        "Output.kept_dtype",
        "Output.search",
        "Output.int8_scaling",
        "Output.rounding",
        "Output.gguf_setting",
        "Save.order",
        "Save.metadata",
        "Save.on_exists",
        "Recipe.device",
    }
    roles = {"LoraEntry.strength", "LoraEntry.scope", "Pass.scope", "Mix.strength", "Mix.scope", "Output.experts"}
    layers = {"Output.layers", "Output.full_precision", "Output.input_amax", "Output.fp32_names"}  # names of a Wan model
    public = {"Recipe.title", "Recipe.title_version", "Recipe.date", "Output.plan", "Output.suffix", "Output.imatrix_sha256"}
    secret = {"Recipe.experts", "Pass.name", "LoraEntry.files", "LoraEntry.sha256", "Mix.files", "Save.folder", "Save.name",
              "Output.imatrix"}
    assert texts == choices | roles | layers | public | secret, (
        "a text field is new: decide whether a published file may hold it, and add it here"
    )
    folder = f"/home/{SECRET}"
    wish = parse(
        {
            "version": 1,
            "title": "t",
            "experts": {"model": f"{folder}/m.safetensors"},
            "passes": [{"name": SECRET, "loras": [{"files": {"model": f"{folder}/l.safetensors"}, "sha256": {"model": SECRET}}]}],
            "mix": {"method": "slerp", "files": {"model": [f"{folder}/other.safetensors"]}},
            "outputs": [{"format": "bf16", "imatrix": {"model": f"{folder}/weights.gguf"}}],
            "save": {"folder": folder, "name": SECRET, "lora_names": names},
        }
    )
    found = embedded.describe(wish, "model", "m.safetensors", "bf16", ["a" * 64])
    assert SECRET not in json.dumps(found) and "/home" not in json.dumps(found)
    assert found["outputs"][0]["imatrix"] == {"model": "weights.gguf"}
    assert found["mix"]["files"] == {"model": ["other.safetensors"]} and found["passes"][0]["loras"][0]["sha256"] == {
        "model": "a" * 64
    }
    assert ("l.safetensors" in json.dumps(found)) == names
    jsonschema.validate(found, SCHEMA)


def test_a_merged_base_hands_on_what_is_in_it(tmp_path):
    files, names = [], ("first", "second", "third")
    base = tiny.save(tmp_path / "m.safetensors", tiny.base())
    for number, name in enumerate(names):
        lora = tiny.save(tmp_path / f"{name}.safetensors", tiny.lora(number))
        wish = tiny.recipe(
            tmp_path / f"out{number}", {"model": base}, [{"files": {"model": lora}}], save={"lora_names": name != "third"}
        )
        tiny.go(wish, tmp_path / "r")
        [path] = (tmp_path / f"out{number}").iterdir()
        files.append(path)
        base = str(path)
    digests = [sha256(tmp_path / f"{name}.safetensors") for name in names]
    with safe_open(files[1], framework="pt") as file:
        assert embedded.baked(file.metadata()) == dict(
            zip(digests[1::-1], ["second.safetensors", "first.safetensors"], strict=True)
        )
    with safe_open(files[2], framework="pt") as file:
        assert embedded.baked(file.metadata()) == dict.fromkeys(digests, "")
    assert "before" not in told(files[0]) and b"first" not in files[2].read_bytes()[:100_000]


@pytest.mark.parametrize(
    "entry",
    [
        None,
        "{",
        "[]",
        "1",
        '{"passes": 1}',
        '{"passes": [1, {"loras": 3}, {"loras": [1, {"sha256": "x"}]}]}',
        '{"before": {"sha256": "x"}}',
        "[" * 100_000,
    ],
)
def test_an_entry_of_a_stranger_tells_nothing_is_baked(entry):
    assert embedded.baked({} if entry is None else {"wan22_master": entry}) == {}


def test_a_strangers_name_loses_its_folders():
    entry = json.dumps(
        {"before": [{"sha256": "a" * 64, "name": "/home/me/x.safetensors"}, {"sha256": "b" * 64, "name": "C:\\me\\y"}]}
    )
    assert embedded.baked({"wan22_master": entry}) == {"a" * 64: "x.safetensors", "b" * 64: "y"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (None, "found no recipe in its header"),
        ("{", "found text that is none"),
        ("{}", "for one expert"),
        ('{"expert": "model", "base": {"name": "m"}, "passes": []}', "the first version"),
        ('{"expert": "model", "base": {}, "recipe": {"version": 2}}', "update the pack"),
        ('{"expert": "vae", "base": {}, "recipe": {}}', "for one expert"),
    ],
)
def test_a_file_without_a_recipe_is_told_by_name(tmp_path, entry, said):
    path = tiny.save(tmp_path / "m.safetensors", tiny.lora(), None if entry is None else {"wan22_master": entry})
    with pytest.raises(RecipeError, match=said) as error:
        embedded.read(path)
    assert str(error.value).startswith("m.safetensors: ")


def test_a_file_saved_with_none_holds_none_and_a_text_file_is_no_model(tmp_path):
    [path, *_] = make(tmp_path, metadata="none")
    with pytest.raises(RecipeError, match="metadata none"):
        embedded.read(path)
    (tmp_path / "x.safetensors").write_text("{}")
    with pytest.raises(HeaderError):
        embedded.read(tmp_path / "x.safetensors")


OPTIONS = {
    "pass scope": {"pass": {"scope": {"ffn": 0.5, "0": 0.25}}},
    "LoRA scope": {"lora": {"scope": {"0-39": 0.5, "0": 2.0}}},
    "compat": {"compat": "comfyui", "lora": {"scope": {"ffn": 0.3}}},
    "normalize": {"normalize": True},
    "protected": {"pass": {"combine": "ties", "density": 0.3}, "lora": {"protected": True}},
    "unprotected": {"pass": {"combine": "ties", "density": 0.3}, "lora": {"protected": False}, "name": "lightx2v_4steps"},
    "rs_lora": {"lora": {"rs_lora": True}},
    "boundary": {"pass": {"combine": "ties", "density": 0.3}, "apart": True},
}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_option_that_changes_the_bytes_is_embedded(tmp_path, option):
    base = {"model": tiny.save(tmp_path / "m.safetensors", tiny.base())}
    names = (option.get("name", "l1"), "l2")
    loras = [{"files": {"model": tiny.save(tmp_path / "l" / f"{name}.safetensors", tiny.lora(n, alpha=2.0, size=2e-3))}}
             for n, name in enumerate(names, 1)]
    plain, one = {key: value for key, value in option.items() if key in ("compat", "normalize")}, loras[0] | option.get("lora", {})
    groups = [[one], [loras[1]]] if option.get("apart") else [[one, loras[1]]]
    passes = [{"loras": group, **option.get("pass", {})} for group in groups]
    without = [{"loras": loras, **{key: each for key, each in option.get("pass", {}).items() if key != "scope"}}]

    def made(folder, **wish):
        tiny.go(tiny.recipe(tmp_path / folder, base, **wish), tmp_path / f"r_{folder}")
        return tmp_path / folder / "mix_bf16.safetensors"

    path = made("out", passes=passes, **plain)
    recipe, links = relink.relink(embedded.read(path).recipe, Library(list_folders([tmp_path / "l"]), search=False))
    relink.check(links)
    save = dataclasses.replace(recipe.save, folder=str(tmp_path / "again"), name="plain")
    tiny.go(dataclasses.replace(recipe, experts=base, device="cpu", save=save), tmp_path / "r_again")
    assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    one, other = (tiny.load(each.parent, each.name) for each in (path, made("without", passes=without)))
    assert not all(tiny.same_bits(one[key], other[key]) for key in one)  # so that equal bytes say something


def test_a_sharded_checkpoint_of_a_mix_is_called_by_a_file_and_not_by_its_folder(tmp_path):
    tensors, folder = tiny.base(1), tmp_path / f"{SECRET}_folder"
    halves = [dict(list(tensors.items())[n::2]) for n in (0, 1)]
    for number, half in enumerate(halves, 1):
        tiny.save(folder / f"other-{number:05}-of-00002.safetensors", half)
    mix = {"method": "weighted_sum", "files": {"model": [str(folder)]}, "strength": {"model": 0.5}}
    base = {"model": tiny.save(tmp_path / "m.safetensors", tiny.base())}
    tiny.go(tiny.recipe(tmp_path / "out", base, mix=mix), tmp_path / "r")
    path = tmp_path / "out" / "mix_bf16.safetensors"
    assert told(path)["recipe"]["mix"]["files"] == {"model": ["other-00001-of-00002.safetensors"]}
    assert SECRET.encode() not in path.read_bytes()[:100_000]
