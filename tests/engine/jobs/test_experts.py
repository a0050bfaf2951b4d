"""What of a recipe concerns one expert, and how its ledger tells it."""
import pytest
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.tests.engine import tiny


@pytest.mark.parametrize("zero", ["strength", "global_factor"])
def test_a_lora_of_strength_0_is_told_and_changes_no_bit(tmp_path, zero):
    model = tiny.save(tmp_path / "m.safetensors", tiny.base())
    loras = [{"files": {"model": tiny.save(tmp_path / f"l{n}.safetensors", tiny.lora(n))}} for n in (1, 2)]
    dead = {"loras": [loras[0] | {"strength": {"model": 0.0}}]} if zero == "strength" else {"loras": [loras[0]], "global_factor": 0}
    wish = tiny.recipe(tmp_path / "with", {"model": model}, passes=[dead, {"loras": [loras[1]]}])
    [expert] = tiny.go(wish, tmp_path / "r")["experts"]
    first, second = expert["ledger"]
    assert first["lora"] == "l1.safetensors" and first["note"] == "strength 0: not merged"
    assert (first["applied"], first["refused"], first["strength"]) == (0, [], 0.0) and first["keys"] == len(tiny.lora())
    assert "note" not in second and second["applied"] == second["keys"]
    assert [each["shift"] > 0 for each in expert["meter"]["loras"]] == [False, True]
    tiny.go(tiny.recipe(tmp_path / "without", {"model": model}, [loras[1]]), tmp_path / "r")
    one, other = (tiny.load(tmp_path / name, "mix_bf16.safetensors") for name in ("with", "without"))
    assert all(tiny.same_bits(one[key], other[key]) for key in one)


def test_a_lora_of_strength_0_need_not_even_fit(tmp_path):
    model = tiny.save(tmp_path / "m.safetensors", tiny.base())
    other = tiny.save(tmp_path / "l.safetensors", {key.replace("blocks.", "blocks.9"): each for key, each in tiny.lora().items()})
    wish = tiny.recipe(tmp_path / "out", {"model": model}, [{"files": {"model": other}, "strength": {"model": 0.0}}])
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert [each["note"] for each in plan.experts[0].ledgers] == ["strength 0: not merged"]
        assert plan.experts[0].contributions == {}
