"""Seeded uniform noise for stochastic rounding, the same whatever the bands, the threads or the device.

    noise[row, column] = mix(row_key[row] xor column_key[column]) >> 8, times 2**-24

A counter-based generator: a value is a hash of (seed, row, column), so any rows can be made without those before them. The keys are
hashes themselves, of the row or the column and bits of the seed; those are spread by splitmix64 (Steele, Lea, Flood 2014), so that
neighbouring seeds share no row. mix is `lowbias32` (Wellons, "Prospecting for hash functions", 2018): rounds of xor-shift and
multiply, found by search so that every input bit flips every output bit half of the time. All of it is 32-bit integer arithmetic
that wraps, which every device does alike. 24 bits are what float32 holds below one.
"""
import torch

GOLDEN = 0x9E3779B97F4A7C15                        # 2**64 / golden ratio: splitmix64's step
TILE = 1 << 16                                     # values; the passes over one tile stay in a core's L2


def uniform(seed: int, first_row: int, shape: tuple[int, int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Noise of some rows of a weight.

    seed: of the weight, any int; its low 64 bits count. first_row: the weight's row that the first one here belongs to.
    Returns `shape` = (rows, in_features) float32 in [0, 1), multiples of 2**-24.
    """
    rows, columns = shape
    row_seed, column_seed = _splitmix(seed), _splitmix(seed + GOLDEN)
    row_keys = _mix(torch.arange(first_row, first_row + rows, dtype=torch.int32, device=device).add_(_signed(row_seed)))
    row_keys = _mix(row_keys.bitwise_xor_(_signed(row_seed >> 32)))
    column_keys = _mix(torch.arange(columns, dtype=torch.int32, device=device).add_(_signed(column_seed)))
    noise = torch.empty(shape, dtype=torch.float32, device=device)
    step = max(1, TILE // max(1, columns))
    for start in range(0, rows, step):
        bits = _mix(row_keys[start:start + step, None] ^ column_keys)
        torch.mul(bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF), 2.0 ** -24, out=noise[start:start + step])
    return noise


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """lowbias32 of int32 values, in place. The masks make the arithmetic shift of a signed value a logical one."""
    bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(_signed(0x7FEB352D))
    bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF)).mul_(_signed(0x846CA68B))
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))


def _splitmix(state: int) -> int:
    """64 well-spread bits of an int: splitmix64's output function."""
    mixed = (state + GOLDEN) & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return mixed ^ mixed >> 31


def _signed(value: int) -> int:
    """The low 32 bits of an int, as int32 reads them."""
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
