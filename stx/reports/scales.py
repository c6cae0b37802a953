"""How much a notebook measures: one table of the sizes that its parameters get where they are 0.

`smoke` shows that everything runs, `quick` ends in minutes (`make reproduce`), `evidence` takes hours and is what is
cited (`make evidence`).
"""

import json
from pathlib import Path
from typing import Any

from stx.files.errors import InputError

SCALES = ("smoke", "quick", "evidence")
# Sizes that change what is measured, not only on how much, with the tables and rows that they bear on (a regular
# expression over "table, row"): numbers of other efforts are not held against each other
EFFORTS = {
    "search_steps": r"\b(optimisation|search|PTI)\b",
    "sampled": r"^(04_editability|08_)",
    "codes": r"\b(form|Editing in Style)\b",
    "steps": r"\bform\b",
    "parts": r"\bEditing in Style\b",
} | dict.fromkeys(["flow_steps", "transformer_steps", "contrastive_steps", "levels"], "^08_")
SIZES = {  # notebook -> parameter -> its size at each of SCALES
    "00_domain": {"count": (64, 1024, 2048), "pairs": (16, 256, 1024)},
    "01_generator": {"count": (32, 768, 2048)},
    "03_inversion_quality": {"count": (16, 1024, 2048), "resamples": (20, 1000, 2000), "set_resamples": (3, 30, 100)},
    "04_inversion_table": {
        "count": (6, 96, 2048),
        "searched": (2, 6, 32),
        "search_steps": (2, 80, 400),
        "resamples": (20, 1000, 2000),
        "set_resamples": (2, 10, 100),
        "edits": (1, 3, 6),
        "edited_pictures": (3, 24, 256),
        "sampled": (120, 2048, 8192),
    },
    "05_latent_classifier": {"count": (24, 1024, 2048), "trainings": (1, 1, 3)},
    "06_label_editing": {"count": (12, 48, 512), "pictures": (1, 6, 64), "drawn": (0, 0, 160)},
    "07_reference_editing": {
        "count": (48, 512, 2048),
        "codes": (32, 1024, 8192),
        "steps": (2, 400, 2000),
        "parts": (3, 12, 12),
        "pairs_each": (2, 24, 128),
        "trainings": (1, 1, 3),
    },
    "08_attribute_dependency": {
        "count": (4, 4, 64),
        "sampled": (120, 2048, 8192),
        "spread": (32, 512, 4096),
        "levels": (2, 4, 6),
        "resamples": (20, 1000, 2000),
        "flow_steps": (2, 60, 1000),
        "transformer_steps": (2, 300, 3000),
        "contrastive_steps": (2, 60, 1000),
    },
    "11_detail": {
        "count": (16, 64, 2048),
        "searched": (2, 4, 32),
        "search_steps": (3, 50, 400),
        "pictures": (1, 1, 64),
        "drawings": (4, 16, 256),
        "photographs": (2, 12, 1000),
        "resamples": (20, 1000, 2000),
        "set_resamples": (3, 20, 100),
    },
}
SCORE = {  # the same for `stx score`
    "count": (12, 96, 2048),
    "searched": (2, 6, 32),
    "pictures": (1, 4, 64),
    "tried": (1, 2, 16),
    "sampled": (64, 2048, 8192),
    "resamples": (20, 1000, 2000),
}


def sizes(notebook: str, given: dict[str, Any]) -> dict[str, int]:
    """The sizes of a notebook that `given`, values by name, leaves at 0, by its `scale` ("quick" or "evidence").

    `smoke`, where it is true, goes before the scale. Raises `InputError` for another scale.
    """
    scale = given.get("scale", "quick")
    if scale not in SCALES[1:]:
        raise InputError(f"scale is {scale!r}, expected {' or '.join(SCALES[1:])}")
    at = 0 if given.get("smoke") else SCALES.index(scale)
    return {name: by_scale[at] for name, by_scale in SIZES.get(notebook, {}).items() if not given[name]}


def told(parameters: dict[str, Any]) -> str:
    """The scale that a record's parameters say, "smoke" among them; "quick" where they are older than scales."""
    return "smoke" if parameters.get("smoke") else str(parameters.get("scale", "quick"))


def by_figure(folder: Path) -> dict[str, str]:
    """The scale of each figure and table that notebooks left in a folder, by name."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            given = json.loads(path.read_text(encoding="utf-8"))["parameters"]
            found |= {path.stem: told(given)} if "notebook" in given else {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue  # of somebody else
    return found
