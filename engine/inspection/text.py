"""The facts that `inspect` found, as lines for a person."""
from . import contract
from .contract import Problem

SHOWN = 100                                        # characters of a metadata value


def lines(found: dict) -> list[str]:
    """found: what `facts.inspect` returned."""
    told = [f"{found['name']}: {found['bytes'] / 1e9:.2f} GB, {found['tensors']} tensors, {found['files']} file(s)",
            f"  what: {'LoRA, rank ' + found['lora']['rank'] if found['lora'] else found['what']}",
            f"  role: {found['role'] or 'unknown'} ({found['evidence']})"]
    told += [f"  {name}: {each['tensors']} tensors, {each['bytes'] / 1e9:.3f} GB" for name, each in found["dtypes"].items()]
    told += [_quantized_line(found, name, count) for name, count in found["quantized"].items()]
    told += [f"  input scales of {name}: {each['layers']} layers, {each['min']:.3g} / {each['median']:.3g} / {each['max']:.3g} "
             "(least, median, most)" for name, each in found["input_scales"].items()]
    told += [f"  {line}" for line in (*found.get("types", ()), *found.get("cards", ()))]
    told += [f"  opens in: {_opener(each)}" for each in found["opens_in"]]
    told += [f"  {line}" for line in contract.grouped([Problem(**each) for each in found["problems"]])]
    told += _recipe_lines(found["recipe"]) if found["recipe"] else []
    told += _lora_lines(found["lora"]) if found["lora"] else []
    values = {key: str(value) for key, value in sorted(found["metadata"].items())}
    return told + [f"  {key} = {value if len(value) <= SHOWN else value[:SHOWN] + '...'}" for key, value in values.items()]


def _quantized_line(found: dict, name: str, count: int) -> str:
    wide = sum(each["full_precision"] for each in found["layers"].values() if each["format"] == name)
    return f"  quantized: {count} layers {name}" + (f", {wide} of them multiplied in 16 bit" if wide else "")


def _opener(each: dict) -> str:
    return each["program"] + (f" newer than {each['version']}" if each["version"] else "") + f" ({each['why']})"


def _recipe_lines(recipe: dict) -> list[str]:
    if "unreadable" in recipe:
        return [f"  recipe inside: unreadable: {recipe['unreadable']}"]
    return [f"  recipe inside: {recipe['expert']} of {recipe['base'].get('name', 'an unnamed base')}, {recipe['loras']} LoRA(s), "
            f"as {recipe['format']}, by version {recipe['engine']}"]


def _lora_lines(lora: dict) -> list[str]:
    against = f"; but {', '.join(lora['against'])}" if lora["against"] else ""
    told = [f"  family: {lora['family']}, {lora['blocks']} blocks" + (f", {lora['coverage']} coverage" if lora["coverage"] else ""),
            f"  dialect: {', '.join(f'{name} ({count} keys)' for name, count in lora['dialects'].items())}",
            f"  adapters: {', '.join(f'{kind} ({count} keys)' for kind, count in lora['kinds'].items())}",
            f"  expert: {lora['expert']} ({lora['evidence']}{against})",
            f"  task: {lora['task'] or 'unknown'} ({lora['task_evidence']})"]
    return told + ([f"  distillation LoRA: {lora['distillation']}"] if lora["distillation"] else [])
