"""Which LoRAs are in the weights of a mix already: those of the base, and those that another checkpoint brings in."""
import json
from collections.abc import Mapping

from ..recipes import embedded


def metadata_of(base: Mapping[str, str], others: list[Mapping[str, str]]) -> dict[str, str]:
    """The base's metadata, with the LoRAs of the whole mix in place of those of the base: as `embedded.baked` reads them.

    others: metadata of b, or of b and c where b - c is added: what both have in them is not in the difference. Unchanged where
    nothing is brought in. No other entry of a base's is kept there: the recipe in it makes the base, not the mix.
    """
    first, subtracted = embedded.baked(others[0]), [embedded.baked(each) for each in others[1:]]
    brought = {sha256: name for sha256, name in first.items() if not any(sha256 in each for each in subtracted)}
    if not brought:
        return dict(base)
    rows = [{"sha256": sha256, "name": name} for sha256, name in (embedded.baked(base) | brought).items()]
    return {**base, embedded.ENTRY: json.dumps({"before": rows})}
