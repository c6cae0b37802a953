"""The numbers of README.md, filled in from the tables: nobody types one.

A place is `<!-- stx: WORDS -->...<!-- /stx -->`, and what stands between is replaced. WORDS are one of

    TABLE COLUMN [KEY=VALUE | KEY!=VALUE]... [mean|median|min|max|count|interval] FORMAT
    table NAME

TABLE is a file of the folder of figures without its ending, or with a "/" one below the repository's root. Rows are
kept that have every VALUE; without a word like `mean` one row has to be left. `interval` adds "(low to high)". FORMAT
is Python's: `.3g`, `,d`, `.0%`. NAME is a table of `TABLES`.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from stx.files.errors import InputError
from stx.files.places import ROOT
from stx.reports.figures import read_table

PLACE = re.compile(r"(<!-- stx: (.*?) -->)(.*?)(<!-- /stx -->)", re.DOTALL)
OPENS, CLOSES = "<!-- stx: ", "<!-- /stx -->"
OF: dict[str, Callable[[pd.Series], float]] = {
    "mean": pd.Series.mean,
    "median": pd.Series.median,
    "min": pd.Series.min,
    "max": pd.Series.max,
    "count": len,
}
METRICS = ("LPIPS-Alex", "L2", "ID", "FD-VGG16")


def fill(text: str, figures: Path) -> tuple[str, list[str]]:
    """A text with every place filled from the tables of a folder, and the words of the places that were stale.

    Raises `InputError` that names the place: for one that is not closed, and for a table, column, row or word that
    is not there.
    """
    if text.count(OPENS) != text.count(CLOSES):
        raise InputError(f"{text.count(OPENS)} places begin with '{OPENS}', {text.count(CLOSES)} end with '{CLOSES}'")
    stale = []

    def replaced(place: re.Match) -> str:
        begins, words, was, ends = place.groups()
        try:
            now = _told(shlex.split(words), figures)
        except (InputError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"the place '{words}': {' '.join(str(error).split())}") from None
        if now != was:
            stale.append(words)
        return begins + now + ends

    return PLACE.sub(replaced, text), stale


def number(value: float | np.integer, form: str) -> str:
    """A number as the README writes it: 0.5 by ".0%" is "50 %"."""
    whole = round(value) if form.endswith("d") else value
    return format(whole, form).replace("%", " %")


def _told(words: list[str], figures: Path) -> str:
    if words[:1] == ["table"]:
        return f"\n{TABLES[words[1]](figures)}\n"
    name, column, *more, form = words
    rows, how = _read(figures, name), ""
    for word in more:
        if word in (*OF, "interval"):
            how = word
            continue
        key, equal, value = word.partition("=")
        if not equal:
            raise InputError(f"'{word}': expected KEY=VALUE, KEY!=VALUE or one of {', '.join((*OF, 'interval'))}")
        is_it = _column(rows, name, key.removesuffix("!")).astype(str) == value
        rows = rows[~is_it if key.endswith("!") else is_it]
    _column(rows, name, column)
    if rows.empty or (len(rows) > 1 and how not in OF):
        raise InputError(f"{len(rows)} rows of {name} are left; expected {'some' if how in OF else 'one'}")
    if how in OF:
        return number(OF[how](rows[column]), form)
    told = number(rows[column].iloc[0], form)
    return f"{told} ({_ends(rows.iloc[0], column, form)})" if how == "interval" else told


def _ends(row: pd.Series, column: str, form: str, to: str = " to ") -> str:
    """ "low to high" of the interval of a column, whose ends are in columns named for it or for the only one."""
    prefix = f"{column} " if f"{column} low" in row else ""
    return f"{number(row[f'{prefix}low'], form)}{to}{number(row[f'{prefix}high'], form)}"


def _column(rows: pd.DataFrame, table: str, name: str) -> pd.Series:
    if name not in rows:
        raise InputError(f"{table} has no column '{name}'; it has: {', '.join(rows)}")
    return rows[name]


def _read(figures: Path, name: str) -> pd.DataFrame:
    return read_table((ROOT if "/" in name else figures) / f"{name}.csv")


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


def _quality(figures: Path) -> str:
    table = _read(figures, "03_quality")
    rows = [[x.metric, number(x.value, ".3g"), f"{x.low:.3g} to {x.high:.3g}", x.better] for x in table.itertuples()]
    return _markdown(["metric", "value", "95 % interval", "better"], rows)


def _inversions(figures: Path) -> str:
    table, rows = _read(figures, "04_table"), []
    for method, part in table.groupby("method", sort=False):
        if method.startswith("Style Transformer,"):
            continue  # an ablation: the claims tell
        of = part.set_index("metric")
        cells = []
        for metric in (*METRICS, "s per picture"):
            has = metric in of.index and pd.notna(of["value"][metric])
            interval = f" ({_ends(of.loc[metric], 'value', '.3g', '–')})" if has and metric == METRICS[0] else ""
            cells.append(number(of["value"][metric], ".3g") + interval if has else "")
        rows.append([method, *cells])
    return _markdown(["method", f"{METRICS[0]} (95 %)", *METRICS[1:], "s per picture"], rows)


def _label_edits(figures: Path) -> str:
    table = _read(figures, "06_landing").set_index(["method", "way"])
    rows = []
    for method in table.index.get_level_values("method").unique().drop("first order, 16"):
        add, remove = table.loc[(method, "add")], table.loc[(method, "remove")]
        shown = [f"{number(add['shown'], '.0%')} ({_ends(add, 'shown', '.0%', '–')})", number(remove["shown"], ".0%")]
        others = [number(way["others right"], ".0%") for way in (add, remove)]
        rows.append([method, *shown, *others, number(add["share of the way"], ".0%")])
    heads = ["method", "shown: add (95 %)", "remove", "others right: add", "remove", "share of the way: add"]
    return _markdown(heads, rows)


def _reference_edits(figures: Path) -> str:
    means = _read(figures, "07_reference_means").set_index(["method", "way"])
    told = _read(figures, "07_kinds")
    kinds, chance = told.groupby("method")["kind right"].mean(), number(told["chance"].mean(), ".0%")
    rows = []
    for method in means.index.get_level_values("method").unique().drop("unedited"):
        found = [number(means.loc[(method, way), name], ".0%") for name in ("carried", "others right") for way in WAYS]
        rows.append([method, *found, number(kinds[method], ".0%") if method in kinds else ""])
    kind = f"kind is the reference's (chance {chance})"
    return _markdown(["method", "carried: add", "remove", "others right: add", "remove", kind], rows)


WAYS = ("add", "remove")
TABLES: dict[str, Callable[[Path], str]] = {
    "quality": _quality,
    "inversions": _inversions,
    "label-edits": _label_edits,
    "reference-edits": _reference_edits,
}
