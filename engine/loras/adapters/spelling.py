"""How the tensors of a module are called after its name: the suffixes of every trainer, and which of them belong together.

Sources: ComfyUI 0.33, comfy/lora.py, comfy/weight_adapter; LyCORIS f49d30d, lycoris/modules; PEFT 5d602fd, utils/save_and_load.py.
"""

PAIRS = {  # spelling: (up, down), each the suffix; the first has a Tucker core besides
    "lora": (".lora_up.weight", ".lora_down.weight"),
    "_lora.": ("_lora.up.weight", "_lora.down.weight"),
    "peft": (".lora_B.weight", ".lora_A.weight"),
    ".lora.": (".lora.up.weight", ".lora.down.weight"),
    "bare": (".lora_B", ".lora_A"),
    "linear": (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "default": (".lora_B.default.weight", ".lora_A.default.weight"),
}
# spelling -> (part of up, part of down); those of the two common spellings have the names they are known by
PAIR_PARTS = {name: {"lora": ("up", "down"), "peft": ("B", "A")}.get(name, (f"{name} up", f"{name} down")) for name in PAIRS}
MAGNITUDES = {
    "dora_scale": ".dora_scale", "magnitude": ".lora_magnitude_vector", "magnitude weight": ".lora_magnitude_vector.weight",
    "magnitude default": ".lora_magnitude_vector.default", "magnitude default weight": ".lora_magnitude_vector.default.weight",
}
BIASES = {"up bias": ".lora_up.bias", "B bias": ".lora_B.bias", "default up bias": ".lora_B.default.bias"}
LOHA = tuple(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
LOKR = tuple(f"lokr_{name}" for name in ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t2"))
GLORA = ("a1", "a2", "b1", "b2")
ROTATIONS = {"oft_R": ".oft_R.weight", "oft_R bare": ".oft_R", "oft_R default": ".oft_R.default.weight"}
DIRECT = ("diff", "diff_b", "diff_m", "w_norm", "b_norm", "set_weight")

_PARTS = {
    **{suffix: part for name, pair in PAIRS.items() for suffix, part in zip(pair, PAIR_PARTS[name], strict=True)},
    **{suffix: part for table in (MAGNITUDES, BIASES, ROTATIONS) for part, suffix in table.items()},
    **{f".{part}": part for part in (*LOHA, *LOKR, *DIRECT, "alpha", "oft_blocks", "rescale", "reshape_weight", "on_input")},
    **{f".{part}.weight": part for part in GLORA},
    ".lora_mid.weight": "mid",
    ".weight": "weight",
}
# Suffix -> part, longest first, so that the first suffix that ends a key is the right one.
SUFFIXES = {suffix: _PARTS[suffix] for suffix in sorted(_PARTS, key=lambda suffix: (-len(suffix), suffix))}
ENDINGS = {part: suffix for suffix, part in SUFFIXES.items()}
