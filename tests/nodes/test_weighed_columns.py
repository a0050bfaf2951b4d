"""What Quantize says of the columns that are weighed, on files that are written here."""
import torch
from wan22_master.engine.calibration import sensitivity_json
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.sensitivity_json import WEIGHTS, Sensitivity, path_of
from wan22_master.engine.calibration.session import Session
from wan22_master.engine.imatrix_writer import Sum, write_imatrix
from wan22_master.engine.recipes.output import parse_output
from wan22_master.nodes.handles import Calibration
from wan22_master.nodes.weighed_columns import weighed_lines, weights_in
from wan22_master.tests.engine.calibration.small_session import record

LAYERS = [f"blocks.{block}.ffn.{part}" for block in range(3) for part in (0, 2)]
HELD = LAYERS[:4]


def said(folder, roles=("model",), name="w.gguf", **fields) -> list[str]:
    paths = {role: str(folder / name.replace("ROLE", role)) for role in roles}
    for path in paths.values():
        write_imatrix(path, {f"{layer}.weight": Sum(torch.ones(4), 1) for layer in HELD})
    output = parse_output({"format": "nvfp4", "experts": list(roles), "imatrix": paths, **fields})
    return weighed_lines(output, dict.fromkeys(roles, LAYERS))


def test_layers_count_that_are_of_a_format_that_weighs_and_in_the_file(tmp_path):
    assert said(tmp_path) == ["columns of 4 of the 6 layers weighed by w.gguf"]
    whole = dict.fromkeys(LAYERS[2:], "int8_tensorwise")
    assert said(tmp_path, layers={"model": whole}) == ["columns of 2 of the 6 layers weighed by w.gguf"]


def test_where_no_layer_is_weighed_it_says_why(tmp_path):
    assert said(tmp_path, format="int8_tensorwise") == ["w.gguf is not used: no layer is of a format that weighs columns"]
    mixed = dict.fromkeys(HELD, "int8_tensorwise")
    assert said(tmp_path, layers={"model": mixed}) == [
        "w.gguf is not used: it holds none of the 2 layers whose formats weigh columns"]


def test_a_calibration_is_told_by_its_name_for_each_expert(tmp_path):
    roles = ("high_noise", "low_noise")
    sensitivity_json.write(tmp_path, "high_noise", Sensitivity("m", "t2v", 3, "calib_01", "x", 2.0, 4), {})
    assert said(tmp_path, roles, "ROLE_imatrix.gguf") == [
        "columns of 4 of the 6 layers of high_noise weighed by calibration calib_01 of 3 prompts",
        "columns of 4 of the 6 layers of low_noise weighed by low_noise_imatrix.gguf"]


def test_no_number_of_a_calibration_is_told_before_the_formats_are_known(tmp_path):
    session = Session.create(tmp_path, "calib_01")
    for role, weighed in (("high_noise", 76), ("low_noise", 0)):
        record(session, role, [1.0], prompt="p")
        state = gather(session, role).state
        sensitivity_json.write(session.folder, role, Sensitivity("m", "t2v", 1, session.name, state, 2.0, weighed), {})
    path = path_of(session.folder, "high_noise", WEIGHTS)
    open(path, "w").close()
    found, lines = weights_in(Calibration(session.folder, session.name), ("high_noise", "low_noise"))
    assert found == {"high_noise": path} and len(lines) == 1
    assert lines[0].startswith("low_noise: weighing columns helps in no layer")
