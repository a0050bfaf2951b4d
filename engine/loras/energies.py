"""How much of a LoRA each group of its ledger holds: shares of its energy, the sum over modules of |delta|_F^2 at strength 1.

The number of keys says little: one module may hold more than a hundred others. Energies come from the file alone
(adapters/energy.py), so keys that fit nothing are weighed too. They are kept by content beside the hashes.
"""
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LoraError
from ..system import read_json, write_json
from .adapters import energy
from .causes import BESIDE
from .ledger import Group, Ledger

if TYPE_CHECKING:
    from .lora import LoraFile

VERSION = 2                                        # of what adapters.energy computes
OVERFLOW = "the delta overflows float32; the file is damaged or its training diverged, replace it"
LARGEST = 3e38                                     # |delta|_F of a delta that nothing in float32 (3.4e38) can go on with


class EnergyCache:
    """Energies of one LoRA's modules, kept in `folder/energy-<content>.json`; None keeps them for this object's life only.

    rs_lora: the user's word, as for `match`.
    """

    def __init__(self, folder: Path | None, sha256: str, lora: "LoraFile", *, rs_lora: bool | None = None):
        self.rs_lora = rs_lora
        said = [VERSION, sha256, rs_lora, {name: asdict(each) for name, each in lora.adapters.items()}]
        content = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
        self.path = None if folder is None else Path(folder) / f"energy-{content}.json"
        found = None if self.path is None else read_json(self.path)
        self.known: dict[str, float | None] = found if isinstance(found, dict) else {}
        self.is_changed = False

    def of(self, lora: "LoraFile", parts: dict[str, str]) -> float | None:
        """Energy of the parts of one module; None where the file alone cannot tell."""
        name = "\n".join(sorted(parts.values()))
        if name not in self.known:
            found = energy(lora, parts, rs_lora=self.rs_lora)
            if found is not None and not math.isfinite(found):
                raise LoraError(f"{lora.name}: {min(parts.values())}: {OVERFLOW}")
            self.known[name], self.is_changed = found, True
        return self.known[name]

    def save(self) -> None:
        """Write what was found, if anything is new."""
        if self.path is not None and self.is_changed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.known)
            self.is_changed = False


def measure(lora: "LoraFile", ledger: Ledger, cache: EnergyCache, tick: Callable[[], object] = bool) -> dict:
    """Weigh every group of a ledger; sets and returns `ledger.energies`, ready for JSON.

    "total": energy of the whole file; "applied", "converted", "elsewhere": their shares of it; "refused": cause -> share; "lost":
    share of what was meant for this model that is refused; "unweighed": state or cause -> keys that the file alone cannot weigh.
    tick is called before every module and may raise to stop. One module at a time is in memory.
    """
    found, unweighed = Counter(), Counter()
    for group in ledger.groups:
        tick()
        value = cache.of(lora, group.parts)
        if value is None:
            unweighed[_name(group)] += len(group.parts)
        else:
            found[_name(group)] += value
    cache.save()
    total = math.fsum(found.values())
    share = {name: value / total if total else 0.0 for name, value in found.items()}
    states = {state: share.pop(state, 0.0) for state in ("applied", "converted", "elsewhere")}
    lost = math.fsum(value for cause, value in share.items() if cause != BESIDE)
    meant = lost + states["applied"] + states["converted"]
    ledger.energies = {"total": total, **states, "refused": dict(sorted(share.items(), key=lambda item: -item[1])),
                       "lost": lost / meant if meant else 0.0, "unweighed": dict(unweighed)}
    return ledger.energies


def check_sizes(lora: "LoraFile", ledger: Ledger, cache: EnergyCache, strengths: Mapping[str, float]) -> None:
    """Raises LoraError where the delta of a module overflows float32 by its norm, so that no job is begun for it.

    strengths: key of the file -> the largest |strength| it is multiplied by; keys that are not merged are not in it.
    """
    for group in ledger.groups:
        strength = max((strengths.get(key, 0.0) for key in group.parts.values()), default=0.0)
        value = cache.of(lora, group.parts) if strength else None
        if value is not None and math.sqrt(value) * strength > LARGEST:
            raise LoraError(f"{lora.name}: {min(group.parts.values())}: {OVERFLOW}, or lower the strength")


def _name(group: Group) -> str:
    return group.cause if group.state == "refused" else group.state


def check_strict(ledger: Ledger, share: float, name: str) -> None:
    """Raises LoraError, with the causes and what each holds, when more than `share` of what was meant for this model is refused.

    Refused keys that cannot be weighed count as too many. share: 0 to 1. Text encoder keys are for another model and do not count.
    `measure` must have run.
    """
    said = ledger.energies
    held = {cause: f"{percent(value)}" for cause, value in said["refused"].items() if cause != BESIDE}
    held |= {cause: f"{count} keys of unknown weight" for cause, count in said["unweighed"].items()
             if cause not in {"applied", "converted", "elsewhere", BESIDE}}
    if said["lost"] > share or any("unknown" in text for text in held.values()):
        causes = ", ".join(f"{cause} ({text})" for cause, text in held.items())
        expected, found = f"at most {percent(share)} of it to be refused (strict)", percent(said["lost"])
        raise LoraError(f"{name}: expected {expected}, found {found}: {causes}; "
                        "use a LoRA made for this model, raise strict_share, or switch strict off")


def percent(share: float) -> str:
    """`31.0 %`; tiny shares are told as such, never as nothing."""
    return "0 %" if share == 0 else "under 0.1 %" if share < 1e-3 else f"{100 * share:.1f} %"
