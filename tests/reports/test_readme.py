"""The README's places: filled from the tables, told when stale, refused when they cannot be filled."""

from pathlib import Path

import pandas as pd
import pytest

from stx import cli
from stx.files.errors import InputError
from stx.reports import readme

TEXT = "Before <!-- stx: {} -->{}<!-- /stx --> after."


@pytest.fixture
def figures(tmp_path) -> Path:
    rows = [["a", "add", 0.5, 0.4, 0.625], ["a", "remove", 0.75, 0.7, 0.8], ["b", "add", 0.001234, 0.0, 0.1]]
    table = pd.DataFrame(rows, columns=["method", "way", "shown", "shown low", "shown high"])
    table.to_csv(tmp_path / "06_x.csv", index=False)
    pd.DataFrame({"difference": [-2.0], "low": [-3.0], "high": [-1.0]}).to_csv(tmp_path / "one.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("06_x shown method=b .3g", "0.00123"),
        ("06_x shown method=a way=add .0%", "50 %"),
        ("06_x shown method=a way=add interval .2f", "0.50 (0.40 to 0.62)"),
        ("06_x shown method=a mean .1%", "62.5 %"),
        ("06_x shown method!=a .1g", "0.001"),
        ("06_x shown max .2f", "0.75"),
        ("06_x method count d", "3"),
        ("one difference interval .0f", "-2 (-3 to -1)"),
    ],
)
def test_a_place_is_filled_from_its_table(words, told, figures):
    filled, stale = readme.fill(TEXT.format(words, "old"), figures)
    assert filled == TEXT.format(words, told)
    assert stale == [words]
    assert readme.fill(filled, figures) == (filled, [])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("06_x shown method=c .3g", "0 rows of 06_x are left; expected one"),
        ("06_x shown method=a .3g", "2 rows of 06_x are left"),
        ("06_x shwn method=b .3g", "no column 'shwn'; it has: method, way, shown"),
        ("06_x shown kind=b .3g", "no column 'kind'"),
        ("06_x shown middle .3g", "'middle': expected KEY=VALUE"),
        ("06_x shown method=b 3q", "the place '06_x shown method=b 3q'"),
        ("nothing shown .3g", "nothing.csv: not a readable table"),
        ("table nothing", "the place 'table nothing'"),
        ("06_x", "the place '06_x'"),
    ],
)
def test_a_place_that_cannot_be_filled_is_named(words, match, figures):
    with pytest.raises(InputError, match=match):
        readme.fill(TEXT.format(words, ""), figures)


def test_a_place_that_is_not_closed_is_refused(figures):
    with pytest.raises(InputError, match="1 places begin"):
        readme.fill("<!-- stx: one low d -->", figures)


def test_stale_numbers_are_told_and_filled(figures, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text(TEXT.format("one low d", "-4"))
    words = ["readme", str(page), "--figures", str(figures)]
    assert cli.main([*words, "--check"]) == 1
    assert "stale: one low d" in capsys.readouterr().out
    assert page.read_text() == TEXT.format("one low d", "-4")
    assert cli.main(words) == 0
    assert page.read_text() == TEXT.format("one low d", "-3")
    assert cli.main([*words, "--check"]) == 0
    page.write_text(TEXT.format("one lo d", ""))
    assert cli.main(words) == 2
    assert "stx: the place 'one lo d': one has no column 'lo'" in capsys.readouterr().err


def test_tables_are_markdown(figures):
    (figures / "03_quality.csv").write_text("metric,value,low,high,better\nL2,0.0123456,0.01,0.02,lower\n")
    filled, _ = readme.fill(TEXT.format("table quality", ""), figures)
    assert "\n| metric | value | 95 % interval | better |\n| --- | --- | --- | --- |\n" in filled
    assert "| L2 | 0.0123 | 0.01 to 0.02 | lower |\n<!-- /stx -->" in filled
