"""Where a base tensor meets its deltas: the one place, used by writing, measuring and previewing.

`load_change` reads what the LoRAs do to one tensor; alteration.py says how that is driven, change.py does it.
Fast path: when every term is a product of factors and every pass only gives coefficients, all of them are ONE joint product per
band, and the Gram matrix comes from the factors; nothing dense exists.
"""
import torch

from ..bands import split
from ..loras.delta import Delta, Transform
from ..loras.factors import Factors, load_factors
from ..loras.modules import Pair
from ..specs import TensorSpec
from .adaptive.apply import gated_factors
from .alteration import Alteration, BandEnergy, Energies, Run
from .change import Change
from .combine import Combined
from .compat import load_comfy_change
from .contribution import Contribution, PassRule, Rules
from .term import Term

__all__ = ["Alteration", "BandEnergy", "Change", "Contribution", "Energies", "PassRule", "Rules", "load_change", "merge_whole"]

CORRECT = Rules()


def load_change(key: str, spec: TensorSpec, contributions: list[Contribution], device: torch.device,
                rules: Rules = CORRECT) -> Alteration:
    """Read what changes `key`. Factors are read whole, in float32; full differences stay on disk and are read per band.

    Adaptive contributions get their measured factors (adaptive/apply.py). Raises LoraError, naming file and key, for values that
    are not finite, RecipeError for a pass that its method cannot combine.
    """
    if rules.compat == "comfyui":
        return load_comfy_change(key, spec, contributions, rules)
    terms = [Term(each, key, spec.shape) for each in contributions]
    joint = _load_pairs(terms, device)
    if joint is None:
        _gate_adaptive(terms, device)
        for term in terms:
            _load(term, device)
    combined = _combine(terms, rules)
    for each in combined:
        if each.needs_gram and all(_is_product(terms[place]) for place in each.members):
            each.weigh(_gram([terms[place].factors for place in each.members]))
    if not all(map(_is_product, terms)) or not all(each.coefficients for each in combined):
        joint = None
    elif joint is None:
        joint = _part(_side_by_side([term.factors for term in terms]), terms)
    for each in combined if joint is not None else ():
        for place, coefficient in zip(each.members, each.coefficients, strict=True):
            terms[place].factors.strengthen(coefficient)   # views of the joint ones
    return Change(key, spec.shape, terms, joint, combined, rules.normalize)


def _is_product(term: Term) -> bool:
    """Whether all that it adds is up @ down at its strength."""
    return term.factors is not None and not (term.deltas or term.is_gated)


def _load_pairs(terms: list[Term], device: torch.device) -> Factors | None:
    """All factors side by side, read straight into their places, where every module is a pair that is merely added; else None."""
    if any(term.contribution.method != "addition" or not isinstance(module, Pair)
           for term in terms for module in term.contribution.modules):
        return None
    pairs = [(term.contribution.lora, module, term.contribution.strength) for term in terms for module in term.contribution.modules]
    return _part(load_factors(terms[0].shape, pairs, device), terms)


def _gate_adaptive(terms: list[Term], device: torch.device) -> None:
    """Gated and limited factors, all passes together, for what of adaptive terms is in factor form; their rest is thinned."""
    gated = [term for term in terms if term.contribution.method == "adaptive"
             and any(module.form == "factors" for module in term.contribution.modules)]
    if gated:
        found = gated_factors(gated[0].key, gated[0].shape, [term.contribution for term in gated], device)
        for term, factors, told in zip(gated, *found, strict=True):
            term.factors, term.adaptive = factors, told


def _load(term: Term, device: torch.device) -> None:
    """Read its modules. Strength goes into `up` in float64, rounded once to float32, unless classic gates it."""
    asked, parts = term.contribution, []
    strength = 1.0 if asked.method == "classic" else asked.strength
    for module in asked.modules:
        if module.form == "factors" and term.adaptive is not None:
            continue
        if isinstance(module, Pair):
            parts.append(load_factors(term.shape, [(asked.lora, module, strength)], device))
            continue
        loaded: Delta | Transform = module.load(asked.lora, term.shape, device)
        if module.form == "factors":
            parts.append(Factors(loaded.factors.up.double().mul_(strength).float(), loaded.factors.down))
        else:
            (term.transforms if module.form == "transform" else term.deltas).append(loaded)
    if parts:
        term.factors = _side_by_side(parts)


def _side_by_side(parts: list[Factors]) -> Factors:
    if len(parts) == 1:
        return parts[0]
    return Factors(torch.cat([each.up for each in parts], 1), torch.cat([each.down for each in parts]))


def _combine(terms: list[Term], rules: Rules) -> list[Combined]:
    """The passes of this tensor that are more than a sum, in order."""
    found = []
    for number in sorted({term.contribution.pass_number for term in terms}):
        rule = rules.of(number)
        members = [place for place, term in enumerate(terms) if term.contribution.pass_number == number
                   and not term.contribution.protected and (term.factors is not None or term.deltas)]
        if rule.combine != "sum" and members:
            asked = [terms[place].contribution for place in members]
            found.append(Combined(rule, terms[0].key, terms[0].matrix, members, asked))
    return found


def _gram(factors: list[Factors]) -> torch.Tensor:
    """Inner products of full deltas, from their factors, (n, n) float64."""
    return torch.stack([torch.stack([one.inner(other).sum() for other in factors]) for one in factors])


def _part(joint: Factors, terms: list[Term]) -> Factors:
    """The factors of all terms side by side; each term's own become views of them."""
    start = 0
    for term in terms:
        rank = sum(module.rank for module in term.contribution.modules) if term.factors is None else term.factors.down.shape[0]
        term.factors, start = joint.part(start, start + rank), start + rank
    return joint


def serial(compute, bands: list) -> list:
    """`run` on the calling thread."""
    return [compute(rows) for rows in bands]


def merge_whole(change: Alteration, whole: torch.Tensor, run: Run = serial) -> Energies:
    """Merge a tensor that lies whole in memory, IN PLACE; the bytes are those of the line. whole: float32, contiguous."""
    def add(rows):
        band = whole[rows[0]:rows[1]] if whole.dim() else whole
        return change.add(band, rows, torch.empty_like(band))

    bands = split(tuple(whole.shape))
    if change.needs_whole:
        change.decide(whole, run)
    found = run(add, bands)
    if change.needs_whole:
        change.finish(whole, run)
    return change.energies(found)
