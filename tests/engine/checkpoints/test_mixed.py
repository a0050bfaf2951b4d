"""Checkpoints mixed into a base: every method against plain float64 torch; what does not fit stays and is told."""
import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine.bands import split
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.checkpoints import open_mixed
from wan22_master.engine.errors import RecipeError, SourceError
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.recipes import embedded
from wan22_master.engine.recipes.recipe_parts import Mix
from wan22_master.tests.engine import tiny

KEY, WIDE = "blocks.1.ffn.0.weight", 700
METHODS = ["weighted_sum", "add_difference", "slerp", "ties", "dare"]


def write(folder, **changes):
    """Three checkpoints; changes: key -> tensor in the last one (None: left out)."""
    models = [tiny.base(seed, ffn=WIDE) for seed in (0, 1, 2)]
    models[2] = {key: tensor for key, tensor in (models[2] | changes).items() if tensor is not None}
    return [tiny.save(folder / f"{name}.safetensors", model) for name, model in zip("abc", models, strict=True)], models


def mix_of(method, paths, **more):
    return Mix(method, {"model": tuple(paths[1:3] if method in ("add_difference", "ties", "dare") else paths[2:])}, **more)


def expected(method, models, key, s, density=1.0, kept=None):
    """Plain float64 torch."""
    a, b, c = (model[key].double() for model in models)
    if method == "weighted_sum":
        return a + s * (c - a)
    if method == "slerp":
        angle = torch.acos((a.flatten() @ c.flatten()) / (a.norm() * c.norm()))
        return torch.sin((1 - s) * angle) / torch.sin(angle) * a + torch.sin(s * angle) / torch.sin(angle) * c
    difference = b - c
    if method == "ties":
        keep = torch.zeros(difference.numel(), dtype=torch.bool)
        keep[difference.abs().flatten().topk(int(density * difference.numel())).indices] = True
        difference = difference * keep.view(a.shape)
    if method == "dare":
        difference = difference * kept / density
    return a + s * difference


def whole(source, key):
    """Read band by band, out of order."""
    parts = {rows: source.read(key, rows) for rows in reversed(split(source.spec(key).shape))}
    return torch.cat([parts[rows] for rows in sorted(parts)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("key", [KEY, "patch_embedding.weight", "blocks.0.modulation", "blocks.0.norm3.bias"])
def test_each_method_is_what_its_formula_says(tmp_path, method, key):
    paths, models = write(tmp_path)
    with open_mixed(open_source(paths[0]), mix_of(method, paths, strength={"model": 0.3}), "model", allow_lossy=False) as source:
        found = whole(source, key).double()
    wanted = expected(method, models, key, 0.3, kept=1.0)
    assert (found - wanted).norm() <= 3e-7 * wanted.norm()                 # a few float32 operations of 2^-24 each


@pytest.mark.parametrize("density", [0.0, 0.1, 0.37, 0.999])
def test_ties_keeps_exactly_the_largest_of_the_difference(tmp_path, density):
    paths, models = write(tmp_path)
    mix = mix_of("ties", paths, strength={"model": 1.0}, density=density)
    with open_mixed(open_source(paths[0]), mix, "model", allow_lossy=False) as source:
        found = whole(source, KEY)
    difference = models[1][KEY].float() - models[2][KEY].float()           # exact: both are bf16 of one size
    wanted = expected("ties", models, KEY, 1.0, density)
    changed = found != models[0][KEY].float()
    assert changed.sum() <= int(density * difference.numel())
    # elements of equal magnitude at the border may change places
    assert (found.double() - wanted).norm() <= 3e-7 * wanted.norm() + difference.abs().max() * 2
    assert found[changed].numel() >= 0.98 * int(density * difference.numel())           # float32 sums that did not move


def test_dare_keeps_a_seeded_share_and_makes_up_for_the_rest(tmp_path):
    paths, models = write(tmp_path)

    def read(seed):
        mix = mix_of("dare", paths, strength={"model": 1.0}, density=0.4, seed=seed)
        with open_mixed(open_source(paths[0]), mix, "model", allow_lossy=False) as source:
            return whole(source, KEY), source.read(KEY)

    (banded, at_once), (other, _) = read(1), read(2)
    assert torch.equal(banded, at_once) and not torch.equal(banded, other)
    kept = banded != models[0][KEY].float()
    assert abs(kept.double().mean() - 0.4) < 5 * (0.4 * 0.6 / kept.numel()) ** 0.5               # five standard errors
    wanted = expected("dare", models, KEY, 1.0, 0.4, kept.double())
    assert (banded.double() - wanted).norm() <= 3e-7 * wanted.norm()


def test_strengths_by_block_and_kind_decide_what_is_mixed(tmp_path):
    paths, models = write(tmp_path)
    mix = mix_of("weighted_sum", paths, strength={"model": 0.5}, scope={"0": 0.0, "ffn": 0.5})
    with open_mixed(open_source(paths[0]), mix, "model", allow_lossy=False) as source:
        assert torch.equal(whole(source, "blocks.0.ffn.0.weight"), models[0]["blocks.0.ffn.0.weight"].float())
        found = whole(source, KEY).double()
    assert (found - expected("weighted_sum", models, KEY, 0.25)).norm() <= 3e-7 * found.norm()


def test_what_is_missing_or_of_another_shape_stays_and_is_listed_with_its_share(tmp_path):
    paths, models = write(tmp_path, **{KEY: torch.randn(WIDE + 1, tiny.DIM).bfloat16(), "head.head.bias": None,
                                       "extra.weight": torch.zeros(3)})
    with open_mixed(open_source(paths[0]), mix_of("weighted_sum", paths), "model", allow_lossy=False) as source:
        assert torch.equal(source.read(KEY), models[0][KEY].float())
        said = "\n".join(source.notices())
    total = sum(tensor.numel() for tensor in models[0].values())
    share = models[0][KEY].numel() / total
    assert f"1 tensors ({share:.2%} of the weights) stay as they are, of another shape in c.safetensors" in said
    assert "not in c.safetensors: head.head.bias" in said and "c.safetensors: 1 tensors are not in a.safetensors" in said


def test_identity_names_all_checkpoints_and_what_is_done_to_them(tmp_path):
    paths, _ = write(tmp_path)

    def identity(**more):
        with open_mixed(open_source(paths[0]), mix_of("ties", paths, **more), "model", allow_lossy=False) as source:
            return source.identity()

    assert [file["name"] for file in identity()["files"]] == ["a.safetensors", "b.safetensors", "c.safetensors", "mix"]
    assert identity(density=0.5) != identity() != identity(strength={"model": 0.1})


BAKED = {name: letter * 64 for name, letter in (("of_a", "1"), ("of_b", "2"), ("of_both", "3"), ("of_c", "4"))}


def with_baked(folder, path, *names):
    """The same checkpoint, saved as one that was made with these LoRAs."""
    rows = [{"sha256": BAKED[name], "name": f"{name}.safetensors"} for name in names]
    told = {"wan22_master": json.dumps({"passes": [{"loras": rows}]}), "config": "{}"} if names else None
    return tiny.save(folder / "made" / f"{'_'.join(names) or 'bare'}.safetensors", load_file(path), told)


@pytest.mark.parametrize(("method", "strength", "expected"), [
    ("weighted_sum", 0.5, ["of_a", "of_b", "of_both"]), ("slerp", 0.5, ["of_a", "of_b", "of_both"]),
    ("add_difference", 0.5, ["of_a", "of_b"]), ("ties", 0.5, ["of_a", "of_b"]), ("dare", -0.5, ["of_a", "of_b"]),
    ("weighted_sum", 0.0, ["of_a"]),
])
def test_loras_that_another_checkpoint_brings_in_are_told(tmp_path, method, strength, expected):
    paths, _ = write(tmp_path)
    a, b, c = (with_baked(tmp_path, path, *names) for path, names in
               zip(paths, (["of_a"], ["of_b", "of_both"], ["of_both", "of_c"]), strict=True))
    others = (b, c) if method in ("add_difference", "ties", "dare") else (b,)
    mix = Mix(method, {"model": others}, strength={"model": strength})
    with open_mixed(open_source(a), mix, "model", allow_lossy=False) as source:
        assert embedded.baked(source.metadata) == {BAKED[name]: f"{name}.safetensors" for name in expected}
        assert source.metadata["config"] == "{}"


def test_a_lora_in_any_checkpoint_of_a_mix_is_not_merged_again_and_the_new_file_tells_it(tmp_path):
    paths, _ = write(tmp_path)
    lora = tiny.save(tmp_path / "lora.safetensors", tiny.lora(5, [KEY.removesuffix(".weight")], ffn=WIDE))
    tiny.go(tiny.recipe(tmp_path / "one", {"model": paths[1]}, [{"files": {"model": lora}}]), tmp_path / "r")
    [made] = [str(path) for path in (tmp_path / "one").glob("*.safetensors")]
    mix = {"method": "weighted_sum", "files": {"model": [made]}, "strength": {"model": 0.5}}
    wish = tiny.recipe(tmp_path / "two", {"model": paths[0]}, [{"files": {"model": lora}}], mix=mix)
    with pytest.raises(RecipeError, match=r"lora\.safetensors: is in the model base already, by its SHA-256"):
        plan_recipe(wish, tmp_path / "r")
    tiny.go(tiny.recipe(tmp_path / "two", {"model": paths[0]}, mix=mix), tmp_path / "r")
    [mixed] = (tmp_path / "two").glob("*.safetensors")
    with safe_open(mixed, "pt") as file:
        told = json.loads(file.metadata()["wan22_master"])
    digest = hashlib.sha256((tmp_path / "lora.safetensors").read_bytes()).hexdigest()
    assert told["before"] == [{"sha256": digest, "name": "lora.safetensors"}]


def test_a_mix_is_written_with_loras_on_top_and_rounded_once(tmp_path):
    paths, models = write(tmp_path)
    lora = tiny.lora(5, [KEY.removesuffix(".weight")], ffn=WIDE)
    path = tiny.save(tmp_path / "lora.safetensors", lora)
    wish = tiny.recipe(tmp_path / "out", {"model": paths[0]}, [{"files": {"model": path}}],
                       mix={"method": "add_difference", "files": {"model": paths[1:]}, "strength": {"model": 0.5}})
    tiny.go(wish, tmp_path / "reports")
    [name] = [name for name in tiny.files(tmp_path / "out") if name.endswith(".safetensors")]
    found = tiny.load(tmp_path / "out", name)
    wanted = expected("add_difference", models, KEY, 0.5) + tiny.delta64(lora, KEY.removesuffix(".weight"))
    assert (found[KEY] == wanted.float().bfloat16()).double().mean() > 0.999           # float32 sums beside a rounding border
    assert torch.equal(found["head.modulation"], expected("add_difference", models, "head.modulation", 0.5).float()) or \
        (found["head.modulation"].double() - expected("add_difference", models, "head.modulation", 0.5)).abs().max() < 1e-7


def test_a_checkpoint_that_is_no_model_is_refused_and_named(tmp_path):
    paths, _ = write(tmp_path)
    lora = tiny.save(tmp_path / "l.safetensors", tiny.lora(1))
    wish = tiny.recipe(tmp_path / "out", {"model": paths[0]}, mix={"method": "slerp", "files": {"model": [lora]}})
    with pytest.raises(SourceError, match=r"l.safetensors: expected a Wan diffusion model, found a LoRA"):
        plan_recipe(wish, tmp_path / "reports")
