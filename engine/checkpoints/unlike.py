"""Which tensors of a mix stay as they are in the base, because another checkpoint has none like them; and how that is told."""
from ..bases.source import Source
from ..specs import TensorSpec


def unlike(specs: dict[str, TensorSpec], others: list[Source]) -> dict[str, str]:
    """Tensors that cannot be mixed, with the reason; all checkpoints hold the rest in one shape."""
    found: dict[str, str] = {}
    for source in others:
        theirs = {key: source.spec(key).shape for key in list(source.keys())}
        for key, spec in specs.items():
            if key not in theirs:
                found.setdefault(key, f"not in {source.name}")
            elif theirs[key] != spec.shape:
                found.setdefault(key, f"of another shape in {source.name}")
    return found


def told(name: str, specs: dict[str, TensorSpec], kept: dict[str, str], extra: dict[str, list[str]]) -> list[str]:
    """What stays as in the base, with its share of the elements; and tensors of the others that the base does not have.

    name: of the base; kept: key -> why, as `unlike` found; extra: name of another checkpoint -> its keys that the base lacks.
    """
    total, said = sum(spec.numel for spec in specs.values()), []
    for why in dict.fromkeys(kept.values()):
        keys = [key for key, each in kept.items() if each == why]
        share = sum(specs[key].numel for key in keys) / total
        named = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        said.append(f"{name}: {len(keys)} tensors ({share:.2%} of the weights) stay as they are, {why}: {named}")
    for other, keys in extra.items():
        if keys:
            said.append(f"{other}: {len(keys)} tensors are not in {name} and are not used: {', '.join(keys[:3])}")
    return said
