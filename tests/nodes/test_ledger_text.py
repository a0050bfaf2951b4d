from types import SimpleNamespace

import pytest
from wan22_master.nodes.handles import Lora
from wan22_master.nodes.ledger_text import describe_ledger, describe_plan, unused

LEDGER = {"lora": "a.safetensors", "keys": 100, "applied": 94, "rank": "64", "alpha_over_rank": [0.5, 1.0], "strength": 0.8,
          "method": "addition", "refused": [{"key": str(number), "reason": f"reason {min(number, 5)}"} for number in range(6)]}


REASONS = ["text encoder key", "image branch", "image branch of another", "image branch", "block 9, but the model has 2 blocks",
           "factors are transposed", "partner factor missing", "no such layer"]


def test_a_lora_is_told_with_its_counts_and_every_refused_key_is_counted():
    head, *refused = describe_ledger({**LEDGER, "refused": [{"key": str(n), "reason": text} for n, text in enumerate(REASONS)]})
    assert head == "a.safetensors: 94 of 100 keys, rank 64, alpha/rank 0.5, 1.0, strength 0.8, addition"
    assert refused[0] == "  refused 3: image branch (and 1 more of this kind, in the report)"
    assert refused[-1] == "  refused 2: 2 more causes, in the report"
    assert len(refused) == 5 and sum(int(line.split("refused ")[1].split(":")[0]) for line in refused) == len(REASONS)


def test_shares_of_the_energy_are_told_where_they_were_weighed():
    energies = {"total": 2.0, "applied": 0.25, "converted": 0.1, "elsewhere": 0.3, "lost": 0.5, "unweighed": {},
                "refused": {"image branch absent": 0.35}}
    ledger = {**LEDGER, "refused": [{"key": "k", "reason": "the image branch"}], "converted": 7, "elsewhere": 40,
              "dialects": {"native (diffusion_model.)": 87, "diffusers (transformer.)": 7}, "energies": energies}
    assert describe_ledger(ledger)[1:] == [
        "  converted 7 (10.0 % of the LoRA): ComfyUI does not load diffusers (transformer.)",
        "  for the other expert 40 (30.0 % of the LoRA)", "  refused 1 (35.0 % of the LoRA): the image branch",
        "  50.0 % of what was meant for this model could not be used",
    ]


def test_a_lora_of_no_strength_and_an_alpha_from_elsewhere_are_told():
    assert describe_ledger({"lora": "a.safetensors", "note": "strength 0: not merged"}) == ["a.safetensors: strength 0: not merged"]
    lines = describe_ledger({**LEDGER, "refused": [], "alpha_from": ["alpha tensors", "adapter_config.json"]})
    assert lines[1:] == ["  alpha from adapter_config.json"]


def test_experts_are_named_for_a_pair_and_not_for_a_single_model():
    def told(role):
        return describe_plan(SimpleNamespace(experts=[SimpleNamespace(role=role, ledgers=[LEDGER])], notices=["n"]))

    assert told("high_noise")[0] == "high_noise:" and told("model")[0].startswith("a.safetensors")
    assert told("model")[-1] == "note: n"


PAIR, SINGLE, HIGH, LOW = ("high_noise", "low_noise"), ("model",), ("high_noise",), ("low_noise",)


@pytest.mark.parametrize(("high", "low", "off", "roles", "line"), [
    ("h", "l", (), PAIR, None), ("h", None, ("low_noise",), PAIR, None), ("h", "h", (), SINGLE, None), ("h", "h", (), LOW, None),
    ("h", None, (), HIGH, None),
    ("h", "l", (), SINGLE, "not used: l: a model that is one file takes lora_high alone"),
    ("h", "l", (), HIGH, "not used: l: the low_noise expert is not loaded"),
    ("h", "l", (), LOW, "not used: h: the high_noise expert is not loaded"),
    (None, "l", ("high_noise",), SINGLE,
     "not used: l: lora_high is switched off, and a model that is one file takes lora_high alone"),
    (None, "l", (), HIGH, "not used: l: lora_high is empty, and the low_noise expert is not loaded"),
    ("h", None, ("low_noise",), LOW, "not used: h: lora_low is switched off, and the high_noise expert is not loaded")])
def test_a_file_that_does_nothing_is_told_with_the_right_reason(high, low, off, roles, line):
    assert unused(Lora(high, low, 1.0, 1.0, off=off), roles) == ([line] if line else [])
