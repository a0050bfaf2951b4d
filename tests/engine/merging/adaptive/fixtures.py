"""A tiny expert with LoRAs of known and new parts, as files, and what the measuring step is given of it."""
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.device import Device
from wan22_master.engine.hashes import hash_file
from wan22_master.engine.loras.lora import Index, match, open_lora
from wan22_master.engine.merging.adaptive import store
from wan22_master.engine.merging.adaptive.constants import AdaptiveConstants
from wan22_master.engine.merging.contribution import Contribution
from wan22_master.engine.progress import Clock, silent

from .planted import randn

DIM, FFN = 256, 640
Q, V, FFN_0, PATCH = "blocks.0.self_attn.q", "blocks.0.self_attn.v", "blocks.0.ffn.0", "patch_embedding"
SHAPES = {"patch_embedding.weight": (DIM, 16, 1, 2, 2), "patch_embedding.bias": (DIM,), f"{Q}.weight": (DIM, DIM),
          f"{V}.weight": (DIM, DIM), f"{FFN_0}.weight": (FFN, DIM), f"{FFN_0}.bias": (FFN,), "blocks.0.ffn.2.weight": (DIM, FFN),
          "blocks.0.modulation": (1, 6, DIM), "head.modulation": (1, 2, DIM), "head.head.weight": (64, DIM)}


def ask(lora, modules: list, strength: float, **more) -> Contribution:
    """An adaptive contribution."""
    return Contribution(lora, modules, strength, **{"method": "adaptive", "constants": AdaptiveConstants(), **more})


def base() -> dict[str, torch.Tensor]:
    return {key: (randn(number, *shape) * 0.03).bfloat16() for number, (key, shape) in enumerate(SHAPES.items())}


def factors(weights: dict, layer: str, seed: int, rank: int = 8, size: float = 0.02) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of the rank from the base's own components, half random; ‖delta‖ about `size` of ‖W‖. float32."""
    weight = weights[f"{layer}.weight"].double().flatten(1)
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    places = torch.arange(seed % 3, seed % 3 + rank, 2)
    up = randn(1000 + seed, len(weight), rank) * (sigma[0] / len(weight) ** 0.5)
    down = randn(2000 + seed, rank, weight.shape[1]) / weight.shape[1] ** 0.5
    up[:, ::2], down[::2] = u[:, places] * sigma[places], vt[places]
    return _sized(up, down, size * weight.norm())


def _sized(up, down, norm) -> tuple[torch.Tensor, torch.Tensor]:
    return (up * (norm / (up @ down).norm())).float(), down.float()


def write_lora(path, seed: int, layers=(Q, FFN_0, PATCH), rank: int = 8, size: float = 0.02, alpha: float | None = None) -> dict:
    """Returns the tensors."""
    tensors, weights = {}, base()
    for layer in layers:
        up, down = factors(weights, layer, seed, rank, size)
        shape = SHAPES[f"{layer}.weight"]
        module = f"diffusion_model.{layer}"
        ends = (1, 1, 1) if len(shape) == 5 else ()
        tensors[f"{module}.lora_B.weight"] = up.reshape(len(up), rank, *ends)
        tensors[f"{module}.lora_A.weight"] = down.reshape(rank, *shape[1:])
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return save(path, tensors)


def save(path, tensors: dict) -> dict:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return tensors


def expert(folder, loras: list[tuple]) -> SimpleNamespace:
    """An expert with these (path, strength, fields of `Contribution`) as its LoRAs."""
    path = folder / "base.safetensors"
    if not path.exists():
        save_file(base(), path)
    source = open_source(path)
    specs = {key: source.spec(key) for key in source.keys()}  # noqa: SIM118 - a Source is no dict
    index, contributions, ledgers = Index(list(specs), specs), {}, []
    for lora_path, strength, *more in loras:
        lora = open_lora(lora_path)
        for key, modules in match(lora, index).applied.items():
            what = ask(lora, modules, strength, **(more[0] if more else {}))
            contributions.setdefault(key, []).append((len(ledgers), what))
        ledgers.append({"sha256": hash_file(lora_path)})
    return SimpleNamespace(role="model", source=source, specs=specs, order=list(specs), contributions=contributions,
                           ledgers=ledgers)


def ride(reports, should_stop=bool, on_progress=silent) -> SimpleNamespace:
    reports.mkdir(exist_ok=True)
    return SimpleNamespace(device=Device(torch.device("cpu"), ""), clock=Clock(1, on_progress), should_stop=should_stop,
                           reports=reports)


def measured(folder, loras: list[tuple], reports=None) -> SimpleNamespace:
    """`expert`, measured."""
    found = expert(folder, loras)
    store.ensure(found, ride(reports or folder / "reports"))
    return found


def asked(found: SimpleNamespace, layer: str) -> list[Contribution]:
    return [what for _, what in found.contributions[f"{layer}.weight"]]


def delta64(tensors: dict, layer: str) -> torch.Tensor:
    """(out, columns), alpha / rank folded in."""
    module = f"diffusion_model.{layer}"
    up, down = (tensors[f"{module}.{part}.weight"].double() for part in ("lora_B", "lora_A"))
    alpha = tensors.get(f"{module}.alpha")
    return (1.0 if alpha is None else alpha.item() / len(down)) * (up.flatten(1) @ down.flatten(1))
