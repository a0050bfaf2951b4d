"""What Calibration Summary makes of its sources: scales of the model's layers, files, a table and what is drawn."""
import os
from collections.abc import Mapping

from ..engine.calibration.sensitive import Sensitive
from ..engine.calibration.session import Session
from ..engine.calibration.summary import write, write_text
from ..engine.calibration.top import as_text, most_varying, outlier_channels, table
from ..engine.plans.input_scales import InputScales
from ..engine.plans.scales_summary import from_summary
from ..engine.precision import BLOCK_LINEAR
from ..engine.system import legal_name, write_json
from .block_layers import layers_of
from .calibration_plot import Drawn
from .calibration_sources import Source
from .plan_files import CALIBRATION, PLANS, folder_of


def scales_of(source: Source, path: str | None, percentile: float | None, multiplier: float) -> InputScales:
    """Largest input of each block linear, margin included. path: of the model; None: for the layers that the source names."""
    named = [str(row["layer"]) for row in source.rows if BLOCK_LINEAR.fullmatch(f"{row['layer']}.weight")]
    return from_summary(source.summary, named if path is None else layers_of(path), percentile=percentile, multiplier=multiplier)


def on_lists(sensitive: Mapping[str, Sensitive], threshold: float) -> list[str]:
    """A line on each expert's list."""
    return [f"{role}: the original's rule lists {len(each.cross)} layers of cross-attention and {len(each.varying)} more with "
            f"scale_cv of {threshold:g} and above; that is no measure of sensitivity" for role, each in sensitive.items()]


def written(session: Session | None, sources: Mapping[str, Source], lists: Mapping[str, str]) -> list[str]:
    """Write what the sources tell, and say where. lists: role -> text for the plans folder. A summary is not written again."""
    summaries, texts = [], []
    for role, source in sources.items():
        name = legal_name(f"{source.stem}_summary")
        if source.gathered is not None:
            write(source.summary, os.path.join(session.folder, f"{role}_summary"))
            write_json(os.path.join(folder_of(CALIBRATION), f"{name}.json"), source.summary)
        elif not source.is_written:
            write(source.summary, os.path.join(folder_of(CALIBRATION), name))
        if not source.is_written:
            summaries.append(f"{name}.json")
        os.makedirs(folder_of(PLANS), exist_ok=True)
        name = legal_name(f"{source.stem}_sensitive.txt")
        write_text(os.path.join(folder_of(PLANS), name), lists[role])
        texts.append(name)
    by_node = {"Input Scales": summaries, "Precision Plan": texts}
    return ["written: " + "; ".join(f"{' and '.join(names)} for {node}" for node, names in by_node.items() if names)]


def drawn(role: str, source: Source) -> Drawn:
    """With the shares of outlier channels of the layers that the table shows: they are read from the session's files."""
    rows = most_varying(source.rows)
    return Drawn(role, source.rows, outlier_channels(rows, source.gathered) if source.gathered else {})


def tabled(expert: Drawn) -> list[str]:
    """The most varying layers as lines."""
    return as_text(table(most_varying(expert.rows), expert.outliers))
