"""Public checkpoints of methods that keep detail, known by their names of weights, and refused by name.

HFGI (Tengfei-Wang/HFGI), HyperStyle (yuval-alaluf/hyperstyle), StyleFeatureEditor (AIRI-Institute/StyleFeatureEditor).
Ours are smaller networks of the same ideas for small pictures; theirs have no class here, and half of one is no method.
"""

from stx.checkpoints.tensors import State
from stx.files.errors import WeightsError

OURS = "train ours for your domain with `stx train detail DOMAIN --method"
E4E = "convert the e4e file it is built on"
PUBLIC = {  # beginnings of names that a file of a method has, its name, what can be done instead
    "HFGI": (("residue.conv_layer1.", "grid_align.conv_layer1."), f"{E4E} for its codes, or {OURS} hfgi`"),
    "HyperStyle": (("hypernet.refinement_blocks.",), f"{E4E} for its codes, or {OURS} hyperstyle`"),
    "StyleFeatureEditor": (("inverter.fs_backbone.", "inverter.fuser."), f"{OURS} features`, then feature_editor"),
    "StyleFeatureEditor (its inverter, phase one)": (("encoder.fs_backbone.", "encoder.fuser."), f"{OURS} features`"),
}


def refuse_detail(state: State, source: str) -> None:
    """Raises `WeightsError` in one line for a checkpoint of one of these methods, with its name and what to do."""
    for name, (beginnings, remedy) in PUBLIC.items():
        if all(any(key.startswith(beginning) for key in state) for beginning in beginnings):
            raise WeightsError(f"{source}: a checkpoint of {name}, which is not read; {remedy}")
