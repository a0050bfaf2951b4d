"""What a job will cost, told before it starts: bytes are exact, memory is an upper estimate, time a rough one."""
import os

from . import precision
from .bands import BAND_ELEMENTS, MOST_THREADS
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .job import PART
from .merge import Contribution
from .system import free_bytes, processors
from .targets import reserved_bytes

READ_RATE = 0.6e9                                  # bytes/s of BF16 in, FP8 out, cold, on two cores (docs/log.md, Speed)
GEMM_RATE = 1.9e11                                 # float32 operations/s of two cores (docs/log.md, Speed)
FLOOR = 300e6                                      # threads' tiles, LoRA factors of a layer, the writer's dirty stretch


def memory_bytes(expert: ExpertPlan) -> int:
    """Peak beyond the host's own: the merge buffer, the tiles of the threads, the factors of the richest layer."""
    buffered = [spec.numel * 4 for key, spec in expert.specs.items() if _needs_buffer(expert, key)]
    factors = [4 * sum(_rank(what) for _, what in whats) * sum(expert.specs[key].shape[:2])
               for key, whats in expert.contributions.items()]
    tiles = 4 * BAND_ELEMENTS * 4 * min(MOST_THREADS, processors())
    return int(max(buffered, default=0) + 2 * max(factors, default=0) + tiles + FLOOR)


def _needs_buffer(expert: ExpertPlan, key: str) -> bool:
    gated = any(what.method == "classic" for _, what in expert.contributions.get(key, ()))
    return gated or any(precision.choose(key, expert.specs[key], out.format).measure for out in expert.outputs)


def _rank(what: Contribution) -> int:
    """Rank that a contribution adds to the product; a direct difference counts as one."""
    return sum(getattr(module, "rank", 1) for module in what.modules)


def seconds(expert: ExpertPlan) -> float:
    """Time of one reading with its merges."""
    read = sum(expert.source.nbytes(key) for key in expert.order)
    operations = sum(2 * _rank(what) * expert.specs[key].numel for key, whats in expert.contributions.items() for _, what in whats)
    return read / READ_RATE + operations / GEMM_RATE


def estimate(expert: ExpertPlan) -> list[dict]:
    """A row per output."""
    return [{"expert": expert.role, "format": out.format, "file": os.path.basename(out.target.path), "bytes": out.layout.size,
             "state": out.target.state, "seconds": round(seconds(expert), 1), "memory_bytes": memory_bytes(expert),
             "needed_bytes": needed_bytes(out), "free_bytes": free_bytes(os.path.dirname(out.target.path))}
            for out in expert.outputs]


def needed_bytes(out: OutputPlan) -> int:
    """What the disk still has to give for one output."""
    return 0 if out.target.state in {"done", "renamed"} else out.layout.size - reserved_bytes(out.target.path + PART)
