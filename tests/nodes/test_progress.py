"""What a running engine asks of ComfyUI, which stands in here: room on the card, and the stop button."""
import importlib
import sys
import types

import pytest
from wan22_master.engine.errors import Stopped


class Interrupted(BaseException):
    """As in ComfyUI, no Exception."""


@pytest.fixture
def comfy(monkeypatch):
    management = types.ModuleType("comfy.model_management")
    management.freed, management.InterruptProcessingException = [], Interrupted
    management.get_torch_device = lambda: "card"
    management.free_memory = lambda *asked: management.freed.append(asked)
    management.processing_interrupted = lambda: False
    management.throw_exception_if_processing_interrupted = lambda: None
    root, tools, server = (types.ModuleType(name) for name in ("comfy", "comfy.utils", "server"))
    root.model_management, root.utils = management, tools
    tools.ProgressBar = lambda total, node_id: None
    said = []
    server.PromptServer = types.SimpleNamespace(instance=types.SimpleNamespace(send_progress_text=lambda *told: said.append(told)))
    for module in (root, management, tools, server):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "wan22_master.nodes.progress", raising=False)
    progress = importlib.import_module("wan22_master.nodes.progress")
    yield types.SimpleNamespace(freed=management.freed, said=said, stoppable=progress.stoppable, watched=progress.watched)
    sys.modules.pop("wan22_master.nodes.progress", None)


@pytest.mark.parametrize(("device", "times"), [("cpu", 0), ("cuda", 1), ("xpu", 1)])
def test_models_leave_the_card_only_for_a_run_on_it(comfy, device, times):
    with comfy.watched("7", device):
        pass
    assert len(comfy.freed) == times


def test_a_stop_of_the_engine_is_an_interrupt_of_comfyui_and_the_node_says_how_far_it_came(comfy):
    with pytest.raises(Interrupted), comfy.stoppable() as wish, comfy.watched("7", "cpu", "stopped at {share:.0%}") as watch:
        assert not wish()
        watch.share = 0.5
        raise Stopped("stopped")
    assert comfy.said == [("stopped at 50%", "7")]


def test_watched_alone_makes_an_interrupt_of_a_stop_so_that_no_node_can_forget_it(comfy):
    with pytest.raises(Interrupted), comfy.watched("7", "cpu", "stopped; nothing was written"):
        raise Stopped("stopped")
    assert comfy.said == [("stopped; nothing was written", "7")]
