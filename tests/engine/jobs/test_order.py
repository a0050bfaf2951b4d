"""In which order files are made: what each order needs at its worst, checked against sizes on a real disk."""
import os

import pytest
from wan22_master.engine.errors import PlanError
from wan22_master.engine.jobs import order
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.tests.engine import tiny

FORMATS = ("bf16", "float8_e4m3fn")


@pytest.fixture
def pair(tmp_path):
    return tiny.write_pair(tmp_path / "in")


def volume(tmp_path, pair, name, **more):
    """The one volume of a job, and the sizes of its files by expert."""
    wish = tiny.recipe(tmp_path / "out", pair, formats=FORMATS, save={"order": name, **more})
    with plan_recipe(wish, tmp_path / "r", check_space=False) as plan:
        [found] = plan.volumes()
        return found, [[out.layout.size for out in expert.outputs] for expert in plan.experts]


@pytest.mark.parametrize("name", order.ORDERS)
def test_new_files_need_their_sum_in_every_order(tmp_path, pair, name):
    found, sizes = volume(tmp_path, pair, name)
    assert found["peak_bytes"] == found["needed_bytes"] == sum(map(sum, sizes))
    assert found["free_bytes"] > 0 and found["volume"] == str(tmp_path)


@pytest.mark.parametrize(("name", "peak"), [("all at once", lambda high, low: sum(high) + sum(low)),
                                            ("expert by expert", lambda high, low: max(sum(high), sum(low))),
                                            ("file by file", lambda high, low: max(high + low))])
def test_what_is_replaced_lies_beside_the_new_until_that_is_finished(tmp_path, pair, name, peak):
    tiny.go(tiny.recipe(tmp_path / "out", pair, formats=FORMATS), tmp_path / "r")
    before = sum(os.path.getsize(tmp_path / "out" / file) for file in tiny.files(tmp_path / "out"))
    found, sizes = volume(tmp_path, pair, name, on_exists="overwrite", metadata="none")   # another file under the same name
    assert found["peak_bytes"] == peak(*sizes)
    assert found["needed_bytes"] == sum(map(sum, sizes)) - before


def test_auto_is_the_first_order_that_fits_and_says_what_would(tmp_path, pair, monkeypatch):
    tiny.go(tiny.recipe(tmp_path / "out", pair, formats=FORMATS), tmp_path / "r")
    wish = tiny.recipe(tmp_path / "out", pair, formats=FORMATS, save={"on_exists": "overwrite", "metadata": "none"})
    with plan_recipe(wish, tmp_path / "r", check_space=False) as plan:
        sizes = {name: order.volumes(plan.experts, name)[0].peak for name in order.ORDERS}
        for free, chosen in ((sizes["all at once"], "all at once"), (sizes["all at once"] - 1, "expert by expert"),
                             (sizes["expert by expert"] - 1, "file by file"), (0, "file by file")):
            monkeypatch.setattr(order, "free_bytes", lambda folder, free=free: free)
            assert plan.order == chosen
        monkeypatch.setattr(order, "free_bytes", lambda folder: sizes["expert by expert"])
        with pytest.raises(PlanError, match=r"GiB are free; free some space, .* or set order to expert by expert"):
            order.check(plan.experts, "all at once")


@pytest.mark.parametrize(("name", "readings"), [("all at once", 2), ("expert by expert", 2), ("file by file", 4)])
def test_a_base_is_read_as_often_as_the_order_says(tmp_path, pair, name, readings):
    done = []
    lora = {"files": dict.fromkeys(pair, tiny.save(tmp_path / "l.safetensors", tiny.lora()))}
    wish = tiny.recipe(tmp_path / name, pair, [lora], formats=FORMATS, save={"order": name})
    report = tiny.go(wish, tmp_path / "r", on_progress=lambda told: done.append(told.total_bytes))
    assert done[-1] == readings * sum(tensor.numel() * tensor.itemsize for tensor in tiny.base().values())
    assert [len(expert["outputs"]) for expert in report["experts"]] == [2, 2] and report["experts"][0]["meter"]["shift"] > 0


def test_every_order_writes_the_same_bytes(tmp_path, pair):
    lora = {"files": dict.fromkeys(pair, tiny.save(tmp_path / "l.safetensors", tiny.lora()))}
    found = []
    for name in order.ORDERS:
        tiny.go(tiny.recipe(tmp_path / name, pair, [lora], formats=FORMATS, save={"order": name}), tmp_path / "r" / name)
        found.append(tiny.files(tmp_path / name))
    assert found[0] == found[1] == found[2] and len(found[0]) == 4


def test_bytes_of_an_unfinished_part_count(tmp_path, pair):
    with plan_recipe(tiny.recipe(tmp_path / "out", pair), tmp_path / "r") as plan:
        out = plan.experts[0].outputs[0]
        before = order.needed_bytes(out)
        os.makedirs(tmp_path / "out")
        with open(out.target.path + ".part", "wb") as file:
            file.write(b"x" * 8192)
        assert before - order.needed_bytes(out) == 8192 and before == out.layout.size
