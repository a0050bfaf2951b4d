"""A base's metadata `config`: what ComfyUI computes with must be what it takes it for."""
import json

import pytest
import torch
from wan22_master.engine.bases.settings import read_settings
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.bases.variant import detect
from wan22_master.engine.errors import SourceError
from wan22_master.tests.engine import tiny


def base(tmp_path, settings):
    return tiny.save(tmp_path / "m.safetensors", tiny.base(), {"config": json.dumps({"transformer": settings})})


@pytest.mark.parametrize("key", ["dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim"])
@pytest.mark.parametrize("value", [[], "a/b", "16", 0, -16, 16.0, True, None, {}])
def test_a_count_that_is_none_is_refused_with_file_key_and_value(tmp_path, key, value):
    with open_source(base(tmp_path, {key: value})) as source, \
            pytest.raises(SourceError, match=rf"m\.safetensors: metadata config: {key}: expected a whole number above 0, found "):
        detect(source)


@pytest.mark.parametrize("value", [[], 3, None, True])
def test_a_model_type_that_is_no_text_is_refused(tmp_path, value):
    with open_source(base(tmp_path, {"model_type": value})) as source, \
            pytest.raises(SourceError, match="metadata config: model_type: expected a text, found"):
        detect(source)


def test_other_settings_are_whatever_they_are(tmp_path):
    settings = {"patch_size": [1, 2, 2], "eps": 1e-6, "causal_ar": False, "note": None, "in_dim": 16}
    with open_source(base(tmp_path, settings)) as source:
        assert read_settings(source) == settings and detect(source).in_dim == 16
    with open_source(tiny.save(tmp_path / "plain.safetensors", {key: tensor.to(torch.bfloat16) for key, tensor in
                                                                tiny.base().items()})) as source:
        assert read_settings(source) == {}
