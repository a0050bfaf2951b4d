"""What Calibrate says on its node: while a run goes on, when it has ended, and which layers nobody can see."""
import time

from .calibration_hooks import bypassed
from .calibration_run import Recording

SHOWN = 3                                          # names of layers in a line


def line(run: Recording, total: int, place: tuple[int, int] | None) -> str:
    """`step 3/20, 241 inputs, 14 calls each, 3:20 left`: of this expert and all prompts that are still to come."""
    done, to_come = max(run.steps, 1), 0 if place is None else (place[1] - place[0]) * total
    left = int((time.monotonic() - run.started) / done * (max(total - done, 0) + to_come))
    return f"step {run.steps}/{total}, {len(run.points)} inputs, {run.calls} calls each, {left // 60}:{left % 60:02d} left"


def coming(modules, unseen, name: str) -> list[str]:
    """What will be recorded of the model `name`, and what cannot be."""
    return [f"will record the inputs of {_of(modules, unseen)} of {name}", *unseen_lines(modules, unseen)]


def ending(run: Recording, runs: int) -> str:
    """What a finished run recorded, and which layers it did not, and why. runs: of its expert, that the session has by now.

    Short, as a node's text breaks in a word where it is longer than the node is wide.
    """
    parts = [f"{_of(run.modules, run.unseen())}, {runs} run{'s' if runs > 1 else ''}"]
    if run.alone:
        parts.append(f"{some(run.alone)} do not see what layers of their kind share, and count by themselves")
    return "; ".join([*parts, *unseen_lines(run.modules, run.unseen())])


def _of(modules, unseen) -> str:
    return f"{len(modules) - len(unseen)} of {len(modules)} layers" if unseen else f"all {len(modules)} layers"


def unseen_lines(modules, unseen) -> list[str]:
    """Why layers are not seen: int8 layers whose forward ComfyUI passes by, and those that the network does not use."""
    passed = [name for name in unseen if name in set(bypassed(modules))]
    idle = [name for name in unseen if name not in set(passed)]
    return [*([f"{some(passed)} not seen: ComfyUI multiplies int8 behind a GELU without calling the layer; record on another file "
               "of this model"] if passed else []),
            *([f"{some(idle)} not seen: the network did not call them"] if idle else [])]


def some(names) -> str:
    """`40 layers (blocks.0.ffn.2, blocks.1.ffn.2, blocks.2.ffn.2 and more)`"""
    return f"{len(names)} layers ({', '.join(names[:SHOWN])}{' and more' if len(names) > SHOWN else ''})"
