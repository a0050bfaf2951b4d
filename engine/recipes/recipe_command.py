"""The `recipe` commands of the command line: what a recipe says, where its files are, the same without a LoRA, out of a model."""
import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import RecipeError
from ..hashes import HashCache
from ..system import write_json
from . import embedded, library, recipe_edit, recipe_text, relink
from .recipe import Recipe

Show = Callable[[list[str]], None]


def add(commands, show: Show) -> None:
    """Hang the group under the program's `commands` (an argparse subparsers object). show: prints lines."""
    group = commands.add_parser("recipe", help="read, relink and edit recipes, also those of the original Action-Master")
    inside = group.add_subparsers(required=True, metavar="COMMAND")
    for name, does, about in (
            ("check", _check, "tell what a recipe says, and where its LoRAs are"),
            ("relink", _relink, "find its files and write a recipe of this pack with their paths"),
            ("without", _without, "write the same recipe without a LoRA"),
            ("from-model", _from_model, "write the recipe that a saved model holds")):
        command = inside.add_parser(name, help=about, description=about)
        command.add_argument("file", metavar="FILE", help="a recipe, or a model that this pack saved")
        command.set_defaults(does=lambda args, does=does: does(args, show))
        if name == "without":
            command.add_argument("what", nargs="+", metavar="WHAT", help="number, file name, or start of the SHA-256")
        if name in {"check", "relink"}:
            _add_search(command)
        if name != "check":
            command.add_argument("-o", "--output", metavar="OUT", help="file to write (default: the standard output)")
        if name != "from-model":
            command.add_argument("--low", metavar="FILE", help="the low-noise expert's recipe or model, where each has its own")


def _add_search(command: argparse.ArgumentParser) -> None:
    command.add_argument("--loras", metavar="DIR", action="append", default=[], help="folder of LoRAs; may be given again")
    command.add_argument("--search", action="store_true", help="hash every LoRA there to find one by its SHA-256")
    command.add_argument("--reports", metavar="DIR", type=Path, help="folder where hashes are kept")
    for role in ("high", "low", "model"):
        command.add_argument(f"--{role}-base", metavar="FILE", help="base of this expert instead of the one in the recipe")


def _read(args: argparse.Namespace) -> recipe_text.Told:
    high = recipe_text.load(args.file)
    low = recipe_text.load(args.low) if getattr(args, "low", None) else ("", "")
    return recipe_text.read_two(high, low, experts=_experts(args))


def _experts(args: argparse.Namespace) -> dict[str, str] | None:
    given = {"high_noise": "high_base", "low_noise": "low_base", "model": "model_base"}
    found = {role: os.path.abspath(path) for role, name in given.items() if (path := getattr(args, name, None))}
    return found or None


def _linked(args: argparse.Namespace, told: recipe_text.Told) -> tuple[Recipe, list[relink.Link]]:
    folder = os.path.dirname(os.path.abspath(args.file))
    there = library.Library(library.list_folders(args.loras), HashCache(args.reports), folder, outside=True, search=args.search)
    recipe, links = relink.relink(told.recipe, there)
    experts = _experts(args) or {}
    if set(experts) - set(recipe.roles):
        raise RecipeError(f"{args.file}: expected bases for {' and '.join(recipe.roles)}, found one for {' and '.join(experts)}; "
                          "leave that one out, or give that expert's recipe too")

    def here(path: str) -> str:
        anchored = os.path.normpath(os.path.join(folder, os.path.expanduser(path)))
        return anchored if os.path.exists(anchored) else path

    mix = recipe.mix and replace(recipe.mix, files={role: tuple(map(here, files)) for role, files in recipe.mix.files.items()})
    outputs = tuple(replace(each, imatrix={role: here(path) for role, path in each.imatrix.items()}) for each in recipe.outputs)
    save = replace(recipe.save, folder=os.path.normpath(os.path.join(folder, recipe.save.folder)))
    return replace(recipe, experts={role: here(path) for role, path in recipe.experts.items()} | experts, mix=mix, outputs=outputs,
                   save=save), links


def _check(args: argparse.Namespace, show: Show) -> None:
    told = _read(args)
    recipe, links = _linked(args, told)
    show([*told.notices, *recipe_edit.listing(recipe), *relink.table(links)])
    relink.check(links)


def _relink(args: argparse.Namespace, show: Show) -> None:
    told = _read(args)
    recipe, links = _linked(args, told)
    relink.check(links)
    if args.output:
        lost = [f"base of {role}: not found: {path}; give it by --{role.split('_')[0]}-base"
                for role, path in recipe.experts.items() if not os.path.exists(path)]
        show([*told.notices, *relink.table(links), *lost])
    _write(recipe, args.output, show)


def _without(args: argparse.Namespace, show: Show) -> None:
    _write(recipe_edit.without(_read(args).recipe, *args.what), args.output, show)


def _from_model(args: argparse.Namespace, show: Show) -> None:
    _write(embedded.read(args.file).recipe, args.output, show)


def _write(recipe: Recipe, path: str | None, show: Show) -> None:
    if path is None:
        show([json.dumps(recipe.to_json(), indent=1, ensure_ascii=False)])
        return
    write_json(path, recipe.to_json())
    show([f"wrote {path}"])
