"""The tiny pair recorded, and measured on what was not recorded: files and plans of the pack, by output and by latent.

16 prompts are sampled through Calibrate; 16 others, with other seeds, judge.
    output error    ‖X(W - Ŵ)ᵀ‖ / ‖XWᵀ‖ of a layer, on every input that it has while the 16 are sampled by the 16-bit pair
    latent error    ‖latent - latent of the 16-bit pair‖ / ‖that‖ of each of the 16
Files are written by the pack and read back by its own reader, which decodes as ComfyUI does.
"""
import dataclasses
from pathlib import Path

import torch
from tiny_comfyui import ROLES, Pair
from tiny_videos import PROMPTS

MIXED = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(0)).tolist()
CALIBRATED = [(PROMPTS[number], 1000 + number) for number in MIXED[:16]]
HELD_OUT = [(PROMPTS[number], 2000 + number) for number in MIXED[16:32]]


class CalibratedPair:
    """pair: the 16-bit experts; session, inputs: what Calibrate recorded; grams: (role, layer) -> XᵀX of the 16; reference: their
    latents; weights: role -> imatrix."""

    def __init__(self, paths: dict[str, str], folder: Path):
        from wan22_master.nodes.calibration_inputs import inputs_of

        self.folder, self.paths, self.pair = folder, paths, Pair(paths)
        self.session = self.pair.record(CALIBRATED, "gain")
        self.inputs = inputs_of(self.session, ROLES)
        self.grams: dict[tuple[str, str], torch.Tensor] = {}
        self.reference = self.pair.sample(HELD_OUT, self._collect)
        self.weights = self._weigh()

    def _collect(self, role: str, layer: str, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).double()
        self.grams[role, layer] = self.grams.get((role, layer), 0) + rows.T @ rows

    def planned(self, outputs: tuple = ()):
        """The pack's plan of a job that writes them."""
        from wan22_master.engine.jobs.plan import plan_recipe
        from wan22_master.engine.recipes.recipe import parse

        recipe = parse({"version": 1, "title": "gain", "experts": self.paths, "device": "cpu",
                        "save": {"folder": str(self.folder / "out"), "on_exists": "overwrite"}})
        return plan_recipe(dataclasses.replace(recipe, outputs=outputs), self.folder / "reports")

    def _weigh(self) -> dict[str, str]:
        """Role -> imatrix, as the Sensitivity node makes it."""
        from wan22_master.engine.jobs import sensitivity
        from wan22_master.nodes.calibration_inputs import weights_of

        with self.planned() as plan:
            asked = {expert.role: sensitivity.wanted(expert, sensitivity.ALL, "cpu", self.inputs[expert.role])
                     for expert in plan.experts}
            for expert, found in zip(plan.experts, sensitivity.assess(plan, asked, reports=self.folder / "reports"), strict=True):
                print(f"{expert.role}: weighing helps in {len(found.weighed)} of {len(found.seen)} layers", flush=True)
                sensitivity.save(found, self.session.folder, expert)
        return weights_of(self.session, ROLES)[0]

    def written(self, output) -> tuple[dict[str, dict[str, torch.Tensor]], int]:
        """(role -> layer -> weight as its file is decoded, bytes of both files)."""
        from wan22_master.engine.bases.source import open_source
        from wan22_master.engine.jobs.run import run

        with self.planned((dataclasses.replace(output, experts=ROLES),)) as plan:
            report = run(plan, reports=self.folder / "reports")
        paths, found = {each["role"]: each["outputs"][0]["path"] for each in report["experts"]}, {}
        for role, path in paths.items():
            with open_source(path, allow_lossy=True) as source:
                found[role] = {layer: source.read(f"{layer}.weight").float() for layer in self.pair.weights[role]}
        return found, sum(Path(path).stat().st_size for path in paths.values())

    def latent_errors(self, weights: dict, see=None) -> torch.Tensor:
        """(pairs,), relative."""
        self.pair.put(weights)
        found = self.pair.sample(HELD_OUT, see)
        self.pair.put(self.pair.weights)
        return (found - self.reference).flatten(1).norm(dim=1) / self.reference.flatten(1).norm(dim=1)

    def output_errors(self, weights: dict) -> list[float]:
        """Of every layer of both experts."""
        def square(matrix: torch.Tensor, gram: torch.Tensor) -> float:
            return ((matrix.double() @ gram) * matrix).sum().item()

        ours, found = self.pair.weights, []
        for role, layers in weights.items():
            for layer, weight in layers.items():
                gram = self.grams[role, layer]
                found.append((square(ours[role][layer] - weight, gram) / square(ours[role][layer], gram)) ** 0.5)
        return found


def rounding(bench: CalibratedPair, choices: dict, card: str):
    """`see` of a plan: inputs as a card rounds them. choices: role -> layer -> Choice."""
    from wan22_master.engine.calibration.activations import input_form, rounded
    from wan22_master.engine.plans.cards import judge
    from wan22_master.engine.plans.input_scales import MARGIN
    from wan22_master.quant.formats import form_of

    forms, amax = {}, {}
    for role, layers in choices.items():
        for layer, choice in layers.items():
            name = "bf16" if choice.format == "keep" else choice.format
            slow = choice.full_precision and judge(name, card, full_precision=True).unit == "16 bit"
            forms[role, layer] = None if slow else input_form(form_of(name), card)
            amax[role, layer] = bench.inputs[role].gathered.amax(layer).max().item() * MARGIN

    def see(role: str, layer: str, x: torch.Tensor) -> torch.Tensor | None:
        form = forms[role, layer]
        return None if form is None else rounded(x.reshape(-1, x.shape[-1]).contiguous(), form, amax[role, layer]).view(x.shape)

    return see
