"""A node that runs once behind a list: ComfyUI calls a node once per entry of a list that reaches it, unless it asks for lists.

Prompt List makes lists, and a sampler behind it a list of latents. What sums all of them up takes every input as a list
(`is_input_list` of its schema, execution.py) and looks at the first entry, for its own inputs are the same in all.
"""
import functools
from collections.abc import Callable


def once(method: Callable) -> Callable:
    """`method` of a node with is_input_list, called with the first entry of each input; None of an empty one. What is no list goes
    through."""
    @functools.wraps(method)
    def call(cls, **inputs):
        return method(cls, **{name: (value[0] if value else None) if isinstance(value, list) else value
                              for name, value in inputs.items()})
    return call
