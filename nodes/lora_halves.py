"""Which expert a file of a LoRA tool is for, and what it is called by that; whether two models can be compared: no ComfyUI."""
import filecmp

from ..engine.bases.roles import role_of
from ..engine.errors import LoraError, PlanError, RecipeError, SourceError
from ..engine.loras.lora import LoraFile, open_lora
from ..engine.loras.routing import route
from ..engine.loratools.convert import experts_of
from .handles import Dit, Lora, LoraStack

PAIR = ("high_noise", "low_noise")
ROLES = {"high": "high_noise", "low": "low_noise"}


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


def known_role(lora: LoraFile) -> str | None:
    """The expert that a file is for, by keys, metadata, names and neighbours; None for both or unknown."""
    return ROLES.get(route(lora.path, lora).expert)


def check_half(lora: LoraFile, role: str, widget: str) -> None:
    """Raises LoraError when a file speaks of the other expert than the one it is taken for. widget: what says so."""
    said = route(lora.path, lora)
    if ROLES.get(said.expert, role) != role:
        raise LoraError(f"{lora.name}: {widget} takes it for {role}, but it is made for {ROLES[said.expert]} ({said.evidence}); "
                        "choose the other, or auto; where that word is wrong, rename the file")


def check_join(high: LoraFile, low: LoraFile) -> None:
    """Raises LoraError when two files are not the high-noise and the low-noise half: swapped, of one expert, or one file twice."""
    if filecmp.cmp(high.path, low.path, shallow=False):
        raise LoraError(f"{high.name} and {low.name}: expected two halves, found the same file twice; choose the low-noise file in "
                        "lora_low; a LoRA for both experts needs no joining")
    check_half(high, PAIR[0], "lora, to be joined,")
    check_half(low, PAIR[1], "lora_low")


def check_no_halves(halves: str) -> None:
    """Raises RecipeError when a half is asked for of two files that are to be joined."""
    if halves != "auto":
        raise RecipeError(f"convert lora: halves is {halves}, but lora_low is to be joined with lora into one file; set halves to "
                          "auto, or lora_low to (none)")


def named(stem: str, role: str | None, *, alone: bool) -> str:
    """File name without ending that says the expert, so that LoRA Pair finds it there. alone: no other half is saved, and a name
    that says it already stays; halves of a pair differ in what is put behind both. Raises PlanError for a name that says both."""
    if role is None or (alone and said_by(stem) == role):
        return stem
    found = f"{stem}_{role}"
    if said_by(found) != role:
        raise PlanError(f"name {stem!r}: expected a name that can be told to be {role}, found the other expert in it; type a name "
                        "without high and low noise")
    return found


def said_by(stem: str) -> str | None:
    """The expert that the words of a file name say."""
    return role_of(stem, {}, exists=lambda path: False).role
