"""The widgets of Precision Plan. Names and order are users' saved workflows: append only."""
from comfy_api.latest import io

from ..engine.plans.cards import CARDS
from ..engine.plans.presets import HARDWARE, NAMES
from ..engine.plans.request import MIXED
from ..engine.precision import GGUF, KEEP, KEPT_DTYPES, SAFETENSORS
from ..quant.formats import QUANTIZED_FORMS
from . import plan_files, sockets
from .plan_files import NONE, PLANS

THIS, AUTO = "this machine", "auto"
SOURCES = ("preset", "size budget", "gguf", "one format", "plan file")
FORMS = tuple(QUANTIZED_FORMS)
USUAL = "Q4_K_M"                                   # what most GGUF files of Wan are downloaded as
SWITCHES = {"cross_attn_qkvo": "Cross-attention q, k, v, o", "cross_attn_kv": "Cross-attention k and v, of 512 tokens of text,",
            "self_attn_qkvo": "Self-attention q, k, v, o", "ffn_up": "ffn.0", "ffn_down": "ffn.2"}


def inputs() -> list[io.Input]:
    """All widgets, in their order."""
    return [*_sources(), *_changes(), *_full_precision(), *_rest(), *_gguf(), *_calibrated()]


def _sources() -> list[io.Input]:
    ggufs = [NONE, *plan_files.gguf_names()]
    return [
        io.Combo.Input("source", options=list(SOURCES), default=SOURCES[0],
                       tooltip="What decides first. preset: by kind of card. size budget: the least error that fits, measured on "
                               "this merge. gguf: another quant of the same model as a map. one format: all block linears. plan "
                               "file: one saved before."),
        io.Combo.Input("preset", options=list(NAMES), default="balanced", tooltip="For preset: what to favour."),
        io.Combo.Input("hardware", options=[THIS, *HARDWARE], default=THIS,
                       tooltip="For preset: blackwell RTX 50, ada RTX 40, ampere RTX 20 and 30, any everything else."),
        io.Float.Input("budget_gb", default=11.0, min=0.01, max=100.0, step=0.01,
                       tooltip="For size budget: GB (10^9 bytes) of one expert's file. A 14B expert: 8.4 in NVFP4, 14.5 in 8 bit."),
        io.Combo.Input("card", options=[THIS, *CARDS], default=THIS,
                       tooltip="For size budget: choose only what this class of card multiplies natively."),
        io.Float.Input("minimum_fast", default=0.0, min=0.0, max=1.0, step=0.05,
                       tooltip="For size budget: least share of the multiply-adds that runs below 16 bit."),
        io.Combo.Input("format", options=list(FORMS), default="nvfp4", tooltip="For one format."),
        io.Combo.Input("gguf_high", options=ggufs, default=NONE,
                       tooltip="For gguf: map for the high-noise expert, or for a model of one file. Only its header is read."),
        io.Combo.Input("gguf_low", options=ggufs, default=NONE, tooltip="For gguf: map for the low-noise expert."),
        io.Int.Input("gguf_nvfp4_max_bitdepth", default=5, min=1, max=16,
                     tooltip="For gguf: tensors of up to this many bits (Q5_K has 5) become nvfp4."),
        io.Boolean.Input("use_fp8", default=True,
                         tooltip="For gguf: tensors of more bits become float8_e4m3fn; off: they stay 16-bit."),
        io.Combo.Input("plan_file", options=[NONE, *plan_files.names(PLANS, (".json",))], default=NONE,
                       tooltip="For plan file: from user/default/wan22_master/plans."),
    ]


def _changes() -> list[io.Input]:
    jsons = [NONE, *plan_files.names(PLANS, (".json",))]
    return [
        io.Boolean.Input("keep_edge_blocks", default=False, tooltip="The first two and the last two blocks stay unquantized."),
        io.Combo.Input("kept_dtype", options=[AUTO, *KEPT_DTYPES], default=AUTO,
                       tooltip="What weights that are not quantized are stored in. auto: as a plan file says, else as they come."),
        io.String.Input("exclude", default="", multiline=True, advanced=True,
                        tooltip="A regular expression a line: layers it is found in stay unquantized."),
        io.String.Input("include", default="", multiline=True, advanced=True,
                        tooltip=f"Lines as `ffn\\.0$ = nvfp4`: layers that the expression is found in get the format, or {KEEP}. "
                                "The later line wins, and all win over exclude."),
        io.Boolean.Input("min_ffn_fp8", default=False, advanced=True, tooltip="ffn.0 and ffn.2 get at least 8 bits."),
        io.Boolean.Input("min_ffn2_16bit", default=False, advanced=True, tooltip="ffn.2 stays unquantized."),
        io.Combo.Input("sensitivity_high", options=jsons, default=NONE, advanced=True,
                       tooltip="A sensitivity JSON of the original converter for the high-noise expert, or a model of one file."),
        io.Combo.Input("sensitivity_low", options=jsons, default=NONE, advanced=True,
                       tooltip="The same for the low-noise expert."),
        io.Float.Input("sensitivity_threshold", default=0.1, min=0.0, max=10.0, step=0.005, advanced=True,
                       tooltip="Layers with a larger rel_rmse_mean are changed."),
        io.Combo.Input("sensitivity_action", options=[KEEP, "full_precision"], default=KEEP, advanced=True,
                       tooltip="keep: they stay unquantized. full_precision: quantized, multiplied in 16 bit."),
    ]


def _full_precision() -> list[io.Input]:
    texts = [NONE, *plan_files.names(PLANS, (".txt",))]
    return [
        io.Combo.Input("full_precision_high", options=texts, default=NONE, advanced=True,
                       tooltip="A list of layers, one a line, that are multiplied in 16 bit (W4A16): of the high-noise expert, or "
                               "of a model of one file. From user/default/wan22_master/plans; the original converter's lists too."),
        io.Combo.Input("full_precision_low", options=texts, default=NONE, advanced=True,
                       tooltip="The same for the low-noise expert."),
        io.String.Input("full_precision_layers", default="", multiline=True, advanced=True,
                        tooltip="More such layers, one a line, for every expert."),
        *[io.Boolean.Input(name, default=False, advanced=True, tooltip=f"{text} are multiplied in 16 bit: small, not faster.")
          for name, text in SWITCHES.items()],
    ]


def _rest() -> list[io.Input]:
    return [
        io.Boolean.Input("promote", default=False, advanced=True,
                         tooltip="Measure, and give a layer more bits where the effect of the LoRAs is smaller than the rounding "
                                 "noise in the inputs that they listen to."),
        io.Float.Input("promote_below", default=1.0, min=0.0, max=1000.0, step=0.1, advanced=True,
                       tooltip="For promote: least effect over noise."),
        io.String.Input("title", default="", advanced=True,
                        tooltip="Name of the plan, in file names. Empty: made from what it does."),
        io.String.Input("save_as", default="", advanced=True,
                        tooltip="Write the plan under this name into user/default/wan22_master/plans."),
    ]


def _gguf() -> list[io.Input]:
    return [
        io.Combo.Input("container", options=[SAFETENSORS, GGUF], default=SAFETENSORS, optional=True,
                       tooltip="gguf: a plan for a .gguf file. Formats, also in include, are its types; size budget chooses among "
                               "Q8_0 to Q2_K, whatever the card; gguf copies the types of another file; preset has none."),
        io.Combo.Input("gguf_format", options=list(MIXED), default=USUAL, optional=True,
                       tooltip="For one format in a gguf: a mix, as Q4_K_M, which gives v and ffn.2 more bits, or one type for all "
                               "block linears, as Q4_K."),
    ]


def _calibrated() -> list[io.Input]:
    return [
        sockets.Calib.Input("calibration", optional=True,
                            tooltip="A session of Calibrate: a size budget then goes by the error of each layer's output on what "
                                    "the model really computes, not by that of its weights."),
        io.Boolean.Input("full_precision_measured", default=False, optional=True, advanced=True,
                         tooltip="With a calibration: layers whose output error is more than doubled by rounding their input are "
                                 "multiplied in 16 bit. Slower, so it is yours to choose."),
        io.Boolean.Input("allow_other_base", default=False, optional=True, advanced=True,
                         tooltip="Take a calibration that was recorded on another base, as another maker's FP8 of this one."),
    ]
