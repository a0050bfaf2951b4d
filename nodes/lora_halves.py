"""Which LoRAs of a stack go on which expert of a LoRA tool, and whether two models can be compared: no ComfyUI needed."""
from ..engine.errors import SourceError
from ..engine.loras.lora import open_lora
from ..engine.loratools.convert import experts_of
from .handles import Dit, Lora, LoraStack

PAIR = ("high_noise", "low_noise")


def by_role(stack: LoraStack) -> dict[str | None, list[tuple[Lora, str, float]]]:
    """Expert -> (LoRA, path, strength) of what goes on it; all under None when both experts would get the same."""
    found = {role: [(lora, path, strength) for lora in stack.loras for path, strength in [half(lora, role)] if path]
             for role in PAIR}
    same = [each[1:] for each in found[PAIR[0]]] == [each[1:] for each in found[PAIR[1]]]
    if same and not any(_holds_both(path) for _, path, _ in found[PAIR[0]]):
        return {None: found[PAIR[0]]}
    return {role: loras for role, loras in found.items() if loras}


def half(lora: Lora, role: str) -> tuple[str | None, float]:
    """(path, strength) of one expert's half."""
    return (lora.high, lora.strength_high) if role == PAIR[0] else (lora.low, lora.strength_low)


def _holds_both(path: str) -> bool:
    with open_lora(path) as lora:
        return len(experts_of(lora)) == 2


def check_models(tuned: Dit, base: Dit) -> None:
    """Raises SourceError when the two are not the same experts, or have LoRAs on them, which are in no file yet."""
    if tuned.roles != base.roles:
        found = f"{' + '.join(tuned.roles)} and {' + '.join(base.roles)}"
        raise SourceError(f"extract lora: expected the same experts in tuned and base, found {found}; load both models alike")
    if any(each.passes or each.mix for each in (tuned, base)):
        raise SourceError("extract lora: expected models as they lie in their files, found LoRAs or other models merged into one; "
                          "save the merge first and load that file, or use Merge LoRAs")
