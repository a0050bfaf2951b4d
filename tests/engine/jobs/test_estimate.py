"""What a plan says it will cost: memory by how a tensor has to be held, time by how often it is looked at."""

import pytest
from wan22_master.engine.jobs.estimate import memory_bytes, seconds
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.tests.engine import tiny

FFN = 4 * tiny.FFN * tiny.DIM  # bytes of the largest merged tensor in float32


def costs(tmp_path, formats=("bf16",), **asked) -> tuple[int, float]:
    model = tiny.save(tmp_path / "m.safetensors", tiny.base())
    entries = [{"files": {"model": tiny.save(tmp_path / f"{seed}.safetensors", tiny.lora(seed))}} for seed in (1, 2)]
    of_pass = {name: asked.pop(name) for name in ("combine", "method", "dense_density") if name in asked}
    passes = [{"name": "P", "loras": entries, **of_pass}]
    wish = tiny.recipe(tmp_path / "out", {"model": model}, passes=passes, formats=formats, **asked)
    with plan_recipe(wish, tmp_path / "r") as plan:
        return memory_bytes(plan.experts[0]), seconds(plan.experts[0])


@pytest.mark.parametrize(
    ("asked", "buffers"),
    [({}, 0), ({"method": "classic"}, 1), ({"combine": "ties"}, 1), ({"formats": ("float8_e4m3fn",)}, 1), ({"normalize": True}, 2)],
)
def test_what_has_to_lie_whole_is_counted(tmp_path, asked, buffers):
    assert costs(tmp_path, **asked)[0] - costs(tmp_path)[0] == buffers * FFN


@pytest.mark.parametrize("asked", [{"method": "classic"}, {"combine": "ties"}, {"combine": "dare_ties"}])
def test_every_further_look_takes_time(tmp_path, asked):
    assert costs(tmp_path, **asked)[1] > costs(tmp_path)[1]
