"""Which tokens stay when there are too many: seeded, evenly from each step, the same whoever asks."""
import random
from itertools import pairwise

import torch

from ..specs import TensorSpec
from .records import ENTRY, RecordFile
from .run import Run
from .tensors import write

LIMIT = 2                                          # times the aim, above which runs are thinned: so rarely that it costs nothing


def share(total: int, places: int, place: int, *, seed: int = 0) -> int:
    """Part of `total` that falls to one of `places`: whole numbers that add up to it, spread evenly from a seeded start."""
    turned = (place + random.Random(seed).randrange(places)) % places
    return (turned + 1) * total // places - turned * total // places


def kept_rows(count: int, wanted: int, seed: str) -> torch.Tensor:
    """Places of at most `wanted` of `count` rows, one from each of as many equal parts, in order: (n,) int64."""
    if count <= wanted:
        return torch.arange(count)
    drawn = random.Random(seed)
    edges = [place * count // wanted for place in range(wanted + 1)] if wanted else []
    return torch.tensor([drawn.randrange(start, stop) for start, stop in pairwise(edges)], dtype=torch.int64)


def thin(runs: list[Run], aim: int) -> None:
    """Thin runs of one role to their shares of `aim` where a point has more than twice that in all."""
    counts = [_most(run) for run in runs]
    if sum(counts) <= LIMIT * aim:
        return
    for place, (run, count) in enumerate(zip(runs, counts, strict=True)):
        wanted = share(aim, len(runs), place)
        if count > wanted:
            for number, file in enumerate(run.files):
                _rewrite(file, share(wanted, len(run.files), number))


def _most(run: Run) -> int:
    """Tokens of the point that has most."""
    points = {point for file in run.files for point in file.points}
    return max((sum(_count(file, point, half) for file in run.files for half in (0, 1)) for point in points), default=0)


def _count(file: RecordFile, point: str, half: int) -> int:
    spec = file.spec("tokens", point, half)
    return 0 if spec is None else spec.shape[0]


def _rewrite(file: RecordFile, wanted: int) -> None:
    """The same file with at most `wanted` tokens of each point, from both halves alike."""
    kept = {}
    for place, point in enumerate(file.points):
        counts = [_count(file, point, half) for half in (0, 1)]
        first = min(counts[0], max((wanted + place % 2) // 2, wanted - counts[1]))
        for half, quota in enumerate((first, wanted - first)):
            kept[file.name_of("tokens", point, half)] = kept_rows(counts[half], quota, f"{file.stored.sha256} {point} {half}")

    def fill(name: str) -> torch.Tensor:
        tensor = file.stored.read(name)
        return tensor[kept[name]] if name in kept else tensor

    specs = {name: TensorSpec((len(kept[name]), *spec.shape[1:]), spec.dtype) if name in kept else spec
             for name, spec in file.stored.specs.items()}
    write(file.path, specs, fill, {ENTRY: file.stored.metadata[ENTRY]})
