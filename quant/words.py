"""What every format says in the same words: the refusal of a weight that is no number, and the entry that ComfyUI reads.

The entry is the JSON of `<layer>.comfy_quant` (ComfyUI comfy/ops.py, mixed_precision_ops, _load_quantized_module).
"""
NOT_FINITE = "weight holds NaN or inf; check the LoRA strengths, or the file it came from"


def entry(name: str, *, full_precision: bool, **more: object) -> dict:
    """What a layer's entry says. name: of the format, as in QUANT_ALGOS; more: settings of that format.

    full_precision: the weight is dequantized and multiplied in 16 bit; the activations are never quantized.
    """
    return {"format": name, **more} | ({"full_precision_matrix_mult": True} if full_precision else {})
