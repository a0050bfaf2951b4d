"""What the probes of GGUF have in common: tiny models of five kinds, ComfyUI-GGUF's loader, sampling. Runs in ComfyUI's own Python.

The models are ComfyUI's own modules, instantiated without memory, so that keys and shapes are its word; rows are multiples of 256,
which every type can hold. Values are normal, std 1 / sqrt(fan in), as formats_cases.py has them.
"""
import asyncio
import hashlib
import logging
import math
import types

import in_process  # first of all: it finds ComfyUI
from in_process import Complaints, ModelSamplingSD3, Path, comfy, comfyui, folder, folder_paths, mm, torch

import nodes

GGUF_NODES = Path(comfyui) / "custom_nodes" / "ComfyUI-GGUF"
TINY = {"dim": 256, "num_heads": 2, "ffn_dim": 512, "num_layers": 2, "freq_dim": 256, "in_dim": 16, "out_dim": 16,
        "patch_size": (1, 2, 2), "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6}
# kind -> ComfyUI's class, and what the published models of this kind have beyond its config
KINDS = {"t2v": ("WAN21_T2V", {}), "i2v": ("WAN21_T2V", {"in_dim": 36}), "i2v 2.1": ("WAN21_I2V", {"in_dim": 36}),
         "5B": ("WAN22_T2V", {"in_dim": 48, "out_dim": 48}), "vace": ("WAN21_Vace", {"vace_layers": 1, "vace_in_dim": 96})}
CHANNELS = {"5B": 48}                              # of a latent; all others 16


def installed() -> Complaints:
    """ComfyUI-GGUF as ComfyUI loads it, the files of this run where loaders look; what is complained of from now on."""
    torch.set_num_threads(1)
    assert asyncio.run(nodes.load_custom_node(str(GGUF_NODES)))
    for kind in ("diffusion_models", "loras"):
        folder_paths.add_model_folder_path(kind, str(folder / "out"))
    logging.captureWarnings(True)
    logging.getLogger().addHandler(complaints := Complaints())
    return complaints


def _draw(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}|{key}".encode()).digest()
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    if "norm" in key and key.endswith(".weight"):
        return 1 + 0.1 * drawn
    if key.endswith("modulation"):
        return drawn / math.sqrt(shape[-1])
    return drawn / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.02 * drawn


def weights(kind: str, seed: int, **changes: int) -> dict[str, torch.Tensor]:
    """A model in BF16; a tensor depends on seed, key and shape alone. changes: of TINY."""
    name, more = KINDS[kind]
    cls = getattr(comfy.supported_models, name)
    model = cls({**TINY, **cls.unet_config, **more, **changes}).get_model({}, device=torch.device("meta")).diffusion_model
    return {key: _draw(key, tuple(value.shape), seed).bfloat16() for key, value in model.state_dict().items()}


def load(name: str):
    """The MODEL of a file in `folder/out`, by the loader that a person would take."""
    if name.endswith(".gguf"):
        return nodes.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(name)[0]
    return nodes.UNETLoader().load_unet(name, "default")[0]


def with_lora(model, name: str, strength: float = 1.0):
    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, strength)[0]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sample(model, kind: str, seed: int = 42, batch: int = 1) -> torch.Tensor:
    """Latents of 4 Euler steps, each of a prompt of its own. seed: of the noise and of all that conditions it: text, an image or
    frames, where a kind takes one."""
    image = types.SimpleNamespace(penultimate_hidden_states=random(1, 257, 1280, seed=seed + 3))
    given = {"i2v": {"concat_latent_image": random(1, 16, 2, 8, 8, seed=seed + 4), "concat_mask": torch.ones(1, 1, 2, 8, 8)},
             "vace": {"vace_frames": [random(1, 32, 2, 8, 8, seed=seed + 5)], "vace_mask": [torch.ones(1, 64, 2, 8, 8)],
                      "vace_strength": [1.0]}}
    given["i2v 2.1"] = given["i2v"] | {"clip_vision_output": image}
    text, none = ([[random(batch, 77, 4096, seed=seed + number), given.get(kind, {})]] for number in (1, 2))
    shifted = ModelSamplingSD3().patch(model, 5.0)[0]
    latent = {"samples": torch.zeros(batch, CHANNELS.get(kind, 16), 2, 8, 8)}
    done = nodes.KSampler().sample(shifted, seed, 4, 1.0, "euler", "simple", text, none, latent)[0]
    return done["samples"].float().clone()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


__all__ = ["GGUF_NODES", "KINDS", "Complaints", "apart", "in_process", "installed", "load", "mm", "sample", "weights", "with_lora"]
