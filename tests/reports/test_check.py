"""Whether a run agrees with what is committed: rounding, intervals, times, missing rows, other parameters, claims."""

import re

import numpy as np
import pandas as pd
import pytest

from stx import cli
from stx.files.errors import InputError
from stx.files.places import ROOT
from stx.reports import check, claims, figures, scales
from stx.reports.claims import Evidence


def write(folder, name, table, **parameters):
    record = figures.provenance(notebook=name, **parameters)
    figures.save_table(table, name, folder, record)


def quality(l2: float, seconds: float = 1.0) -> pd.DataFrame:
    rows = {"method": ["pSp", "ours"], "L2": [0.5, l2], "L2 low": [0.4, l2 - 0.1], "L2 high": [0.6, l2 + 0.1]}
    return pd.DataFrame(rows | {"s per picture": seconds, "pictures": 4})


def claim(difference: float) -> Evidence:
    ends = difference - 0.1, difference + 0.1
    p = 0.5 if ends[0] < 0 < ends[1] else 0.001
    return Evidence("ours is better", "4.1", "L2", "L2", difference, *ends, p, 9, "03")


@pytest.fixture
def folders(tmp_path):
    for name in ("committed", "run"):
        write(tmp_path / name, "03_quality", quality(0.3))
        claims.save([claim(0.2)], tmp_path / name, figures.provenance(notebook="03"))
    return tmp_path / "run", tmp_path / "committed"


def test_the_same_run_is_reproduced(folders, capsys):
    assert cli.main(["check", str(folders[0]), "--against", str(folders[1])]) == 0
    assert "reproduced: 4 of 4 numbers, 1 of 1 claims" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "agreed"),
    {
        "rounding": (quality(0.3 * (1 + 1e-4)), 4),
        "another machine": (quality(0.3, seconds=9.0), 4),
        "within the interval": (quality(0.36), 4),
        "beyond the interval": (quality(0.45), 3),
        "not a number": (quality(np.nan), 3),
        "a row is missing": (quality(0.3)[:1], 2),
        "a column is missing": (quality(0.3).drop(columns="L2"), 2),
        "another order of rows": (quality(0.3)[::-1], 4),
    }.values(),
)
def test_what_differs_is_counted(folders, table, agreed, capsys):
    run, committed = folders
    write(run, "03_quality", table)
    numbers, _ = check.compare(run, committed)
    assert (len(numbers), int(numbers["agrees"].sum())) == (4, agreed)
    assert cli.main(["check", str(run), "--against", str(committed)]) == int(agreed < 4)
    assert capsys.readouterr().out.count("differs: ") == 4 - agreed


def test_trainings_that_a_run_lacks_are_left_out(folders):
    """The committed table has three trainings of two methods; the run has two of one, of which one number differs."""
    run, committed = folders
    rows = [
        [name, training, loss + training] for name in ("pSp", "e4e") for training, loss in enumerate((0.5, 0.7, 0.2))
    ]
    table = pd.DataFrame(rows, columns=["method", "training", "loss"])
    write(committed, "04_budgets", table)
    write(run, "04_budgets", table.iloc[[5, 3, 0]].assign(loss=[2.2, 0.6, 0.5]))
    numbers = check.compare(run, committed)[0].query("table == '04_budgets' and column == 'loss'")
    found = [["pSp, training 0", True], ["e4e, training 0", False], ["e4e, training 2", True]]
    assert numbers[["row", "agrees"]].to_numpy().tolist() == found
    write(run, "04_budgets", table[table["method"] == "pSp"])  # a method that is missing is told, once for each
    numbers = check.compare(run, committed)[0].query("table == '04_budgets' and column == 'loss'")
    assert list(numbers["agrees"]) == [True] * 3 + [False] * 3
    write(run, "04_budgets", table.assign(training=7))
    assert check.compare(run, committed)[0].query("table == '04_budgets'").empty


def test_means_of_other_numbers_of_trainings_are_left_out(folders):
    table = pd.DataFrame({"method": ["pSp", "e4e"], "trainings": [3, 3], "L2": [0.1, 0.2]})
    write(folders[1], "04_trainings", table)
    write(folders[0], "04_trainings", table.assign(trainings=[3, 1], L2=[0.1, 0.3]))
    numbers = check.compare(*folders)[0].query("table == '04_trainings' and column == 'L2'")
    assert numbers[["row", "agrees"]].to_numpy().tolist() == [["pSp, trainings 3", True]]


def test_a_table_without_rows(folders):
    for folder in folders:
        write(folder, "04_differences", pd.DataFrame(columns=["method", "metric", "difference"]))
    assert set(check.compare(*folders)[0]["table"]) == {"03_quality"}


def test_a_missing_table_is_named_though_its_figure_is_there(folders):
    write(folders[1], "03_quality", quality(0.3))
    write(folders[1], "04_rate", quality(0.3))
    (folders[0] / "04_rate.json").write_text((folders[1] / "04_rate.json").read_text())
    assert check.unlike(*folders) == ["04_rate"]


def test_another_verdict_is_told(folders, capsys):
    run, committed = folders
    claims.save([claim(0.05)], run, figures.provenance(notebook="03"))
    assert cli.main(["check", str(run), "--against", str(committed)]) == 1
    assert "claim 'ours is better': holds committed, undecided in this run" in capsys.readouterr().out


def test_claims_that_a_run_lacks_differ(folders, capsys):
    run, committed = folders
    (run / "claims.csv").unlink()
    assert cli.main(["check", str(run), "--against", str(committed)]) == 1
    assert "0 of 1 claims" in capsys.readouterr().out


def test_words_where_numbers_were_differ(folders):
    run, committed = folders
    write(run, "03_quality", quality(0.3).astype({"L2": object}).assign(L2="far"))
    numbers, _ = check.compare(run, committed)
    assert not numbers[numbers["column"] == "L2"]["agrees"].any()
    write(run, "03_quality", quality(0.3).rename(columns={"method": "encoder"}))
    assert len(check.compare(run, committed)[0]) == 4


@pytest.mark.parametrize(
    ("scale", "difference", "agrees"),
    [("quick", 0.05, True), ("quick", -0.2, False), ("evidence", 0.05, False), ("quick", 0.2, True)],
)
def test_fewer_pictures_may_leave_a_claim_undecided(folders, scale, difference, agrees):
    run, committed = folders
    claims.save([claim(0.2)], committed, figures.provenance(notebook="03", scale="evidence"))
    claims.save([claim(difference)], run, figures.provenance(notebook="03", scale=scale))
    _, verdicts = check.compare(run, committed)
    assert list(verdicts["agrees"]) == [agrees]


def test_one_notebook_at_another_scale_may_leave_every_claim_undecided(folders):
    """Holm's correction is over all claims; the record of the table is of the notebook that wrote it last."""
    run, committed = folders
    for folder, difference in ((committed, 0.2), (run, 0.05)):
        figures.save_table(quality(0.1), "08_table", folder, figures.provenance(notebook="08", scale="quick"))
        claims.save([claim(difference)], folder, figures.provenance(notebook="03", scale="quick"))
    assert not check.compare(run, committed)[1]["agrees"].any()
    figures.save_table(quality(0.1), "08_table", committed, figures.provenance(notebook="08", scale="evidence"))
    assert check.compare(run, committed)[1]["agrees"].all()


def test_tables_of_other_parameters_are_named_and_not_compared(folders):
    run, committed = folders
    write(run, "06_shown", quality(0.1), pictures=6)
    write(committed, "06_shown", quality(0.2), pictures=128)
    write(committed, "07_reference", quality(0.2))
    numbers, _ = check.compare(run, committed)
    assert set(numbers["table"]) == {"03_quality"}
    assert check.unlike(run, committed) == ["06_shown", "07_reference"]


def test_at_another_scale_both_intervals_count(tmp_path):
    """1,024 pictures beside 2,048: what has no interval, or falls with more pictures, is left out.

    L2: a gap of .11, where the sides that face each other are .10 and .03 (2.1 standard errors); ID: .2, of .1 and .09
    (2.9). Of two numbers 2.24 may be by chance.
    """
    metrics = ["L2", "ID", "MS-SSIM", "FD-VGG16", "share of all"]
    quick = {
        "metric": metrics,
        "value": [0.30, 0.9, 0.5, 40.0, 1.0],
        "low": [0.2, 0.8, np.nan, 30, 1.0],
        "high": [0.4, 1, np.nan, 50, 1.0],
    }
    more = {
        "metric": metrics,
        "value": [0.41, 0.7, 0.5, 20.0, 0.98],
        "low": [0.38, 0.6, np.nan, 19, 0.97],
        "high": [0.44, 0.79, np.nan, 21, 0.99],
    }
    for folder, table, count, scale in (("run", quick, 1024, "quick"), ("committed", more, 2048, "evidence")):
        record = figures.provenance(notebook="03_inversion_quality", count=count, scale=scale, seed=0)
        figures.save_table(pd.DataFrame(table), "03_quality", tmp_path / folder, record)
        assert f" at {scale} scale on " in (tmp_path / folder / "03_quality.md").read_text()
    numbers, _ = check.compare(tmp_path / "run", tmp_path / "committed")
    assert dict(zip(numbers["row"], numbers["agrees"], strict=True)) == {"L2": True, "ID": False}
    assert check.unlike(tmp_path / "run", tmp_path / "committed") == []


@pytest.mark.parametrize(("value", "wrong"), [(0.4, 0), (0.9, 1)])
def test_of_many_numbers_some_intervals_miss_each_other_by_chance(tmp_path, value, wrong):
    """Three standard errors are nothing among two thousand numbers; eight are."""
    names = [f"method {n}" for n in range(2000)]
    for folder, values, count in (("run", [value, *[0.0] * 1999], 1024), ("committed", [0.0] * 2000, 2048)):
        table = pd.DataFrame({"method": names, "value": values})
        table = table.assign(low=table["value"] - 0.18, high=table["value"] + 0.18)
        record = figures.provenance(notebook="03_inversion_quality", count=count)
        figures.save_table(table, "03_quality", tmp_path / folder, record)
    numbers, _ = check.compare(tmp_path / "run", tmp_path / "committed")
    assert (len(numbers), int((~numbers["agrees"]).sum())) == (2000, wrong)


def with_effort(folder, name: str, table: pd.DataFrame, **parameters):
    record = figures.provenance(notebook="04_inversion_table", count=96, **parameters)
    figures.save_table(table, name, folder, record)


def test_rows_of_another_effort_are_not_compared(tmp_path):
    """Searches of 80 and of 400 steps are other methods; the encoder beside them is the same, here with a fault."""
    for folder, steps, ours in (("run", 80, 0.9), ("committed", 400, 0.3)):
        table = quality(ours).assign(method=["optimisation, W", "ours"])
        with_effort(tmp_path / folder, "04_table", table, search_steps=steps)
        with_effort(tmp_path / folder, "04_trainings", quality(0.3), search_steps=steps)
    numbers, _ = check.compare(tmp_path / "run", tmp_path / "committed")
    assert check.unlike(tmp_path / "run", tmp_path / "committed") == ["04_table (1 of 2 rows)"]
    assert set(numbers["row"][numbers["table"] == "04_table"]) == {"ours"}
    assert set(numbers["row"][numbers["table"] == "04_trainings"]) == {"pSp", "ours"}
    assert numbers.query("not agrees")[["table", "row", "column"]].to_numpy().tolist() == [["04_table", "ours", "L2"]]


def test_a_table_that_hangs_on_another_effort_is_not_compared(tmp_path):
    """Directions of edits fitted on fewer pictures are others; the inversions below them are not."""
    for folder, sampled in (("run", 2048), ("committed", 8192)):
        with_effort(tmp_path / folder, "04_editability", quality(0.3), sampled=sampled)
        with_effort(tmp_path / folder, "04_table", quality(0.3), sampled=sampled)
    assert check.unlike(tmp_path / "run", tmp_path / "committed") == ["04_editability"]
    assert set(check.compare(tmp_path / "run", tmp_path / "committed")[0]["table"]) == {"04_table"}


@pytest.mark.parametrize("name", ["04_table", "11_table"])
def test_rows_of_effort_are_those_of_searches(name):
    """The titles of all methods, encoders and searches, are told apart by the words of `scales.EFFORTS`."""
    table = figures.read_table(ROOT / "figures" / f"{name}.csv")
    searched = table["method"].map(lambda title: bool(re.search(scales.EFFORTS["search_steps"], title)))
    assert searched.any() and (searched == (table["pictures"] < table["pictures"].max())).all()
    assert not re.search(scales.EFFORTS["search_steps"], "04_table, L2, Research encoder")


def test_searches_of_another_processor_are_compared_by_their_intervals(folders):
    """Rounding grows in a search: in 11_refined two processors gave .1015 and .1022, with no interval there."""
    table = pd.DataFrame({"method": ["W+ search from there", "ours"], "L2": [0.1015, 0.1015], "ID": 0.5})
    ends = {"ID low": 0.4, "ID high": 0.6}
    write(folders[1], "11_refined", table.assign(**ends))
    low = {"ID low": [0.6, 0.4], "ID high": [0.8, 0.6]}
    write(folders[0], "11_refined", table.assign(**low, L2=[0.1022, 0.1022], ID=[0.7, 0.5]))
    found = check.compare(*folders)[0].query("table == '11_refined'")
    wrong = found[~found["agrees"]][["row", "column"]].to_numpy().tolist()
    assert len(found) == 3 and wrong == [["ours", "L2"], ["W+ search from there", "ID"]]


def test_editors_of_fewer_updates_are_left_out_and_what_was_not_trained_is_not(tmp_path):
    for folder, steps in (("run", 400), ("committed", 2000)):
        table = quality(0.3).assign(method=["paper form", "matched pairs"], pictures=steps)
        record = figures.provenance(notebook="07_reference_editing", count=96, steps=steps)
        figures.save_table(table, "07_reference", tmp_path / folder, record)
    numbers, _ = check.compare(tmp_path / "run", tmp_path / "committed")
    assert set(numbers["row"]) == {"matched pairs"}


@pytest.mark.parametrize(("difference", "agrees"), [(0.05, True), (-0.2, False)])
def test_another_effort_may_leave_a_claim_undecided(folders, difference, agrees):
    for folder, steps, size in ((folders[0], 80, difference), (folders[1], 400, 0.2)):
        with_effort(folder, "04_table", quality(0.3), search_steps=steps)
        claims.save([claim(size)], folder, figures.provenance(notebook="03"))
    assert list(check.compare(*folders)[1]["agrees"]) == [agrees]


def test_an_end_of_an_interval_that_lies_on_its_number_is_not_certain(tmp_path):
    """Half a width of .03 stands in for a side of none: the gap of .03 is 1.5 standard errors, not five."""
    ends = {"committed": (0.71, 0.65, 0.71), "run": (0.74, 0.73, 0.75)}
    for (folder, row), count in zip(ends.items(), (2048, 64), strict=True):
        table = pd.DataFrame([["add", *row]], columns=["way", "share", "share low", "share high"])
        record = figures.provenance(notebook="04_inversion_table", count=count)
        figures.save_table(table, "11_edits", tmp_path / folder, record)
    assert check.compare(tmp_path / "run", tmp_path / "committed")[0]["agrees"].all()


def test_cells_that_are_empty_name_a_row_too(tmp_path):
    table = pd.DataFrame({"method": ["a", "a"], "better": ["lower", None], "value": [1.0, 2.0]})
    for name in ("run", "committed"):
        write(tmp_path / name, "04_table", table)
    numbers, verdicts = check.compare(tmp_path / "run", tmp_path / "committed")
    assert len(numbers) == 2 and numbers["agrees"].all() and verdicts.empty


def test_folders_with_nothing_in_common(tmp_path, folders):
    with pytest.raises(InputError, match="no table that is in"):
        check.compare(tmp_path / "nowhere", folders[1])
