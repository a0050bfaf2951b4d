"""Claim: a size budget is met within 1 %, and no preset of the same size has less total error.

    python benchmarks/budget.py [--seeds 3] [--spread 0.15]

Shapes of a real 14B expert, no weights. Errors: those of normal weights by format (benchmarks/error.py), times exp(N(0, spread)) of
each layer and format, and energies times exp(N(0, 0.5)), seeded: real layers differ, and a plan must find where. First the budgets
of 9, 11 and 13 GB for every class of card, candidates being what the card multiplies natively and 16 bit, without and with a
minimum share of FP4, or of W4A8; then every preset against the solver at the preset's own size and its own share of native
products, candidates the preset's formats and those of the card.
Errors are roots of Σ lost / Σ energy; gap as the solver tells it, of the square.
"""
import argparse
import math
import random
import time

import harness  # noqa: F401  (makes the pack importable)
import torch
from wan22_master.engine.plans import presets
from wan22_master.engine.plans.budget import Candidates, solve
from wan22_master.engine.plans.cards import FAILS, NATIVE, judge, native_formats
from wan22_master.engine.plans.plan import KEEP, block_linears
from wan22_master.engine.plans.shares import multiply_adds
from wan22_master.engine.plans.sizes import candidate_bytes, rest_bytes
from wan22_master.engine.specs import TensorSpec
from wan22_master.engine.synthetic import Sizes, model_shapes
from wan22_master.quant.formats import FORMATS

ERRORS = {"nvfp4": 0.0819, "asym_w4a8_int8": 0.0731, "float8_e4m3fn": 0.0265, "mxfp8": 0.0265, "int8_tensorwise": 0.0088,
          "convrot_w4a4": 0.159, KEEP: 0.0}
CARD_OF = {"blackwell": "rtx50", "ada": "rtx40", "ampere": "rtx30", "any": "cpu"}
# 4-bit products; on the other cards what streams half the bytes
FASTEST = {"rtx50": frozenset({"nvfp4"}), "rtx40": frozenset({"asym_w4a8_int8"}), "rtx30": frozenset({"asym_w4a8_int8"})}


def expert() -> dict[str, TensorSpec]:
    shapes = model_shapes(Sizes(dim=5120, ffn=13824, blocks=40))
    return {key: TensorSpec(shape, torch.bfloat16) for key, shape in shapes.items()}


def layers_of(model: dict[str, TensorSpec], names: tuple[str, ...], seed: int, spread: float) -> dict[str, Candidates]:
    """Candidates of every block linear; the same draw for the same layer and format, whatever else is a candidate."""
    sizes, counts, found = candidate_bytes(model, names, FORMATS, lambda key: model[key].nbytes), multiply_adds(model), {}
    for layer, spec in block_linears(model).items():
        energy = spec.numel * 0.03 ** 2 * math.exp(random.Random(f"{seed} {layer}").gauss(0, 0.5))
        lost = {name: energy * (ERRORS[name] * math.exp(random.Random(f"{seed} {layer} {name}").gauss(0, spread))) ** 2
                for name in names}
        found[layer] = Candidates({name: (sizes[layer][name], lost[name]) for name in names}, energy, multiply_adds=counts[layer])
    return found


def told(solution, seconds: float) -> str:
    return (f"{solution.bytes / 1e9:8.3f} {solution.error ** 0.5:8.5f} {solution.gap:8.1e} {solution.fast_share:6.1%} "
            f"{seconds:6.1f} s")


def budgets(model, seed: int, spread: float) -> None:
    rest = rest_bytes(model, lambda key: model[key].nbytes)
    print(f"\n{'card':8} {'GB':>6} {'fast':>5} {'bytes':>8} {'error':>8} {'gap':>8} {'share':>6} {'time':>8}")
    for card in ("rtx50", "rtx40", "rtx30"):
        layers = layers_of(model, (*native_formats(card), KEEP), seed, spread)
        for gigabytes in (9, 11, 13):
            for minimum in (0.0, 0.5, 0.9):
                budget, start = gigabytes * 10**9, time.perf_counter()
                found = solve(layers, budget, fixed_bytes=rest, minimum_fast=minimum, fast=FASTEST[card])
                assert 0.99 * budget <= found.bytes <= budget, (found.bytes, budget)
                print(f"{card:8} {budget / 1e9:6.2f} {minimum:5.0%} {told(found, time.perf_counter() - start)}")


def against_presets(model, seed: int, spread: float) -> None:
    rest = rest_bytes(model, lambda key: model[key].nbytes)
    print(f"\n{'preset':20} {'bytes':>8} {'error':>8} {'share':>6} | {'bytes':>8} {'error':>8} {'gap':>8} {'share':>6} {'time':>8}")
    for hardware, names in presets.PRESETS.items():
        card = CARD_OF.get(hardware, hardware)
        for name in names:
            chosen, _ = presets.choices(model, name, hardware)
            formats = dict.fromkeys([*native_formats(card), *(choice.format for choice in chosen.values()), KEEP])
            layers = layers_of(model, tuple(form for form in formats if judge(form, card).word != FAILS), seed, spread)
            fast = frozenset(form for form in formats if form != KEEP and judge(form, card).word == NATIVE)
            size = rest + sum(each.options[chosen[layer].format][0] for layer, each in layers.items())
            lost = sum(each.options[chosen[layer].format][1] for layer, each in layers.items())
            error = lost / sum(each.energy for each in layers.values())
            whole = sum(each.multiply_adds for each in layers.values())
            share = sum(each.multiply_adds for layer, each in layers.items() if chosen[layer].format in fast) / whole
            start = time.perf_counter()
            found = solve(layers, size, fixed_bytes=rest, minimum_fast=math.floor(1e6 * share) / 1e6, fast=fast)
            assert found.error <= error * (1 + 1e-12), (hardware, name, found.error, error)
            print(f"{hardware + ' ' + name:20} {size / 1e9:8.3f} {error ** 0.5:8.5f} {share:6.1%} | "
                  f"{told(found, time.perf_counter() - start)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--spread", type=float, default=0.15, help="of the errors of layers, as a standard deviation of their log")
    asked = parser.parse_args()
    model = expert()
    for seed in range(asked.seeds):
        print(f"\nseed {seed}")
        budgets(model, seed, asked.spread)
        against_presets(model, seed, asked.spread)


if __name__ == "__main__":
    main()
