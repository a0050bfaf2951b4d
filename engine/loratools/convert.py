"""A LoRA in another dialect: the same tensors under other names; a combined file split, two halves joined.

No base is needed and no number changes (pieces.py). A key that the target cannot hold is an error, or left out and told.
"""
from dataclasses import dataclass

from ..errors import LoraError, RecipeError
from ..loras.lora import LoraFile
from ..loras.modules import Refused
from .carried import ROLES, carry, carry_both, untrue
from .lora_writer import LoraWriter, check_target
from .pieces import Half, Piece, plan_half
from .reading import Contents, FileModule, check_once, read_contents
from .report import entry
from .scalars import to_metadata
from .spelling import dialect
from .wish import Save, Watch

ON_REFUSED = ("error", "leave_out")


@dataclass(frozen=True)
class Conversion:
    """to: a name of spelling.DIALECTS. role: expert whose half is taken out of a combined file, or whose half the file is; None:
    everything. on_refused: "error" or "leave_out". span: modelspec.timestep_range, written when the file does not say it."""

    to: str
    role: str | None = None
    on_refused: str = "error"
    span: str | None = None

    def __post_init__(self):
        dialect(self.to)
        if self.on_refused not in ON_REFUSED or self.role not in {None, *ROLES}:
            expected = f"expected on_refused of {', '.join(ON_REFUSED)} and role of {', '.join(ROLES)}"
            raise RecipeError(f"convert: {expected}, found {self.on_refused!r} and {self.role!r}")


@dataclass(frozen=True)
class Converted:
    """refused: keys that are not in the new file; elsewhere: keys of the other expert; moved: alphas that stand in the metadata
    now; untrue: metadata not carried; notice: why the file has another name than asked."""

    path: str
    tensors: int
    refused: tuple[Refused, ...]
    elsewhere: int
    moved: int
    untrue: tuple[str, ...]
    notice: str | None

    def lines(self) -> list[str]:
        """For people: every key that is not converted, with its reason."""
        lines = [f"{self.tensors} tensors written"] + [f"not converted: {each.key}: {each.reason}" for each in self.refused]
        lines += [f"{self.elsewhere} keys of the other expert stay in the old file"] if self.elsewhere else []
        lines += [f"{self.moved} alphas stand in the metadata now, where this dialect has them"] if self.moved else []
        lines += [f"metadata left out, being of the old bytes: {', '.join(self.untrue)}"] if self.untrue else []
        return lines + ([self.notice] if self.notice else [])


@dataclass(frozen=True)
class _Share:
    """Modules of one file that become one half (role) or all (None) of the new file."""

    contents: Contents
    modules: list[FileModule]
    role: str | None


def experts_of(lora: LoraFile) -> tuple[str, ...]:
    """The experts whose halves a file holds, by its keys: both for a combined file, else none or one."""
    return tuple(role for role in ROLES if role in read_contents(lora).dialect.experts)


def convert(lora: LoraFile, wish: Conversion, save: Save, watch: Watch) -> Converted:
    """Write `lora`, or one expert's half of it, in another dialect.

    Raises LoraError when the target cannot hold a key (unless it may be left out), or both experts but no role is given.
    """
    contents, to = read_contents(lora), dialect(wish.to)
    check_once(contents)
    if contents.dialect.is_combined and wish.role is None:
        if not to.holds_both:
            raise LoraError(f"{lora.name}: holds both experts, which {to.title} cannot; take out high_noise and low_noise singly")
        shares = [_Share(contents, [each for each in contents.modules if each.expert == role], role) for role in ROLES]
    else:
        own = [each for each in contents.modules if None in {wish.role, each.expert} or each.expert == wish.role]
        shares = [_Share(contents, own, None)]
        if not own:
            raise LoraError(f"{lora.name}: expected layers of the {wish.role} expert, found only the other's; choose that role")
    return _write(shares, carry(lora.metadata, wish.role), wish, save, watch)


def join(high: LoraFile, low: LoraFile, wish: Conversion, save: Save, watch: Watch) -> Converted:
    """Write two halves as one combined file (diffusers or omi). Raises LoraError when one is combined, or of the other expert."""
    to, shares = dialect(wish.to), []
    if not to.holds_both:
        raise RecipeError(f"convert: expected a dialect with both experts in one file (diffusers, omi), found {to.name}")
    for role, lora in zip(ROLES, (high, low), strict=True):
        contents = read_contents(lora)
        check_once(contents)
        if contents.dialect.experts - {role}:
            found = " and ".join(sorted(contents.dialect.experts))
            raise LoraError(f"{lora.name}: expected the {role} half alone, its keys speak of {found}; choose another, or split it")
        shares.append(_Share(contents, contents.modules, role))
    return _write(shares, carry_both(high.metadata, low.metadata), wish, save, watch)


def _write(shares: list[_Share], metadata: dict[str, str], wish: Conversion, save: Save, watch: Watch) -> Converted:
    to = dialect(wish.to)
    halves = [plan_half(share.contents, share.modules, to, share.role) for share in shares]
    files = list({id(share.contents): share.contents for share in shares}.values())
    refused = [each for file in files for each in file.refused] + [each for half in halves for each in half.refused]
    _check_refused(files[0].lora.name, refused, wish)
    pieces = _pieces(halves)
    config, noted = to_metadata([half.told for half in halves], dora=any(half.dora for half in halves)) if to.is_peft else ({}, {})
    made = {"made_by": "convert", "dialect": to.name, "expert": wish.role, "from": [file.lora.name for file in files]}
    span = {"modelspec.timestep_range": wish.span} if wish.span else {}
    check_target(save)
    watch.begin(sum(piece.spec.nbytes for piece in pieces.values()))
    header = {**save.metadata, **span, **metadata, **config, **entry({**made, "left_out": len(refused), **noted})}
    with LoraWriter(save, {name: piece.spec for name, piece in pieces.items()}, header) as writer:
        writer.require(watch.clock.total)
        for name, piece in pieces.items():
            writer.add(name, piece.fetch())
            watch.advance(piece.spec.nbytes, name, "convert")
        path, notice = writer.place({})
    elsewhere = sum(len(module.parts) for file in files for module in file.modules)
    elsewhere -= sum(len(module.parts) for share in shares for module in share.modules)
    dropped = {name for file in files for name in untrue(file.lora.metadata)}
    return Converted(path, len(pieces), tuple(refused), elsewhere, sum(len(half.moved) for half in halves),
                     tuple(sorted(dropped)), notice)


def _check_refused(name: str, refused: list[Refused], wish: Conversion) -> None:
    if refused and wish.on_refused == "error":
        first, more = refused[0], f" ({len(refused)} keys in all)" if len(refused) > 1 else ""
        raise LoraError(f"{name}: {first.key}: {first.reason}{more}; or allow such keys to be left out")


def _pieces(halves: list[Half]) -> dict[str, Piece]:
    """All tensors, wide dtypes first, so that every one stays aligned whatever the mix. Raises LoraError when there are none."""
    pieces = {name: piece for half in halves for name, piece in half.pieces.items()}
    if not pieces:
        reasons = [each.reason for half in halves for each in half.refused]
        raise LoraError(f"nothing is left to write: {reasons[0] if reasons else 'no layers'}")
    return dict(sorted(pieces.items(), key=lambda item: -item[1].spec.dtype.itemsize))
