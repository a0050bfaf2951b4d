"""A size budget of one expert: what each layer may become, from a trial of the merge, given to the solver (plans/budget.py).

Every layer takes part, the decided ones with one option, so that bytes, error and the share of fast compute are those of the whole
file. A layer that is to be multiplied in 16 bit is slow in FLOAT formats, whatever the card can do.

For a GGUF the card plays no part. GGUF_CANDIDATES are those of its types that have the least error for their bytes, on normal
weights by our own search: Q2_K 0.265 at 2.63 bits, Q3_K 0.143 at 3.44, IQ4_XS 0.074 at 4.25, Q4_K 0.071 at 4.5, Q5_K 0.036 at 5.5,
Q6_K 0.017 at 6.56, Q8_0 0.005 at 8.5. Of the others Q4_0, Q5_0 and IQ4_NL have more at as many bits; Q4_1, at 5.0, and Q5_1, at
6.0, have a twentieth less at most than Q4_K and Q5_K, half a bit below, and a mixture of those and the next has less than either.
They take part where columns are no multiple of 256.

With a calibration a layer costs what its output loses (layer_cost.py), and one that rounding its input would spoil is offered with
its product in 16 bit instead, where the request asks for that: then it counts as slow.
"""
from functools import partial

from ...quant.formats import FORMATS, Options, form_of
from ..errors import PlanError
from ..gguf_mix import PLAIN, fallback
from ..plans import budget, cards, promote, shares, sizes
from ..plans.build import finish
from ..plans.moves import TO_SOLVE
from ..plans.plan import KEEP, Choice, container_among
from ..plans.request import PlanRequest
from ..precision import GGUF, SAFETENSORS, Forms, layer_of
from .experts import ExpertPlan
from .layer_cost import by_output, cost, is_spoiled
from .trial import Trial

SLOW = ", slow"                                    # ends the name of a candidate that is multiplied in 16 bit
GGUF_CANDIDATES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K")
# A quantized format that stands for its kind of file: what is kept does not depend on which.
QUANTIZED_IN = {SAFETENSORS: next(iter(FORMATS)), GGUF: "Q8_0"}


def candidates(expert: ExpertPlan, request: PlanRequest) -> tuple[str, ...]:
    """Quantized formats that a budget chooses from: those that the card multiplies natively, or GGUF's, and what those fall back to
    in this model."""
    return gguf_candidates(expert) if request.container == GGUF else cards.native_formats(request.card)


def gguf_candidates(expert: ExpertPlan) -> tuple[str, ...]:
    """GGUF_CANDIDATES, and what they fall back to for the columns of this model."""
    columns = {expert.specs[key].shape[1] for key in expert.block_linears}
    taken = (fallback(name, count) for count in sorted(columns) for name in GGUF_CANDIDATES)
    return tuple(dict.fromkeys([*GGUF_CANDIDATES, *(name for name in taken if name not in PLAIN)]))


def solve_budget(expert: ExpertPlan, choices: dict[str, Choice], trials: dict[str, Trial],
                 asked: tuple[str, PlanRequest]) -> tuple[dict[str, Choice], list[str]]:
    """The choices, with those that were left to the budget made. asked: dtype of what is kept, and the request.

    Raises PlanError when no plan is small enough, or fast enough.
    """
    kept, request = asked
    free = candidates(expert, request)
    names = tuple(dict.fromkeys([*free, *(each.format for each in choices.values()), KEEP]))
    bytes_of, counts, slow = byte_counts(expert, names, kept, Options()), shares.multiply_adds(expert.specs), _slow(expert, request)
    layers, outputs = {}, by_output(trials)
    for layer, choice in choices.items():
        trial, found = trials[layer], {}
        for name in _options(choice, layer, trial, (free, request)):
            if name in bytes_of[layer] and name in trial.lost:
                is_slow = layer in slow or is_spoiled(trial, name, request.full_precision_above)
                found[_named(name, is_slow)] = bytes_of[layer][name], *cost(trial, Choice(name, is_slow), outputs=outputs)
        options = {name: (count, lost) for name, (count, lost, _) in found.items()}
        layers[layer] = budget.Candidates(options, max((each[2] for each in found.values()), default=0.0),
                                          multiply_adds=counts[layer])
    others = {layer: budget.Candidates({KEEP: (0, 0.0)}, 0.0, multiply_adds=count) for layer, count in counts.items()
              if layer not in layers}
    fixed = sizes.rest_bytes(expert.specs, partial(_kept_bytes, expert, kept, request.container))
    fast = frozenset(cards.native_formats(request.card)) if request.container == SAFETENSORS else frozenset()
    try:
        found = budget.solve({**layers, **others}, round(request.budget_gb * 1e9), fixed_bytes=fixed,
                             minimum_fast=request.minimum_fast, fast=fast)
    except PlanError as cause:
        raise PlanError(f"{expert.role}: {cause}") from cause
    reason = f"least error within {request.budget_gb:g} GB"
    solved = {layer: Choice(found.choices[layer].removesuffix(SLOW), reason=reason) if each.reason == TO_SOLVE else each
              for layer, each in choices.items()}
    said = (f"{request.budget_gb:g} GB: total {'output ' if outputs else ''}error {found.error ** 0.5:.4f}, "
            f"{found.bytes / 1e9:.2f} GB")
    if fast:
        said += f", {found.fast_share:.0%} of the multiply-adds below 16 bit"
    return solved, [said, *found.notices]


def _slow(expert: ExpertPlan, request: PlanRequest) -> set[str]:
    """Layers that lists and switches have multiplied in 16 bit."""
    every = {layer_of(key): Choice("nvfp4") for key in expert.block_linears}
    return {layer for layer, each in finish(every, expert.specs, expert.role, request)[0].items() if each.full_precision}


def _named(name: str, is_slow: bool) -> str:  # noqa: FBT001 - whether it is one is all there is to say
    return name + SLOW if is_slow and name in cards.FLOATS else name


def _options(choice: Choice, layer: str, trial: Trial, asked: tuple[tuple[str, ...], PlanRequest]) -> list[str]:
    """Formats that a layer may get: its own where it has one; else the candidates that the LoRAs do not drown in, and KEEP."""
    free, request = asked
    if choice.reason != TO_SOLVE:
        return [choice.format]
    names, effects, least = [*free, KEEP], trial.effects(), request.promote_below or 0.0
    if request.min_ffn_fp8 and layer.endswith((".ffn.0", ".ffn.2")):
        names = [name for name in names if name not in promote.UNDER_EIGHT]
    return [name for name in names if name == KEEP or effects.get(name, least) >= least]


def byte_counts(expert: ExpertPlan, names: tuple[str, ...], kept: str, options: Options) -> dict[str, dict[str, int]]:
    """Layer -> format -> bytes of every block linear, KEEP as `kept` has it."""
    forms = {name: form_of(name, options) for name in names if name != KEEP}
    return sizes.candidate_bytes(expert.specs, names, forms, partial(_kept_bytes, expert, kept, container_among(names)))


def _kept_bytes(expert: ExpertPlan, kept: str, container: str, key: str) -> int:
    """Of a tensor that is not quantized."""
    keeping = Forms(QUANTIZED_IN[container], {layer_of(key): KEEP}, kept=kept)
    return sum(spec.nbytes for spec in keeping.outputs(key, expert.specs[key]).values())


def predicted(expert: ExpertPlan, choices: dict[str, Choice], kept: str, fp32_names: frozenset[str] | None,
              options: Options) -> int:
    """Bytes of one expert's file under these choices, but its header; a layer without one is kept."""
    named = {layer: choices.get(layer, Choice(KEEP)).format for layer in map(layer_of, expert.block_linears)}
    base = QUANTIZED_IN[container_among(named.values())]
    forms = Forms(base, named, kept=kept, fp32_names=fp32_names, options=options)
    return sum(stored.nbytes for key, spec in expert.specs.items() for stored in forms.outputs(key, spec).values())
