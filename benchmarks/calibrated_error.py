"""Claim: weighing columns by the mean square of their inputs cuts the held-out error of a layer's output by a fifth, at the same
format and size.

    python benchmarks/calibrated_error.py [--rows 512] [--columns 1024] [--tokens 8192] [--seeds 3] [--spread 1.0]

error = ‖X(W - Ŵ)ᵀ‖ / ‖XWᵀ‖ on tokens that gave no weights, W Gaussian. Inputs: `even`, Gaussian channels of one size; `skewed`, of
lognormal sizes exp(spread · N(0, 1)); `correlated`, such channels of which runs of 16 hang together, x = (± g + e) · size with one
normal g for the run and one e for each channel: half of the variance is shared; `mixed`, (64 factors, mixed, + e / 2) · size.
Weights are the mean squares of the first half of the tokens, errors are of the second.

Last, what the rotated formats could weigh: how much mean squares of 256 rotated channels differ, as standard deviation over
mean, beside those of the channels themselves. Chance alone gives sqrt(2 / tokens).
"""
import argparse

import torch
from harness import table
from wan22_master.quant.formats import BLOCK_TYPES, Options, form_of, weighs
from wan22_master.quant.rotation import GROUP, rotate

SIGMA = 0.03                                       # about that of Wan's weights
FORMS = {"nvfp4 fast": Options("fast"), "nvfp4 balanced": Options("balanced"), "nvfp4 best": Options("best"),
         **dict.fromkeys((name for name in BLOCK_TYPES if name != "Q8_0"), Options())}


def even(tokens: int, columns: int, generator: torch.Generator, spread: float = 0.0) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=generator)


def sizes(columns: int, generator: torch.Generator, spread: float) -> torch.Tensor:
    return torch.randn(columns, generator=generator).mul_(spread).exp_()


def skewed(tokens: int, columns: int, generator: torch.Generator, spread: float) -> torch.Tensor:
    return even(tokens, columns, generator) * sizes(columns, generator, spread)


def correlated(tokens: int, columns: int, generator: torch.Generator, spread: float) -> torch.Tensor:
    shared = torch.randn(tokens, columns // 16, generator=generator).repeat_interleave(16, 1)
    signs = torch.randn(columns, generator=generator).sign_()
    return (even(tokens, columns, generator) + shared * signs) * sizes(columns, generator, spread)


def mixed(tokens: int, columns: int, generator: torch.Generator, spread: float) -> torch.Tensor:
    mixture = torch.randn(64, columns, generator=generator) / 8
    factors = torch.randn(tokens, 64, generator=generator) @ mixture
    return (factors + even(tokens, columns, generator) * 0.5) * sizes(columns, generator, spread)


KINDS = {"even": even, "skewed": skewed, "correlated": correlated, "mixed": mixed}


def output_error(tokens: torch.Tensor, weight: torch.Tensor, decoded: torch.Tensor) -> float:
    return ((tokens @ (weight - decoded).T).norm() / (tokens @ weight.T).norm()).item()


def decoded(form, weight: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    stats = form.combine([form.measure(weight)]) if form.measure else None
    parts = form.quantize(weight, stats, importance=importance) | form.constants(stats)
    return form.dequantize(parts)[:len(weight), :weight.shape[1]]


def errors(kind: str, asked: argparse.Namespace, seed: int) -> dict[str, tuple[float, float]]:
    """Format -> held-out error, plain and weighted."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(asked.rows, asked.columns, generator=generator).mul_(SIGMA)
    seen, held = KINDS[kind](asked.tokens, asked.columns, generator, asked.spread).chunk(2)
    importance, found = seen.square().mean(0), {}
    for label, options in FORMS.items():
        form = form_of(label.split()[0], options)
        plain = output_error(held, weight, decoded(form, weight, None))
        found[label] = plain, output_error(held, weight, decoded(form, weight, importance)) if weighs(form) else plain
    return found


def unevenness(tokens: torch.Tensor) -> float:
    """Of mean squares within groups of 256 columns; the mean over the groups."""
    groups = tokens.square().mean(0).view(-1, GROUP)
    return (groups.std(1) / groups.mean(1)).mean().item()


def show_rotated(asked: argparse.Namespace) -> None:
    print(f"\n## rotated columns; chance: {(2 / asked.tokens) ** 0.5:.3f}\n")
    rows = []
    for kind, draw in KINDS.items():
        tokens = draw(asked.tokens, asked.columns, torch.Generator().manual_seed(0), asked.spread)
        rows.append([kind, f"{unevenness(tokens):.3f}", f"{unevenness(rotate(tokens)):.3f}"])
    table(["inputs", "columns", "rotated"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    for name, default in {"rows": 512, "columns": 1024, "tokens": 8192, "seeds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--spread", type=float, default=1.0, help="of the channels' sizes, as a standard deviation of their log")
    asked = parser.parse_args()
    for kind in KINDS:
        found = [errors(kind, asked, seed) for seed in range(asked.seeds)]
        means = {label: [sum(each[label][place] for each in found) / len(found) for place in range(2)] for label in FORMS}
        print(f"\n## {kind}\n")
        rows = [[label, f"{plain:.4f}", f"{weighted:.4f}", f"{1 - weighted / plain:.1%}"]
                for label, (plain, weighted) in means.items()]
        table(["format", "plain", "weighted", "gain"], rows)
    show_rotated(asked)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
