"""The import rule, checked from the source: nodes -> engine -> quant, and ComfyUI only in nodes."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {"quant": {"quant"}, "engine": {"engine", "quant"}, "nodes": {"nodes", "engine", "quant"}}
COMFY = {"comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"}
FILES = sorted(file for layer in MAY_IMPORT for file in (ROOT / layer).rglob("*.py"))


def imported_modules(source: str, package: tuple[str, ...]) -> set[str]:
    """Dotted names that `source`, lying in `package`, imports; those of the pack start with `pack.`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            anchor = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {"pack." + ".".join([*anchor, *name.split(".")]) for name in names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in {"import_module", "__import__"}:
                found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def violations(source: str, package: tuple[str, ...]) -> list[str]:
    """What in `source` breaks the rule; empty when all is well."""
    layer, wrong = package[0], []
    for module in sorted(imported_modules(source, package)):
        head, *rest = module.split(".")
        if head == "pack" and rest[0] not in MAY_IMPORT[layer]:
            wrong.append(f"{layer} may not import {'.'.join(rest)}")
        if layer != "nodes" and head in COMFY:
            wrong.append(f"{layer} may not know ComfyUI ({module})")
        if head in {"engine", "quant", "wan22_master"}:
            wrong.append(f"{module} must be imported relatively")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path):
    assert violations(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parent.parts) == []


# Rooms of the engine from the ground up: a room may know itself, those before it and the modules outside all rooms.
ROOMS = ["bases", "loras", "merging", "recipes", "checkpoints", "plans", "inspection", "calibration", "jobs", "analysis",
         "loratools"]


def rooms_known(path: Path) -> set[str]:
    """Rooms that a module imports when it runs; what only a type checker reads does not count."""
    package = path.relative_to(ROOT).parent.parts
    source = re.sub(r"if TYPE_CHECKING:\n(?:    .*\n)+", "", path.read_text(encoding="utf-8"))
    return {name.split(".")[2] for name in imported_modules(source, package) if name.startswith("pack.engine.")} & set(ROOMS)


@pytest.mark.parametrize("path", [file for file in FILES if file.relative_to(ROOT).parts[1] in ROOMS],
                         ids=lambda file: file.relative_to(ROOT).as_posix())
def test_rooms_of_the_engine_know_only_those_below(path):
    below = ROOMS[:ROOMS.index(path.relative_to(ROOT).parts[1]) + 1]
    assert rooms_known(path) <= set(below)


def test_every_folder_with_code_is_packed():
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("\npackages = [")[2].partition("]")[0]
    packed = re.findall(r'"([^"]+)"', section)
    folders = {file.parent.relative_to(ROOT).parts for file in FILES}
    assert set(packed) == {"wan22_master"} | {".".join(["wan22_master", *parts]) for parts in folders}


@pytest.mark.parametrize(("layer", "line"), [
    ("quant", "from ..engine import run"),
    ("quant", "from .. import engine"),
    ("engine", "from ..nodes.save import Save"),
    ("engine", "import comfy.utils"),
    ("engine", "import importlib; importlib.import_module('folder_paths')"),
    ("engine", "def late():\n    from comfy_api.latest import io"),
    ("nodes", "from wan22_master.engine import run"),
    ("nodes", "import engine.run"),
])
def test_a_forbidden_import_is_seen(layer, line):
    assert violations(line, (layer,))


def test_nothing_outside_nodes_and_the_entry_point_names_comfyui_modules():
    for name in ("__init__.py", "__main__.py"):
        path = ROOT / name
        if path.exists():
            heads = {module.split(".")[0] for module in imported_modules(path.read_text(encoding="utf-8"), ())}
            assert not heads & COMFY, f"{name} imports {heads & COMFY}"
