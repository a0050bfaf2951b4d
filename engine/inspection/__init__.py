"""What a file is, and whether ComfyUI loads it: told from headers and small tensors, no weight is read.

    facts.py      everything about one file, as JSON                text.py     the same as lines for a person
    contract.py   whether ComfyUI loads a quantized file            layers.py   dtypes and shapes of one layer's tensors
    openers.py    which programs open it, from which version on     entries.py  what the JSON of one layer may say
    gguf_file.py  the facts of a GGUF file
"""
from .facts import inspect
from .text import lines

__all__ = ["inspect", "lines"]
