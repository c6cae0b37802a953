"""Stored numbers of the public implementations and the rule that makes their weights and inputs from names.

`fill.py` is the rule; each .npz is one case; NOISE.json is the float32 noise of the reference itself.
"""

import functools
import json
from pathlib import Path

import numpy as np
import torch

from tests.golden import fill

HERE = Path(__file__).parent
NOISE = json.loads((HERE / "NOISE.json").read_text())
RTOL = 1e-5


@functools.cache
def case(name: str) -> dict[str, np.ndarray]:
    """The stored arrays of a case."""
    with np.load(HERE / f"{name}.npz") as arrays:
        return dict(arrays)


def normal(case_name: str, name: str, *shape: int) -> torch.Tensor:
    """The named input of a case, float32 normals."""
    return torch.from_numpy(fill.normal(f"in/{case_name}/{name}", shape).astype(np.float32))


def image(case_name: str, name: str, *shape: int) -> torch.Tensor:
    """The named input picture of a case, in [-1, 1]."""
    return torch.from_numpy(fill.image(f"in/{case_name}/{name}", shape))


def assert_golden(case_name: str, arrays: dict, *, whole: bool = False) -> None:
    """Fails when an array differs from the stored one by more than RTOL or five times the reference's own noise.

    whole: every stored array must be among `arrays`.
    """
    golden = case(case_name)
    if not whole:
        golden = {k: v for k, v in golden.items() if k.removesuffix("/grid") in arrays or k.rsplit("/", 1)[0] in arrays}
    assert golden
    rows = fill.compare(golden, arrays, rtol=RTOL, noise=NOISE.get(case_name))
    bad = [(key, worst) for key, worst, ok in rows if not ok]
    assert not bad, bad
