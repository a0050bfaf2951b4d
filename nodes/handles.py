"""What travels on the pack's wires: small, frozen, picklable descriptions. Never weights.

ComfyUI caches node outputs and its memory manager cannot see into objects, so a handle holds paths and numbers, kilobytes.
`__repr__` is short because ComfyUI prints every input of a node that fails.
Roles are `high_noise` and `low_noise`, or `model` for a model that is one file.
"""
import json
import os
from dataclasses import dataclass

Pairs = tuple[tuple[str, float], ...]              # names and numbers
NOTHING = "{}"                                     # an empty object of JSON; as text it can be compared and hashed

@dataclass(frozen=True)
class Lora:
    """One LoRA for one or both experts. A path of None means: not on that expert."""

    high: str | None
    low: str | None
    strength_high: float
    strength_low: float
    method: str | None = None                      # asked; None: the method of the pass
    resolved: str | None = None                    # what planning made of it, for this model
    off: tuple[str, ...] = ()                      # experts whose file is switched off
    doubts: tuple[str, ...] = ()                   # why a file may sit on the wrong expert
    scope: Pairs = ()                              # factors by block range and kind
    rs_lora: bool | None = None                    # alpha / sqrt(rank); None: as its metadata says
    protected: bool | None = None                  # added exactly; None: when it is a distillation LoRA

    @property
    def name(self) -> str:
        return " + ".join(os.path.basename(path) for path in dict.fromkeys((self.high, self.low)) if path)

    def as_json(self, roles: tuple[str, ...]) -> dict | None:
        """Entry of a recipe's pass for a model with these roles; None when nothing of it is for them."""
        strength = {"high_noise": self.strength_high, "low_noise": self.strength_low, "model": self.strength_high}
        path = {"high_noise": self.high, "low_noise": self.low, "model": self.high}
        files = {role: path[role] for role in roles if path[role]}
        if not files:
            return None
        strengths = {role: strength[role] for role in files}
        return {"files": files, "strength": strengths, "method": self.method, "resolved": self.resolved,
                "scope": dict(self.scope), "rs_lora": self.rs_lora, "protected": self.protected}


@dataclass(frozen=True, repr=False)
class LoraStack:
    """LoRAs in the order of their nodes."""

    loras: tuple[Lora, ...] = ()

    def __repr__(self) -> str:
        return f"LoraStack({len(self.loras)} LoRAs)"


@dataclass(frozen=True, repr=False)
class MergePass:
    """One Action-Master node: LoRAs that are merged by one method."""

    name: str
    method: str
    global_factor: float
    gate_distillation: bool
    classic: Pairs                                 # constants of the classic gate, by their recipe names
    loras: tuple[Lora, ...]
    settings: str = NOTHING                        # JSON: the recipe's other fields of a pass, as combine, adaptive, scope

    def as_json(self, roles: tuple[str, ...]) -> dict:
        """Pass of a recipe."""
        loras = [entry for lora in self.loras if (entry := lora.as_json(roles))]
        return {"name": self.name, "method": self.method, "global_factor": self.global_factor,
                "gate_distillation": self.gate_distillation, "classic": dict(self.classic), "loras": loras,
                **json.loads(self.settings)}

    def __repr__(self) -> str:
        return f"MergePass({self.name}: {self.method}, {len(self.loras)} LoRAs)"


@dataclass(frozen=True, repr=False)
class Recipe:
    """Passes without a model, to put on another one. options: JSON of the whole merge's, as compat and normalize."""

    passes: tuple[MergePass, ...]
    options: str = NOTHING

    def __repr__(self) -> str:
        return f"Recipe({len(self.passes)} passes)"


@dataclass(frozen=True, repr=False)
class Dit:
    """A model and what shall be merged into it."""

    experts: tuple[tuple[str, str], ...]           # role, path
    title: str                                     # of the variant, for texts
    allow_quantized_source: bool = False
    passes: tuple[MergePass, ...] = ()
    options: str = NOTHING                         # JSON: the recipe's compat, normalize, strict, strict_share, allow_twice
    mix: str = ""                                  # JSON: the recipe's mix, checkpoints mixed into the base

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for role, _ in self.experts)

    def __repr__(self) -> str:
        return f"Dit({self.title}, {' + '.join(os.path.basename(path) for _, path in self.experts)}, {len(self.passes)} passes)"


@dataclass(frozen=True, repr=False)
class Output:
    """One format asked for, and for which experts."""

    format: str
    activations: str
    experts: tuple[str, ...]
    settings: str = NOTHING                        # JSON: the recipe's other fields of an output, as layers and input_amax

    def as_json(self) -> dict:
        """Output of a recipe."""
        return {"format": self.format, "activations": self.activations, "experts": list(self.experts), **json.loads(self.settings)}

    def __repr__(self) -> str:
        return f"Output({self.format} for {' and '.join(self.experts)})"


@dataclass(frozen=True, repr=False)
class Plan:
    """A precision plan, as JSON: which layer of which expert gets which format."""

    title: str
    text: str

    def __repr__(self) -> str:
        return f"Plan({self.title})"


@dataclass(frozen=True, repr=False)
class Scales:
    """Largest activations, margin included, as JSON: role -> layer -> number."""

    text: str

    def __repr__(self) -> str:
        return f"Scales({', '.join(f'{len(layers)} layers of {role}' for role, layers in json.loads(self.text).items())})"


@dataclass(frozen=True, repr=False)
class Calibration:
    """A session of calibration: its folder, in which everything that was recorded lies."""

    folder: str
    name: str

    def __repr__(self) -> str:
        return f"Calibration({self.name})"


@dataclass(frozen=True, repr=False)
class Job:
    """A merge and all the formats it shall be saved in."""

    dit: Dit
    outputs: tuple[Output, ...]

    def __repr__(self) -> str:
        return f"Job({self.dit!r} as {', '.join(output.format for output in self.outputs)})"


@dataclass(frozen=True)
class SavedFile:
    """A finished file as it was when it was written."""

    role: str
    path: str
    format: str
    size: int
    mtime_ns: int
    label: str = ""                                # tells it from the expert's other files: format, plan, suffix

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


@dataclass(frozen=True, repr=False)
class Files:
    """What one Save wrote."""

    files: tuple[SavedFile, ...] = ()

    def __repr__(self) -> str:
        return f"Files({', '.join(file.name for file in self.files)})"
