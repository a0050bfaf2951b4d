"""A tiny base as a GGUF file, by the gguf library's own writer, for the tests of everything that reads one."""
import gguf
import numpy as np
import torch
from wan22_master.tests.engine.stored_base import wan

TYPES = gguf.GGMLQuantizationType


def written(path, tensors: dict, *, architecture: str | None = "wan", fields: dict | None = None, prefix: str = ""):
    """tensors: key -> (stored array as the library takes it, name of its type), or a torch tensor, which is F32; fields: name ->
    text, number or list of int32; architecture None: the file does not say."""
    writer = gguf.GGUFWriter(path, architecture or "wan")
    if architecture is None:
        del writer.kv_data[0]["general.architecture"]
    for name, value in (fields or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)]
        add(name, value)
    for key, value in tensors.items():
        stored, name = (value.numpy(), "F32") if isinstance(value, torch.Tensor) else value
        writer.add_tensor(prefix + key, stored, raw_dtype=TYPES[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Random bytes of a type whose scales are finite: (..., bytes of a row) uint8."""
    size, nbytes = gguf.GGML_QUANT_SIZES[TYPES[name]]
    draw = np.random.default_rng(seed)
    stored = draw.integers(0, 256, (*shape[:-1], shape[-1] // size, nbytes), dtype=np.uint8)
    flat = stored.reshape(-1, nbytes)
    while (bad := ~np.isfinite(values(flat, name)).all(1)).any():
        flat[bad] = draw.integers(0, 256, (bad.sum(), nbytes), dtype=np.uint8)
    return stored.reshape(*shape[:-1], -1)


def values(stored: np.ndarray, name: str) -> np.ndarray:
    """What the library decodes."""
    with np.errstate(all="ignore"):                # of the blocks that are drawn again
        return gguf.quants.dequantize(stored, TYPES[name])


def base(**types: str) -> dict:
    """The tensors of `stored_base.wan` with these types of its first block: q, up; plain types are rounded by the library."""
    tensors: dict = wan()
    for word, key in {"q": "blocks.0.self_attn.q.weight", "up": "blocks.0.ffn.0.weight", "patch": "patch_embedding.weight"}.items():
        if word in types:
            tensors[key] = gguf.quants.quantize(tensors[key].numpy(), TYPES[types[word]]), types[word]
    return tensors
