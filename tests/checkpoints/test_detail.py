"""Public checkpoints of HFGI, HyperStyle and StyleFeatureEditor are refused by name, in a line that says what to do."""

import pytest
import torch

from stx.checkpoints import convert
from stx.files.errors import WeightsError

KEYS = {  # a few names of weights as the modules of the public code make them
    "HFGI": ["encoder.input_layer.0.weight", "residue.conv_layer1.0.weight", "grid_align.conv_layer1.0.weight"],
    "HyperStyle": [
        "hypernet.conv1.weight",
        "hypernet.shared_weight_hypernet.w1",
        "hypernet.refinement_blocks.14.convs.0.weight",  # some layers have none
        "decoder.input.input",
    ],
    "StyleFeatureEditor": [
        "encoder.conv.weight",
        "encoder.body.0.body.1.weight",
        "inverter.fs_backbone.content_layer.1.weight",
        "inverter.fuser.conv.weight",
        "e4e_encoder.input_layer.0.weight",
    ],
    "phase one": ["encoder.fs_backbone.styles.0.weight", "encoder.fuser.body.0.body.1.weight", "decoder.input.input"],
}


@pytest.mark.parametrize("name", KEYS)
def test_public_checkpoints_are_refused_by_name(name, tmp_path):
    path = tmp_path / "public.pt"
    torch.save({"state_dict": {key: torch.zeros(2, 2) for key in KEYS[name]}, "latent_avg": torch.zeros(18, 512)}, path)
    with pytest.raises(WeightsError) as caught:
        convert.read(path)
    told = str(caught.value)
    assert name in told and "stx train detail" in told and "\n" not in told
    assert told.count(str(path)) == 1


def test_a_part_of_the_names_is_no_checkpoint_of_them(tmp_path):
    path = tmp_path / "public.pt"
    torch.save({"state_dict": {"residue.conv_layer1.0.weight": torch.zeros(2)}}, path)
    with pytest.raises(WeightsError, match="not a checkpoint of a known form"):
        convert.read(path)
