"""The only package that imports ComfyUI: a node is a schema and one call into the engine."""
from comfy_api.latest import ComfyExtension, io

from .analysis import Wan22LoraAnalysis
from .calibrate import Wan22Calibrate
from .calibration_summary import Wan22CalibrationSummary
from .inject import Wan22ActionMasterInject
from .input_scales import Wan22InputScales
from .inspect_file import Wan22Inspect
from .load_dual import Wan22LoadDualDiT
from .load_saved import Wan22LoadSaved
from .lora_convert import Wan22LoraConvert
from .lora_extract import Wan22LoraExtract
from .lora_gated import Wan22LoraGated
from .lora_list import Wan22ImportLoraStack, Wan22LoraList
from .lora_merge import Wan22LoraMerge
from .lora_pair import Wan22LoraPair
from .merge_checkpoints import Wan22MergeCheckpoints
from .meter import Wan22StabilityMeter
from .precision_plan import Wan22PrecisionPlan
from .preview import Wan22MergePreview
from .prompt_list import Wan22PromptList
from .quantize import Wan22Quantize
from .recipe_load import Wan22RecipeLoad
from .recipe_save import Wan22RecipeSave
from .save import Wan22SaveModel
from .sensitivity import Wan22Sensitivity
from .split_step import Wan22SplitStep

NODES = [Wan22LoadDualDiT, Wan22LoraPair, Wan22ActionMasterInject, Wan22StabilityMeter, Wan22Quantize, Wan22SaveModel,
         Wan22LoadSaved,
         Wan22LoraList,
         Wan22ImportLoraStack,
         Wan22MergeCheckpoints,
         Wan22RecipeLoad,
         Wan22RecipeSave,
         Wan22LoraAnalysis,
         Wan22MergePreview,
         Wan22SplitStep,
         Wan22LoraConvert,
         Wan22LoraMerge,
         Wan22LoraExtract,
         Wan22LoraGated,
         Wan22PrecisionPlan,
         Wan22InputScales,
         Wan22Inspect,
         Wan22PromptList,
         Wan22Calibrate,
         Wan22CalibrationSummary,
         Wan22Sensitivity]


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
