import copy
import json
from pathlib import Path

import pytest
from wan22_master.nodes.analysis_text import for_browser, predicted, stands_out, summary, worst

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def fighting() -> dict:
    """The golden report with one pair that conflicts, and one module that was left out."""
    report = copy.deepcopy(GOLDEN)
    section = report["experts"][1]["conflicts"]
    section["pairs"][2] |= {"excess": 0.125, "se": 0.004, "cosine": -0.25}
    section["left_out"] = [{"lora": "a.safetensors", "kind": "dora", "reason": "depends on the weights of the base", "tensors": 7}]
    return report


def test_a_pair_stands_out_when_its_conflict_is_large_and_surely_not_luck():
    assert not any(stands_out(pair) for expert in GOLDEN["experts"] for pair in expert["conflicts"]["pairs"])
    assert stands_out({"excess": 0.05, "se": 0.01})
    assert not stands_out({"excess": 0.05, "se": 0.02}) and not stands_out({"excess": 0.019, "se": 0.0})
    assert not stands_out({"excess": None, "se": None})


def test_the_summary_counts_and_names_pairs_and_what_was_left_out(fighting):
    quiet, loud, pair, left = summary(fighting).splitlines()
    assert quiet.startswith("high_noise: 3 LoRAs, 0 of 3 pairs conflict beyond chance, shift as measured 0.01")
    assert loud.startswith("low_noise: 3 LoRAs, 1 of 3 pairs conflict")
    assert pair == ("  lightx2v_4steps_low_noise.safetensors and kohya_lora_low_noise.safetensors: "
                    "excess conflict 12.5% ± 0.4%, cosine -0.25")
    assert left == "  not analysed: a.safetensors: dora in 7 tensors: depends on the weights of the base"
    assert [one["excess"] for one in worst(fighting["experts"][1]["conflicts"])] == [0.125]


def test_the_movement_is_a_shift_where_the_base_is_known_and_a_size_where_not():
    section = GOLDEN["experts"][0]["conflicts"]
    measured, moved = section["shift"], section["moved"]
    assert predicted(section) == (f"shift as measured {measured['all']:.4f} (distillation {measured['distillation']:.4f}, "
                                  f"rest {measured['rest']:.4f})")
    assert predicted({**section, "shift": {**measured, "from": "base norms"}}).startswith("predicted shift ")
    plain = {**section, "shift": None, "loras": [{**lora, "protected": False} for lora in section["loras"]]}
    assert predicted(plain) == f"size of all changes {moved['all']:.4f}"


def test_the_browser_gets_no_folder_no_hash_and_no_number_that_json_lacks():
    report = copy.deepcopy(GOLDEN)
    report["experts"][0]["conflicts"]["pairs"][0]["cosine"] = float("inf")
    sent = for_browser(report)
    text = json.dumps(sent, allow_nan=False)
    assert "/models" not in text and "sha256" not in text and "gram" not in text
    assert sent["experts"][0]["conflicts"]["pairs"][0]["cosine"] is None
    assert sent["experts"][1]["conflicts"]["by_block"] == [
        {name: block[name] for name in ("excess", "se")} for block in GOLDEN["experts"][1]["conflicts"]["by_block"]]
