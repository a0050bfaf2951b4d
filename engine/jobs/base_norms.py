"""‖W‖² of a base's tensors as an earlier reading found them, by the base's content: an analysis never reads a weight for them."""
import hashlib
import json
from pathlib import Path

from ..system import write_json
from .targets import RECORD as VERSION
from .targets import recall


def _path(reports: Path, source) -> Path:
    content = json.dumps(source.identity()["files"], sort_keys=True)
    return Path(reports) / f"base-{hashlib.sha256(content.encode()).hexdigest()}.json"


def keep(reports: Path, source, rows: dict[str, dict]) -> None:
    """Remember ‖W‖² of every tensor that was read. rows: key -> report row with "base"; what is known already stays."""
    norms = recall_norms(reports, source) | {key: row["base"] for key, row in rows.items()}
    Path(reports).mkdir(parents=True, exist_ok=True)
    write_json(_path(reports, source), {"version": VERSION, "norms": norms})


def recall_norms(reports: Path, source) -> dict[str, float]:
    """Key -> ‖W‖² of this very base; empty when nothing measured it yet."""
    said = recall(_path(reports, source))
    return said["norms"] if said and isinstance(said.get("norms"), dict) else {}
