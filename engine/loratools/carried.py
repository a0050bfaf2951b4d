"""Which metadata of a LoRA go into a converted one: all that stays true, and for a joined file whose half said it.

Training notes (`ss_*` and others) are the user's own file's and pass unchanged. Left out: hashes of the old bytes, and the
configuration of alphas, which moves or changes its names. In a joined file `high_noise.` or `low_noise.` stands before what only
one half says; splitting takes it off again.
"""
from ..bases.prefixes import HIGH, LOW
from ..loras.peft_config import METADATA

ROLES = (HIGH, LOW)
# Of the bytes of another file: they would be wrong in the new one (ModelSpec 1.0.1; sd-scripts, networks/lora.py).
HASHES = {"modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash"}
OWN = {METADATA, "wan22_master"}


def untrue(metadata: dict[str, str]) -> set[str]:
    """Names that are not carried because the new file has other bytes."""
    return HASHES & metadata.keys()


def carry(metadata: dict[str, str], role: str | None) -> dict[str, str]:
    """Of one file. role: the half that is taken out of it; None: everything."""
    kept = {name: value for name, value in metadata.items() if name not in HASHES | OWN}
    if role is None:
        return kept
    marked = tuple(f"{each}." for each in ROLES)
    own = {name.removeprefix(f"{role}."): value for name, value in kept.items() if name.startswith(f"{role}.")}
    return {name: value for name, value in kept.items() if not name.startswith(marked)} | own


def carry_both(high: dict[str, str], low: dict[str, str]) -> dict[str, str]:
    """Of two halves that are joined."""
    ours, theirs = carry(high, None), carry(low, None)
    both = {name: value for name, value in ours.items() if theirs.get(name) == value}
    told = {f"{role}.{name}": value for role, said in zip(ROLES, (ours, theirs), strict=True) for name, value in said.items()
            if name not in both}
    return both | told
