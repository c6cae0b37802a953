"""Verdicts follow from intervals, and a notebook replaces only its own claims."""

import math

import pandas as pd
import pytest

from stx import claims, figures
from stx.claims import Claim


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
