"""Small LoRA files as each trainer writes them: keys, dtypes, alphas, metadata, names and folders; changes with the trainers.

Every writer: `write_<trainer>(folder, layers=..., seed=..., ...) -> list[Path]`, with the sizes of tiny.py. What was planted is
told by `factors`, `delta64`, `differences` and `kron_factors`, so a test needs nothing of the pack to know the right answer.
Sources: ai-toolkit 27a03a91, musubi-tuner 30c658c, diffusers 58eb52c, Wan2.2-Lightning 92efeb4, LightX2V f8aee98, LyCORIS, PEFT.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from wan22_master.tests.engine import tiny

HIGH, LOW = tiny.PAIR
# Written by hand from diffusers' WanTransformer3DModel.
DIFFUSERS = {
    **{f"self_attn.{one}": f"attn1.to_{one}" for one in "qkv"},
    **{f"cross_attn.{one}": f"attn2.to_{one}" for one in "qkv"},
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.o": "attn2.to_out.0",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def diffusers_name(layer: str) -> str:
    """`blocks.0.self_attn.q` -> `blocks.0.attn1.to_q`; block linears only."""
    stack, number, name = layer.split(".", 2)
    return f"{stack}.{number}.{DIFFUSERS[name]}"


def _draw(*what: object) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:6], "big"))


def factors(layer: str, seed: int = 1, role: str = HIGH, rank: int = tiny.RANK, dtype=torch.float32) -> tuple[torch.Tensor, ...]:
    """(up (out, rank), down (rank, in)) that the writers plant in `layer` of this expert; a delta element is about 4e-4."""
    out, into = tiny.shapes()[f"{layer}.weight"]
    draw = _draw(seed, role, layer, rank)
    down = torch.randn(rank, into, generator=draw)
    up = torch.randn(out, rank, generator=draw) * 4e-4 / rank**0.5
    return up.to(dtype), down.to(dtype)


def delta64(layer: str, seed: int = 1, role: str = HIGH, rank: int = tiny.RANK, dtype=torch.float32) -> torch.Tensor:
    """up @ down of `factors` in float64, without alpha / rank."""
    up, down = factors(layer, seed, role, rank, dtype)
    return up.double() @ down.double()


def _layers(layers: list[str] | None) -> list[str]:
    return tiny.linears() if layers is None else layers


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def _pairs(stems: dict[str, str], seed: int, role: str, names=("lora_A", "lora_B"), dtype=torch.bfloat16, **more) -> dict:
    """Tensors of plain pairs. stems: layer -> module name of the file; names: of down and up; more: rank, alpha (a tensor)."""
    found, alpha = {}, more.pop("alpha", None)
    for layer, stem in stems.items():
        up, down = factors(layer, seed, role, dtype=dtype, **more)
        found |= {f"{stem}.{names[0]}.weight": down, f"{stem}.{names[1]}.weight": up}
        if alpha is not None:
            found[f"{stem}.alpha"] = alpha.clone()
    return found


KOHYA = ("lora_down", "lora_up")


def write_ai_toolkit(folder: Path, layers=None, seed=1, *, split=True, name="style") -> list[Path]:
    """ai-toolkit: PEFT spelling without alpha (alpha = rank); two files, or one with transformer_1/_2 inside diffusion_model."""
    told = {"ss_base_model_version": "wan_2.2_14b", "ss_output_name": name, "format": "pt"}
    if split:
        tensors = {role: _pairs({one: f"diffusion_model.{one}" for one in _layers(layers)}, seed, role) for role in tiny.PAIR}
        return [_save(Path(folder) / f"{name}_000001500_{role}.safetensors", tensors[role], told) for role in tiny.PAIR]
    tensors = {}
    for number, role in enumerate(tiny.PAIR, 1):
        tensors |= _pairs({one: f"diffusion_model.transformer_{number}.{one}" for one in _layers(layers)}, seed, role)
    return [_save(Path(folder) / f"{name}.safetensors", tensors, told)]


def write_onetrainer(folder: Path, layers=None, seed=1, *, omi=True, roles=tiny.PAIR, name="one") -> list[Path]:
    """OneTrainer's Wan branch: both experts in one file, alpha 1; omi (native names) or legacy (underscored diffusers names)."""
    tensors = {}
    for role in roles:
        low = "_2" if role == LOW else ""
        stems = {
            layer: f"diffusion_model{low}.{layer}" if omi else f"lora_transformer{low}_{diffusers_name(layer).replace('.', '_')}"
            for layer in _layers(layers)
        }
        tensors |= _pairs(stems, seed, role, KOHYA, alpha=torch.tensor(1.0))
    return [_save(Path(folder) / f"{name}.safetensors", tensors, {"ot_branch": "dev/wan22-i2v-support"})]


def write_musubi(folder: Path, layers=None, seed=1, *, ranges=("900,1000", "0,900"), name="mine") -> list[Path]:
    """musubi-tuner: kohya names, alpha 2 at rank 4; `ranges` are its min and max timestep, None: not given, one file per entry.

    File names say nothing; the first file is planted as high noise, the second as low noise.
    """
    found = []
    for number, (span, role) in enumerate(zip(ranges, tiny.PAIR[: len(ranges)], strict=True)):
        told = {
            "ss_base_model_version": "wan2.2",
            "ss_network_module": "networks.lora_wan",
            "ss_network_dim": str(tiny.RANK),
            "ss_network_alpha": "2.0",
            "modelspec.architecture": "wan2.1",
            "modelspec.title": name,
            **({"modelspec.timestep_range": span} if span else {}),
        }
        stems = {one: "lora_unet_" + one.replace(".", "_") for one in _layers(layers)}
        tensors = _pairs(stems, seed, role, KOHYA, alpha=torch.tensor(2.0).bfloat16())
        found.append(_save(Path(folder) / f"{name}-{number}.safetensors", tensors, told))
    return found


def write_seko(folder: Path, layers=None, seed=1, *, prefixed=False) -> list[Path]:
    """Lightning by Seko: float32, rank 64, alpha 8 as int64, bare names; the role in the file's name, the rest in the folder's."""
    home, stem = Path(folder) / "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1", "diffusion_model." if prefixed else ""
    stems = {one: stem + one for one in _layers(layers)}
    more = {"names": KOHYA, "dtype": torch.float32, "rank": 64, "alpha": torch.tensor(8, dtype=torch.int64)}
    return [_save(home / f"{role}_model.safetensors", _pairs(stems, seed, role, **more)) for role in tiny.PAIR]


def write_lightx2v(folder: Path, layers=None, seed=1) -> list[Path]:
    """LightX2V's extractor: no alpha; `.diff` for vectors and small matrices, `.diff_b` for biases, `.diff_m` for modulation."""
    found = []
    for role in tiny.PAIR:
        tensors = _pairs({one: f"diffusion_model.{one}" for one in _layers(layers)}, seed, role, KOHYA)
        for key, shape in tiny.shapes().items():
            layer, _, kind = key.rpartition(".")
            if kind == "modulation":
                tensors[f"diffusion_model.{layer}.diff_m"] = differences(key, seed, role).bfloat16()
            elif kind == "bias":
                tensors[f"diffusion_model.{layer}.diff_b"] = differences(key, seed, role).bfloat16()
            elif len(shape) == 1 or key == "head.head.weight":
                tensors[f"diffusion_model.{layer}.diff"] = differences(key, seed, role).bfloat16()
        name = f"wan2.2_t2v_A14b_{role}_lora_rank64_lightx2v_4step_1217.safetensors"
        found.append(_save(Path(folder) / name, tensors))
    return found


def differences(key: str, seed: int = 1, role: str = HIGH) -> torch.Tensor:
    """What LightX2V's writer plants as a whole difference on this key, before it is stored as bf16."""
    return torch.randn(tiny.shapes()[key], generator=_draw(seed, role, key)) * 1e-3


def write_diffusion_pipe(folder: Path, layers=None, seed=1, *, alpha=None, rslora=False, dim=tiny.RANK) -> list[Path]:
    """diffusion-pipe: every file is adapter_model.safetensors, role in the folder; rank and alpha only in adapter_config.json."""
    found = []
    for role in tiny.PAIR:
        home = Path(folder) / f"style_{role.removesuffix('_noise')}" / "epoch20"
        stems = {one: f"diffusion_model.{one}" for one in _layers(layers)}
        found.append(_save(home / "adapter_model.safetensors", _pairs(stems, seed, role), {"format": "pt"}))
        told = {"peft_type": "LORA", "r": dim, "lora_alpha": dim if alpha is None else alpha, "use_rslora": rslora}
        (home / "adapter_config.json").write_text(json.dumps(told))
    return found


def write_diffusers(folder: Path, layers=None, seed=1, *, alpha=2, rslora=False, both=False) -> list[Path]:
    """diffusers from 0.35: diffusers names, alpha only in the metadata; with `both`, the low expert as transformer_2."""
    tensors, told = {}, {}
    for role, stem in zip(tiny.PAIR, ("transformer", "transformer_2"), strict=True):
        if role == HIGH or both:
            tensors |= _pairs({one: f"{stem}.{diffusers_name(one)}" for one in _layers(layers)}, seed, role)
            told |= {f"{stem}.r": tiny.RANK, f"{stem}.lora_alpha": alpha, f"{stem}.use_rslora": rslora}
    return [_save(Path(folder) / "pytorch_lora_weights.safetensors", tensors, {"lora_adapter_metadata": json.dumps(told)})]


def write_fun(folder: Path, layers=None, seed=1) -> list[Path]:
    """VideoX-Fun: kohya names with a double underscore, alpha 2; ComfyUI knows them by block 0's cross_attn.k."""
    stems = {one: "lora_unet__" + one.replace(".", "_") for one in _layers(layers)}
    tensors = _pairs(stems, seed, HIGH, KOHYA, alpha=torch.tensor(2.0))
    return [_save(Path(folder) / "Wan2.2-Fun-A14B-InP-Fun-Reward.safetensors", tensors)]


def write_peft(folder: Path, layers=None, seed=1, *, named=False) -> list[Path]:
    """A raw PEFT file: base_model.model. before native names; `named`: with the adapter's name inside, as a state dict has it."""
    stems = {one: f"base_model.model.{one}" for one in _layers(layers)}
    names = ("lora_A.default", "lora_B.default") if named else ("lora_A", "lora_B")
    return [_save(Path(folder) / "relight.safetensors", _pairs(stems, seed, HIGH, names), {"format": "pt"})]


def kron_factors(layer: str, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(w1 (4, 4), w2 (out / 4, in / 4)) that `write_lokr` plants, as stored in fp16; the delta is kron(w1, w2)."""
    out, into = tiny.shapes()[f"{layer}.weight"]
    draw = _draw(seed, "lokr", layer)
    return torch.randn(4, 4, generator=draw).half(), (torch.randn(out // 4, into // 4, generator=draw) * 4e-4).half()


def write_lokr(folder: Path, layers=None, seed=1, *, diffusers=False) -> list[Path]:
    """LyCORIS LoKr as ai-toolkit saved it: both factors whole, alpha 9999999999, which fp16 turns into infinity."""
    tensors = {}
    for layer in _layers(layers):
        stem = "lycoris_" + (diffusers_name(layer) if diffusers else layer).replace(".", "_")
        first, second = kron_factors(layer, seed)
        tensors |= {f"{stem}.lokr_w1": first, f"{stem}.lokr_w2": second, f"{stem}.alpha": torch.tensor(9999999999.0).half()}
    return [_save(Path(folder) / "lokr.safetensors", tensors, {"ss_base_model_version": "wan_2.2_14b"})]
