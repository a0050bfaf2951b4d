"""Claim: every adapter in every dialect is merged as its paper says, or refused where it cannot exist.

    python benchmarks/adapters_table.py

Prints dialect x adapter x {2-D, 5-D, 1-D, modulation}: the relative error |ours - oracle| / |change| against plain float64 torch
(tests/engine/loras/adapters/oracle.py), `-` where the kind cannot exist and every key of it is refused. One figure stands for
several cells: the largest. Then ComfyUI's own results, which `compat: comfyui` repeats, against the same oracle, for the
kinds it loads.
"""
import tempfile
from pathlib import Path

from harness import table


def rows(folder: Path) -> tuple[list[list[str]], list[list[str]]]:
    """(kind, worst error on each target over all dialects, bound), (dialect, worst error over all kinds, cells, refused)."""
    from wan22_master.tests.engine.loras.adapters import cases, names
    from wan22_master.tests.engine.loras.adapters.test_table import errors

    path = folder / "table.safetensors"
    found = {(dialect, kind): errors(path, dialect, kind) for dialect in names.DIALECTS for kind in cases.KINDS}
    kinds = [[kind, *(_worst([found[dialect, kind][key] for dialect in names.DIALECTS]) for key in cases.SHAPES),
              f"{cases.tolerance(kind):.0e}"] for kind in cases.KINDS]
    dialects = []
    for dialect in names.DIALECTS:
        cells = [error for kind in cases.KINDS for error in found[dialect, kind].values()]
        dialects.append([dialect, _worst(cells), str(len(cells)), str(sum(error is None for error in cells))])
    return kinds, dialects


def comfyui(folder: Path) -> list[list[str]]:
    """(kind, relative error of ComfyUI's arithmetic on a 2-D and a 5-D tensor, at strengths 1 and 0.5; `nothing`: no change)."""
    import torch
    from wan22_master.engine.errors import LoraError
    from wan22_master.engine.loras.adapters.comfy_keys import lay_out
    from wan22_master.tests.engine.loras.adapters import cases, laid

    found = []
    for kind in cases.KINDS:
        cells = []
        for key in list(cases.SHAPES)[:2]:
            parts, change = cases.case(kind, cases.SHAPES[key])
            module = f"diffusion_model.{key.removesuffix('.weight')}"
            lora = laid.write(folder / "some.safetensors", {module + suffix: tensor for suffix, tensor in parts.items()})
            try:
                patches = lay_out(lora, laid.index_of())[0].get(key)
            except LoraError:
                cells += ["fails", "fails"]
                continue
            for strength in (1.0, 0.5):
                weight = torch.randn(cases.SHAPES[key], generator=torch.manual_seed(7)) * 0.4
                merged = weight.clone()
                if patches:
                    patches[0].apply(lora, merged, strength)
                error = laid.error(merged.double() - weight.double(), change(weight, strength))
                cells.append(f"{error:.1e}" if patches else "nothing")
        found.append([kind, *cells])
    return found


def _worst(errors: list[float | None]) -> str:
    known = [error for error in errors if error is not None]
    return f"{max(known):.1e}" if known else "-"


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        kinds, dialects = rows(Path(name))
        table(["adapter", "2-D", "5-D", "1-D", "modulation", "bound"], kinds)
        print()
        table(["dialect", "largest error", "cells", "refused"], dialects)
        print()
        print("ComfyUI 0.33 (compat comfyui) against the same oracle:")
        table(["adapter", "2-D, s 1", "2-D, s 0.5", "5-D, s 1", "5-D, s 0.5"], comfyui(Path(name)))


if __name__ == "__main__":
    main()
