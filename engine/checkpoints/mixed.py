"""A base with other checkpoints mixed into it: looks like one model in files, and reads them side by side, band by band.

    weighted_sum    a + s (b - a)
    add_difference  a + s (b - c)
    slerp           sin((1-s) w)/sin w a + sin(s w)/sin w b,  w the angle between a and b as whole tensors (combine/linear.py)
    ties            a + s trim(b - c): its int(density n) largest elements; with one difference no sign is left to elect
    dare            a + s drop(b - c): each element kept by a seeded coin, divided by density (combine/dare.py)
float32 throughout; the one rounding is the output's. s = strength of the expert * scope of the tensor. What b or c does not hold in
the same shape stays as in a, and is listed.
"""
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..bands import Rows, split
from ..bases.source import Source, open_source
from ..merging.combine.dare import coin_key, coins
from ..merging.combine.linear import slerp_coefficients
from ..merging.combine.select import Cut, Search, as_matrix
from ..recipes.recipe_parts import Mix
from ..recipes.scope import factor
from ..specs import TensorSpec


@dataclass(frozen=True)
class Whole:
    """What had to be seen of whole tensors before the first band could be mixed."""

    cut: Cut | None = None
    weights: tuple[float, float] | None = None


class MixedSource:
    """Implements `source.Source` over the base `a` and one or two others, which it closes with itself."""

    def __init__(self, base: Source, others: list[Source], mix: Mix, role: str):
        self.base, self.others, self.mix = base, others, mix
        self.strength = mix.strength.get(role, 1.0)
        self.path, self.name, self.metadata, self.left_out = base.path, base.name, base.metadata, base.left_out
        self.lossy = next((source.lossy for source in (base, *others) if source.lossy), None)
        self._specs = {key: base.spec(key) for key in list(base.keys())}
        self.extra = {source.name: [key for key in list(source.keys()) if key not in self._specs] for source in others}
        self.kept = _unlike(self._specs, others)
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
        """What stays as in the base, with its share of the elements; and tensors of the others that the base does not have."""
        total, said = sum(spec.numel for spec in self._specs.values()), []
        for why in dict.fromkeys(self.kept.values()):
            keys = [key for key, each in self.kept.items() if each == why]
            share = sum(self._specs[key].numel for key in keys) / total
            named = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            said.append(f"{self.name}: {len(keys)} tensors ({share:.2%} of the weights) stay as they are, {why}: {named}")
        for name, keys in self.extra.items():
            if keys:
                said.append(f"{name}: {len(keys)} tensors are not in {self.name} and are not used: {', '.join(keys[:3])}")
        return said

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
                self._wholes = {key: self._search(key) if needs_cut else self._angle(key, strength)}
            return self._wholes[key]

    def _search(self, key: str) -> Whole:
        """The cut of the largest elements of b - c; b and c alone are read, at most four times."""
        spec = self._specs[key]
        shape = tuple(as_matrix(torch.empty(spec.shape, device="meta")).shape)
        search = Search(int(self.mix.density * spec.numel), shape)
        while search.cut is None:
            self._each_band(key, lambda rows, flat: search.look(flat, rows, slice(0, shape[1])))
            search.narrow()
        return Whole(cut=search.cut)

    def _each_band(self, key: str, look: Callable[[Rows, torch.Tensor], None]) -> None:
        """Show b - c, band by band."""
        spec = self._specs[key]
        for rows in split(spec.shape):
            count = rows[1] - rows[0]
            shape = torch.Size((count, spec.numel // max(1, spec.shape[0]) if spec.shape else 1))
            look(rows, self._other(0, key, rows, shape).sub_(self._other(1, key, rows, shape)))

    def _angle(self, key: str, t: float) -> Whole:
        """Weights of a and b: their Gram matrix in float64, band by band in order."""
        spec, gram = self._specs[key], torch.zeros(2, 2, dtype=torch.float64)
        for rows in split(spec.shape):
            one = as_matrix(self.base.read(key, rows if spec.shape else None))
            both = torch.stack([one.reshape(-1), self._other(0, key, rows, one.shape).reshape(-1)]).double()
            gram += both @ both.t()
        return Whole(weights=tuple(slerp_coefficients(gram, t)))

    def _read_from(self, key: str) -> list[Source]:
        return [self.base] if key in self.kept else [self.base, *self.others]


def _unlike(specs: dict[str, TensorSpec], others: list[Source]) -> dict[str, str]:
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
