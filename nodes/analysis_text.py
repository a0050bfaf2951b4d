"""The conflicts section in words, and cut down to what a browser draws (web/conflicts.js)."""
from .judge import finite, number

STRONG, SIGMAS = 0.02, 3                           # as in web/conflicts.js
BROWSER = ("method", "blocks", "kinds", "loras", "moved", "shift", "left_out", "rows")


def for_browser(report: dict) -> dict:
    """What web/conflicts.js draws: no folder, no hash, and of each block only all pairs together."""
    experts = []
    for expert in report["experts"]:
        section = expert["conflicts"]
        sent = {name: section[name] for name in (*BROWSER, "pairs")}
        sent["by_block"] = [{name: block[name] for name in ("excess", "se")} for block in section["by_block"]]
        experts.append({"role": expert["role"], "name": expert["name"], "conflicts": sent})
    return finite({"version": report["version"], "experts": experts})


def stands_out(pair: dict) -> bool:
    """Whether a conflict is large and cannot be the luck of the sampled rows."""
    return (pair["excess"] or 0.0) > max(STRONG, SIGMAS * (pair["se"] or 0.0))


def worst(section: dict) -> list[dict]:
    """Pairs that stand out, the worst first."""
    return sorted(filter(stands_out, section["pairs"]), key=lambda pair: -pair["excess"])


def predicted(section: dict) -> str:
    """What the LoRAs would do to the model."""
    told, word = section["moved"], "size of all changes"
    if section["shift"]:
        told, word = section["shift"], "shift as measured" if section["shift"]["from"] == "stability meter" else "predicted shift"
    sides = f" (distillation {number(told['distillation'])}, rest {number(told['rest'])})"
    return f"{word} {number(told['all'])}{sides if any(lora['protected'] for lora in section['loras']) else ''}"


def summary(report: dict, most: int = 5) -> str:
    """A few lines per expert, for the history and for programs that see no picture."""
    lines = []
    for expert in report["experts"]:
        section, name = expert["conflicts"], "" if expert["role"] == "model" else f"{expert['role']}: "
        found = worst(section)
        lines.append(f"{name}{len(section['loras'])} LoRAs, {len(found)} of {len(section['pairs'])} pairs conflict beyond chance, "
                     f"{predicted(section)}")
        for pair in found[:most]:
            one, other = (section["loras"][pair[place]]["name"] for place in ("first", "second"))
            excess = f"{pair['excess']:.1%} ± {pair['se']:.1%}"
            lines.append(f"  {one} and {other}: excess conflict {excess}, cosine {pair['cosine']:+.2f}")
        lines += [f"  not analysed: {left['lora']}: {left['kind']} in {left['tensors']} tensors: {left['reason']}"
                  for left in section["left_out"]]
    return "\n".join(lines)
