"""Verdicts follow from all comparisons of a claim and from the family; a notebook replaces only its own claims."""

import math

import numpy as np
import pandas as pd
import pytest

from stx import cli, resampling
from stx.reports import claims, figures
from stx.reports.claims import Evidence


def line(claim: str, p: float, sign: int = 1, notebook: str = "08", comparison: str = "a") -> Evidence:
    return Evidence(
        claim, "figure 9", comparison, "sigmas", sign * 0.3, sign * 0.3 - 0.1, sign * 0.3 + 0.1, p, 9, notebook
    )


def verdicts(tmp_path, *lines: Evidence) -> dict[str, str]:
    table = claims.save(list(lines), tmp_path, figures.provenance(notebook="test"))
    own = table[table["comparison"] == ""]
    return dict(zip(own["claim"], own["verdict"], strict=True))


@pytest.mark.parametrize(
    ("lines", "verdict"),
    [
        ([line("x", 0.001)], "holds"),
        ([line("x", 0.001, -1)], "does not hold"),
        ([line("x", 0.2)], "undecided"),
        ([line("x", 1.0, 0)], "undecided"),
        ([line("x", 0.9), line("x", 0.9, -1, comparison="b")], "undecided"),  # nothing speaks on either side: p is 1
        ([line("x", 0.001), line("x", 0.04, comparison="b")], "holds"),
        ([line("x", 0.001), line("x", 0.2, comparison="b")], "undecided"),
        ([line("x", 0.001), line("x", 0.001, -1, comparison="b")], "does not hold"),
        ([line("x", 0.001), line("x", 0.03, -1, comparison="b")], "undecided"),  # one of two: twice the p
    ],
)
def test_a_claim_is_all_its_comparisons(lines, verdict, tmp_path):
    assert verdicts(tmp_path, *lines) == {"x": verdict}


def test_comparisons_without_numbers_decide_nothing(tmp_path):
    nothing = resampling.Interval(math.nan, math.nan, math.nan, 1.0, 1)
    found = claims.evidence("x", "figure 9", "a", "sigmas", nothing, "08")
    assert verdicts(tmp_path, found, line("x", 0.001, comparison="b")) == {"x": "undecided"}


def test_the_family_is_all_claims_of_all_notebooks(tmp_path):
    """0.03 alone is enough; beside another claim of 0.04 it is not."""
    assert verdicts(tmp_path, line("a", 0.03, notebook="04")) == {"a": "holds"}
    assert verdicts(tmp_path, line("b", 0.04)) == {"a": "undecided", "b": "undecided"}
    assert verdicts(tmp_path, line("b", 0.001)) == {"a": "holds", "b": "holds"}


def test_the_table_tells_at_which_scale_each_notebook_measured(tmp_path):
    for notebook, scale in (("04_inversion_table", "quick"), ("08_attribute_dependency", "evidence")):
        record = figures.provenance(notebook=notebook, scale=scale)
        figures.save_table(pd.DataFrame({"a": [1.0]}), f"{notebook[:2]}_table", tmp_path, record)
        claims.save([line("a", 0.001, notebook=notebook)], tmp_path, record)
    assert "Scales: 04 quick; 08 evidence." in (tmp_path / "claims.md").read_text()


def test_a_notebook_replaces_its_own_claims_only(tmp_path):
    verdicts(tmp_path, line("a", 0.001, notebook="04"))
    verdicts(tmp_path, line("b", 0.001), line("c", 0.001, -1))
    assert verdicts(tmp_path, line("d", 0.001)) == {"a": "holds", "d": "holds"}
    table = pd.read_csv(tmp_path / "claims.csv")
    assert list(table["verdict"].dropna()) == ["holds", "holds"]
    assert list(table["comparison"].fillna("")) == ["", "a", "", "a"]
    text = (tmp_path / "claims.md").read_text()
    assert "**d** (figure 9)" in text and "· a" in text and "0.3 [0.2, 0.4] sigmas, 9 pictures" in text


def test_a_measured_gap_becomes_a_line():
    gaps = pd.DataFrame({"picture": range(400), "gap": np.random.RandomState(0).normal(0.3, 1, 400)})
    found = claims.evidence("nearer", "section 4.2", "L2", "L2", resampling.mean(gaps, "gap", resamples=999), "04")
    assert found.difference == pytest.approx(gaps["gap"].mean())
    assert (found.p, found.pictures) == (pytest.approx(0.002), 400)


def test_the_claims_of_a_former_version_are_made_anew(tmp_path):
    former = "claim,paper,unit,difference,low,high,notebook,verdict\nold,figure 9,sigmas,0.1,0.0,0.2,04,holds\n"
    verdicts(tmp_path, line("another", 0.001))
    (tmp_path / "claims.csv").write_text(former)
    assert verdicts(tmp_path, line("x", 0.001)) == {"x": "holds"}


def test_runs_side_by_side_tell_where_they_differ(tmp_path):
    verdicts(tmp_path / "faces", line("a", 0.001), line("b", 0.001))
    verdicts(tmp_path / "robots", line("a", 0.001, -1), line("b", 0.001), line("c", 0.2))
    runs = [f"{name}={tmp_path / name}" for name in ("faces", "robots")]
    assert cli.main(["claims", *runs, "--out", str(tmp_path / "both")]) == 0
    table = pd.read_csv(tmp_path / "both" / "claims_side_by_side.csv")
    assert table.to_numpy().tolist() == [
        ["a", "holds", "does not hold", "no"],
        ["b", "holds", "holds", "yes"],
        ["c", "not asked", "undecided", "not asked"],
    ]


def test_a_run_that_was_not_asked_does_not_hide_that_others_differ(tmp_path, capsys):
    for name, signs in {"faces": (1, 1), "robots": (-1, 1), "few": (None, 1)}.items():
        verdicts(tmp_path / name, *(line(claim, 0.001, sign) for claim, sign in zip("ab", signs, strict=True) if sign))
    runs = {name: tmp_path / name for name in ("faces", "robots", "few")}
    table = claims.side_by_side(runs, tmp_path, figures.provenance(notebook="test"))
    assert dict(zip(table["claim"], table["agree"], strict=True)) == {"a": "no", "b": "yes"}
    assert cli.main(["claims", *(f"{name}={path}" for name, path in runs.items()), "--out", str(tmp_path)]) == 0
    assert "1 of 2 claims have one verdict everywhere" in capsys.readouterr().out


def test_where_differences_come_from(tmp_path):
    """Two generators with two trainings each: differences 1 and 3, 5 and 7, each with a standard error of 2."""
    for name, gaps in {"first": (1.0, 3.0), "second": (5.0, 7.0)}.items():
        verdicts(tmp_path / name, line("a", 0.001))
        rows = [["B", "L2", training, gap, 2.0, 9] for training, gap in enumerate(gaps)]
        columns = ["method", "metric", "training", "difference", "standard error", "pictures"]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / name / "04_differences.csv", index=False)
    verdicts(tmp_path / "without", line("a", 0.001))
    robots = pd.DataFrame([["B", "L2", 0, 100.0, 2.0, 9]], columns=columns)
    figures.save_table(robots, "04_differences", tmp_path / "robots", figures.provenance(domain="robots"))
    verdicts(tmp_path / "robots", line("a", 0.001))
    runs = [f"{name}={tmp_path / name}" for name in ("first", "second", "without", "robots")]
    assert cli.main(["claims", *runs, "--out", str(tmp_path / "out")]) == 0
    row = pd.read_csv(tmp_path / "out" / "claims_variance.csv").iloc[0]
    assert (row["difference"], row["runs"], row["trainings"]) == (4, 2, 4)
    assert row["sd, pictures"] == 2 and row["sd, encoder"] == pytest.approx(2**0.5)
    assert row["sd, generator"] == pytest.approx((8 - 2 / 2) ** 0.5)  # means 2 and 6, of two trainings each


def test_a_generator_with_one_training_is_as_uncertain_as_that(tmp_path):
    """Trainings 0, 2, 4 of one generator and 10 of another: of the means' variance it is 4 (1/3 + 1) / 2."""
    columns = ["method", "metric", "training", "difference", "standard error", "pictures"]
    for name, gaps in {"first": (0.0, 2.0, 4.0), "second": (10.0,)}.items():
        rows = [["B", "L2", training, gap, 2.0, 9] for training, gap in enumerate(gaps)]
        table = pd.DataFrame(rows, columns=columns)
        figures.save_table(table, "04_differences", tmp_path / name, figures.provenance(domain="x"))
    runs = {name: tmp_path / name for name in ("first", "second")}
    row = claims.variance(runs, tmp_path / "out", figures.provenance(notebook="test")).iloc[0]
    assert row["sd, generator"] == pytest.approx((32 - 4 * (1 / 3 + 1) / 2) ** 0.5)


def test_without_comparisons_nothing_is_written(tmp_path):
    assert claims.save([], tmp_path, figures.provenance(notebook="test")).empty
    assert not (tmp_path / "claims.csv").exists()
    verdicts(tmp_path, line("a", 0.001))
    assert list(claims.save([], tmp_path, figures.provenance(notebook="test"))["claim"]) == ["a", "a"]


def test_one_run_of_one_training_tells_the_pictures_share_alone(tmp_path):
    rows = [["B", "L2", 0, 1.0, 0.5, 9]]
    columns = ["method", "metric", "training", "difference", "standard error", "pictures"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "04_differences.csv", index=False)
    row = claims.variance({"only": tmp_path}, tmp_path, figures.provenance(notebook="test")).iloc[0]
    assert row["sd, pictures"] == 0.5 and math.isnan(row["sd, encoder"]) and math.isnan(row["sd, generator"])


@pytest.mark.parametrize("runs", [["here"], ["a=x", "a=y"], ["a=nowhere"]])
def test_runs_need_names_and_a_table_of_claims(runs, tmp_path, capsys):
    assert cli.main(["claims", *runs, "--out", str(tmp_path / "out")]) == 2
    assert runs[-1].split("=")[-1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
