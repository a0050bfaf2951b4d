"""The engine without a screen: run, resume, inspect, leftovers, demo.

Works as `python -m wan22_master` once installed, and as `python PATH-OF-THIS-FOLDER` where it only lies.
"""
import argparse
import dataclasses
import json
import os
import runpy
import signal
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

from .engine import demo, inspect, terminal  # noqa: E402 - needs the name above
from .engine.errors import MergeError, Stopped  # noqa: E402
from .engine.job import PART, delete_leftover, find_leftovers  # noqa: E402
from .engine.plan import plan_recipe  # noqa: E402
from .engine.recipe import load  # noqa: E402
from .engine.run import resume, run  # noqa: E402

REPORTS = "reports"  # folder beside the outputs: reports, and what is finished


class StopWish:
    """Ctrl-C once: finish the tensor, keep the job, stop. Twice: stop at once."""

    def __init__(self):
        self.wished = False
        signal.signal(signal.SIGINT, self._wish)

    def _wish(self, *_) -> None:
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True

    def __call__(self) -> bool:
        return self.wished


def show(lines: list[str]) -> None:
    """Print to the standard output."""
    for line in lines:
        print(line)


def carry_out(recipe_path: str, *, device: str | None, reports: str | None, plan_only: bool) -> dict | None:
    """Plan a recipe, tell it, and unless only the plan is wanted do it. Returns the report, or None."""
    recipe = load(recipe_path)
    recipe = dataclasses.replace(recipe, device=device or recipe.device)
    folder = Path(reports or Path(recipe.save.folder) / REPORTS)
    stop, progress = StopWish(), terminal.ProgressBar(sys.stderr)
    with plan_recipe(recipe, folder) as plan:
        show(terminal.plan_lines(plan.experts, plan.notices))
        if plan_only:
            show(terminal.table(plan.rows(), terminal.PLANNED))
            return None
        try:
            return run(plan, reports=folder, should_stop=stop, on_progress=progress)
        finally:
            progress.clear()


def on_run(args: argparse.Namespace) -> None:
    report = carry_out(args.recipe, device=args.device, reports=args.reports, plan_only=args.plan_only)
    if report is not None:
        show(terminal.report_lines(report))


def on_resume(args: argparse.Namespace) -> None:
    stop, progress = StopWish(), terminal.ProgressBar(sys.stderr)
    folder = Path(args.reports or Path(args.file).absolute().parent / REPORTS)
    try:
        report = resume(args.file, reports=folder, should_stop=stop, on_progress=progress)
    finally:
        progress.clear()
    show(terminal.report_lines(report))


def on_inspect(args: argparse.Namespace) -> None:
    found = inspect.inspect(args.file)
    show([json.dumps(found, indent=1)] if args.json else inspect.lines(found))


def on_leftovers(args: argparse.Namespace) -> None:
    found = {os.path.basename(each.target): each for each in find_leftovers(args.folder)}
    if args.delete is None:
        show(terminal.table([{"file": name, "title": each.title, "MB": each.nbytes // 10**6, "done": f"{each.done:.0%}"}
                             for name, each in found.items()], ("file", "title", "MB", "done")) if found else ["no unfinished job"])
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
    show(terminal.report_lines(report))
    print(f"verified: {demo.check(report)} files open with the safetensors library and hold what was encoded")
    print(f"again, with other strengths: edit {recipe} and run it: python {ROOT} run {recipe}")
    show(demo.as_graph(ROOT, load(recipe)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="wan22_master", description="Merge LoRAs into Wan 2.2 models and save them quantized.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does, about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about)
        added.set_defaults(does=does)
        return added

    each = command("run", on_run, "carry out a recipe")
    each.add_argument("recipe")
    each.add_argument("--plan-only", action="store_true", help="tell files, bytes, time and memory; write nothing")
    each.add_argument("--device", help="auto, cpu, cuda, xpu or mps instead of the recipe's")
    each.add_argument("--reports", metavar="DIR", help="folder of reports (default: reports, beside the outputs)")
    each = command("resume", on_resume, "go on with an unfinished file")
    each.add_argument("file", metavar="FILE", help="its .part or .job.json")
    each.add_argument("--reports", metavar="DIR", help="folder of reports (default: reports, beside the file)")
    each = command("inspect", on_inspect, "tell what a model or LoRA file is, from its headers")
    each.add_argument("file", metavar="FILE")
    each.add_argument("--json", action="store_true", help="as JSON")
    each = command("leftovers", on_leftovers, "list unfinished jobs, or delete one")
    each.add_argument("folder")
    each.add_argument("--delete", metavar="NAME")
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
