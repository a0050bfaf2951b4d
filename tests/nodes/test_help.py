"""The help pages that ComfyUI shows for a node, held against the source of the nodes: no page forgets or invents an input.

The schemas are read as source, so that no ComfyUI is needed.
"""
import ast
import re
from pathlib import Path

import pytest
from wan22_master.engine.gguf_mix import MIXES
from wan22_master.engine.plans.cards import AFTER
from wan22_master.quant.formats import FORMATS

ROOT = Path(__file__).resolve().parents[2]
NODES, PAGES = ROOT / "nodes", sorted((ROOT / "web" / "docs").glob("*.md"))
TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in NODES.glob("*.py")}


def schemas() -> dict[str, tuple[str, ast.Call]]:
    """Node id -> (module, its io.Schema call)."""
    return {keyword(call, "node_id").value: (module, call) for module, tree in TREES.items() for call in ast.walk(tree)
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "Schema"}


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((each.value for each in call.keywords if each.arg == name), None)


def imported(module: str, name: str) -> str | None:
    """The module of nodes/ that `name` in `module` stands for, or comes from; None for another's."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module or alias.name
    return None


def function(module: str, name: str) -> ast.FunctionDef | None:
    return next((node for node in TREES[module].body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def keys(module: str, name: str) -> list[str]:
    """Keys of a dict that a module assigns to a name."""
    return next(list(ast.literal_eval(node.value)) for node in TREES[module].body
                if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [name])


def ports(node: ast.AST, module: str, kind: str) -> list[str]:
    """Ids of what is made by `kind`, "Input" or "Output", in a list of them and in the functions of this pack that it calls."""
    found: list[str] = []
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.ListComp):         # one input for each key of a dict
            found += keys(module, each.generators[0].iter.func.value.id)
        elif isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == kind:
            found.append(each.args[0].value if kind == "Input" else keyword(each, "display_name").value)
        elif isinstance(each, ast.Call):
            found += called(each.func, module, kind)
        else:
            found += ports(each, module, kind)
    return found


def called(func: ast.expr, module: str, kind: str) -> list[str]:
    home, name = module, getattr(func, "id", "")
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        home, name = imported(module, func.value.id), func.attr
    elif function(module, name) is None:
        home = imported(module, name)
    body = function(home, name) if home in TREES else None
    return ports(body, home, kind) if body else []


def section(page: Path, title: str) -> str:
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]


def listed(text: str) -> list[str]:
    """Names that the lines "- `name`, `name` (shown as): ..." begin with."""
    return [name for line in re.findall(r"^- (`[^:]*?):", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_lists_exactly_the_inputs_of_its_node_in_their_order(page):
    module, schema = schemas()[page.stem]
    assert listed(section(page, "Inputs")) == ports(keyword(schema, "inputs"), module, "Input")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_lists_exactly_the_outputs_of_its_node(page):
    module, schema = schemas()[page.stem]
    assert listed(section(page, "Outputs")) == ports(keyword(schema, "outputs"), module, "Output")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_the_name_of_its_node(page):
    _, schema = schemas()[page.stem]
    assert page.read_text(encoding="utf-8").startswith(f"# {keyword(schema, 'display_name').value}\n")


def test_the_nodes_that_quantize_and_save_have_a_page():
    wanted = {"Wan22Quantize", "Wan22PrecisionPlan", "Wan22InputScales", "Wan22Inspect", "Wan22SaveModel", "Wan22MergePreview",
              "Wan22LoadSaved"}
    assert wanted <= {page.stem for page in PAGES}


def test_the_readme_has_a_row_for_every_format_with_the_comfyui_that_it_needs():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*GB.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(rows) == set(FORMATS) | {name for name, mix in MIXES.items() if not mix.is_plain}
    assert {name: row.split(" | ")[4] for name, row in rows.items() if name in FORMATS} == {
        name: AFTER.get(name, "any") for name in FORMATS}
