"""stx: Style Transformer for Image Inversion and Editing (Hu et al., CVPR 2022), reproducible."""

from stx.pipeline import Pipeline, load, pick_device

__all__ = ["Pipeline", "load", "pick_device"]
