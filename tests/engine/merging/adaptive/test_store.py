"""The measuring step: what it keeps, what it finds again, what stops it; the file as the safetensors library reads it."""
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine.bands import Workers
from wan22_master.engine.errors import PlanError, Stopped, TensorError
from wan22_master.engine.merging.adaptive import file, store
from wan22_master.engine.merging.adaptive.constants import AdaptiveConstants
from wan22_master.engine.system import open_write

from .fixtures import FFN_0, PATCH, Q, V, ask, asked, base, delta64, expert, measured, ride, save, write_lora

KEYS = [f"{layer}.weight" for layer in (FFN_0, Q, PATCH)]  # as the file has them


def read_keys(found, reports) -> list[str]:
    """Ensure, and say which keys of the base were read."""
    seen = []
    store.ensure(found, ride(reports, on_progress=lambda progress: seen.append(progress.key)))
    return seen


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def loras(tmp_path):
    for number in range(2):
        write_lora(tmp_path / f"{number}.safetensors", number + 1)
    return [(tmp_path / f"{number}.safetensors", 1.0) for number in range(2)]


def test_the_base_is_read_once_for_all_loras_and_never_again(tmp_path, loras):
    reports = tmp_path / "reports"
    found = expert(tmp_path, loras)
    assert store.wanted(found, reports) == KEYS
    assert read_keys(found, reports) == KEYS
    assert store.wanted(expert(tmp_path, loras), reports) == []
    assert read_keys(expert(tmp_path, loras), reports) == []
    assert len(files(reports)) == 2


def test_only_what_is_missing_is_measured(tmp_path, loras):
    reports = tmp_path / "reports"
    measured(tmp_path, loras[:1])
    before = files(reports)
    assert read_keys(expert(tmp_path, loras), reports) == KEYS          # for the second LoRA
    assert before.items() <= files(reports).items()                     # the first one's file was not touched


def test_a_lora_measures_the_same_alone_and_beside_others(tmp_path, loras):
    measured(tmp_path, loras, tmp_path / "together")
    measured(tmp_path, loras[1:], tmp_path / "alone")
    assert files(tmp_path / "alone").items() <= files(tmp_path / "together").items()


def test_the_number_of_workers_changes_no_byte(tmp_path, loras, monkeypatch):
    results = []
    for count in (1, 2, 5):
        monkeypatch.setattr(store, "Workers", lambda count=count, **options: Workers(count, **options))
        measured(tmp_path, loras, tmp_path / f"reports {count}")
        results.append(files(tmp_path / f"reports {count}"))
    assert results[0] == results[1] == results[2]


def test_strength_limits_and_protection_need_no_new_measurement(tmp_path, loras):
    measured(tmp_path, loras)
    (a, _), (b, _) = loras
    again = [(a, -0.3, {"protected": True}), (b, 2.0, {"constants": AdaptiveConstants(limit_new=0.5, limit_refine=0.5)})]
    assert store.wanted(expert(tmp_path, again), tmp_path / "reports") == []
    found = measured(tmp_path, again)
    assert [what.gated.constants.limit_new for what in asked(found, Q)] == [0.08, 0.5]


@pytest.mark.parametrize("change", ["constants", "lora", "alpha", "base", "torch", "version"])
def test_whatever_changes_the_result_is_measured_anew(tmp_path, loras, change, monkeypatch):
    measured(tmp_path, loras[:1])
    more = {}
    if change == "constants":
        more = {"constants": AdaptiveConstants(known_over_chance=1.6)}
    elif change == "lora":
        write_lora(tmp_path / "0.safetensors", 9)
    elif change == "alpha":
        write_lora(tmp_path / "0.safetensors", 1, alpha=3.0)
    elif change == "base":
        save(tmp_path / "base.safetensors", {key: tensor * 2 for key, tensor in base().items()})
    else:
        monkeypatch.setattr(*((torch, "__version__", "0.0") if change == "torch" else (store, "ADAPTIVE", 99)))
    assert store.wanted(expert(tmp_path, [(*loras[0], more)]), tmp_path / "reports") == KEYS


def test_another_reading_of_the_same_file_is_another_entry(tmp_path, loras):
    """The same LoRA with another alpha / rank (rs-LoRA) in one recipe: both are kept in the one file."""
    import dataclasses

    measured(tmp_path, loras[:1])
    found = expert(tmp_path, loras[:1])
    for key, [(who, what)] in found.contributions.items():
        modules = [dataclasses.replace(module, factor=module.factor * 2) for module in what.modules]
        found.contributions[key] = [(who, what), (who, ask(what.lora, modules, 1.0))]
    store.ensure(found, ride(tmp_path / "reports"))
    entries = [each.gated.entry(f"{Q}.weight", (256, 256), each.modules) for each in asked(found, Q)]
    assert entries[1].figures["energy"] == pytest.approx(4 * entries[0].figures["energy"])
    assert len(files(tmp_path / "reports")) == 1


def test_the_file_is_plain_safetensors_with_figures(tmp_path, loras):
    found = measured(tmp_path, loras[:1])
    [path] = (tmp_path / "reports").iterdir()
    tensors = load_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float64}
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["adaptive"])
    assert said["identity"]["lora"] == found.ledgers[0]["sha256"] and len(said["entries"]) == 3
    [what] = asked(found, Q)
    entry = what.gated.entry(f"{Q}.weight", (256, 256), what.modules)
    [name] = [name for name in said["entries"] if name.startswith(Q)]
    for part in ("left", "right", "new", "known"):
        assert torch.equal(getattr(entry, part), tensors[f"{name}/{part}"])
    assert entry.figures == said["entries"][name]
    weight = base()[f"{Q}.weight"].double()
    assert entry.figures["base"] == pytest.approx(weight.square().sum().item(), rel=1e-12)
    assert entry.figures["energy"] == pytest.approx(delta64(load_file(loras[0][0]), Q).square().sum().item(), rel=1e-10)


def test_a_stop_keeps_what_is_measured(tmp_path, loras):
    reports, seen, asks = tmp_path / "reports", [], []

    def should_stop():
        asks.append(seen[-1:])
        return len(seen) == 2

    with pytest.raises(Stopped):
        store.ensure(expert(tmp_path, loras), ride(reports, should_stop, lambda progress: seen.append(progress.key)))
    assert seen == KEYS[:2]
    assert read_keys(expert(tmp_path, loras), reports) == KEYS[2:]
    measured(tmp_path, loras, tmp_path / "whole")
    for name in files(reports):
        one, other = (load_file(folder / name) for folder in (reports, tmp_path / "whole"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_stop_is_asked_within_a_tensor(tmp_path, loras):
    asks = []
    with pytest.raises(Stopped):
        store.ensure(expert(tmp_path, loras), ride(tmp_path / "reports", lambda: asks.append(1) or len(asks) > 5))
    assert len(asks) == 6


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "of another LoRA"])
def test_a_damaged_file_is_measured_again(tmp_path, loras, damage):
    measured(tmp_path, loras[:1])
    [path] = (tmp_path / "reports").iterdir()
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-9], "text": b"nothing"}.get(damage, b""))
    if damage == "foreign":
        save(path, {"left": torch.zeros(2)})
    elif damage == "of another LoRA":
        measured(tmp_path, loras[1:], tmp_path / "other")
        [other] = (tmp_path / "other").iterdir()
        path.write_bytes(other.read_bytes())
    assert read_keys(expert(tmp_path, loras[:1]), tmp_path / "reports") == KEYS
    assert path.read_bytes() == whole


def test_a_part_of_a_killed_run_is_written_over_and_one_in_use_is_an_error(tmp_path, loras):
    measured(tmp_path, loras[:1], tmp_path / "whole")
    [whole] = (tmp_path / "whole").iterdir()
    (tmp_path / "reports").mkdir()
    part = tmp_path / "reports" / f"{whole.name}.part"
    part.write_bytes(b"x" * 10_000_000)
    with open_write(part, resume=True) as other:
        other.claim()
        with pytest.raises(PlanError, match="another run is writing it"):
            store.ensure(expert(tmp_path, loras[:1]), ride(tmp_path / "reports"))
    measured(tmp_path, loras[:1])
    assert files(tmp_path / "reports") == {whole.name: whole.read_bytes()}


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_opened_is_closed_when_a_store_is_in_use(tmp_path, loras, number, monkeypatch):
    measured(tmp_path, loras, tmp_path / "whole")
    (tmp_path / "reports").mkdir()
    name = sorted(files(tmp_path / "whole"))[number]
    opened = []
    monkeypatch.setattr(file, "open_write", lambda *args, **more: opened.append(open_write(*args, **more)) or opened[-1])
    with open_write(tmp_path / "reports" / f"{name}.part", resume=False) as other:
        other.claim()
        with pytest.raises(PlanError, match="another run is writing it"):
            store.ensure(expert(tmp_path, loras), ride(tmp_path / "reports"))
    assert opened and all(each._fd == -1 for each in opened)


def test_a_base_with_nan_is_named(tmp_path, loras):
    weights = base()
    weights[f"{Q}.weight"][3, 3] = float("nan")
    save(tmp_path / "base.safetensors", weights)
    with pytest.raises(TensorError, match=rf"base\.safetensors: {Q}\.weight: measure failed: the base holds NaN or inf"):
        measured(tmp_path, loras)


def test_other_methods_and_dense_modules_are_left_alone(tmp_path, loras):
    dense = {f"diffusion_model.{V}.diff": torch.ones(256, 256), f"diffusion_model.{FFN_0}.diff_b": torch.ones(640)}
    save(tmp_path / "dense.safetensors", dense)
    found = measured(tmp_path, [(*loras[0], {"method": "addition"}), (tmp_path / "dense.safetensors", 1.0)])
    assert all(what.gated is None for whats in found.contributions.values() for _, what in whats)
    assert not files(tmp_path / "reports")
