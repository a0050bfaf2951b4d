"""The engine without a screen: run, resume, inspect, leftovers, recipe, demo.

Works as `python -m wan22_master` once installed, and as `python PATH-OF-THIS-FOLDER` where it only lies.
"""
import argparse
import dataclasses
import json
import os
import runpy
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent
if not __package__:  # started by path: give the folder the package's name, and keep `import nodes` off it
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != ROOT]
    package = types.ModuleType("wan22_master")
    package.__path__ = [str(ROOT)]
    sys.modules["wan22_master"] = package
    runpy.run_module("wan22_master.__main__", run_name="__main__")  # ends the program

from .engine import demo, inspection, terminal  # noqa: E402 - needs the name above
from .engine.errors import MergeError, Stopped  # noqa: E402
from .engine.jobs.job import PART, delete_leftover, find_leftovers  # noqa: E402
from .engine.jobs.plan import plan_recipe  # noqa: E402
from .engine.jobs.run import resume, run  # noqa: E402
from .engine.recipes import recipe_command  # noqa: E402
from .engine.recipes.recipe import Recipe, load  # noqa: E402
from .engine.terminal import StopWish  # noqa: E402

REPORTS = "reports"  # folder beside the outputs: reports, and what is finished
EXAMPLE = ROOT / "example_workflows" / "merge_two_loras_save_fp8.json"


def show(lines: list[str]) -> None:
    """Print to the standard output."""
    for line in lines:
        print(line)


def carry_out(recipe_path: str, *, device: str | None, reports: Path | None, plan_only: bool) -> dict | None:
    """Plan a recipe, tell it, and unless only the plan is wanted do it and tell that. Returns the report, or None."""
    recipe = load(recipe_path)
    recipe = dataclasses.replace(recipe, device=device or recipe.device)
    folder, stop = reports or Path(recipe.save.folder) / REPORTS, StopWish()
    with plan_recipe(recipe, folder, check_space=not plan_only, should_stop=stop) as plan:
        show(terminal.plan_lines(plan.experts, plan.notices))
        show(terminal.plan_table(plan.rows(), plan.volumes(), plan.order))
        if plan_only:
            return None
        with terminal.ProgressBar(sys.stderr) as progress:
            report = run(plan, reports=folder, should_stop=stop, on_progress=progress)
        show(terminal.report_lines(report, plan.notices))
        return report


def on_run(args: argparse.Namespace) -> None:
    carry_out(args.recipe, device=args.device, reports=args.reports, plan_only=args.plan_only)


def on_resume(args: argparse.Namespace) -> None:
    with terminal.ProgressBar(sys.stderr) as progress:
        report = resume(args.file, reports=args.reports, should_stop=StopWish(), on_progress=progress)
    show(terminal.report_lines(report))


def on_inspect(args: argparse.Namespace) -> None:
    found = inspection.inspect(args.file)
    show([json.dumps(found, indent=1)] if args.json else inspection.lines(found))


def on_leftovers(args: argparse.Namespace) -> None:
    found = {os.path.basename(each.target): each for each in find_leftovers(args.folder)}
    if args.delete is None:
        show(terminal.leftover_lines(list(found.values())))
        return
    name = os.path.basename(args.delete).removesuffix(PART)
    if name not in found:
        raise MergeError(f"{args.delete}: expected one of {', '.join(found) or 'none'}, which are unfinished in {args.folder}")
    delete_leftover(found[name])
    print(f"deleted the unfinished {name}")


def on_demo(args: argparse.Namespace) -> None:
    print(f"writing a synthetic pair and two LoRAs into {os.path.join(args.folder, 'in')}")
    recipe = demo.prepare(args.folder)
    report = carry_out(str(recipe), device=None, reports=None, plan_only=False)
    print(f"verified: {demo.check(report)} files open with the safetensors library and hold what was encoded")
    print(f"again, with other strengths: edit {recipe} and run it: python {ROOT} run {recipe}")
    show(as_graph(load(recipe)))


def find_comfyui() -> Path | None:
    """A ComfyUI on this machine: COMFYUI_PATH, the one whose custom_nodes the pack lies in, or ~/comfy/ComfyUI."""
    named = os.environ.get("COMFYUI_PATH")
    around = [ROOT.parents[1]] if ROOT.parent.name == "custom_nodes" else []
    candidates = [*([Path(named)] if named else []), *around, Path.home() / "comfy" / "ComfyUI"]
    return next((path for path in candidates if (path / "main.py").is_file()), None)


def as_graph(recipe: Recipe) -> list[str]:
    """How to do nearly the same in ComfyUI, as lines; empty where there is none. recipe: of the demo."""
    comfyui = find_comfyui()
    if comfyui is None:
        return []
    folder, model = os.path.split(next(iter(recipe.experts.values())))
    loras = [os.path.basename(next(iter(lora.files.values()))) for each in recipe.passes for lora in each.loras]
    install = [] if ROOT.parent.name == "custom_nodes" else [f"put this folder into {comfyui / 'custom_nodes'} and restart ComfyUI"]
    steps = [*install,
             f"copy the models of {folder} into models/diffusion_models, the LoRAs into models/loras",
             f"open {EXAMPLE}",
             f"choose {model} in Load, and in a LoRA Pair each {' and '.join(loras)}; their low-noise halves are found"]
    return [f"ComfyUI found in {comfyui}: the same models and LoRAs as a graph, in one pass by addition, and FP8 alone",
            *(f"  {number}. {step}" for number, step in enumerate(steps, 1))]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="wan22_master", description="Merge LoRAs into Wan 2.2 models and save them quantized.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does, about: str) -> argparse.ArgumentParser:
        commands.add_parser(name, help=about, description=about).set_defaults(does=does)
        return commands.choices[name]

    each = command("run", on_run, "carry out a recipe")
    each.add_argument("recipe")
    each.add_argument("--plan-only", action="store_true", help="tell files, bytes, time and memory; write nothing")
    each.add_argument("--device", help="auto, cpu, cuda, xpu or mps instead of the recipe's")
    each.add_argument("--reports", metavar="DIR", type=Path, help="folder of reports (default: reports, beside the outputs)")
    each = command("resume", on_resume, "go on with an unfinished file")
    each.add_argument("file", metavar="FILE", help="its .part or .job.json")
    each.add_argument("--reports", metavar="DIR", type=Path, help="folder of reports (default: the one it was begun with)")
    each = command("inspect", on_inspect, "tell what a model or LoRA file is, from its headers")
    each.add_argument("file", metavar="FILE")
    each.add_argument("--json", action="store_true", help="as JSON")
    each = command("leftovers", on_leftovers, "list unfinished jobs, or delete one")
    each.add_argument("folder")
    each.add_argument("--delete", metavar="NAME")
    recipe_command.add(commands, show)
    each = command("demo", on_demo, "merge and quantize a synthetic pair, to see that everything works")
    each.add_argument("folder", nargs="?", default="demo")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake that the message names, 130 stopped by Ctrl-C with the job kept."""
    args = parser().parse_args(arguments)
    try:
        args.does(args)
    except MergeError as cause:
        print("error:", " ".join(str(cause).split()), file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as cause:
        print(f"{cause or 'stopped'}\nto go on: the same command again, or `resume` with the .part file", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
