"""A recorded file among all that are gathered: its small tables in memory, its columns and tokens read when asked for."""
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .records import TABLES, RecordFile
from .run import Run

HALVES = (0, 1)


@dataclass(frozen=True)
class Piece:
    """point_of: layer -> point, of its run; half: to which its run belongs, None where its steps are parted instead."""

    file: RecordFile
    run: Run
    point_of: dict[str, str]
    half: int | None
    tables: dict[str, torch.Tensor]

    @classmethod
    def pieces(cls, runs: list[Run]) -> list["Piece"]:
        """Of all files of these runs, in order of recording."""
        found = []
        for place, run in enumerate(runs):
            point_of = {layer: point for point, layers in run.points.items() for layer in layers}
            half = place % 2 if len(runs) > 1 else None
            found += [cls(file, run, point_of, half, {name: file.table(name) for name in TABLES}) for file in run.files]
        return found

    def column(self, name: str, layer: str) -> torch.Tensor | None:
        """amax or rows: (calls,) of one layer; None where this run did not know it."""
        place = self._place(layer)
        return None if place is None else self.tables[name][:, place]

    def row(self, name: str, layer: str) -> torch.Tensor | None:
        """histogram: (bins,), or left_out: ()."""
        place = self._place(layer)
        return None if place is None else self.tables[name][place]

    def halves(self, layer: str, half: int | None) -> Iterator[tuple[str, int, int]]:
        """(point, half of the file, vectors) of what belongs to `half`, of all where it is None."""
        place = self._place(layer)
        for here in HALVES if place is not None else ():
            if half in (None, here if self.half is None else self.half):
                yield self.point_of[layer], here, int(self.tables["counts"][here, place])

    def _place(self, layer: str) -> int | None:
        point = self.point_of.get(layer)
        return self.file.points.index(point) if point in self.file.points else None
