"""A base with other checkpoints mixed into it: looks like one model in files, and reads them side by side, band by band.

    weighted_sum    a + s (b - a)
    add_difference  a + s (b - c)
    slerp           sin((1-s) w)/sin w a + sin(s w)/sin w b,  w the angle between a and b as whole tensors
                    (merging/combine/linear.py)
    ties            a + s trim(b - c): its int(density n) largest elements; with one difference no sign is left to elect
    dare            a + s drop(b - c): each element kept by a seeded coin, divided by density (merging/combine/dare.py)
float32 throughout; the one rounding is the output's. s = strength of the expert * scope of the tensor. What b or c does not hold in
the same shape stays as in a, and is listed.
"""
import threading
from functools import partial

import torch

from ..bands import Rows
from ..bases.source import Source, open_source
from ..merging.combine.dare import coin_key, coins
from ..merging.combine.select import Cut, as_matrix
from ..recipes.recipe_parts import Mix
from ..recipes.scope import factor
from ..specs import TensorSpec
from .baked import metadata_of
from .unlike import told, unlike
from .whole import Whole, angle, search


class MixedSource:
    """Implements `source.Source` over the base `a` and one or two others, which it closes with itself."""

    def __init__(self, base: Source, others: list[Source], mix: Mix, role: str):
        self.base, self.others, self.mix = base, others, mix
        self.strength = mix.strength.get(role, 1.0)
        self.path, self.name, self.left_out = base.path, base.name, base.left_out
        self.metadata = metadata_of(base.metadata, [source.metadata for source in others]) if self.strength else base.metadata
        self.formats, self.moved = base.formats, frozenset(base.formats)   # what is mixed in moves a base off its grid
        self.lossy = next((source.lossy for source in (base, *others) if source.lossy), None)
        self._specs = {key: base.spec(key) for key in list(base.keys())}
        self.extra = {source.name: [key for key in list(source.keys()) if key not in self._specs] for source in others}
        self.kept = unlike(self._specs, others)
        self._wholes: dict[str, Whole] = {}
        self._lock, self._local = threading.Lock(), threading.local()

    def keys(self) -> list[str]:
        return list(self._specs)

    def spec(self, key: str) -> TensorSpec:
        """As in the base: what is written later keeps its dtype."""
        return self._specs[key]

    def nbytes(self, key: str) -> int:
        """Bytes read for this tensor, of all checkpoints."""
        return sum(source.nbytes(key) for source in self._read_from(key))

    def identity(self) -> dict:
        """The files of all checkpoints, and what is done to them."""
        said = {"name": "mix", "method": self.mix.method, "strength": self.strength, "density": self.mix.density,
                "seed": self.mix.seed, "scope": dict(self.mix.scope)}
        return {"files": [file for source in (self.base, *self.others) for file in source.identity()["files"]] + [said]}

    def advise(self, key: str, rows: Rows | None = None) -> None:
        for source in self._read_from(key):
            source.advise(key, rows)

    def close(self) -> None:
        for source in (self.base, *self.others):
            source.close()

    def __enter__(self) -> "MixedSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def notices(self) -> list[str]:
        """What of each checkpoint is not mixed, in words."""
        return told(self.name, self._specs, self.kept, self.extra)

    def read(self, key: str, rows: Rows | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """As `StoredTensors.read`: rows of the mixed tensor, float32."""
        found = self.base.read(key, rows, out)
        strength = self.strength * factor(self.mix.scope, key)
        if key in self.kept or strength == 0.0:
            return found
        shape = self._specs[key].shape
        rows = rows or (0, shape[0] if shape else 1)
        whole, flat = self._whole(key, strength), as_matrix(found)
        if whole.weights is not None:
            other = self._other(0, key, rows, flat.shape)
            flat.mul_(whole.weights[0]).add_(other, alpha=whole.weights[1])
            return found
        flat.add_(self._thinned(key, rows, self._difference(key, rows, flat), whole.cut), alpha=strength)
        return found

    def _thinned(self, key: str, rows: Rows, difference: torch.Tensor, cut: Cut | None) -> torch.Tensor:
        """What the method leaves of b - c in these rows; may change `difference`."""
        columns = slice(0, difference.shape[1])
        if cut is not None:
            return difference.mul_(cut.keeps(difference, rows, columns))
        if self.mix.method == "dare" and self.mix.density < 1.0:
            coin = coin_key(self.mix.seed, key, "b - c")
            kept = coins(coin, self.mix.density, (rows, columns, difference.shape[1]), difference.device)
            return difference.mul_(kept).div_(self.mix.density) if self.mix.density else difference.zero_()
        return difference

    def _difference(self, key: str, rows: Rows, base: torch.Tensor) -> torch.Tensor:
        """b - a or b - c, (rows, columns)."""
        first = self._other(0, key, rows, base.shape)
        return first.sub_(base if len(self.others) == 1 else self._other(1, key, rows, base.shape))

    def _other(self, number: int, key: str, rows: Rows, shape: torch.Size) -> torch.Tensor:
        """Rows of one of the others, in this thread's own buffer."""
        name, spec = f"buffer_{number}", self._specs[key]
        buffer = getattr(self._local, name, None)
        if buffer is None or buffer.numel() < shape.numel():
            buffer = torch.empty(shape.numel())
            setattr(self._local, name, buffer)
        here = (rows[1] - rows[0], *spec.shape[1:]) if spec.shape else ()
        found = self.others[number].read(key, rows if spec.shape else None, out=buffer[:shape.numel()].view(here))
        return found.view(shape)

    def _whole(self, key: str, strength: float) -> Whole:
        """What the first thread that reads this tensor finds out for all of them."""
        needs_cut = self.mix.method == "ties" and self.mix.density < 1.0
        if not needs_cut and self.mix.method != "slerp":
            return Whole()
        with self._lock:
            if key not in self._wholes:
                spec = self._specs[key]
                found = search(spec, self.mix.density, partial(self._change, key)) if needs_cut else \
                    angle(spec, strength, partial(self._both, key))
                self._wholes = {key: found}
            return self._wholes[key]

    def _change(self, key: str, rows: Rows, shape: torch.Size) -> torch.Tensor:
        """b - c."""
        return self._other(0, key, rows, shape).sub_(self._other(1, key, rows, shape))

    def _both(self, key: str, rows: Rows, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """a and b."""
        return as_matrix(self.base.read(key, rows if self._specs[key].shape else None)), self._other(0, key, rows, shape)

    def _read_from(self, key: str) -> list[Source]:
        return [self.base] if key in self.kept else [self.base, *self.others]


def open_mixed(base: Source, mix: Mix, role: str, *, allow_lossy: bool) -> MixedSource:
    """`base` with the checkpoints of `mix` for this role, which are opened. Raises what `open_source` raises."""
    others: list[Source] = []
    try:
        for path in mix.files[role]:
            others.append(open_source(path, allow_lossy=allow_lossy))
    except BaseException:
        for source in others:
            source.close()
        raise
    return MixedSource(base, others, mix, role)
