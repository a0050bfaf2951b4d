"""What Sensitivity found, in words that a person can act on: formats compared, worst layers, what weighing gains."""
from collections.abc import Mapping

from ..engine.calibration.layer_errors import FormatErrors, LayerErrors, share_helped
from ..engine.jobs.sensitivity import Assessed
from ..engine.precision import KEEP

WORST = 8                                          # layers of an expert that are named
KEPT = "kept (bf16)"                               # how KEEP reads where formats stand
COLUMNS = ("weights", "weighted", "and inputs")   # rounded: the weight, the same by the weighted search, and the input too


def lines(assessed: Assessed) -> list[str]:
    """One expert's table, worst layers and notices."""
    seen, inputs = assessed.seen, assessed.inputs
    if not seen:
        return [f"{assessed.role}: no layer was seen in both halves of the session; sample more steps or prompts",
                *(f"  {notice}" for notice in assessed.notices())]
    tokens = sorted(found.count for found in seen.values())[len(seen) // 2]
    told = [f"{assessed.role}: {len(seen)} of {len(assessed.layers)} layers, {inputs.prompts} prompts, {tokens} held-out tokens of "
            "most layers",
            f"  output error     {'  '.join(COLUMNS)}  worst layer"]
    names = dict.fromkeys(name for found in seen.values() for name in found.formats)
    told += [_of_format(name, {layer: found.formats[name] for layer, found in seen.items() if name in found.formats})
             for name in names]
    return [*told, *_weighing(seen), *_worst(assessed), *(f"  note: {notice}" for notice in assessed.notices())]


def layer_list(assessed: list[Assessed]) -> str:
    """Layers to multiply in 16 bit, one a line, for Precision Plan; every expert's are named above its own."""
    parts = []
    for each in assessed:
        if each.spoiled:
            parts += [f"# {each.role}: {len(each.spoiled)} layers in {each.narrowest}", *each.spoiled]
    return "\n".join(dict.fromkeys(parts))


def _of_format(name: str, found: Mapping[str, FormatErrors]) -> str:
    """A row: root mean squares over the layers, and the worst of them as it would be computed."""
    columns = [[each.weights for each in found.values()], [each.weighted for each in found.values() if each.weighted is not None],
               [each.rounded for each in found.values() if each.rounded is not None]]
    cells = [f"{_rms(column):.4f}" if column else "-" for column in columns]
    worst = max(found, key=lambda layer: found[layer].error(name, full_precision=False))
    padded = "  ".join(cell.rjust(len(title)) for cell, title in zip(cells, COLUMNS, strict=True))
    return f"  {KEPT if name == KEEP else name:<15}  {padded}  {worst} {found[worst].error(name, full_precision=False):.3f}"


def _weighing(seen: Mapping[str, LayerErrors]) -> list[str]:
    helped, tried, gain = share_helped(seen.values())
    if not tried:
        return ["  weighing columns: no format here searches, so there is nothing to weigh"]
    if gain is None:
        return [f"  weighing columns helps in none of {tried} layers: it is not used"]
    return [f"  weighing columns helps in {helped} of {tried} layers: their held-out error is {1 - gain:.0%} smaller at the same "
            "size"]


def _worst(assessed: Assessed) -> list[str]:
    name = assessed.narrowest
    if name is None:
        return []
    found = {layer: each.formats[name] for layer, each in assessed.seen.items() if name in each.formats}
    order = sorted(found, key=lambda layer: found[layer].error(name, full_precision=False), reverse=True)[:WORST]
    belongs = set(assessed.spoiled)
    return [f"  worst in {name}: {len(belongs)} of {len(found)} layers belong into 16 bit (full precision)", *(
        f"    {layer}: {found[layer].error(name, full_precision=False):.3f}, weights only {found[layer].stored:.3f}"
        f"{': 16 bit' if layer in belongs else ''}" for layer in order)]


def _rms(values: list[float]) -> float:
    return (sum(value * value for value in values) / len(values)) ** 0.5
