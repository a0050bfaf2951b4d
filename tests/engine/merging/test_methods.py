"""What `auto` and `classic` become, as the recipe, the report and the published file say it."""

import json

import pytest
from safetensors import safe_open
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.merging.methods import protection, resolve, resolve_recipe
from wan22_master.engine.recipes.recipe import parse
from wan22_master.tests.engine import tiny


@pytest.mark.parametrize(
    ("asked", "distillation", "said", "insist", "method", "protected"),
    [
        ("auto", None, None, False, "addition", False),
        ("auto", "name", None, False, "addition", True),
        ("auto", "name", None, True, "addition", True),
        ("addition", "name", None, False, "addition", True),
        ("addition", "name", False, False, "addition", False),
        ("classic", None, None, False, "classic", False),
        ("classic", None, None, True, "classic", False),
        ("classic", "name", None, False, "addition", True),
        ("classic", "name", None, True, "classic", False),
        ("classic", "name", False, False, "classic", False),
        ("classic", None, True, True, "addition", True),
        ("adaptive", None, None, False, "adaptive", False),
        ("adaptive", "name", None, False, "addition", True),
        ("adaptive", "name", None, True, "adaptive", False),
    ],
)
def test_only_an_ungated_wish_for_a_gate_is_told(asked, distillation, said, insist, method, protected):
    why = protection(asked, distillation, said=said, insist=insist)
    found, notice = resolve(asked, why)
    assert (found, why is not None) == (method, protected)
    assert (notice is not None) == (asked in ("classic", "adaptive") and method == "addition")
    assert notice is None or (why in notice and "gate_distillation" in notice)


def asked(name="style", method="classic", own=None, **more) -> dict:
    entry = {"files": {"high_noise": f"/l/{name}_high.safetensors", "low_noise": f"/l/{name}_low.safetensors"}, "method": own}
    return {
        "version": 1,
        "title": "mix",
        "experts": {"high_noise": "/h", "low_noise": "/l"},
        "passes": [{"name": "P", "method": method, "loras": [entry], **more}],
    }


@pytest.mark.parametrize(
    ("method", "own", "wanted"),
    [
        ("classic", None, "classic"),
        ("classic", "addition", "addition"),
        ("addition", "classic", "classic"),
        ("auto", None, "addition"),
        ("classic", "auto", "addition"),
    ],
)
def test_a_loras_own_method_goes_before_that_of_its_pass(method, own, wanted):
    found, notices = resolve_recipe(parse(asked(method=method, own=own)), {})
    assert found.passes[0].loras[0].resolved == wanted and notices == []
    assert found.passes[0].loras[0].method == own and found.passes[0].method == method  # what was asked stays beside it


def test_evidence_on_one_half_is_for_both_and_is_told_without_folders():
    found, [notice] = resolve_recipe(parse(asked("x")), {"/l/x_low.safetensors": 'file name says "lightning"'})
    assert (found.passes[0].loras[0].resolved, found.passes[0].loras[0].protected) == ("addition", True)
    assert notice.startswith("P: x_high.safetensors + x_low.safetensors: ") and "lightning" in notice and "/l/" not in notice


def test_resolving_twice_changes_nothing():
    once, _ = resolve_recipe(parse(asked()), {})
    twice, _ = resolve_recipe(parse(once.to_json()), {})
    assert once.to_json() == twice.to_json()


@pytest.mark.parametrize("insist", [False, True])
def test_a_lightning_lora_is_added_unless_the_recipe_insists_and_all_that_is_written_says_so(tmp_path, insist):
    experts, style = tiny.write_pair(tmp_path / "in"), tiny.save(tmp_path / "loras" / "style.safetensors", tiny.lora(1))
    light = tiny.save(tmp_path / "loras" / "wan2.2_lightning_4steps.safetensors", tiny.lora(2))
    entries = [{"files": dict.fromkeys(tiny.PAIR, path)} for path in (style, light)]
    passes = [{"name": "P", "method": "classic", "gate_distillation": insist, "loras": entries}]
    wish, wanted = tiny.recipe(tmp_path / "out", experts, passes=passes), ["classic", "classic" if insist else "addition"]
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert [lora["resolved"] for lora in plan.recipe.to_json()["passes"][0]["loras"]] == wanted
        assert len([notice for notice in plan.notices if "lightning" in notice]) == (0 if insist else 1)
    report = tiny.go(wish, tmp_path / "r")
    for expert in report["experts"]:
        assert [entry["method"] for entry in expert["ledger"]] == wanted
        assert [entry["gates"] is not None for entry in expert["ledger"]] == [method == "classic" for method in wanted]
    assert [lora["resolved"] for lora in report["recipe"]["passes"][0]["loras"]] == wanted
    with safe_open(tmp_path / "out" / "mix_high_bf16.safetensors", framework="pt") as file:
        told = json.loads(file.metadata()["wan22_master"])["passes"][0]["loras"]
    assert [lora["method"] for lora in told] == wanted


def test_what_auto_became_stays_when_the_recipe_comes_back(monkeypatch):
    first, _ = resolve_recipe(parse(asked(method="auto")), {})
    later = ("classic", None)                                                            # a later version's choice
    monkeypatch.setattr("wan22_master.engine.merging.methods.resolve", lambda *a, **k: later)
    again, _ = resolve_recipe(first, {})
    assert [lora.resolved for each in again.passes for lora in each.loras] == ["addition"]
