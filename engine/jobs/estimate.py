"""What a job will cost, told before it starts: bytes are exact, memory is an upper estimate, time a rough one."""
import math
import os

from ...quant.formats import BLOCK_TYPES
from ..bands import BAND_ELEMENTS, MOST_THREADS
from ..merging.contribution import Contribution, Rules
from ..system import free_bytes, processors
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .order import needed_bytes

READ_RATE = 0.6e9                                  # bytes/s of BF16 in, FP8 out, cold, on two cores (docs/log.md, Speed)
GEMM_RATE = 3.4e11                                 # float32 operations/s of two cores, 135 to 216e9 a core (docs/log.md, Products)
SEEN_RATE = 6e7                                    # elements/s of two cores that are ranked, thinned or voted on (docs/log.md)
FLOOR = 300e6                                      # threads' tiles, LoRA factors of a layer, the writer's dirty stretch
# Weights a second of one thread by format and search (docs/log.md, Formats); what is not named hides behind the reading.
ENCODERS = {("mxfp8", ""): 950e6, ("nvfp4", "fast"): 350e6, ("nvfp4", "balanced"): 87e6, ("nvfp4", "best"): 65e6,
            ("int8_tensorwise", ""): 300e6, ("convrot_w4a4", "fast"): 290e6, ("convrot_w4a4", "balanced"): 87e6,
            ("convrot_w4a4", "best"): 87e6, ("asym_w4a8_int8", "fast"): 59e6, ("asym_w4a8_int8", "balanced"): 47e6,
            ("asym_w4a8_int8", "best"): 38e6}
# The same of GGUF's types with numba, by setting (docs/log.md, GGUF).
BLOCKS = {"best": {"Q8_0": 900e6, "Q6_K": 290e6, "Q5_K": 100e6, "Q4_K": 130e6, "Q3_K": 330e6, "Q2_K": 120e6, "Q5_1": 165e6,
                   "Q5_0": 240e6, "Q4_1": 170e6, "Q4_0": 300e6, "IQ4_NL": 110e6, "IQ4_XS": 95e6},
          "max": {"Q8_0": 70e6, "Q6_K": 85e6, "Q5_K": 31e6, "Q4_K": 31e6, "Q3_K": 100e6, "Q2_K": 27e6, "Q5_1": 21e6, "Q5_0": 60e6,
                  "Q4_1": 30e6, "Q4_0": 75e6, "IQ4_NL": 21e6, "IQ4_XS": 18e6},
          "reference": {"Q8_0": 900e6, "Q6_K": 140e6, "Q5_K": 12e6, "Q4_K": 10e6, "Q3_K": 200e6, "Q2_K": 14e6, "Q5_1": 270e6,
                        "Q5_0": 120e6, "Q4_1": 410e6, "Q4_0": 130e6, "IQ4_NL": 18e6, "IQ4_XS": 19e6}}
EAGER = 6.0                                        # how much longer torch takes for them
ROUNDS = {"ties": 3, "breadcrumbs": 5, "dare_ties": 1, "slerp": 1, "orthogonal": 1}   # two digits of each rank, and the result


def memory_bytes(expert: ExpertPlan) -> int:
    """Peak beyond the host's own: merge buffers, tiles of the threads, the factors of the richest layer.

    Factors are there three times: in use, read ahead, and while those read ahead are laid side by side.
    """
    buffered = [4 * spec.numel * _buffers(expert, key) for key, spec in expert.specs.items()]
    factors = [4 * sum(_rank(what) for _, what in whats) * sum(expert.specs[key].shape[:2])
               for key, whats in expert.contributions.items()]
    dense = max((sum(_form(module) != "factors" for _, what in whats for module in what.modules)
                 for whats in expert.contributions.values()), default=0)
    tiles = 4 * BAND_ELEMENTS * (4 + dense) * min(MOST_THREADS, processors())
    return int(max(buffered, default=0) + 3 * max(factors, default=0) + tiles + FLOOR)


def _buffers(expert: ExpertPlan, key: str) -> int:
    """How many float32 tensors of its size a key needs: none band by band, two where the end asks for the base again."""
    whats = [what for _, what in expert.contributions.get(key, ())]
    if whats and expert.rules.compat == "comfyui":
        return 3
    forms = {_form(module) for what in whats for module in what.modules}
    if whats and ("transform" in forms or (expert.rules.normalize and len(expert.specs[key].shape) == 2)):
        return 2
    decides = "base" in forms or any(what.method == "classic" or what.dense_density < 1.0 for what in whats)
    ranks = any(expert.rules.of(what.pass_number).combine != "sum" for what in whats)
    return int(decides or ranks or any(out.forms.of(key, expert.specs[key]).measure for out in expert.outputs))


def _form(module) -> str:
    """Of a ledger's module; a patch of `compat: comfyui` knows none, and is dense."""
    return getattr(module, "form", "dense")


def _rank(what: Contribution) -> int:
    """Rank that a contribution adds to the product; a dense delta counts as its own rank, or as one."""
    return sum(getattr(module, "rank", 0) or 1 for module in what.modules)


def encoder_seconds(expert: ExpertPlan, out: OutputPlan) -> float:
    """Time that an output's formats take beyond the reading, on all threads."""
    threads, total = min(MOST_THREADS, processors()), 0.0
    for key, spec in expert.specs.items():
        if (name := out.forms.name(key, spec)) is not None:
            rate = _rate(name, out.forms.of(key, spec))
            total += spec.numel / rate if rate else 0.0
    return total / threads


def _rate(name: str, form) -> float | None:
    """Weights a second of one thread; None where the reading hides it."""
    if name in BLOCK_TYPES:
        return BLOCKS[form.setting][name] / (1.0 if form.backend == "numba" else EAGER)
    return ENCODERS.get((name, getattr(form, "search", "")))


def seconds(expert: ExpertPlan) -> float:
    """Time of one reading with its merges."""
    read = sum(expert.source.nbytes(key) for key in expert.order)
    merges = math.fsum(_seconds(expert.specs[key].numel, what, expert.rules)
                       for key, whats in expert.contributions.items() for _, what in whats)
    return read / READ_RATE + merges


def _seconds(numel: int, what: Contribution, rules: Rules) -> float:
    """Of one contribution: its product in every round, and what is done to each element besides."""
    rounds = 0 if what.protected else ROUNDS.get(rules.of(what.pass_number).combine, 0)
    thinned = 3 if what.dense_density < 1.0 and what.method != "addition" else 0
    product = 2 * _rank(what) * numel * max(1, rounds, 2 if what.method == "classic" else 1) / GEMM_RATE
    return product + numel * (rounds + thinned) / SEEN_RATE


def estimate(expert: ExpertPlan) -> list[dict]:
    """A row per output."""
    return [{"expert": expert.role, "format": out.label, "file": os.path.basename(out.target.path), "bytes": out.layout.size,
             "state": out.target.state,
             "seconds": round(seconds(expert) + encoder_seconds(expert, out), 1), "memory_bytes": memory_bytes(expert),
             "needed_bytes": needed_bytes(out), "free_bytes": free_bytes(os.path.dirname(out.target.path))}
            for out in expert.outputs]
