"""Disk to disk: whole files against plain float64 torch, safetensors and comfy-kitchen; the same bytes however they came about."""

import errno
import json
import os
import shutil

import pytest
import torch
from comfy_kitchen.tensor import TensorCoreFP8Layout
from safetensors import safe_open
from wan22_master.engine import bands, open_file
from wan22_master.engine.errors import MergeError, PlanError, Stopped, TensorError
from wan22_master.engine.jobs import order, report, run, write_expert, writer
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.tests.engine import tiny

FP8 = "float8_e4m3fn"


def to_bf16(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rounded once, its ulp) of float64 values; torch's own cast goes through float32 and would round twice."""
    mantissa, exponent = torch.frexp(exact)
    unit = torch.ldexp(torch.ones_like(exact), exponent - 8)  # bf16 has 8 significant bits
    return torch.round(mantissa * 2**8) * unit, unit  # torch.round: ties to even


def both(path: str, strength=None) -> dict:
    return {"files": dict.fromkeys(tiny.PAIR, path), **({"strength": strength} if strength else {})}


@pytest.fixture
def pair(tmp_path):
    return tiny.write_pair(tmp_path / "in")


def exact_base(seed=5):
    """Multiples of 2^-10 below 0.1, exact in bf16; with `exact_lora` every sum is a multiple of 2^-16 below 1, exact in float32."""
    draw = torch.Generator().manual_seed(seed)
    return {
        key: (torch.randint(-100, 101, shape, generator=draw) / 2**10).to(tiny.dtype_of(key))
        for key, shape in tiny.shapes().items()
    }


def exact_lora(seed=6):
    tensors = tiny.lora(seed)
    draw = torch.Generator().manual_seed(seed)
    steps = {"A": 2**8, "B": 2**8}
    return {
        key: (torch.randint(-3, 4, tensor.shape, generator=draw) / steps[key[-8]]).bfloat16() for key, tensor in tensors.items()
    }


def test_bf16_addition_is_the_float64_merge_rounded_once(tmp_path):
    weights = tiny.base(seed=3)
    loras = [
        tiny.lora(seed=10),
        tiny.lora(seed=11, rank=7, alpha=14.0),
        tiny.lora(seed=12, layers=["text_embedding.0", "head.head", "blocks.1.ffn.2"]),
    ]
    strengths = [1.0, -0.37, 0.8]
    paths = [tiny.save(tmp_path / f"l{n}.safetensors", each) for n, each in enumerate(loras)]
    entries = [{"files": {"model": path}, "strength": {"model": by}} for path, by in zip(paths, strengths, strict=True)]
    tiny.go(tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", weights)}, entries), tmp_path / "reports")
    found, wanted = (
        tiny.load(tmp_path / "out", "mix_bf16.safetensors"),
        tiny.merge64(weights, list(zip(loras, strengths, strict=True))),
    )
    equal = total = 0
    for key in (key for key in weights if weights[key].dim() == 2):
        rounded, ulp = to_bf16(wanted[key])
        away, delta = (found[key].double() - rounded).abs(), (wanted[key] - weights[key].double()).abs()
        assert found[key].dtype == torch.bfloat16
        assert (away <= torch.maximum(ulp, 2**-22 * (weights[key].double().abs() + delta))).all(), key
        equal, total = equal + int((away == 0).sum()), total + away.numel()
    assert total > 300_000 and equal >= 0.9999 * total


def test_ten_loras_that_make_one_percent_lose_no_more_than_one_rounding(tmp_path):
    weights, loras = tiny.base(), [tiny.lora(seed=20 + n, size=3e-5) for n in range(10)]
    entries = [{"files": {"model": tiny.save(tmp_path / f"l{n}.safetensors", each)}} for n, each in enumerate(loras)]
    tiny.go(tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", weights)}, entries), tmp_path / "reports")
    found, wanted = tiny.load(tmp_path / "out", "mix_bf16.safetensors"), tiny.merge64(weights, [(each, 1.0) for each in loras])
    for layer in tiny.linears():
        key = f"{layer}.weight"
        lost, rounding = (found[key].double() - wanted[key]).norm(), (to_bf16(wanted[key])[0] - wanted[key]).norm()
        assert lost <= rounding * (1 + 1e-3)  # a float32 sum may turn one tie in ten thousand the other way


@pytest.mark.parametrize("formats", [("fp32",), ("fp16",)])
def test_a_float_master_is_the_merge_in_its_own_precision(tmp_path, pair, formats):
    lora = tiny.lora()
    tiny.go(tiny.recipe(tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", lora))], formats), tmp_path / "reports")
    found, wanted = tiny.load(tmp_path / "out", f"mix_high_{formats[0]}.safetensors"), tiny.merge64(tiny.base(0), [(lora, 1.0)])
    bound = {"fp32": 2**-22, "fp16": 2**-10}[formats[0]]  # two float32 roundings; half an ulp of 11 significant bits, and ties
    for key in (f"{layer}.weight" for layer in tiny.linears()):
        assert found[key].dtype == {"fp32": torch.float32, "fp16": torch.float16}[formats[0]]
        assert torch.allclose(found[key].double(), wanted[key], rtol=bound, atol=2**-24 if formats == ("fp16",) else 1e-9)


@pytest.mark.parametrize("activations", ["fast_uncalibrated", "16-bit"])
def test_fp8_codes_and_scales_are_comfy_kitchens_on_the_float32_merge(tmp_path, activations):
    weights, lora = exact_base(), exact_lora()
    weights["blocks.1.self_attn.k.weight"].zero_()
    lora = {key: tensor for key, tensor in lora.items() if "blocks.1.self_attn.k" not in key}
    entry = {"files": {"model": tiny.save(tmp_path / "l.safetensors", lora)}}
    tiny.go(
        tiny.recipe(
            tmp_path / "out",
            {"model": tiny.save(tmp_path / "m.safetensors", weights)},
            [entry],
            [{"format": FP8, "activations": activations}],
        ),
        tmp_path / "reports",
    )
    found, wanted = tiny.load(tmp_path / "out", "mix_fp8_scaled.safetensors"), tiny.merge64(weights, [(lora, 1.0)])
    fast, sides = activations == "fast_uncalibrated", set()
    for layer in tiny.linears():
        merged = wanted[f"{layer}.weight"].float()
        assert torch.equal(merged.double(), wanted[f"{layer}.weight"])  # exact in float32, so nothing is forgiven
        if layer == "blocks.1.self_attn.k":
            assert found[f"{layer}.weight_scale"].item() == 1.0 and not found[f"{layer}.weight"].view(torch.uint8).any()
        else:
            codes, params = TensorCoreFP8Layout.quantize(merged)
            assert tiny.same_bits(found[f"{layer}.weight"], codes) and tiny.same_bits(found[f"{layer}.weight_scale"], params.scale)
        said = json.loads(bytes(found[f"{layer}.comfy_quant"].tolist()))
        assert said == ({"format": FP8} if fast else {"format": FP8, "full_precision_matrix_mult": True})
        assert found[f"{layer}.comfy_quant"].dtype == torch.uint8 and found[f"{layer}.comfy_quant"].dim() == 1
        if fast:
            assert tiny.same_bits(found[f"{layer}.input_scale"], torch.tensor(1.0))
        sides |= {f"{layer}.weight_scale", f"{layer}.comfy_quant"} | ({f"{layer}.input_scale"} if fast else set())
    assert set(found) == set(weights) | sides
    for key in weights.keys() - {f"{layer}.weight" for layer in tiny.linears()}:
        assert tiny.same_bits(found[key], weights[key]), key


def test_fp8_of_any_merge_differs_from_comfy_kitchen_on_float64_in_few_neighbouring_codes(tmp_path):
    weights, lora = tiny.base(seed=7), tiny.lora(seed=8)
    entry = {"files": {"model": tiny.save(tmp_path / "l.safetensors", lora)}, "strength": {"model": 0.7}}
    tiny.go(
        tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", weights)}, [entry], [FP8]),
        tmp_path / "reports",
    )
    found, wanted = tiny.load(tmp_path / "out", "mix_fp8_scaled.safetensors"), tiny.merge64(weights, [(lora, 0.7)])
    differing = total = 0
    for layer in tiny.linears():
        codes, params = TensorCoreFP8Layout.quantize(wanted[f"{layer}.weight"].float())
        assert torch.allclose(found[f"{layer}.weight_scale"], params.scale, rtol=2**-22, atol=0)  # amax is one float32 sum
        away = (found[f"{layer}.weight"].view(torch.uint8).int() - codes.view(torch.uint8).int()).abs()
        assert away.max() <= 1
        differing, total = differing + int((away > 0).sum()), total + away.numel()
    # a code flips when the value lies within 2^-21 of one of its 2^4 borders an octave
    assert total > 300_000 and differing <= 2**-15 * total


def test_kept_tensors_have_the_bits_of_the_source(tmp_path, pair):
    tiny.go(tiny.recipe(tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", tiny.lora()))]), tmp_path / "reports")
    found, weights = tiny.load(tmp_path / "out", "mix_low_bf16.safetensors"), tiny.base(1)
    assert set(found) == set(weights)
    merged = {f"{layer}.weight" for layer in tiny.linears()} | {"head.head.weight"}  # the last is fp16 in the source: it is cast
    assert all(tiny.same_bits(found[key], weights[key]) for key in weights.keys() - merged)


def test_a_prefixed_source_comes_out_with_bare_names(tmp_path):
    weights = tiny.base()
    path = tiny.save(tmp_path / "m.safetensors", {f"model.diffusion_model.{key}": tensor for key, tensor in weights.items()})
    tiny.go(tiny.recipe(tmp_path / "out", {"model": path}), tmp_path / "reports")
    assert set(tiny.load(tmp_path / "out", "mix_bf16.safetensors")) == set(weights)


def test_classic_injection_is_the_float64_formula_but_for_elements_on_the_threshold(tmp_path):
    weights, lora, strength = tiny.base(seed=4), tiny.lora(seed=9), 0.9
    loud = tiny.lora(seed=13, layers=["blocks.0.ffn.0"], size=0.2)  # varies more than the base: the other tier, and limited
    lora |= {key: tensor for key, tensor in loud.items() if "ffn.0" in key}
    entry = {"files": {"model": tiny.save(tmp_path / "l.safetensors", lora)}, "strength": {"model": strength}, "method": "classic"}
    report = tiny.go(
        tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", weights)}, [entry], ["fp32"]), tmp_path / "r"
    )
    found, tiers = tiny.load(tmp_path / "out", "mix_fp32.safetensors"), {"new": 0, "refine": 0, "limited": 0}
    for layer in tiny.linears():
        delta, weight = tiny.delta64(lora, layer), weights[f"{layer}.weight"].double()
        new = bool(delta.var() > 1.5 * weight.var())
        threshold, limit = (0.4 if new else 1.8) * delta.abs().mean(), 0.08 if new else 0.05
        kept = delta * (delta.abs() > threshold)
        factor = min(1.0, (limit / kept.abs().max()).item())
        wanted, near = weight + strength * factor * kept, (delta.abs() - threshold).abs() <= 1e-6 * threshold
        away = (found[f"{layer}.weight"].double() - wanted).abs()
        assert (away[~near] <= 1e-6 * (weight.abs() + delta.abs())[~near]).all(), layer  # float32 products of rank 4
        tiers["new" if new else "refine"] += 1
        tiers["limited"] += factor < 1.0
    gates = report["experts"][0]["ledger"][0]["gates"]
    assert {name: gates[name] for name in tiers} == tiers and tiers["new"] == tiers["limited"] == 1


def test_the_number_of_workers_leaves_no_trace_in_the_bytes(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 128 * 128)  # so that a tensor has up to six bands, the last uneven
    lora, found = both(tiny.save(tmp_path / "l.safetensors", tiny.lora())), {"addition": [], "classic": []}
    for count in (1, 2, 5):
        monkeypatch.setattr(write_expert, "Workers", lambda count=count, **more: bands.Workers(count, **more))
        for method in ("addition", "classic"):
            tiny.go(tiny.recipe(tmp_path / "out", pair, [lora | {"method": method}], ("bf16", FP8)), tmp_path / f"{method}{count}")
            found[method].append(tiny.files(tmp_path / "out"))
            shutil.rmtree(tmp_path / "out")
    assert len(found["addition"][0]) == 4 and found["addition"][0] != found["classic"][0]
    assert all(runs == [runs[0]] * 3 for runs in found.values())


class AfterTensors:
    """Says stop as soon as a run has carried so many tensors; give both its methods to the run."""

    def __init__(self, count: int):
        self.count = count

    def on_progress(self, progress) -> None:
        self.count -= progress.phase == "write"

    def should_stop(self) -> bool:
        return self.count <= 0


def stopped_after(wish, reports, count: int) -> None:
    stop = AfterTensors(count)
    with pytest.raises(Stopped):
        tiny.go(wish, reports, should_stop=stop.should_stop, on_progress=stop.on_progress)


def until_done(wish, reports, k: int) -> int:
    """Run again after every stop; the number of stops."""
    for stops in range(500):
        try:
            stop = AfterTensors(k)
            tiny.go(wish, reports, should_stop=stop.should_stop, on_progress=stop.on_progress)
            return stops
        except Stopped:
            continue
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("k", [1, 6, 19])
def test_interruptions_leave_no_trace_in_the_bytes(tmp_path, pair, k):
    lora = both(tiny.save(tmp_path / "l.safetensors", tiny.lora()))
    wish = tiny.recipe(tmp_path / "out", pair, [lora], ("bf16", FP8))
    tiny.go(wish, tmp_path / "r1")
    unbroken = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    stops = until_done(wish, tmp_path / "r2", k)
    assert stops >= 2 * len(tiny.shapes()) // k - 4
    assert tiny.files(tmp_path / "out") == unbroken


def test_after_a_stop_only_part_and_job_are_there(tmp_path, pair):
    stopped_after(tiny.recipe(tmp_path / "out", pair), tmp_path / "r", 8)
    assert sorted(tiny.files(tmp_path / "out")) == ["mix_high_bf16.safetensors.job.json", "mix_high_bf16.safetensors.part"]


def test_what_is_finished_is_not_read_again_after_a_stop(tmp_path, pair, monkeypatch):
    wish = tiny.recipe(tmp_path / "out", pair)
    stopped_after(wish, tmp_path / "r", 29)
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert [row["state"] for row in plan.rows()] == ["resume", "new"]
        read, first = [], plan.experts[0].source
        monkeypatch.setattr(first, "read", lambda key, *a, really=first.read, **more: read.append(key) or really(key, *a, **more))
        report = run.run(plan, reports=tmp_path / "r")
    assert sorted(set(read)) == sorted(plan.experts[0].order[29:])
    assert [expert["outputs"][0]["resumed"] for expert in report["experts"]] == [29, 0]


@pytest.mark.parametrize("level", ["publish", "private"])
def test_a_single_file_is_resumed_from_its_part_or_its_job_alone(tmp_path, pair, level):
    entry = both(tiny.save(tmp_path / "l.safetensors", tiny.lora()))
    wish = tiny.recipe(tmp_path / "out", pair, [entry], ("bf16", FP8), save={"metadata": level})
    tiny.go(wish, tmp_path / "r1")
    unbroken = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    stopped_after(wish, tmp_path / "r2", 24)
    for ending, name in ((".part", "mix_high_bf16.safetensors"), (".job.json", "mix_high_fp8_scaled.safetensors")):
        report = run.resume(str(tmp_path / "out" / name) + ending, reports=tmp_path / "r2")
        assert [out["resumed"] for out in report["experts"][0]["outputs"]] == [24]
    assert tiny.files(tmp_path / "out") == {name: unbroken[name] for name in unbroken if "high" in name}
    with pytest.raises(PlanError, match="no unfinished job"):
        run.resume(str(tmp_path / "out" / "mix_high_bf16.safetensors.part"), reports=tmp_path / "r2")


def test_a_half_whose_first_name_is_free_is_still_resumed_where_it_lies(tmp_path, pair):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mix_high_bf16.safetensors").write_bytes(b"another model")
    wish = tiny.recipe(tmp_path / "out", pair)
    stopped_after(wish, tmp_path / "r", len(tiny.shapes()) + 9)
    report = run.resume(str(tmp_path / "out" / "mix_low_bf16-2.safetensors.part"), reports=tmp_path / "r")
    assert [(out["file"], out["resumed"]) for out in report["experts"][0]["outputs"]] == [("mix_low_bf16-2.safetensors", 9)]


def test_the_same_queue_twice_works_once(tmp_path, pair, monkeypatch):
    wish = tiny.recipe(tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", tiny.lora()))], ("bf16", FP8))
    first = tiny.go(wish, tmp_path / "r")
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(write_expert, "carry_all", None)  # would fail if anything were done
    again = tiny.go(wish, tmp_path / "r")
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in (tmp_path / "out").iterdir()} == before
    for one, other in zip(first["experts"], again["experts"], strict=True):
        assert [out["up_to_date"] for out in other["outputs"]] == [True, True]
        assert [out["data_sha256"] for out in other["outputs"]] == [out["data_sha256"] for out in one["outputs"]]
        assert other["meter"] == one["meter"] and other["ledger"] == one["ledger"]


def test_a_finished_file_that_somebody_changed_is_not_taken_for_done(tmp_path, pair):
    wish = tiny.recipe(tmp_path / "out", pair)
    tiny.go(wish, tmp_path / "r")
    path = tmp_path / "out" / "mix_low_bf16.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    theirs = tiny.files(tmp_path / "out")
    tiny.go(wish, tmp_path / "r")
    now = tiny.files(tmp_path / "out")
    assert {name: now[name] for name in theirs} == theirs and len(now) == 4  # a new pair beside them, nothing overwritten


def test_two_outputs_of_one_job_are_the_files_of_two_jobs(tmp_path, pair):
    lora = both(tiny.save(tmp_path / "l.safetensors", tiny.lora()), {"high_noise": 0.5, "low_noise": 1.25})
    tiny.go(tiny.recipe(tmp_path / "out", pair, [lora], ("bf16", FP8)), tmp_path / "r")
    together = tiny.files(tmp_path / "out")
    for name in ("bf16", FP8):
        tiny.go(tiny.recipe(tmp_path / "apart", pair, [lora], (name,)), tmp_path / "r2")
    assert len(together) == 4 and tiny.files(tmp_path / "apart") == together


def test_an_output_that_is_done_stays_when_a_later_one_of_its_expert_fails(tmp_path, pair, monkeypatch):
    wish = tiny.recipe(tmp_path / "out", pair, formats=("bf16", FP8))
    check = write_expert.verify.check

    def faulty(part, out, *more):
        if out.format == FP8:
            raise TensorError("a", "verify", ValueError("faulty disk"))
        return check(part, out, *more)

    monkeypatch.setattr(write_expert.verify, "check", faulty)
    with pytest.raises(PlanError, match=r"mix_high_fp8_scaled\.safetensors: a: verify failed: faulty disk; .*finished all the "
                                        r"same: mix_high_bf16\.safetensors, mix_low_bf16\.safetensors; when that is mended, run"):
        tiny.go(wish, tmp_path / "r")
    monkeypatch.undo()
    told = tiny.go(wish, tmp_path / "r")
    assert [out.get("up_to_date", False) for expert in told["experts"] for out in expert["outputs"]] == [True, False] * 2
    assert sorted(tiny.files(tmp_path / "out")) == sorted(
        f"mix_{half}_{kind}.safetensors" for half in ("high", "low") for kind in ("bf16", "fp8_scaled")
    )


@pytest.mark.parametrize("moment", ["before the record", "after it"])
def test_a_crash_around_the_record_of_a_finished_file_makes_no_second_copy(tmp_path, pair, monkeypatch, moment):
    wish, keep = tiny.recipe(tmp_path / "out", pair, formats=("bf16", FP8)), report.keep

    def crash(reports, told):
        if moment == "after it":
            keep(reports, told)
        raise KeyboardInterrupt

    monkeypatch.setattr(run.report, "keep", crash)
    with pytest.raises(KeyboardInterrupt):
        tiny.go(wish, tmp_path / "r")
    monkeypatch.undo()
    first = {name: sha256 for name, sha256 in tiny.files(tmp_path / "out").items() if name.endswith(".safetensors")}
    assert len(first) == 2
    told = tiny.go(wish, tmp_path / "r")
    assert [bool(out.get("up_to_date")) for out in told["experts"][0]["outputs"]] == [True] * 2
    found = tiny.files(tmp_path / "out")
    assert first.items() < found.items() and len(found) == 4 and all(name.endswith(".safetensors") for name in found)


@pytest.mark.parametrize("what", ["base", "lora"])
def test_a_source_changed_between_stop_and_resume_is_named_and_the_job_starts_over(tmp_path, pair, what):
    lora = tiny.save(tmp_path / "l.safetensors", tiny.lora())
    wish = tiny.recipe(tmp_path / "out", pair, [both(lora)])
    stopped_after(wish, tmp_path / "r", 19)
    if what == "base":
        tiny.save(tmp_path / "in" / "tiny_high_noise.safetensors", tiny.base(77))
    else:
        tiny.save(tmp_path / "l.safetensors", tiny.lora(77))
    with plan_recipe(wish, tmp_path / "r") as plan:
        assert any(
            ("tiny_high_noise.safetensors" if what == "base" else "l.safetensors") in each and "starts over" in each
            for each in plan.notices
        )
        report = run.run(plan, reports=tmp_path / "r")
    assert report["experts"][0]["outputs"][0]["resumed"] == 0
    resumed = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    tiny.go(wish, tmp_path / "r2")
    assert tiny.files(tmp_path / "out") == resumed


def test_another_jobs_leftovers_are_not_touched_and_a_pair_gets_one_number(tmp_path, pair):
    theirs = tiny.recipe(tmp_path / "out", pair, [both(tiny.save(tmp_path / "l.safetensors", tiny.lora()))])
    stopped_after(theirs, tmp_path / "r", 19)
    left = tiny.files(tmp_path / "out")
    tiny.go(tiny.recipe(tmp_path / "out", pair), tmp_path / "r")  # no LoRA: another wish under the same names
    found = tiny.files(tmp_path / "out")
    assert {name: found[name] for name in left} == left
    assert sorted(found.keys() - left.keys()) == ["mix_high_bf16-2.safetensors", "mix_low_bf16-2.safetensors"]
    tiny.go(theirs, tmp_path / "r")  # and theirs goes on under its own name
    assert {"mix_high_bf16.safetensors", "mix_low_bf16.safetensors"} < tiny.files(tmp_path / "out").keys()


@pytest.mark.parametrize("on_exists", ["number", "overwrite", "error"])
def test_a_name_that_is_taken_is_numbered_overwritten_or_refused_as_asked(tmp_path, pair, on_exists):
    (tmp_path / "out").mkdir()
    taken = tmp_path / "out" / "mix_low_bf16.safetensors"
    taken.write_bytes(b"mine")
    wish = tiny.recipe(tmp_path / "out", pair, save={"on_exists": on_exists})
    if on_exists == "error":
        with pytest.raises(PlanError, match=r"mix_low_bf16\.safetensors: exists already; choose another name"):
            tiny.go(wish, tmp_path / "r")
    else:
        tiny.go(wish, tmp_path / "r")
    names = {
        "number": ["mix_high_bf16-2.safetensors", "mix_low_bf16-2.safetensors", "mix_low_bf16.safetensors"],
        "error": [taken.name],
        "overwrite": ["mix_high_bf16.safetensors", "mix_low_bf16.safetensors"],
    }[on_exists]
    assert sorted(tiny.files(tmp_path / "out")) == names
    assert (taken.read_bytes() == b"mine") == (on_exists != "overwrite")


def test_a_disk_that_fills_up_loses_nothing_and_leaves_no_model(tmp_path, pair, monkeypatch):
    wish = tiny.recipe(tmp_path / "out", pair)
    tiny.go(wish, tmp_path / "r1")
    unbroken = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(writer, "STRETCH", 100_000)
    real, room = open_file.WriteFile._write_some, [500_000]

    def write_some(self, content, offset):
        if self.path.endswith(".part"):
            if len(content) > room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            room[0] -= len(content)
        return real(self, content, offset)

    monkeypatch.setattr(open_file.WriteFile, "_write_some", write_some)
    with pytest.raises(PlanError, match=r"the disk is full, free some space and resume: what is finished is kept"):
        tiny.go(wish, tmp_path / "r2")
    assert sorted(tiny.files(tmp_path / "out")) == ["mix_high_bf16.safetensors.job.json", "mix_high_bf16.safetensors.part"]
    monkeypatch.undo()
    report = tiny.go(wish, tmp_path / "r2")
    assert report["experts"][0]["outputs"][0]["resumed"] > 0
    assert tiny.files(tmp_path / "out") == unbroken


def test_a_disk_too_small_for_both_files_is_found_before_the_first_byte(tmp_path, pair, monkeypatch):
    with plan_recipe(tiny.recipe(tmp_path / "out", pair), tmp_path / "r") as plan:
        sizes = [row["bytes"] for row in plan.rows()]
    monkeypatch.setattr(order, "free_bytes", lambda path: sum(sizes) - 1)
    with pytest.raises(PlanError, match=r"GiB are needed, .* GiB are free; free some space"):
        tiny.go(tiny.recipe(tmp_path / "out", pair), tmp_path / "r")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_cannot_reserve_the_file_keeps_nothing(tmp_path, pair, monkeypatch):
    def full(fd, start, nbytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(PlanError, match="the disk is full"):
        tiny.go(tiny.recipe(tmp_path / "out", pair), tmp_path / "r")
    assert tiny.files(tmp_path / "out") == {}


def test_a_folder_that_cannot_be_written_is_named_before_a_byte_is_read(tmp_path, pair, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("locked"))  # root may write anywhere
    for folder in (tmp_path / "file" / "out", tmp_path / "locked", tmp_path / "locked" / "below"):
        with pytest.raises(PlanError, match="cannot be written to; check the rights of the folder, or choose another") as told:
            tiny.go(tiny.recipe(folder, pair), tmp_path / "r")
        assert str(folder) in str(told.value)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(
        os, "makedirs", lambda *a, **more: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied"))
    )
    with pytest.raises(MergeError, match="out: cannot be made: Permission denied"):
        tiny.go(tiny.recipe(tmp_path / "out", pair), tmp_path / "r2")


@pytest.mark.parametrize("title", ["a/b", "a\\b", "..", "../../etc", "a:b", "nul.txt", "tab\there"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, pair, title):
    wish = tiny.recipe(tmp_path / "out", pair, title=title, save={"name": "%title%" if title == ".." else "%title%_%expert%"})
    if title == "..":
        wish = tiny.recipe(tmp_path / "out", {"model": pair["high_noise"]}, title=title, save={"name": "../%title%"})
    with pytest.raises(PlanError, match="file name"):
        tiny.go(wish, tmp_path / "r")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["blocks.1.ffn.0.weight", "blocks.0.norm3.bias", "head.modulation"])
@pytest.mark.parametrize("form", ["bf16", FP8])
def test_nan_or_inf_in_the_base_names_the_key_and_makes_no_model(tmp_path, key, bad, form):
    weights = tiny.base()
    weights[key].view(-1)[-1] = bad
    wish = tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", weights)}, formats=(form,))
    with pytest.raises(TensorError, match=r"holds NaN or inf; get the file again") as told:
        tiny.go(wish, tmp_path / "r")
    assert told.value.key == key and str(told.value).startswith(f"m.safetensors: {key}: ")
    assert not any(name.endswith(".safetensors") for name in tiny.files(tmp_path / "out"))


def test_a_strength_that_overflows_the_format_names_the_key_and_the_way_out(tmp_path):
    path = tiny.save(tmp_path / "m.safetensors", tiny.base())
    lora = tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=["blocks.0.ffn.0"], size=3000.0))
    wish = tiny.recipe(tmp_path / "out", {"model": path}, [{"files": {"model": lora}, "strength": {"model": 100.0}}], ("fp16",))
    with pytest.raises(
        TensorError, match=r"blocks\.0\.ffn\.0\.weight: quantize failed: .*does not fit into fp16; choose bf16 or fp32"
    ):
        tiny.go(wish, tmp_path / "r")
    assert not any(name.endswith(".safetensors") for name in tiny.files(tmp_path / "out"))


def test_the_report_names_every_file_with_its_bytes_error_and_hash(tmp_path, pair):
    report = tiny.go(tiny.recipe(tmp_path / "out", pair, formats=("bf16", FP8)), tmp_path / "r")
    json.dumps(report, allow_nan=False)
    for expert in report["experts"]:
        for out in expert["outputs"]:
            path = tmp_path / "out" / out["file"]
            content = path.read_bytes()
            with safe_open(path, framework="pt") as file:
                assert file.metadata()["modelspec.hash_sha256"] == f"0x{out['data_sha256']}"
            assert out["bytes"] == len(content)
            # nothing merged: BF16 loses nothing of a bf16 source but on head.head; E4M3 has 3 mantissa bits
            assert out["error"] < 1e-3 if out["format"] == "bf16" else 0.02 < out["error"] < 0.04


def test_a_stop_inside_a_tensor_keeps_what_came_before_it(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 128 * 128)  # several bands a tensor
    wish = tiny.recipe(tmp_path / "out", pair, formats=(FP8,))
    tiny.go(wish, tmp_path / "r1")
    unbroken = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    for number in range(3, 400, 29):
        asked = iter(range(number))
        try:
            tiny.go(wish, tmp_path / "r2", should_stop=lambda asked=asked: next(asked, None) is None)
        except Stopped:
            continue
        break
    tiny.go(wish, tmp_path / "r2")
    assert tiny.files(tmp_path / "out") == unbroken


def test_a_moved_job_goes_on_where_it_lies(tmp_path, pair):
    wish = tiny.recipe(tmp_path / "out", pair)
    stopped_after(wish, tmp_path / "r", 9)
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "out").iterdir():
        shutil.move(path, tmp_path / "there")
    told = run.resume(str(tmp_path / "there" / "mix_high_bf16.safetensors.part"))
    assert [out["resumed"] for out in told["experts"][0]["outputs"]] == [9]
    assert list(tiny.files(tmp_path / "there")) == ["mix_high_bf16.safetensors"] and not tiny.files(tmp_path / "out")


def test_a_job_resumed_alone_is_known_to_the_queue_that_began_it(tmp_path, pair):
    wish = tiny.recipe(tmp_path / "out", pair)
    stopped_after(wish, tmp_path / "r", 9)
    run.resume(str(tmp_path / "out" / "mix_high_bf16.safetensors.part"))
    told = tiny.go(wish, tmp_path / "r")
    assert [bool(out.get("up_to_date")) for expert in told["experts"] for out in expert["outputs"]] == [True, False]
    assert list(tiny.files(tmp_path / "out")) == ["mix_high_bf16.safetensors", "mix_low_bf16.safetensors"]


@pytest.mark.parametrize("on_exists", ["number", "overwrite", "error"])
def test_how_names_are_chosen_does_not_make_another_job(tmp_path, pair, on_exists):
    tiny.go(tiny.recipe(tmp_path / "out", pair), tmp_path / "r")
    told = tiny.go(tiny.recipe(tmp_path / "out", pair, save={"on_exists": on_exists}), tmp_path / "r")
    assert all(out["up_to_date"] for expert in told["experts"] for out in expert["outputs"])


def test_two_outputs_of_one_format_are_named_as_a_pair(tmp_path, pair):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mix_low_bf16.safetensors").write_bytes(b"another model")
    split = [{"format": "bf16", "experts": [role]} for role in pair]
    tiny.go(tiny.recipe(tmp_path / "out", pair, formats=split), tmp_path / "r")
    assert {"mix_high_bf16-2.safetensors", "mix_low_bf16-2.safetensors"} < set(tiny.files(tmp_path / "out"))


def test_a_reports_folder_that_cannot_be_written_to_is_told_before_the_first_byte(tmp_path, pair):
    (tmp_path / "r").write_bytes(b"a file")
    with pytest.raises(PlanError, match="cannot be written to"):
        tiny.go(tiny.recipe(tmp_path / "out", pair), tmp_path / "r")
    assert not tiny.files(tmp_path / "out")


def test_an_output_that_cannot_be_begun_leaves_nothing_and_loses_no_other(tmp_path, pair, monkeypatch):
    sizes, real = [], open_file.WriteFile.preallocate

    def preallocate(self, nbytes):
        sizes.append(nbytes)
        if len(sizes) == 2:
            with open_file.naming(self.path, "written"):
                raise OSError(errno.EFBIG, "File too large")
        real(self, nbytes)

    monkeypatch.setattr(open_file.WriteFile, "preallocate", preallocate)
    with pytest.raises(PlanError, match=r"mix_high_fp8_scaled\.safetensors: .* takes no file of this size"):
        tiny.go(tiny.recipe(tmp_path / "out", pair, formats=("bf16", FP8)), tmp_path / "r")
    assert sorted(tiny.files(tmp_path / "out")) == [
        f"mix_{name}.safetensors" for name in ("high_bf16", "low_bf16", "low_fp8_scaled")]


RULES = {
    "ties": {"passes": {"combine": "ties", "density": 0.4, "scope": {"ffn": 0.5}}},
    "adaptive": {"passes": {"method": "adaptive", "scope": {"0": 0.5}}, "normalize": True},
    "mix": {"mix": {"method": "ties", "density": 0.5}},
    "compat": {"compat": "comfyui", "lora": {"scope": {"1": 2.0, "self_attn": 0.5}}},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("alone", [False, True])
def test_a_stop_leaves_no_trace_whatever_is_done_to_a_tensor(tmp_path, pair, rules, alone):
    loras = [both(tiny.save(tmp_path / f"l{n}.safetensors", tiny.lora(n, size=2e-3))) for n in (1, 2)]
    passes = [{"loras": [loras[0] | rules.get("lora", {}), loras[1]], **rules.get("passes", {})}]
    others = {role: [tiny.save(tmp_path / f"b{n}.safetensors", tiny.base(n)) for n in (5, 6)] for role in pair}
    mix = {"mix": rules["mix"] | {"files": others}} if "mix" in rules else {}
    more = {name: value for name, value in rules.items() if name in ("compat", "normalize")}
    wish = tiny.recipe(tmp_path / "out", pair, passes=passes, **mix, **more)
    tiny.go(wish, tmp_path / "r1")
    unbroken = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    stopped_after(wish, tmp_path / "r2", 23)
    if alone:
        told = run.resume(str(tmp_path / "out" / "mix_high_bf16.safetensors.part"))  # and without what the reports folder held
        assert [out["resumed"] for out in told["experts"][0]["outputs"]] == [23]
    told = tiny.go(wish, tmp_path / "r2")
    assert tiny.files(tmp_path / "out") == unbroken
    assert told["experts"][0]["outputs"][0].get("up_to_date" if alone else "resumed")
