"""Between a running engine and the person in front of ComfyUI: progress bar, line of text, and the stop button.

The engine runs outside ComfyUI's inference mode, as it does on the command line. It must not see ComfyUI's interrupt either, a
BaseException that a progress update raises: the wish is kept and told by `should_stop`.
"""
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import torch
from server import PromptServer

from ..engine.errors import Stopped

TEXT_EVERY = 0.25                                  # seconds; the bar limits itself
CARD_BYTES = 2 * 1024**3                           # largest tensor in float32 (283 MB), its codes, deltas and the allocator's slack


def device_for(choice: str) -> str:
    """The recipe's device for a widget's: the processor also where ComfyUI itself runs on it."""
    return "cpu" if comfy.model_management.get_torch_device().type == "cpu" else choice


class Watch:
    """What one engine call is given as `should_stop` and `on_progress`."""

    def __init__(self, node: str):
        self.node = node
        self.share = 0.0
        self._bar = comfy.utils.ProgressBar(1, node_id=node)
        self._stop = False
        self._told = 0.0

    def should_stop(self) -> bool:
        return self._stop or comfy.model_management.processing_interrupted()

    def on_progress(self, progress) -> None:
        """Show an engine's Progress. Called from any thread."""
        self.share = progress.done_bytes / max(progress.total_bytes, 1)
        try:
            self._bar.update_absolute(progress.done_bytes, progress.total_bytes)
        except comfy.model_management.InterruptProcessingException:
            self._stop = True
        if time.monotonic() - self._told >= TEXT_EVERY:
            self._told = time.monotonic()
            self.say(line(progress))

    def say(self, text: str) -> None:
        """Show a line under the node's widgets, in every browser that is open."""
        PromptServer.instance.send_progress_text(text, self.node)


def line(progress) -> str:
    """`low_noise: write blocks.12.ffn.0.weight, 61 %, 850 MB/s, 0:42 left`"""
    expert = "" if progress.expert == "model" else f"{progress.expert}: "
    speed = f", {progress.bytes_per_s / 1e6:.0f} MB/s" if progress.bytes_per_s else ""
    left = "" if progress.eta_s is None else f", {int(progress.eta_s) // 60}:{int(progress.eta_s) % 60:02d} left"
    return f"{expert}{progress.phase} {progress.key}, {progress.done_bytes / max(progress.total_bytes, 1):.0%}{speed}{left}"


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Give an engine call ComfyUI's stop button as `should_stop`; its Stopped becomes ComfyUI's own interrupt."""
    try:
        yield comfy.model_management.processing_interrupted
    except Stopped:
        comfy.model_management.throw_exception_if_processing_interrupted()
        raise comfy.model_management.InterruptProcessingException from None


@contextmanager
def watched(node: str, device: str, stopped: str = "stopped at {share:.0%}") -> Iterator[Watch]:
    """Run an engine call under a Watch; its Stopped becomes ComfyUI's own interrupt, as by `stoppable`.

    device: kind of device that the engine computes on; unless it is cpu, models that ComfyUI holds on the card make room.
    stopped: what the node says when it is; {share} is how far it came.
    """
    watch = Watch(node)
    if device != "cpu":
        comfy.model_management.free_memory(CARD_BYTES, comfy.model_management.get_torch_device())
    with stoppable():
        try:
            with torch.inference_mode(mode=False):
                yield watch
        except Stopped:
            watch.say(stopped.format(share=watch.share))
            raise
