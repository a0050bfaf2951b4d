"""What each adapter does to a weight, in plain float64 torch, written from papers and trainers; nothing of the pack is used here.

Sources: LoRA arXiv 2106.09685; DoRA 2402.09353 (section 4, norm of V = W + BA); LoHa / LoKr / LoCon LyCORIS 2309.14859 and
github.com/KohakuBlueleaf/LyCORIS f49d30d; OFT 2306.07280; BOFT 2311.06243; GLoRA 2306.07967; IA3 2205.05638; PEFT 5d602fd.
Every function takes tensors of any float dtype and returns float64 of the base's shape.
"""

import math

import torch


def lora(shape, up, down, alpha=None, mid=None, root=False):
    """alpha / r * up @ down, r = down.shape[0]; with a core: einsum over it; root: rs-LoRA, alpha / sqrt(r)."""
    up, down = up.double(), down.double()
    rank = down.shape[0]
    factor = 1.0 if alpha is None and not root else (rank if alpha is None else float(alpha)) / (math.sqrt(rank) if root else rank)
    up = up.reshape(up.shape[:2])
    if mid is None:
        return factor * torch.einsum("or,r...->o...", up, down.reshape(rank, *shape[1:]))
    return factor * torch.einsum("mn...,om,ni->oi...", mid.double(), up, down.reshape(down.shape[:2])).reshape(shape)


def dora(weight, delta, magnitude, axis):
    """W' - W with W' = m * V / |V|, V = W + delta; axis 0: a norm per output, 1: per input, over everything else."""
    weight = weight.double()
    moved = weight + delta.double()
    others = [n for n in range(weight.ndim) if n != axis]
    norm = moved.square().sum(dim=others, keepdim=True).sqrt()
    broad = [1] * weight.ndim
    broad[axis] = -1
    return magnitude.double().reshape(broad) * moved / norm - weight


def loha(shape, w1a, w1b, w2a, w2b, alpha=None, t1=None, t2=None):
    """(w1a w1b) * (w2a w2b), or with cores; r = w1b.shape[0]."""
    w1a, w1b, w2a, w2b = (each.double() for each in (w1a, w1b, w2a, w2b))
    factor = 1.0 if alpha is None else float(alpha) / w1b.shape[0]
    if t1 is None:
        return factor * ((w1a @ w1b) * (w2a @ w2b)).reshape(shape)
    first = torch.einsum("ij...,jr,ip->pr...", t1.double(), w1b, w1a)
    return factor * first * torch.einsum("ij...,jr,ip->pr...", t2.double(), w2b, w2a)


def lokr(shape, w1=None, w2=None, w1a=None, w1b=None, w2a=None, w2b=None, t2=None, alpha=None):
    """kron(w1, w2), w1 unsqueezed to as many axes as w2 has; alpha / r only where one of them is factored."""
    rank = None
    if w1 is None:
        w1, rank = w1a.double() @ w1b.double(), w1b.shape[0]
    if w2 is None:
        rank = w2b.shape[0]
        if t2 is None:
            w2 = w2a.double() @ w2b.double()
        else:
            w2 = torch.einsum("ij...,jr,ip->pr...", t2.double(), w2b.double(), w2a.double())
    w1, w2 = w1.double(), w2.double()
    w2 = w2.reshape(w2.shape[0], shape[1] // w1.shape[1], *shape[2:])
    w1 = w1.reshape(*w1.shape, *[1] * (w2.ndim - 2))
    return torch.kron(w1.contiguous(), w2.contiguous()) * (1.0 if alpha is None or rank is None else float(alpha) / rank)


def rotation(blocks, limit=0.0):
    """(I + Q)(I - Q)^-1 with Q = B - B^T, Q scaled to Frobenius norm `limit` (over all blocks) where it is larger and limit > 0."""
    blocks = blocks.double()
    skew = blocks - blocks.transpose(-1, -2)
    norm = skew.norm() + 1e-8
    if limit > 0 and norm > limit:
        skew = skew * limit / norm
    eye = torch.eye(skew.shape[-1], dtype=torch.float64)
    return (eye + skew) @ torch.linalg.inv(eye - skew)


def oft(weight, blocks, strength=1.0, alpha=0.0, rescale=None):
    """Block k of the outputs becomes R_k^T W_k; strength stands between I and R, and 1 and rescale; limit = alpha * outputs."""
    weight = weight.double()
    turn = rotation(blocks, alpha * weight.shape[0])
    turn = strength * turn + (1 - strength) * torch.eye(turn.shape[-1], dtype=torch.float64)
    parts = weight.reshape(*blocks.shape[:2], -1)
    merged = torch.stack([one.T @ part for one, part in zip(turn, parts, strict=True)]).reshape(weight.shape)
    return merged if rescale is None else merged * (1 + strength * (rescale.double().reshape(-1, *[1] * (weight.ndim - 1)) - 1))


def butterfly(outputs, block, stage):
    """order[n] = the output that is n-th once the stage has brought together what it mixes: two runs of 2^stage * block / 2."""
    run, order = 2**stage * block // 2, []
    for start in range(0, outputs, 2 * run):
        for n in range(run):
            order += [start + n, start + run + n]
    return order


def boft(weight, blocks, strength=1.0, alpha=0.0, rescale=None):
    """Stages of block rotations over permuted outputs; strength as for OFT, stage by stage."""
    weight = weight.double()
    turns, merged = rotation(blocks, alpha * weight.shape[0]), weight.reshape(weight.shape[0], -1)
    for stage, turn in enumerate(turns):
        turn = strength * turn + (1 - strength) * torch.eye(turn.shape[-1], dtype=torch.float64)
        order = butterfly(weight.shape[0], turn.shape[-1], stage)
        mixed = torch.block_diag(*turn) @ merged[order]
        merged = torch.empty_like(mixed)
        merged[order] = mixed
    if rescale is not None:
        merged = merged * (1 + strength * (rescale.double().reshape(-1, 1) - 1))
    return merged.reshape(weight.shape)


def peft_oft(weight, packed, block, strength=1.0, terms=5):
    """W R^T over blocks of the flattened inputs. packed: upper triangles, row by row. terms None: (I - Q)(I + Q)^-1, as PEFT's
    exact branch; else I + 2Q + 2Q^2 + ... + Q^(terms - 1), its Neumann branch (from three terms on, which are as four)."""
    eye, turns = torch.eye(block, dtype=torch.float64), []
    for row in packed.double():
        skew, place = torch.zeros(block, block, dtype=torch.float64), 0
        for i in range(block):
            for j in range(i + 1, block):
                skew[i, j], skew[j, i] = row[place], -row[place]
                place += 1
        if terms is None:
            turns.append((eye - skew) @ torch.linalg.inv(eye + skew))
        else:
            power, last = torch.linalg.matrix_power, max(terms, 4) - 1
            turn = eye + 2 * skew * (terms > 1)
            if terms > 2:
                turn = turn + 2 * power(skew, 2) + sum(2 * power(skew, n) for n in range(3, last)) + power(skew, last)
            turns.append(turn)
    columns = math.prod(weight.shape[1:])
    turns = turns * (columns // block) if len(turns) == 1 else turns
    whole = strength * torch.block_diag(*turns) + (1 - strength) * torch.eye(columns, dtype=torch.float64)
    return (weight.double().flatten(1) @ whole.T).reshape(weight.shape)


def glora(weight, a1, a2, b1, b2, strength=1.0, alpha=None, old=False):
    """W + s * alpha / r * (W a1 a2 + b1 b2); the old files have both products the other way round."""
    weight = weight.double()
    a1, a2, b1, b2 = (each.double().flatten(1) for each in ((a2, a1, b2, b1) if old else (a1, a2, b1, b2)))
    turned = torch.einsum("oi...,ij->oj...", weight, a1 @ a2)
    return weight + strength * (1.0 if alpha is None else float(alpha) / a2.shape[0]) * (turned + (b1 @ b2).reshape(weight.shape))


def ia3(weight, learned, on_input):
    """W * learned, along the inputs or the outputs."""
    broad = [1] * weight.ndim
    broad[1 if on_input else 0] = -1
    return weight.double() * learned.double().reshape(broad)
