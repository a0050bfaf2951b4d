"""The key of a session: what was calibrated, as it is kept in a session's file. How it is found out: subject.py."""
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from ..errors import RecipeError

BARE = ""                                          # the recipe of a base into which nothing was merged


@dataclass(frozen=True)
class Subject:
    """base: see above; base_name: of its file, for texts; loras: name, sha256, strength with the pass's factor, by their order;
    recipe: digest, or "" where nothing was merged; task: t2v, i2v, ...; size: 14B, ...; stored_as: bf16, float8_e4m3fn, Q8_0, ...
    of the weights that ran; itself: the file that ran, as words, or "" for a merge that is no file."""

    base: str
    base_name: str
    loras: tuple[tuple[str, str, float], ...] = ()
    recipe: str = BARE
    task: str = ""
    size: str = ""
    stored_as: str = ""
    itself: str = ""

    def to_json(self) -> dict:
        """For a session's file."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping) -> "Subject":
        """What `to_json` gave. Raises RecipeError for anything else."""
        try:
            loras = tuple((str(name), str(sha256), float(strength)) for name, sha256, strength in told["loras"])
            return cls(**{**{name: str(value) for name, value in told.items()}, "loras": loras})
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise RecipeError(f"calibration: expected what was calibrated, found {str(told)[:60]}; calibrate anew") from cause
