"""The stability meter against dense float64 torch: every delta and every weight whole, nothing of the engine's sums."""

import json
import math

import pytest
import torch
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import measure, run
from wan22_master.engine.merging import meter
from wan22_master.tests.engine import tiny

KINDS = ("self_attn", "cross_attn", "ffn")
CLOSE = 1e-5  # relative: sums of 3e5 float32 squares


def classic64(delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Classic injection of one delta (as the original does it, with the original base), float64."""
    new = bool(delta.var() > 1.5 * weight.var())
    kept = delta * (delta.abs() > (0.4 if new else 1.8) * delta.abs().mean())
    return kept * min(1.0, ((0.08 if new else 0.05) / kept.abs().max()).item())


class Job:
    """Two passes of three LoRAs on one model, as recipe and as dense float64 deltas."""

    def __init__(self, tmp_path, method: str):
        self.weights, self.method, self.reports = tiny.base(seed=2), method, tmp_path / "reports"
        ffn = [f"blocks.{n}.ffn.{part}" for n in range(tiny.BLOCKS) for part in (0, 2)]
        self.loras = [
            tiny.lora(seed=31),
            tiny.lora(seed=32, layers=ffn, rank=6, alpha=3.0, size=2e-3),
            tiny.lora(seed=33, layers=["blocks.1.cross_attn.v", "head.head"]),
        ]
        self.loras[2]["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.full((tiny.FFN,), 1e-3)
        self.strengths, self.pass_of, factors = [0.9, -1.1, 2.0], [0, 0, 1], [1.0, 0.5]
        entries = [
            {"files": {"model": tiny.save(tmp_path / f"l{n}.safetensors", each)}, "strength": {"model": strength}}
            for n, (each, strength) in enumerate(zip(self.loras, self.strengths, strict=True))
        ]
        passes = [
            {
                "name": name,
                "method": method,
                "global_factor": factor,
                "loras": [entries[n] for n in range(3) if self.pass_of[n] == p],
            }
            for p, (name, factor) in enumerate(zip(("first", "second"), factors, strict=True))
        ]
        self.strengths = [by * factors[p] for by, p in zip(self.strengths, self.pass_of, strict=True)]
        model = tiny.save(tmp_path / "m.safetensors", self.weights)
        self.recipe = tiny.recipe(tmp_path / "out", {"model": model}, passes=passes, formats=("float8_e4m3fn",))

    def deltas(self, which=(0, 1, 2)) -> dict[str, torch.Tensor]:
        """Key -> sum of what the chosen LoRAs add, strengths included."""
        found = {}
        for number in which:
            for key, weight in self.weights.items():
                delta = tiny.delta64(self.loras[number], key.removesuffix(".weight")) if key.endswith(".weight") else None
                if delta is not None and self.method == "classic":
                    delta = classic64(delta, weight.double())
                if number == 2 and key == "blocks.0.ffn.0.bias":
                    delta = self.loras[2]["diffusion_model.blocks.0.ffn.0.diff_b"].double()
                if delta is not None:
                    found[key] = found.get(key, 0) + self.strengths[number] * delta
        return found

    def measured(self) -> dict:
        with plan_recipe(self.recipe, self.reports) as plan:
            return measure(plan, reports=self.reports)["experts"][0]["meter"]


def energy(tensors) -> float:
    return sum(tensor.double().square().sum().item() for tensor in tensors)


@pytest.fixture(params=["addition", "classic"])
def job(tmp_path, request):
    return Job(tmp_path, request.param)


def test_shift_is_the_share_of_the_block_linears_energy(job):
    found, moved = job.measured(), energy(job.deltas().values())
    base = energy(job.weights[f"{layer}.weight"] for layer in tiny.linears())
    assert found["shift"] == pytest.approx(math.sqrt(moved / base), rel=CLOSE)
    touched = energy(job.weights[key] for key in job.deltas())
    assert found["shift_touched"] == pytest.approx(math.sqrt(moved / touched), rel=CLOSE)
    assert found["status"] == ("STABLE" if found["shift"] < 0.015 else "SATURATED" if found["shift"] <= 0.03 else "VOLATILE")


def test_each_lora_and_each_pass_has_its_own_shift(job):
    found, base = job.measured(), energy(job.weights[f"{layer}.weight"] for layer in tiny.linears())
    assert [(each["name"], each["pass"]) for each in found["loras"]] == [
        ("l0.safetensors", "first"),
        ("l1.safetensors", "first"),
        ("l2.safetensors", "second"),
    ]
    for number, each in enumerate(found["loras"]):
        assert each["shift"] == pytest.approx(math.sqrt(energy(job.deltas([number]).values()) / base), rel=CLOSE)
    assert [each["name"] for each in found["passes"]] == ["first", "second"]
    for each, which in zip(found["passes"], ([0, 1], [2]), strict=True):
        assert each["shift"] == pytest.approx(math.sqrt(energy(job.deltas(which).values()) / base), rel=CLOSE)


def test_each_block_and_kind_has_its_own_cell_and_the_largest_layers_are_listed(job):
    found, deltas = job.measured(), {key: delta for key, delta in job.deltas().items() if key.endswith(".weight")}
    assert found["blocks"] == tiny.BLOCKS and tuple(found["kinds"]) == KINDS
    for block in range(tiny.BLOCKS):
        for place, kind in enumerate(KINDS):
            keys = [f"{layer}.weight" for layer in tiny.linears() if layer.startswith(f"blocks.{block}.{kind}.")]
            wanted = math.sqrt(energy(deltas[key] for key in keys) / energy(job.weights[key] for key in keys))
            assert found["cells"][block][place] == pytest.approx(wanted, rel=CLOSE)
    layers = {
        key.removesuffix(".weight"): math.sqrt(energy([delta]) / energy([job.weights[key]])) for key, delta in job.deltas().items()
    }
    wanted = sorted(layers, key=layers.get, reverse=True)[: len(found["top"])]
    assert [each["layer"] for each in found["top"]] == wanted and len(wanted) == 12
    assert [each["shift"] for each in found["top"]] == pytest.approx([layers[layer] for layer in wanted], rel=CLOSE)


def test_the_legacy_number_is_the_change_of_the_mean_of_means(job):
    found, deltas = job.measured(), job.deltas()
    before = sum(weight.double().abs().mean().item() for weight in job.weights.values()) / len(job.weights)
    after = sum((weight.double() + deltas.get(key, 0)).abs().mean().item() for key, weight in job.weights.items()) / len(
        job.weights
    )
    assert found["legacy"] == pytest.approx(abs(after - before), rel=1e-3, abs=1e-9)  # a difference of nearly equal numbers


def test_writing_tells_the_same_shift_as_measuring(job):
    found = job.measured()
    with plan_recipe(job.recipe, job.reports) as plan:
        written = run(plan, reports=job.reports)["experts"][0]["meter"]
    for name in ("shift", "shift_touched"):
        assert written[name] == pytest.approx(found[name], rel=1e-12)
    assert [each["shift"] for each in written["loras"]] == pytest.approx([each["shift"] for each in found["loras"]], rel=1e-12)
    assert written["cells"] == [pytest.approx(row, rel=1e-12) for row in found["cells"]]


@pytest.mark.parametrize(
    ("shift", "word"),
    [
        (0.0, "STABLE"),
        (math.nextafter(0.015, 0), "STABLE"),
        (0.015, "SATURATED"),
        (0.02, "SATURATED"),
        (0.030, "SATURATED"),
        (math.nextafter(0.030, 1), "VOLATILE"),
        (5.0, "VOLATILE"),
    ],
)
def test_both_thresholds_are_saturated(shift, word):
    assert meter.status(shift) == word


def test_thresholds_can_be_moved():
    assert [meter.status(shift, 0.1, 0.2) for shift in (0.09, 0.1, 0.2, 0.21)] == ["STABLE", "SATURATED", "SATURATED", "VOLATILE"]


def test_a_base_of_zeros_moved_is_huge_and_still_json():
    assert 1e10 < meter.ratio(1.0, 0.0) < math.inf and meter.ratio(0.0, 0.0) == 0.0
    json.dumps(meter.ratio(1.0, 0.0), allow_nan=False)


def test_without_loras_nothing_moved(tmp_path):
    wish = tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", tiny.base())})
    with plan_recipe(wish, tmp_path / "r") as plan:
        found = measure(plan, reports=tmp_path / "r")["experts"][0]["meter"]
    assert (found["shift"], found["legacy"], found["status"], found["top"], found["loras"]) == (0.0, 0.0, "STABLE", [], [])


@pytest.mark.parametrize("strength", [-1.0, -0.99999, -1.000001])
def test_loras_that_nearly_cancel_move_nearly_nothing(tmp_path, strength):
    model = tiny.save(tmp_path / "m.safetensors", tiny.base())
    lora = {"files": {"model": tiny.save(tmp_path / "l.safetensors", tiny.lora(size=1e-2))}}
    twice = [{**lora, "strength": {"model": by}} for by in (1.0, strength)]
    with plan_recipe(tiny.recipe(tmp_path / "out", {"model": model}, twice, allow_twice=True), tmp_path / "r") as plan:
        found = measure(plan, reports=tmp_path / "r")["experts"][0]["meter"]
    alone = found["loras"][0]["shift"]
    # energies are known to about 2**-20 of one LoRA's, so the shift to 2**-10; exact is |1 + strength| <= 1e-5 of it
    for shift in (found["shift"], found["passes"][0]["shift"], *(each["shift"] for each in found["top"])):
        assert 0.0 <= shift <= alone * 2 ** -10 * 2
    assert all(0.0 <= cell <= alone * 2 ** -10 * 2 for row in found["cells"] for cell in row)


def test_a_reading_is_kept_by_content_and_read_once(job, monkeypatch):
    first = job.measured()
    monkeypatch.setattr("wan22_master.engine.jobs.run.carry_all", None)  # would fail if the base were read again
    assert job.measured() == first


@pytest.mark.parametrize("change", ["base", "lora", "strength", "method", "constants"])
def test_a_reading_of_something_else_is_not_taken(tmp_path, change):
    job = Job(tmp_path, "classic")
    first, asked = job.measured(), job.recipe.to_json()
    if change == "base":
        tiny.save(tmp_path / "m.safetensors", tiny.base(seed=99))
    elif change == "lora":
        tiny.save(tmp_path / "l0.safetensors", tiny.lora(seed=99))
    elif change == "strength":
        asked["passes"][1]["loras"][0]["strength"]["model"] = 1.5
    elif change == "method":
        asked["passes"][1]["method"] = "addition"
    else:
        asked["passes"][0]["classic"]["sensitivity_refine"] = 1.0
    job.recipe = tiny.parse(asked)
    assert job.measured()["shift"] != first["shift"]


@pytest.mark.parametrize("change", ["constants", "passes"])
def test_which_pass_has_which_loras_and_constants_belongs_to_the_content(tmp_path, change):
    model, reports = tiny.save(tmp_path / "m.safetensors", tiny.base()), tmp_path / "r"
    entries = [{"files": {"model": tiny.save(tmp_path / f"l{n}.safetensors", tiny.lora(seed=n))}} for n in (1, 2)]
    found = []
    for turn in (0, 1):
        values = [1.8, 1.0][:: -1 if change == "constants" and turn else 1]
        split = [entries] if change == "passes" and turn else [[each] for each in entries]
        passes = [
            {"method": "classic", "loras": loras, "classic": {"sensitivity_refine": values[n] if change == "constants" else 1.8}}
            for n, loras in enumerate(split)
        ]
        with plan_recipe(tiny.recipe(tmp_path / "out", {"model": model}, passes=passes), reports) as plan:
            found.append(measure(plan, reports=reports)["experts"][0]["meter"])
    assert found[0]["loras" if change == "constants" else "passes"] != found[1]["loras" if change == "constants" else "passes"]


def test_a_reading_of_the_file_alone_is_not_taken_for_one_of_it_in_a_pair(tmp_path):
    pair, reports = tiny.write_pair(tmp_path / "in"), tmp_path / "r"
    for experts in ({"model": pair["high_noise"]}, pair):
        with plan_recipe(tiny.recipe(tmp_path / "out", experts), reports) as plan:
            assert [each["role"] for each in measure(plan, reports=reports)["experts"]] == list(experts)


class Distilled:
    """A style LoRA in a TIES pass, a distillation LoRA twice as strong beside it, and their dense float64 deltas."""

    def __init__(self, tmp_path, **asked):
        self.weights, self.reports = tiny.base(seed=5), tmp_path / "r"
        self.style, self.light = tiny.lora(seed=41, size=3e-4), tiny.lora(seed=42, size=1.5e-3)
        paths = [
            tiny.save(tmp_path / name, tensors)
            for name, tensors in (("style.safetensors", self.style), ("wan2.2_lightning.safetensors", self.light))
        ]
        passes = [{"name": "P", "combine": "ties", "density": 0.5, "loras": [{"files": {"model": path}} for path in paths]}]
        model = tiny.save(tmp_path / "m.safetensors", self.weights)
        self.recipe = tiny.recipe(tmp_path / "out", {"model": model}, passes=passes, **asked)

    def shift(self, deltas) -> float:
        base = energy(self.weights[f"{layer}.weight"] for layer in tiny.linears())
        return math.sqrt(energy(deltas) / base)

    def parts(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The style as TIES leaves one delta alone: its half of largest magnitude; and the distillation whole."""
        style, light = tiny.delta64(self.style, layer), tiny.delta64(self.light, layer)
        least = style.abs().flatten().kthvalue(style.numel() - int(0.5 * style.numel()) + 1).values
        return style * (style.abs() >= least), light


@pytest.mark.parametrize("written", [False, True], ids=["measure", "run"])
def test_needles_tell_distillation_from_the_rest_and_the_word_judges_the_rest(tmp_path, written):
    job = Distilled(tmp_path)
    with plan_recipe(job.recipe, job.reports) as plan:
        found = (run if written else measure)(plan, reports=job.reports)["experts"][0]["meter"]
    parts = [job.parts(layer) for layer in tiny.linears()]
    assert found["needles"] == pytest.approx(
        {
            "all": job.shift(style + light for style, light in parts),
            "distillation": job.shift(light for _, light in parts),
            "rest": job.shift(style for style, _ in parts),
        },
        rel=CLOSE,
    )
    assert found["shift"] == found["needles"]["all"] > 0.03 and found["needles"]["rest"] < 0.015
    assert found["status"] == "STABLE"
    assert [each["protected"] for each in found["loras"]] == [False, True]


def test_normalize_is_measured_exactly(tmp_path):
    job = Distilled(tmp_path, normalize=True)
    with plan_recipe(job.recipe, job.reports) as plan:
        found = measure(plan, reports=job.reports)["experts"][0]["meter"]
    moved, rest = [], []
    for layer in tiny.linears():
        base, (style, light) = job.weights[f"{layer}.weight"].double(), job.parts(layer)
        merged = base + style + light
        merged = merged * base.norm() / merged.norm()
        moved.append(merged - base)
        rest.append(merged - base - light)
    assert found["shift"] == pytest.approx(job.shift(moved), rel=CLOSE)
    assert found["needles"]["rest"] == pytest.approx(job.shift(rest), rel=CLOSE)


def test_without_distillation_the_rest_is_all(job):
    found = job.measured()
    assert found["needles"] == pytest.approx({"all": found["shift"], "distillation": 0.0, "rest": found["shift"]}, rel=1e-12)


@pytest.mark.parametrize("change", ["normalize", "density", "seed"])
def test_how_passes_combine_belongs_to_the_content(tmp_path, change):
    job = Distilled(tmp_path)
    asked, found = job.recipe.to_json(), []
    asked["passes"][0]["combine"] = "dare_ties"
    for value in ({"normalize": (False, True), "density": (0.5, 0.9), "seed": (1, 2)})[change]:
        (asked if change == "normalize" else asked["passes"][0])[change] = value
        with plan_recipe(tiny.parse(asked), job.reports) as plan:
            found.append(measure(plan, reports=job.reports)["experts"][0]["meter"]["needles"])
    assert found[0] != found[1]
