"""Widgets and outputs of Prompt List. Workflows keep them by place: a new one comes last, see sockets.py."""
from comfy_api.latest import io

from ..engine.bases.prefixes import HIGH, LOW
from ..engine.calibration.prompt_file import MOST_CFG, MOST_SEED, MOST_SIZE, MOST_STEPS
from ..engine.calibration.prompt_list import AS_GIVEN, FRAMES, LOW_COST, SIDE
from ..engine.calibration.prompt_pairs import ON_MISSING, WAYS

BUILT_IN = "built-in: 32 varied"
BOTH = "both"
COLUMNS = ("prompt", "negative", "width", "height", "frames", "seed", "steps", "cfg")   # of an Entry, in the order of the outputs


def inputs(files: list[str]) -> list:
    """files: what can be chosen."""
    return [
        io.Combo.Input("file", options=files, default=BUILT_IN,
                       tooltip="A .txt of user/default/wan22_master/prompts, or 32 varied prompts of this pack."),
        io.String.Input("text", multiline=True, default="",
                        tooltip="Prompts, one a line; instead of the file when not empty. Behind a prompt: --w --h --f --d --s --n "
                                "--l --i for width, height, frames, seed, steps, negative, cfg, start image."),
        io.String.Input("negative", multiline=True, default="", tooltip="For prompts without --n. Take that of your own workflow."),
        io.Combo.Input("preset", options=[AS_GIVEN, LOW_COST], default=AS_GIVEN,
                       tooltip="low cost: each at about 480 x 272 and up to 33 frames, a seventh of the tokens of 832 x 480 x 81. "
                               "Steps stay."),
        io.Int.Input("width", default=832, min=SIDE, max=MOST_SIZE, step=SIDE, tooltip="For prompts without --w."),
        io.Int.Input("height", default=480, min=SIDE, max=MOST_SIZE, step=SIDE, tooltip="For prompts without --h."),
        io.Int.Input("frames", default=81, min=1, max=MOST_SIZE, step=FRAMES, tooltip="For prompts without --f: 4n + 1."),
        io.Int.Input("steps", default=20, min=1, max=MOST_STEPS, tooltip="For prompts without --s."),
        io.Float.Input("cfg", default=3.5, min=0.0, max=MOST_CFG, step=0.1, tooltip="For prompts without --l or --g."),
        io.Int.Input("seed", default=0, min=0, max=MOST_SEED, control_after_generate=io.ControlAfterGenerate.fixed,
                     tooltip="Of the first prompt; each further one without --d adds its place, so that each has its own. Leave it "
                             "fixed for skip_done."),
        io.Int.Input("limit", default=0, min=0, max=100000,
                     tooltip="At most so many prompts in this queue, after skip_done; 0: all."),
        io.Int.Input("first", default=1, min=1, max=100000, advanced=True, tooltip="Begin at this prompt of the list."),
        io.Boolean.Input("skip_done", default=False,
                         tooltip="Leave out prompts that the session has finished runs of: same prompt, negative, seed, size, "
                                 "steps, cfg and image."),
        io.String.Input("session", default="calib_01", tooltip="For skip_done: the name in Calibrate."),
        io.Combo.Input("experts", options=[BOTH, HIGH, LOW], default=BOTH, advanced=True,
                       tooltip="For skip_done: who must have finished a prompt. A model of one file is known by itself."),
        io.String.Input("image_folder", default="",
                        tooltip="Start images: a folder in ComfyUI's input folder, or . for that itself. Empty: only what --i "
                                "names there, by its path or its name."),
        io.Combo.Input("pair", options=list(WAYS), default=WAYS[0],
                       tooltip="auto: by --i where a line has it, the others by the number in the image's name, as shot_007.png "
                               "for the 7th prompt, else in order. A connected batch goes in order."),
        io.Combo.Input("on_missing_image", options=list(ON_MISSING), default=ON_MISSING[0],
                       tooltip="For a prompt without a start image where others have one: stop, leave it out, or make it without."),
        io.Image.Input("images", optional=True, tooltip="Start images as a batch, one a prompt; instead of image_folder."),
    ]


def outputs() -> list:
    return [
        io.String.Output(display_name="prompt", is_output_list=True, tooltip="For CLIP Text Encode."),
        io.String.Output(display_name="negative", is_output_list=True, tooltip="For the other CLIP Text Encode."),
        io.Int.Output(display_name="width", is_output_list=True, tooltip="Pixels."),
        io.Int.Output(display_name="height", is_output_list=True, tooltip="Pixels."),
        io.Int.Output(display_name="frames", is_output_list=True, tooltip="For length."),
        io.Int.Output(display_name="seed", is_output_list=True,
                      tooltip="For noise_seed of both samplers: Calibrate knows a prompt by it."),
        io.Int.Output(display_name="steps", is_output_list=True, tooltip="For steps of both samplers, and for Split Step."),
        io.Float.Output(display_name="cfg", is_output_list=True, tooltip="For cfg of both samplers."),
        io.Image.Output(display_name="image", is_output_list=True,
                        tooltip="For start_image; leave it unconnected for text to video. A prompt without an image has none."),
        io.String.Output(display_name="info", tooltip="What was read, what was kept unused, how many are done, and which run."),
    ]
