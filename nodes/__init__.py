"""The only package that imports ComfyUI: a node is a schema and one call into the engine."""
from comfy_api.latest import ComfyExtension, io

from .inject import Wan22ActionMasterInject
from .load_dual import Wan22LoadDualDiT
from .load_saved import Wan22LoadSaved
from .lora_pair import Wan22LoraPair
from .meter import Wan22StabilityMeter
from .quantize import Wan22Quantize
from .save import Wan22SaveModel

NODES = [Wan22LoadDualDiT, Wan22LoraPair, Wan22ActionMasterInject, Wan22StabilityMeter, Wan22Quantize, Wan22SaveModel,
         Wan22LoadSaved]


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
