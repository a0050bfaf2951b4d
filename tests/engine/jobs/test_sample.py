"""Sampled rows and the errors told of them, against plain float64 torch on the finished files."""

import math

import pytest
import torch
from comfy_kitchen.tensor import TensorCoreFP8Layout
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.jobs.sample import ROWS, Sample, compare, rows_of, square
from wan22_master.tests.engine import tiny


@given(st.text(), st.integers(0, 100_000))
def test_rows_are_few_ascending_and_inside(key, total):
    rows = rows_of(key, total)
    assert rows == sorted(set(rows)) and len(rows) <= ROWS and all(0 <= row < total for row in rows) and bool(rows) == bool(total)


def test_rows_never_change_because_jobs_of_earlier_versions_are_resumed_by_them():
    assert rows_of("blocks.0.ffn.0.weight", 13824) == [
        426,
        1363,
        2065,
        2859,
        5275,
        6040,
        7293,
        7456,
        7659,
        8032,
        8932,
        9835,
        10171,
        10957,
        12256,
        13645,
    ]


def test_rows_of_two_tensors_differ_and_reach_all_parts():
    found = [rows_of(f"blocks.{n}.ffn.0.weight", 13824) for n in range(40)]
    assert len({tuple(rows) for rows in found}) == 40 and all(len(rows) > 12 for rows in found)
    quarters = {row * 4 // 13824 for rows in found for row in rows}
    assert quarters == {0, 1, 2, 3}


def test_sums_are_float64_sums():
    merged = torch.randn(40, 50, generator=torch.manual_seed(1)) * 1e3
    decoded = merged + 1e-3 * torch.randn(40, 50)
    found = compare(merged, decoded, list(range(40)))
    assert found.merged == pytest.approx(merged.double().square().sum().item(), rel=1e-13)
    assert found.decoded == pytest.approx(decoded.double().square().sum().item(), rel=1e-13)
    assert found.lost == pytest.approx((merged - decoded).double().square().sum().item(), rel=1e-13)
    assert found.error == pytest.approx(math.sqrt(found.lost / found.merged)) and square(torch.tensor(3.0)) == 9.0


def test_samples_add_up_and_survive_json():
    one, other = Sample(1.0, 2.0, 3.0, 4.0), Sample(0.5, 0.25, 0.125, -1.0)
    assert one + other == other + one == Sample(1.5, 2.25, 3.125, 3.0) and Sample(**one.to_json()) == one
    assert Sample().error == 0.0 and Sample(0.0, 0.0, 0.0).error == 0.0


@pytest.mark.parametrize("form", ["float8_e4m3fn", "bf16", "fp16", "fp32"])
def test_the_error_told_is_that_of_the_sampled_rows_of_the_file(tmp_path, form):
    weights, lora = tiny.base(), tiny.lora()
    entry = {"files": {"model": tiny.save(tmp_path / "l.safetensors", lora)}}
    wish = tiny.recipe(
        tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", weights)}, [entry], [form], save={"name": "%title%"}
    )
    [out] = tiny.go(wish, tmp_path / "r")["experts"][0]["outputs"]
    found, wanted, lost, total = tiny.load(tmp_path / "out", out["file"]), tiny.merge64(weights, [(lora, 1.0)]), 0.0, 0.0
    for key in [f"{layer}.weight" for layer in tiny.linears()] if form == "float8_e4m3fn" else weights:
        decoded = found[key].double()
        if form == "float8_e4m3fn":
            decoded = decoded * found[f"{key}_scale"].double()
            assert TensorCoreFP8Layout.quantize(found[key].float())  # the oracle's own layout takes it
        rows = rows_of(key, weights[key].shape[0])
        lost += (decoded - wanted[key])[rows].square().sum().item()
        total += wanted[key][rows].square().sum().item()
    assert out["error"] == pytest.approx(math.sqrt(lost / total), rel=1e-3, abs=1e-7)  # W' is float32 there, float64 here
