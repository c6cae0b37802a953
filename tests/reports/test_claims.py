"""Verdicts follow from intervals, and a notebook replaces only its own claims."""

import math

import numpy as np
import pandas as pd
import pytest

from stx.reports import claims, figures
from stx.reports.claims import Claim


def claim(text: str, low: float, high: float, notebook: str = "08") -> Claim:
    return Claim(text, "figure 9", "sigmas", (low + high) / 2, low, high, notebook)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 0.4, "holds"),
        (-0.4, -0.1, "does not hold"),
        (-0.1, 0.1, "undecided"),
        (0.0, 0.1, "undecided"),
        (math.nan, math.nan, "undecided"),
    ],
)
def test_verdicts(low, high, verdict):
    assert claim("x", low, high).verdict == verdict


def test_a_notebook_replaces_its_own_claims_only(tmp_path):
    record = figures.provenance(notebook="test")
    claims.save([claim("a", 1, 2, "04")], tmp_path, record)
    claims.save([claim("b", 1, 2, "08"), claim("c", -2, -1, "08")], tmp_path, record)
    table = claims.save([claim("d", 1, 2, "08")], tmp_path, record)
    assert list(table["claim"]) == ["a", "d"]
    assert list(pd.read_csv(tmp_path / "claims.csv")["verdict"]) == ["holds", "holds"]
    assert "| d " in (tmp_path / "claims.md").read_text()


def test_measured_claims_have_the_interval_of_their_mean():
    gaps = np.random.RandomState(0).normal(0.3, 1, 400)
    found = claims.measured("nearer", "section 4.2", "L2", gaps, "04", seed=1)
    assert found.difference == pytest.approx(gaps.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * gaps.std() / 20, rel=0.15)
    assert found.verdict == "holds"
    counted = claims.measured("smaller", "section 4.2", "M parameters", np.array([7.0]), "04")
    assert (counted.low, counted.difference, counted.high) == (7, 7, 7)
