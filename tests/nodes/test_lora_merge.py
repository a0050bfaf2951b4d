from wan22_master.nodes.handles import Lora, LoraStack
from wan22_master.nodes.lora_halves import by_role
from wan22_master.tests.engine import trainers


def test_halves_go_to_their_expert_with_their_strength(tmp_path):
    high, low = map(str, trainers.write_ai_toolkit(tmp_path))
    one, two = Lora(high, low, 1.0, 0.5), Lora(high, None, 0.3, 1.0)
    found = by_role(LoraStack((one, two)))
    assert found == {"high_noise": [(one, high, 1.0), (two, high, 0.3)], "low_noise": [(one, low, 0.5)]}


def test_the_same_on_both_experts_is_one_file_unless_the_file_holds_both_halves(tmp_path):
    plain = str(trainers.write_peft(tmp_path)[0])
    same, other = Lora(plain, plain, 0.7, 0.7), Lora(plain, plain, 0.7, 0.6)
    assert set(by_role(LoraStack((same,)))) == {None} and set(by_role(LoraStack((other,)))) == {"high_noise", "low_noise"}
    combined = str(trainers.write_onetrainer(tmp_path)[0])
    assert set(by_role(LoraStack((Lora(combined, combined, 1.0, 1.0),)))) == {"high_noise", "low_noise"}


def test_a_stack_for_one_expert_makes_one_half(tmp_path):
    low = str(trainers.write_ai_toolkit(tmp_path)[1])
    assert set(by_role(LoraStack((Lora(None, low, 1.0, 1.0),)))) == {"low_noise"}
