"""Names of one Wan layer: the native spelling, the diffusers spelling, and the prefixes in front of either.

Table (source: huggingface/diffusers, scripts/convert_wan_to_diffusers.py, TRANSFORMER_KEYS_RENAME_DICT and the VACE one).
Names are mapped by the longest run of whole path segments, never by text: `norm2` and `norm3` change places, `modulation` is
part of `head.modulation`, and `proj_out` is the head at the top but `after_proj` inside a VACE block.
"""
from collections.abc import Collection, Iterable

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")  # longest first: each is tried before its own ending
STACKS = ("blocks", "vace_blocks")
TOP = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
}
ATTENTION = {
    "q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k",
    "k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k",
}
BLOCK = {
    **{f"self_attn.{native}": f"attn1.{other}" for native, other in ATTENTION.items()},
    **{f"cross_attn.{native}": f"attn2.{other}" for native, other in ATTENTION.items()},
    "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "modulation": "scale_shift_table",
    "norm3": "norm2", "norm2": "norm3",  # the module order is norm1, norm3, norm2 natively; only the affine one has parameters
}
VACE_BLOCK = {**BLOCK, "before_proj": "proj_in", "after_proj": "proj_out"}
ANY = "#"  # stands for a block's number


def _segments(table: dict[str, str]) -> dict[tuple[str, ...], tuple[str, ...]]:
    return {tuple(name.split(".")): tuple(other.split(".")) for name, other in table.items()}


_DIFFUSERS = _segments({
    **TOP,
    **{f"blocks.{ANY}.{native}": f"blocks.{ANY}.{other}" for native, other in BLOCK.items()},
    **{f"vace_blocks.{ANY}.{native}": f"vace_blocks.{ANY}.{other}" for native, other in VACE_BLOCK.items()},
})
_NATIVE = {other: native for native, other in _DIFFUSERS.items()}


def _translate(path: str, table: dict[tuple[str, ...], tuple[str, ...]]) -> str:
    segments = path.split(".")
    number = segments[1] if len(segments) > 1 and segments[0] in STACKS else None
    general = tuple(segments) if number is None else (segments[0], ANY, *segments[2:])
    for length in range(len(general), 0, -1):
        found = table.get(general[:length])
        if found is not None:
            return ".".join([number if segment == ANY else segment for segment in found] + segments[length:])
    return path


def to_native(path: str) -> str:
    """Native name of a layer or key in the diffusers spelling (`blocks.3.attn1.to_q.weight`); unknown names come back as they are.

    A native name also comes back as it is, except `norm2` and `norm3` of a block, whose spelling cannot tell: ask only for
    names known to be in the diffusers spelling (`is_diffusers`).
    """
    return _translate(path, _NATIVE)


def to_diffusers(path: str) -> str:
    """Diffusers name of a native layer or key (`blocks.3.self_attn.q.weight`); unknown names come back as they are."""
    return _translate(path, _DIFFUSERS)


def is_diffusers(keys: Collection[str]) -> bool:
    """Whether bare keys (prefix already off) are a whole model in the diffusers spelling."""
    return "scale_shift_table" in keys and "head.modulation" not in keys


def find_prefix(keys: Iterable[str]) -> str | None:
    """What stands before the diffusion model's keys: one of PREFIXES, or None when no Wan model is among them."""
    known = set(keys)
    for prefix in PREFIXES:
        if prefix + "head.modulation" in known or {prefix + "scale_shift_table", prefix + "proj_out.weight"} <= known:
            return prefix
    return None
