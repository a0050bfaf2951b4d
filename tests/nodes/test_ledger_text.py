from types import SimpleNamespace

from wan22_master.nodes.ledger_text import describe_ledger, describe_plan

LEDGER = {"lora": "a.safetensors", "keys": 100, "applied": 94, "rank": "64", "alpha_over_rank": [0.5, 1.0], "strength": 0.8,
          "method": "addition", "refused": [{"key": str(number), "reason": f"reason {min(number, 5)}"} for number in range(6)]}


def test_a_lora_is_told_with_its_counts_and_every_refused_key_is_counted():
    head, *refused = describe_ledger(LEDGER)
    assert head == "a.safetensors: 94 of 100 keys, rank 64, alpha/rank 0.5, 1.0, strength 0.8, addition"
    assert len(refused) == 5 and sum(int(line.split("refused ")[1].split(":")[0]) for line in refused) == 6


def test_experts_are_named_for_a_pair_and_not_for_a_single_model():
    def told(role):
        return describe_plan(SimpleNamespace(experts=[SimpleNamespace(role=role, ledgers=[LEDGER])], notices=["n"]))

    assert told("high_noise")[0] == "high_noise:" and told("model")[0].startswith("a.safetensors")
    assert told("model")[-1] == "note: n"
