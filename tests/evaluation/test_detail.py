"""What of detail lives on, by hand."""

import numpy as np
import pandas as pd
import pytest

from stx.evaluation import detail


def test_what_lives_on_is_drawn_by_picture():
    """Gains of 4 before and 2 after in one picture, 2 and 2 in another: two thirds; cases of a picture go together."""
    codes = pd.DataFrame({"before": [5.0] * 8, "after": [5.0] * 8})
    own = pd.DataFrame({"before": [1.0] * 4 + [3.0] * 4, "after": [3.0] * 8})
    positions = np.repeat([7, 3], 4)
    value, low, high = detail.lives_on(own, codes, positions, resamples=200)
    assert value == pytest.approx(2 / 3)
    assert high - low == pytest.approx(1 - 0.5)  # one of the two pictures twice


def test_strangers_are_told_apart_with_an_interval_over_both():
    random = np.random.RandomState(0)
    own, near, far = random.randn(400), np.array([-0.5, 0.5, 1.5]), np.array([9.0, 8.0])
    table = detail.told_apart(own, {"near": near, "far": far}, resamples=200).set_index("pictures")
    assert table.loc["near", "AUROC"] == pytest.approx(np.mean([(own < x).mean() for x in near]))
    assert table.loc["near", "low"] < 0.4 and 0.85 < table.loc["near", "high"] < 0.98  # of the least, of the most
    assert table.loc["far", ["AUROC", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
