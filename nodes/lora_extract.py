"""The node that makes a LoRA of the difference between two models."""
from comfy_api.latest import io

from ..engine.bases.source import open_source
from ..engine.bases.variant import detect
from ..engine.loratools.extract import Extraction, extract
from ..engine.loratools.report import Report
from ..engine.loratools.sketch import Method
from ..engine.loratools.wish import Ranks, Watch
from . import freshness, sockets
from .lora_halves import check_models
from .lora_merge import told
from .lora_save import dtype_input, exists_input, name_input, rank_inputs, save_as, span_of
from .progress import watched


class Wan22LoraExtract(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22LoraExtract",
            display_name="Extract LoRA (Wan 2.2)",
            category="Wan 2.2 Master/6 LoRA tools",
            description="Makes a LoRA of what a fine-tuned or distilled model has more than its base. Both experts are done where "
                        "both are loaded. The error says how much of the difference the LoRA cannot hold.",
            search_aliases=["extract lora", "checkpoint to lora", "difference lora", "lora from model", "distill", "svd"],
            inputs=[
                sockets.Dit.Input("tuned", tooltip="The model to take the LoRA out of, from Load, without LoRAs put on it."),
                sockets.Dit.Input("base", tooltip="The model that it was trained from. Best both in bf16 or better."),
                *rank_inputs(),
                io.Combo.Input("layers", options=["blocks", "all"], default="blocks",
                               tooltip="blocks: the linears of the blocks, as trainers train them. all: every weight, patch "
                                       "embedding and head too. What is left out counts into the error."),
                io.Boolean.Input("vectors", default=True,
                                 tooltip="Norms, biases and modulation too, as whole differences. Small, and they often matter."),
                dtype_input(), name_input("extracted"), exists_input(),
                io.Int.Input("seed", default=0, min=0, max=2**31 - 1, advanced=True, control_after_generate=False,
                             tooltip="Of the randomized SVD. Another seed gives nearly the same LoRA."),
            ],
            outputs=[
                io.String.Output(display_name="path_high / path", tooltip="Path of the new file, or of its high-noise half."),
                io.String.Output(display_name="path_low", tooltip="Path of the low-noise half; empty when there is one file."),
                io.String.Output(display_name="report", tooltip="Rank and error of every layer, and what was left out, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, tuned, base, rank, energy, layers, vectors, dtype, name, on_exists, seed) -> io.NodeOutput:
        check_models(tuned, base)
        wish, done = Extraction(Ranks(rank, energy or None), layers, vectors, Method(seed=seed)), {}
        bases = dict(base.experts)
        with watched(cls.hidden.unique_id, "cpu", "stopped at {share:.0%}; nothing more was written") as node:
            for role, path in tuned.experts:
                expert = None if role == "model" else role
                pair = (path, tuned.allow_quantized_source), (bases[role], base.allow_quantized_source)
                target = (name.strip() or "extracted", expert, len(bases) == 1, dtype, on_exists)
                done[expert] = one(*pair, wish, target, Watch(node.should_stop, node.on_progress))
        return told(cls.hidden.unique_id, done)


def one(tuned: tuple[str, bool], base: tuple[str, bool], wish: Extraction, target: tuple, watch: Watch) -> Report:
    """The LoRA of one expert. tuned, base: path, and whether FP8 is accepted; target: name, expert, whether
    no other is made, dtype, on_exists."""
    name, expert, alone, dtype, on_exists = target
    with open_source(tuned[0], allow_lossy=tuned[1]) as left, open_source(base[0], allow_lossy=base[1]) as right:
        metadata = span_of(detect(left).task, expert)
        save = save_as(name, expert, alone=alone, dtype=dtype, on_exists=on_exists, metadata=metadata)
        return extract(left, right, wish, save, watch)
