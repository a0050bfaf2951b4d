"""One layer's rows of the merge in each candidate format: what the weights lose, what the LoRAs keep, how far outputs are off.

    lost   = ‖W' - Ŵ‖² · rows / rows tried       and what the merged delta keeps (survival.py), and output errors (output_error.py)
The formats with one scale for the tensor get that of the tried rows; it moves their error by less than a hundredth of itself, as
FP8 and NVFP4 hardly depend on where their range ends.
"""
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from ...quant.formats import DEFAULT, Options, form_of
from ..bands import Rows
from ..calibration.layer_errors import LayerErrors
from ..calibration.layer_inputs import Inputs
from ..errors import at
from ..precision import KEEP, layer_of, stored
from .output import noise_of
from .output_error import OutputError
from .sample import square
from .survival import Space, Survival, survey, tell

NEAREST, STOCHASTIC = "nearest", "stochastic"
Tile = tuple[Rows, torch.Tensor, torch.Tensor]     # which rows, base, merged


@dataclass(frozen=True)
class Trial:
    """One layer. energy: ‖W'‖² of the whole layer, from the tried rows; lost: candidate -> ‖W' - Ŵ‖², without those that cannot
    hold its shape; survival: candidate -> `Survival.to_json`, empty where nothing is merged; outputs: None without a calibration,
    or where it saw nothing of the layer."""

    energy: float
    lost: dict[str, float]
    survival: dict[str, dict]
    outputs: LayerErrors | None = None

    def effects(self) -> dict[str, float]:
        """Candidate -> effect over noise, of those that have both."""
        told = {name: tell(Survival(**sums))["effect_over_noise"] for name, sums in self.survival.items()}
        return {name: effect for name, effect in told.items() if effect is not None}

    @classmethod
    def from_json(cls, found: Mapping) -> "Trial":
        """What `asdict` made, by way of JSON."""
        told = found.get("outputs")
        return cls(**{**found, "outputs": None if told is None else LayerErrors.from_json(told)})


@dataclass(frozen=True)
class Wanted:
    """What to try. candidates: names of formats; KEEP is bf16; inputs: of a calibration, to measure outputs too."""

    candidates: tuple[str, ...]
    options: Options = DEFAULT
    rounding: str = NEAREST
    inputs: Inputs | None = None

    @property
    def content(self) -> list:
        """What a trial depends on, for its cache."""
        plain = {"candidates": self.candidates, "options": asdict(self.options), "rounding": self.rounding}
        return [plain] if self.inputs is None else [plain, self.inputs.content]


def try_formats(key: str, total: int, tiles: list[Tile], space: Space | None, wanted: Wanted) -> Trial:
    """All candidates that can hold the layer, on its tiles. total: rows of the layer."""
    share, columns = total / sum(stop - first for (first, stop), _, _ in tiles), tiles[0][2].shape[1]
    outputs = _output_error(key, tiles, wanted)
    lost, survival = {}, {}
    for name in wanted.candidates:
        form = form_of("bf16" if name == KEEP else name, wanted.options)
        if not _holds(form, (total, columns)):
            continue
        with at(key, f"try {name}"):
            decoded = _decoded(key, form, tiles, wanted)
            lost[name] = share * sum(square(merged - rows) for (_, _, merged), rows in zip(tiles, decoded, strict=True))
            sums = Survival()
            for (_, base, merged), rows in zip(tiles, decoded, strict=True) if space is not None else ():
                sums += survey(base, merged, rows, space)
            if sums.delta:
                survival[name] = sums.to_json()
            if outputs is not None:
                outputs.add(name, form, decoded, lambda weights, form=form: _decoded(key, form, tiles, wanted, weights))
    energy = share * sum(square(merged) for _, _, merged in tiles)
    return Trial(energy, lost, survival, outputs.found() if outputs is not None else None)


def _output_error(key: str, tiles: list[Tile], wanted: Wanted) -> OutputError | None:
    found = wanted.inputs.of(layer_of(key), tiles[0][2].shape[1]) if wanted.inputs is not None else None
    return None if found is None else OutputError(found, [merged for _, _, merged in tiles], wanted.inputs.card)


def _holds(form, shape: tuple[int, ...]) -> bool:
    try:
        return bool(stored(form, shape))
    except ValueError:
        return False


def _decoded(key: str, form, tiles: list[Tile], wanted: Wanted, importance: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The tiles' rows as the format stores them, read back."""
    stats, found = form.combine([form.measure(merged) for _, _, merged in tiles]) if form.measure else None, []
    for rows, _, merged in tiles:
        noise = noise_of(key, rows, merged) if wanted.rounding == STOCHASTIC and form.STOCHASTIC else None
        parts = form.quantize(merged, stats, importance=importance, noise=noise) | form.constants(stats)
        found.append(form.dequantize(parts)[:merged.shape[0], :merged.shape[1]])
    return found
