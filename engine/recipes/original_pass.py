"""One pass of an original Action-Master recipe as a pass of ours: every key of any of its versions, and what became of it."""
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..bases.roles import role_of
from ..errors import RecipeError
from .commented_json import check_keys, place_of
from .recipe_parts import FACTOR, SHARE, STRENGTH

STEP = ("pass_name", "name", "method", "description", "density", "normalize", "block_shield", "features", "styles")
FEATURE = ("file", "weight", "modify_skeleton")
# Blocks that block_shield leaves alone (the original's engine v07; v01 to v04 had 8 for both).
SHIELD = {"high_noise": {"0-10": 0.0}, "low_noise": {"0-4": 0.0}, "model": {"0-10": 0.0}}
LIMITS = {"weight": STRENGTH, "density": SHARE, "global_weight_factor": FACTOR}


@dataclass
class Reader:
    """Reads passes. roles: the experts they are for; notices: grows by what each pass gives to say."""

    text: str
    where: str
    roles: tuple[str, ...]
    lora_dir: str
    notices: list[str] = field(default_factory=list)

    def read(self, step: object, number: int) -> dict:
        """Pass of our recipe, as JSON. Raises RecipeError at a key or value that makes no sense."""
        place = f"pipeline[{number}]"
        if not isinstance(step, dict):
            raise self.wrong(place, "an object", step)
        check_keys(step, STEP, place, (self.text, self.where))
        name = str(step.get("pass_name") or step.get("name") or f"Pass {number + 1}")
        method = self._method(step, name)
        dense = self.number(step, "density", 1.0, place)
        if dense < 1:
            self._say(f"{name}: density {dense:g}: " + (
                "applies to full weight changes only, the largest are kept (the original drew some of them at random)"
                if method == "classic" else "is not used, because addition keeps everything"))
        if "normalize" in step:
            self._say(f"{name}: normalize {step['normalize']!r} is read, and not acted on: on Wan's weights it never did anything")
        if "description" in step:
            self._say("descriptions are read over: nothing depends on them")
        features = self._features(step, place)
        loras = [entry for index, each in enumerate(features) for entry in self._entries(each, f"{place}.features[{index}]", step)]
        return {"name": name, "method": method, "loras": loras, "dense_density": dense if method == "classic" else 1.0}

    def number(self, found: dict, key: str, default: float, place: str) -> float:
        """A number of the recipe, or of a text that is one; `default` where it is absent. Raises RecipeError out of its bounds."""
        value = found.get(key, default)
        try:
            value = float(value) if isinstance(value, str) else value
            return LIMITS[key](value, f"{place}.{key}{place_of(self.text, key)}")
        except ValueError as cause:
            raise self.wrong(f"{place}.{key}", "a number", value) from cause
        except RecipeError as cause:
            raise RecipeError(f"{self.where}: {cause}") from cause

    def wrong(self, place: str, expected: str, found: object) -> RecipeError:
        """The error to raise."""
        return RecipeError(f"{self.where}: {place}: expected {expected}, found {repr(found)[:80]}, correct it in the recipe")

    def _say(self, notice: str) -> None:
        self.notices.append(notice)

    def _method(self, step: dict, name: str) -> str:
        """The original compared with "injection" and added for everything else, "addition" or not."""
        said = str(step.get("method", "addition")).strip()
        if said.lower() == "injection":
            return "classic"
        if said.lower() != "addition":
            self._say(f"{name}: method {said!r} is none of the original's; as there, it is addition")
        return "addition"

    def _features(self, step: dict, place: str) -> list:
        there = [key for key in ("features", "styles") if key in step]
        if len(there) != 1 or not isinstance(step[there[0]], list):
            raise self.wrong(place, "its LoRAs as a list, in `features` (`styles` in the first versions)", step.get("features"))
        return step[there[0]]

    def _entries(self, feature: object, place: str, step: dict) -> Iterator[dict]:
        """LoRA entries of our recipe: one, or one for each expert where block_shield treats them differently."""
        if not isinstance(feature, dict) or not isinstance(feature.get("file"), str) or not feature["file"].strip():
            raise self.wrong(place, "an object with the LoRA's `file`", feature)
        check_keys(feature, FEATURE, place, (self.text, self.where))
        name = feature["file"].replace("\\", "/")
        if "weight" not in feature:
            self._say(f"{os.path.basename(name)}: has no weight; 1 is taken, as the original's log said")
        roles, strength = self._roles_of(os.path.basename(name)), self._strength(feature, place)
        path = f"{self.lora_dir.replace(chr(92), '/').rstrip('/')}/{name.lstrip('/')}"
        if not self._is_shielded(step, feature, place):
            yield {"files": dict.fromkeys(roles, path), "strength": {role: strength[role] for role in roles}}
            return
        for role in roles:
            self._say(f"{os.path.basename(name)}: block_shield keeps blocks {next(iter(SHIELD[role]))} of {role} as they are")
            yield {"files": {role: path}, "strength": {role: strength[role]}, "scope": SHIELD[role]}

    def _is_shielded(self, step: dict, feature: dict, place: str) -> bool:
        shield, opened = step.get("block_shield", False), feature.get("modify_skeleton", False)
        if not isinstance(shield, bool) or not isinstance(opened, bool):
            raise self.wrong(place, "block_shield and modify_skeleton as true or false", (shield, opened))
        return shield and not opened

    def _strength(self, feature: dict, place: str) -> dict[str, float]:
        """By role; `weight` is a number, or a text as "1.0;0.5" for high and low."""
        value = feature.get("weight", 1.0)
        parts = value.split(";") if isinstance(value, str) else [value]
        if len(parts) > 2:
            raise self.wrong(f"{place}.weight", "a number, or high;low", value)
        high, low = (self.number({"weight": part}, "weight", 1.0, place) for part in (parts[0], parts[-1]))
        return {"high_noise": high, "low_noise": low, "model": high}

    def _roles_of(self, name: str) -> tuple[str, ...]:
        """The experts a LoRA goes on: those of the recipe; where these are both, the one its own name says."""
        said = role_of(name, {}, exists=lambda _: False)
        if len(self.roles) == 2 and said.role:
            self._say(f"{name}: goes on {said.role} ({said.evidence})")
            return (said.role,)
        if said.role and "model" not in self.roles and said.role not in self.roles:
            self._say(f"{name}: its name says {said.role}, the recipe puts it on {self.roles[0]}; look whether that is meant")
        return self.roles
