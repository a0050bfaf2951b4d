"""What has to be known of a whole tensor before its deltas can be added: norms, gates, ranks and angles, each by a round over it.

A round computes the deltas tile by tile, as adding does and with the same bits, and keeps only sums and counts of them: no delta is
ever held, whatever the number of LoRAs. Order: norms of the base (DoRA), classic gates, thinning, then what the passes need.
"""
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ..bands import Rows, split
from .alteration import Run
from .combine import Combined, gram_of
from .gate import Moments, moments
from .gate import decide as decide_gate
from .term import Term

if TYPE_CHECKING:
    from .change import Change


def decide(change: "Change", whole: torch.Tensor, run: Run) -> None:
    """Set what the terms and passes of `change` wait for. whole: the original tensor, float32, not changed."""
    bands, flat = split(change.shape), whole.view(-1, change.columns)
    _settle([term for term in change.terms if term.sees_base], flat, run, bands)
    _gate(change, whole, run, bands)
    _thin(change, flat, run, bands)
    _weigh(change, flat, run, bands)
    _rank(change, flat, run, bands)


def _settle(terms: list[Term], flat: torch.Tensor, run: Run, bands: list[Rows]) -> None:
    deltas = [delta for term in terms for delta in term.deltas]
    if deltas:
        seen = run(lambda rows: [delta.observe(rows, flat[rows[0]:rows[1]]) for delta in deltas], bands)
        for delta, own in zip(deltas, zip(*seen, strict=True), strict=True):
            delta.settle(list(own))


def _gate(change: "Change", whole: torch.Tensor, run: Run, bands: list[Rows]) -> None:
    """Classic: from the moments of each product of factors, and of the original base."""
    gated = [term for term in change.terms if term.is_gated]
    if not gated:
        return
    base = sum(run(lambda rows: moments(whole[rows[0]:rows[1]]), bands), Moments())
    seen = run(lambda rows: [_moments(change, term, rows) for term in gated], bands)
    for term, parts in zip(gated, zip(*seen, strict=True), strict=True):
        term.gate = decide_gate(sum(parts, Moments()), base, term.contribution.constants, term.contribution.lora.name)


def _moments(change: "Change", term: Term, rows: Rows) -> Moments:
    """Of the ungated X of one term; the same tiles as in `add`, so that the gate meets the very same numbers."""
    total, scratch = Moments(), torch.empty(0, device=term.factors.up.device)
    for columns, room in change.tiles(rows, scratch):
        term.factors.product(rows, columns, room[0])
        total += moments(room[0])
    return total


def _thin(change: "Change", flat: torch.Tensor, run: Run, bands: list[Rows]) -> None:
    """The largest elements of the dense deltas that are thinned by magnitude."""
    wanting = [term for term in change.terms if term.thins == "magnitude"]
    searches = [term.search() for term in wanting]

    def look(rows: Rows) -> None:
        for columns, room in change.tiles(rows, torch.empty(0, device=flat.device)):
            for term, search in zip(wanting, searches, strict=True):
                if search.cut is None:
                    term.dense(rows, columns, flat[rows[0]:rows[1]], room[0])
                    search.look(room[0], rows, columns)

    while any(search.cut is None for search in searches):
        run(look, bands)
        for search in searches:
            search.narrow()
    for term, search in zip(wanting, searches, strict=True):
        term.cut = search.cut


def _weigh(change: "Change", flat: torch.Tensor, run: Run, bands: list[Rows]) -> None:
    """Coefficients of slerp and of the orthogonalized sum, where a delta is no product of factors."""
    wanting = [each for each in change.combined if each.needs_gram]
    if not wanting:
        return
    grams = _each_tile(change, flat, run, (bands, wanting), lambda each, deltas, rows, columns: gram_of(deltas[each.members]))
    for number, each in enumerate(wanting):
        each.weigh(sum(own[number] for own in grams))


def _rank(change: "Change", flat: torch.Tensor, run: Run, bands: list[Rows]) -> None:
    """What TIES and Breadcrumbs keep of each delta."""
    wanting = [each for each in change.combined if each.ranks]
    searches = {id(each): each.searches() for each in wanting}

    def look(each: Combined, deltas: torch.Tensor, rows: Rows, columns: slice) -> int:
        for place, own in zip(each.members, searches[id(each)], strict=True):
            for search in own:
                search.look(deltas[place], rows, columns)
        return 0

    every = [search for own in searches.values() for member in own for search in member]
    while any(search.cut is None for search in every):
        _each_tile(change, flat, run, (bands, wanting), look)
        for search in every:
            search.narrow()
    for each in wanting:
        each.take(searches[id(each)])


def _each_tile(change: "Change", flat: torch.Tensor, run: Run, over: tuple[list[Rows], list[Combined]], visit: Callable) -> list:
    """visit(pass, deltas, rows, columns) for every tile; per band the sums of what it returned, one for each pass."""
    bands, wanting = over

    def one(rows: Rows) -> list:
        base, sums = flat[rows[0]:rows[1]], [0] * len(wanting)
        for columns, deltas in change.tiles(rows, torch.empty(0, device=flat.device)):
            for number, each in enumerate(wanting):
                for place in each.members:
                    change.terms[place].write(rows, columns, base, deltas[place])
                sums[number] = sums[number] + visit(each, deltas, rows, columns)
        return sums

    return run(one, bands)
