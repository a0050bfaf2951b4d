"""Which tensor of a LoRA goes where: every key ends applied, or refused with its reason.

Adapter kinds and spellings that are not merged are refused by name; what fits by name must also fit by shape (fit.py).
"""
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .alpha import factor
from .dialects import Index, split, unsupported
from .errors import LoraError
from .fit import pair_problem, whose

if TYPE_CHECKING:
    from .lora import LoraFile

FAMILIES = (("up", "down"), ("B", "A"))


@dataclass(frozen=True)
class Pair:
    """delta = factor * up @ down. alpha: key of its tensor, or None; alpha_from: what the factor rests on (alpha.py)."""

    up: str
    down: str
    alpha: str | None
    rank: int
    factor: float
    alpha_from: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.up, self.down) if self.alpha is None else (self.up, self.down, self.alpha)


@dataclass(frozen=True)
class Diff:
    """delta = the tensor itself."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)


Module = Pair | Diff


@dataclass(frozen=True)
class Refused:
    key: str
    reason: str


@dataclass
class Ledger:
    """applied: key of the base -> what is added to it, in file order. refused: the other keys, each with its reason."""

    applied: dict[str, list[Module]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)

    @property
    def applied_keys(self) -> set[str]:
        return {key for modules in self.applied.values() for module in modules for key in module.keys}

    @property
    def alpha_over_rank(self) -> tuple[float, ...]:
        """The different factors in use, ascending."""
        return tuple(sorted({module.factor for modules in self.applied.values() for module in modules if isinstance(module, Pair)}))

    @property
    def alpha_from(self) -> tuple[str, ...]:
        """Where the factors come from, in words."""
        return tuple(sorted({each.alpha_from for modules in self.applied.values() for each in modules if isinstance(each, Pair)}))


def _modules(lora: "LoraFile", index: Index, layer: str, parts: dict[str, str]) -> Iterator[tuple[str, Module] | Refused]:
    """What the tensors of one module name become: (target, Module) or Refused, for every key but the alpha."""
    shapes = {part: lora.header.entries[key].spec.shape for part, key in parts.items()}
    alpha = parts.get("alpha")
    for part in ("diff", "diff_b"):
        if part in parts:
            target = index.target(layer, part)
            wanted = index.specs[target].shape if target else None
            if target is None:
                yield Refused(parts[part], f"no such layer in this model: no {'bias' if part == 'diff_b' else 'weight'} in {layer}")
            elif shapes[part] != wanted:
                yield Refused(parts[part], f"shape {shapes[part]} does not fit {wanted}{whose(shapes[part], wanted)}")
            else:
                yield target, Diff(parts[part])
    for family in FAMILIES:
        present = [part for part in family if part in parts]
        target, problem = index.target(layer, "up"), None
        if not present:
            continue
        if len(present) == 1:
            problem = "partner factor missing"
        elif target is None:
            problem = f"no such layer in this model: no weight in {layer}"
        else:
            problem = pair_problem(shapes[family[0]], shapes[family[1]], index.specs[target].shape)
        if problem is None and alpha and math.prod(shapes["alpha"]) != 1:
            problem = f"alpha has shape {shapes['alpha']}, expected one number"
        if problem is None:
            rank, module = shapes[family[1]][0], split(parts[family[1]])[0]
            yield target, Pair(parts[family[0]], parts[family[1]], alpha, rank, *factor(lora, module, alpha, rank))
        else:
            yield from (Refused(parts[part], problem) for part in present)


def _sort(lora: "LoraFile", index: Index) -> tuple[dict[str, dict[str, str]], list[Refused]]:
    """Module name -> part -> key for what may fit, and the keys that cannot."""
    modules: dict[str, dict[str, str]] = {}
    refused, spoiled = [], {}
    for key, entry in lora.header.entries.items():
        kind, found = unsupported(key), split(key)
        if kind:
            refused.append(Refused(key, f"adapter kind {kind[1]} is not supported"))
            spoiled |= {kind[0]: kind[1]} if kind[2] else {}
        elif found is None:
            refused.append(Refused(key, "not a key of a LoRA"))
        elif index.layer(found[0]) is None:
            refused.append(Refused(key, index.why_not(found[0])))
        elif found[1] != "alpha" and not entry.spec.dtype.is_floating_point:
            refused.append(Refused(key, f"expected floating point, found {entry.spec.dtype}"))
        else:
            modules.setdefault(found[0], {})[found[1]] = key
    for name in spoiled.keys() & modules.keys():
        reason = f"adapter kind {spoiled[name]} is not supported"
        refused += [Refused(key, reason) for key in modules.pop(name).values()]
    return modules, refused


def match(lora: "LoraFile", index: Index) -> Ledger:
    """Lay every key of a LoRA on the base. Two spellings of one module add up, in file order.

    Reads only the alphas. Raises LoraError when nothing fits (and says why) or an alpha is no number.
    """
    modules, refused = _sort(lora, index)
    ledger = Ledger(refused=refused)
    for name, parts in modules.items():
        pairs, last = False, "alpha without factors"
        for result in _modules(lora, index, index.layer(name), parts):
            if isinstance(result, Refused):
                ledger.refused.append(result)
                last = result.reason
            else:
                ledger.applied.setdefault(result[0], []).append(result[1])
                pairs |= isinstance(result[1], Pair)
        if "alpha" in parts and not pairs:
            ledger.refused.append(Refused(parts["alpha"], last))
    if not ledger.applied:
        reason, count = Counter(item.reason for item in refused).most_common(1)[0] if refused else ("it has no keys", 0)
        raise LoraError(f"{lora.name}: nothing of it fits this model: {count} of {len(lora.header.entries)} keys: {reason}")
    return ledger
