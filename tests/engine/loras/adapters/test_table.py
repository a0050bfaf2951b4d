"""Dialect x adapter x axes of the base: each change against a float64 oracle that shares nothing with the engine."""

import pytest
import torch
from wan22_master.engine.loras.ledger import match
from wan22_master.tests.engine.loras.adapters import cases, laid, names

INDEX = laid.index_of()
LAYERS = dict(zip(cases.SHAPES, names.NATIVE, strict=True))


def weight_of(key):
    return torch.randn(cases.SHAPES[key], generator=torch.manual_seed(len(key))) * 0.4


def write_table(path, dialect, kind):
    """One file with the kind on all four targets; (file, key of the base -> (tensors, change))."""
    found, tensors = {}, {}
    for key, layer in LAYERS.items():
        parts, change = cases.case(kind, cases.SHAPES[key])
        own = {names.DIALECTS[dialect][layer] + suffix: tensor for suffix, tensor in parts.items()}
        found[key], tensors = (own, change), tensors | own
    return laid.write(path, tensors), found


def errors(path, dialect, kind, strengths=(1.0,)):
    """Key of the base -> relative error of the worst of these strengths, None where the cell is refused."""
    lora, table = write_table(path, dialect, kind)
    ledger = match(lora, INDEX, "low_noise" if dialect in names.LOW else "high_noise")
    applied, refused = ledger.applied, {one.key for one in ledger.refused}
    assert applied.keys() == {key for key, (_, change) in table.items() if change is not None}
    found = {}
    for key, (tensors, change) in table.items():
        if change is None:
            assert tensors.keys() <= refused
            found[key] = None
            continue
        [module] = applied[key]
        assert set(module.keys) == tensors.keys()
        weight = weight_of(key)
        pairs = [(laid.change_of(module, lora, weight, strength), change(weight, strength)) for strength in strengths]
        found[key] = max(laid.error(one, other) for one, other in pairs)
    lora.close()
    return found


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of torch only wait for each other on tensors this small."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize("dialect", names.DIALECTS)
def test_each_cell_is_the_oracles_or_refused(tmp_path, dialect):
    wrong = {}
    for number, kind in enumerate(cases.KINDS):
        found = errors(tmp_path / f"{number}.safetensors", dialect, kind, (1.0, -0.6) if dialect == "native" else (1.0,))
        wrong |= {(kind, key): error for key, error in found.items() if error is not None and error > cases.tolerance(kind)}
    assert not wrong
