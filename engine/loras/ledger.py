"""Which tensor of a LoRA goes where: every key ends applied, for the other expert, or refused with its reason.

What fits by name must also fit by shape (fit.py, adapters/). Two spellings of one module add up. Nothing is guessed: a name that
could belong to either expert, or mean two layers, is an error.
"""
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..bases.prefixes import HIGH, LOW
from ..errors import LoraError
from .adapters import build
from .causes import cause_of
from .dialects import Index, Place, split
from .modules import UNSCALED, Diff, Module, Pair, Refused
from .strangers import stranger

if TYPE_CHECKING:
    from .lora import LoraFile

__all__ = ["Diff", "Group", "Ledger", "Module", "Pair", "Refused", "match"]
EXPERTS = (HIGH, LOW)


@dataclass(frozen=True)
class Group:
    """Parts of one module of the file that ended alike. state: applied, converted, elsewhere or refused; cause: of a refusal."""

    state: str
    parts: dict[str, str]
    cause: str = ""


@dataclass
class Ledger:
    """applied: key of the base -> what is added to it, in file order. refused: the other keys, each with its reason.

    elsewhere: keys of a file of both experts that belong to the other one. dialects: dialect -> number of keys applied in it.
    converted: applied keys in a dialect that ComfyUI does not load as it is. groups: every key again, to be weighed.
    energies: what `energies.measure` found, None before.
    """

    applied: dict[str, list[Module]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    elsewhere: list[Refused] = field(default_factory=list)
    dialects: Counter[str] = field(default_factory=Counter)
    converted: set[str] = field(default_factory=set)
    groups: list[Group] = field(default_factory=list)
    energies: dict | None = None

    @property
    def applied_keys(self) -> set[str]:
        return {key for modules in self.applied.values() for module in modules for key in module.keys}

    @property
    def alpha_over_rank(self) -> tuple[float, ...]:
        """The different factors in use, ascending."""
        return tuple(sorted({module.factor for module in self._scaled()}))

    @property
    def alpha_from(self) -> tuple[str, ...]:
        """Where the factors come from, in words."""
        return tuple(sorted({module.alpha_from for module in self._scaled()}))

    @property
    def kinds(self) -> dict[str, int]:
        """Adapter kind -> number of modules applied."""
        return dict(Counter(module.kind for modules in self.applied.values() for module in modules).most_common())

    def _scaled(self) -> list[Module]:
        return [each for modules in self.applied.values() for each in modules if each.alpha_from != UNSCALED]

    def refuse(self, parts: dict[str, str], reason: str) -> None:
        """Every one of these parts is refused for one reason."""
        self.refused += [Refused(key, reason) for key in parts.values()]
        self.groups.append(Group("refused", parts, cause_of(reason)))


def match(lora: "LoraFile", index: Index, role: str | None = None, *, rs_lora: bool | None = None) -> Ledger:
    """Lay every key of a LoRA on the base. Reads only the alphas.

    role: the expert that the base is; None or "model" where it is not known or there is one. rs_lora: the user's word on rs-LoRA,
    None leaves it to the file's configuration. Raises LoraError when nothing fits (and says why), when a file of both experts meets
    a base of unknown role, when a name is ambiguous, or an alpha is no number.
    """
    if lora.dialect.is_combined and role not in EXPERTS:
        raise LoraError(f"{lora.name}: holds both experts, and this model is not known as one of them; lay it on a pair of "
                        "experts, or split it into a file for each")
    ledger, channels = Ledger(), index.specs.get("patch_embedding.weight")
    reason = stranger(lora.specs, channels.shape[1] if channels and len(channels.shape) > 1 else None)
    for module, parts in grouped(lora, ledger).items():
        place = None if reason else _place(lora, index, module)
        if reason or place is None:
            ledger.refuse(parts, reason or index.why_not(module))
        elif role in EXPERTS and place.expert not in (None, role):
            ledger.elsewhere += [Refused(key, f"for the {place.expert} expert") for key in parts.values()]
            ledger.groups.append(Group("elsewhere", parts))
        else:
            _lay(ledger, place, parts, build(lora, place.layer, parts, index, rs_lora=rs_lora))
    if not ledger.applied:
        raise LoraError(nothing(lora, ledger, role))
    return ledger


def grouped(lora: "LoraFile", ledger: Ledger) -> dict[str, dict[str, str]]:
    """Module name -> part -> key, in file order; what is no key of a LoRA is refused at once, in `ledger`."""
    modules: dict[str, dict[str, str]] = {}
    for key in lora.specs:
        found = split(key)
        if found is None:
            ledger.refuse({key: key}, "not a key of a LoRA")
        else:
            modules.setdefault(found[0], {})[found[1]] = key
    return modules


def _place(lora: "LoraFile", index: Index, module: str) -> Place | None:
    place = index.place(module, lora.dialect)
    if place is not None and place.expert is None and lora.dialect.halves:
        others = " and ".join(sorted(lora.dialect.halves))
        raise LoraError(f"{lora.name}: {module}: expected a name that tells its expert, as those for {others} in this file do, "
                        "found none; split the file into one for each expert")
    return place


def _lay(ledger: Ledger, place: Place, parts: dict[str, str], results: list[tuple[str, Module] | Refused]) -> None:
    """Enter what one module of the file became."""
    names = {key: part for part, key in parts.items()}
    used: dict[str, str] = {}
    refused: dict[str, dict[str, str]] = {}
    for result in results:
        if isinstance(result, Refused):
            refused.setdefault(result.reason, {})[names[result.key]] = result.key
        else:
            ledger.applied.setdefault(result[0], []).append(result[1])
            used |= {names[key]: key for key in result[1].keys}
    for reason, alike in refused.items():
        ledger.refuse(alike, reason)
    if used:
        ledger.dialects[place.dialect] += len(used)
        ledger.converted |= set(used.values()) if place.is_converted else set()
        ledger.groups.append(Group("converted" if place.is_converted else "applied", used))


def nothing(lora: "LoraFile", ledger: Ledger, role: str | None) -> str:
    """Why a ledger without an applied key is an error, in words."""
    if ledger.elsewhere and not ledger.refused:
        other = LOW if role == HIGH else HIGH
        return f"{lora.name}: expected keys for {role}, found them all for {other}; put it on that expert"
    reason, count = Counter(item.reason for item in ledger.refused).most_common(1)[0] if ledger.refused else ("it has no keys", 0)
    return f"{lora.name}: nothing of it fits this model: {count} of {len(lora.header.entries)} keys: {reason}"
