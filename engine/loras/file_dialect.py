"""What the names of a whole LoRA file say together: whether it holds both experts, and which way it names its layers.

One key alone cannot tell. `diffusion_model.` is the high-noise half in a file that also has a low-noise half, else it says nothing;
`norm2` and `norm3` change places between native and diffusers names, so the other names of the file decide.
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..bases.prefixes import DIFFUSERS, HIGH, LOW, NATIVE, SENTINEL, Spelled, take_apart

TEXT_ENCODER = re.compile(r"(?:lora_te\d?|(?:base_model\.model\.)?text_encoders?(?:_\d)?|u?mt5|t5|clip(?:_[lgh])?|conditioner)[._]")
# Segments that only one way of naming has (names.py); dots and underscores are the same here.
TELLS = (
    (NATIVE, re.compile(r"(?:^|_)(?:self_attn|cross_attn|ffn_[02]|modulation|text_embedding|time_embedding|time_projection|head|"
                        r"img_emb|before_proj|after_proj)(?:_|$)")),
    (DIFFUSERS, re.compile(r"(?:^|_)(?:attn[12]|ffn_net|scale_shift_table|condition_embedder|proj_(?:in|out))(?:_|$)")),
)
CANONICAL = "diffusion_model."
BLOCK = re.compile(r"(?:vace_)?blocks[._]\d+(?=[._])")


@dataclass(frozen=True)
class FileDialect:
    """halves: experts that some prefix names; is_open: has keys of a prefix that means high noise beside a low-noise half.

    styles: scope -> ways of naming found in it, a scope being (prefix, block), (prefix,) or (), the whole file.
    """

    halves: frozenset[str]
    is_open: bool
    styles: Mapping[tuple[str, ...], frozenset[str]]
    has_sentinel: bool

    @property
    def is_combined(self) -> bool:
        """Whether the file holds both experts."""
        return LOW in self.halves and (HIGH in self.halves or self.is_open)

    @property
    def experts(self) -> frozenset[str]:
        """Experts that the keys speak of; none when they leave it open."""
        return frozenset((HIGH, LOW)) if self.is_combined else self.halves

    def expert(self, spelled: Spelled) -> str | None:
        """Whose module this is; None when the names do not say."""
        if spelled.prefix.opens and self.halves == {LOW}:
            return HIGH
        return spelled.prefix.expert

    def style(self, spelled: Spelled) -> str | None:
        """NATIVE or DIFFUSERS for names near this one: of its block, else of its prefix, else of the file; None when undecided.

        `diffusion_model.` with nothing beside it is native, as ComfyUI takes it.
        """
        block = BLOCK.match(spelled.name)
        scopes = [(spelled.prefix.text, block[0]), (spelled.prefix.text,), ()] if block else [(spelled.prefix.text,), ()]
        usual = frozenset({NATIVE} if spelled.prefix.text == CANONICAL else ())
        found = next((self.styles[scope] for scope in scopes if scope in self.styles), usual)
        return next(iter(found)) if len(found) == 1 else None


def read_dialect(modules: Iterable[str], keys: Iterable[str] = ()) -> FileDialect:
    """What the module names of a file say together; text encoder modules say nothing. keys: the file's, for ComfyUI's sentinel."""
    halves, styles, is_open = set(), {}, False
    for module in modules:
        if TEXT_ENCODER.match(module):
            continue
        spelled = take_apart(module)
        halves |= {spelled.prefix.expert} - {None}
        is_open |= spelled.prefix.opens
        block, flat = BLOCK.match(spelled.name), spelled.name.replace(".", "_")
        for style in (style for style, tell in TELLS if tell.search(flat)):
            for scope in ((), (spelled.prefix.text,), *([(spelled.prefix.text, block[0])] if block else [])):
                styles.setdefault(scope, set()).add(style)
    frozen = {scope: frozenset(found) for scope, found in styles.items()}
    return FileDialect(frozenset(halves), is_open, frozen, SENTINEL in keys)
