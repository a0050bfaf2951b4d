"""What the tiny model of tiny_trained.py learns: latent videos of moving shapes, and texts that say which.

16 latent channels of very unequal size, mixed from four fields (shape, its two slopes, background), so that they hang together. A
prompt is one of 4 shapes x 4 motions x 4 palettes, said in six text tokens whose 4096 columns are of unequal size too. Start and
size of the shape are by chance.
"""
import math

import torch

CHANNELS, FRAMES, SIDE = 16, 3, 12                 # of the latents: 3 * 6 * 6 = 108 tokens
TEXT_TOKENS, TEXT_DIM, KINDS = 6, 4096, 4          # KINDS of shapes, of motions, of palettes


def drawn(*shape: int, seed: int) -> torch.Tensor:
    """Normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CHANNEL_SIZES = torch.logspace(-1, 0.5, CHANNELS)[torch.randperm(CHANNELS, generator=torch.Generator().manual_seed(1))]
PALETTES = drawn(KINDS, CHANNELS, 4, seed=2) * (CHANNEL_SIZES / CHANNEL_SIZES.square().mean().sqrt()).view(1, -1, 1)
WORDS = drawn(3, KINDS, 2, TEXT_DIM, seed=3) * torch.exp(drawn(TEXT_DIM, seed=4)) * 0.3
PROMPTS = [(shape, motion, palette) for shape in range(KINDS) for motion in range(KINDS) for palette in range(KINDS)]


def context_of(prompts: list) -> torch.Tensor:
    """(prompts, TEXT_TOKENS, TEXT_DIM) float32. A prompt: three numbers under KINDS; None: nothing said."""
    rows = [torch.zeros(TEXT_TOKENS, TEXT_DIM) if prompt is None
            else torch.cat([WORDS[part, kind] for part, kind in enumerate(prompt)]) for prompt in prompts]
    return torch.stack(rows)


def _video(prompt: tuple[int, int, int], draw: torch.Generator) -> torch.Tensor:
    shape, motion, palette = prompt
    start, size = torch.rand(2, generator=draw) * 1.2 - 0.6, 0.25 + 0.2 * torch.rand(1, generator=draw)
    angle, steps = math.pi / 2 * motion, torch.arange(FRAMES) * 0.35
    line = torch.linspace(-1, 1, SIDE)
    x = line.view(1, 1, -1) - (start[0] + steps * math.cos(angle)).view(-1, 1, 1)
    y = line.view(1, -1, 1) - (start[1] + steps * math.sin(angle)).view(-1, 1, 1)
    round_, square = (x.square() + y.square()).sqrt(), x.abs().maximum(y.abs())
    far = (round_, square, x.abs() + 0 * y, (round_ - size).abs())   # disc, square, bar, ring
    inside = torch.sigmoid((size - far[shape]) * 12)
    fields = torch.stack([inside, x * inside, y * inside, (line.view(1, -1, 1) + 0 * x) * 0.7]) * 1.6
    return torch.einsum("cf,fthw->cthw", PALETTES[palette], fields)


def videos(prompts: list, seed: int) -> torch.Tensor:
    """(prompts, CHANNELS, FRAMES, SIDE, SIDE) float32, as the model sees latents."""
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([_video(prompt, draw) for prompt in prompts])
