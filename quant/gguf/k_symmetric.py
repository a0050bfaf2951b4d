"""Q6_K and Q3_K: super-blocks of 256 weights whose 16 sub-blocks have a signed scale and no offset.

    weight = (d * scale) * code       d: float16; Q6_K: int8 scales, 6-bit codes; Q3_K: 6-bit scales, 3-bit codes

6.5625 and 3.4375 bits per weight. The layout is in `k_symmetric_layout.py`, the search of `best` and `max` in
`k_symmetric_search.py`, that of `reference` in `k_symmetric_reference.py`. Codes are the nearest for the scales that are stored.
A block of zeros has d = 0, and zeros are read back.
"""
from functools import partial

import torch

from . import k_symmetric_reference as reference
from .k_symmetric_layout import KINDS, pack_q3_k, pack_q6_k, spread, unpack_q3_k, unpack_q6_k
from .k_symmetric_search import SETTINGS, Values, codes, search
from .lanes import half

LEAST = 2.0 ** -20                                 # of a weight: a column that calibration never met is kept, last of all
PACK = {"Q6_K": pack_q6_k, "Q3_K": pack_q3_k}
UNPACK = {"Q6_K": (unpack_q6_k, 210), "Q3_K": (unpack_q3_k, 110)}


def encode(name: str, band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """Rows of blocks of a type.

    band: (rows, columns) float32, finite, columns a multiple of 256, not modified. weight: (columns,) float32 in [0, 1], how much a
    column's squared error counts; None: all alike; not for the setting `reference`. Returns (rows, bytes of a row), uint8. Raises
    ValueError where float16 does not hold a scale.
    """
    x, kind = spread(band), KINDS[name]
    if setting == "reference":
        stored, c, d = reference.ENCODE[name](x)
    else:
        weights = None if weight is None else spread(weight.clamp(min=LEAST).expand(band.shape))
        d, c = search(Values(x, weights, x if weights is None else weights * x), kind, SETTINGS[name, setting])
        stored = (codes(x, d, c, kind.levels) + kind.levels).to(torch.uint8)
    return PACK[name](stored, c, half(d)).reshape(len(band), -1)


def decode(name: str, stored: torch.Tensor) -> torch.Tensor:
    """stored: (rows, bytes of a row) uint8. Returns (rows, columns) float32."""
    unpack, nbytes = UNPACK[name]
    return unpack(stored.reshape(-1, nbytes)).reshape(len(stored), -1)


ENCODERS = {name: partial(encode, name) for name in KINDS}
DECODERS = {name: partial(decode, name) for name in KINDS}
