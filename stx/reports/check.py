"""Is a run what is committed: every number of its tables beside that of another folder, and the verdicts of claims.

A number agrees when it is the same but for rounding, or when the other one lies in this run's 95 % interval. Times
depend on the machine and are left out, as are the ends of intervals, tables of single pictures, trainings that the run
does not have, numbers of searches that have no interval, and rows on which another effort bears (searches of fewer
steps); tables that were made with other parameters too, which `unlike` names. At another scale (`stx.reports.scales`)
both numbers are uncertain, and of a thousand some intervals miss each other by chance: a number agrees when the gap is
no more than both intervals allow at 0.05 over all such numbers (Bonferroni). Numbers with no interval, or one of no
width, and those that rise with fewer pictures, are left out there. Verdicts agree unless they contradict each other
where scales or efforts differ.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd

from stx.files.errors import InputError
from stx.reports import claims, scales
from stx.reports.figures import read_table

LEVEL = NormalDist().inv_cdf(0.975)  # standard errors in half of a 95 % interval
SAME_RTOL = 2e-3  # relative: processors and releases of torch round in other ways
TIMED = re.compile(r"(?:^|[ ,(])(?:s|ms|seconds?|GiB)\b|times faster|per s\b|share of a matrix product")
ENDS = ("low", "high")
BESIDE = ("claims", "sweep_")  # files that are compared otherwise, or not at all
BIASED = re.compile(r"SWD|FD-VGG16")  # what depends on how many pictures there are
SEARCHED = re.compile(scales.EFFORTS["search_steps"])  # tens of steps make much of how a processor rounds


def compare(run: str | Path, committed: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The numbers of all tables that `committed` holds, and the claims, each with whether the run agrees.

    The first table has a row per number: table, row, column, committed, run, agrees; `run` is NaN where the run lacks
    it. The second: claim, committed, run, agrees. Raises `InputError` for folders without tables in common.
    """
    run, committed = Path(run), Path(committed)
    names = sorted(path.stem for path in committed.glob("*.csv") if not path.stem.startswith(BESIDE))
    parts = [_numbers(run, committed, name) for name in names if (run / f"{name}.csv").is_file()]
    numbers = pd.concat([part for part in parts if len(part)], ignore_index=True) if any(map(len, parts)) else None
    if numbers is None:
        raise InputError(f"{run}: no table that is in {committed} too, made with the same parameters")
    gaps = numbers.pop("gap")
    largest = NormalDist().inv_cdf(1 - 0.05 / 2 / max(gaps.count(), 1))
    return numbers.assign(agrees=numbers["agrees"] | (gaps <= largest)), _verdicts(run, committed)


def unlike(run: str | Path, committed: str | Path) -> list[str]:
    """The tables of `committed` that a run lacks or made with other parameters, the number of pictures apart.

    Also those of which it made some rows with another effort, with how many.
    """
    run, committed, found = Path(run), Path(committed), []
    for name in sorted(path.stem for path in committed.glob("*.csv") if not path.stem.startswith(BESIDE)):
        alike, _, other_effort = _alike(run / name, committed / name)
        if not alike or not (run / f"{name}.csv").is_file():  # a figure of that name has a record too
            found.append(name)
        elif other_effort:
            table = read_table(committed / f"{name}.csv")
            rows = _keys(table, [column for column in table.columns if column not in table.select_dtypes("number")])
            count = _matching(other_effort, [f"{name}, {row}" for row in rows]).sum()
            found += [f"{name} ({count} of {len(rows)} rows)"] if count else []
    return found


def _alike(one: Path, other: Path) -> tuple[bool, bool, str]:
    """Were two tables made with the same parameters but for how many pictures; with as many pictures; what is left out.

    The last is a regular expression over "table, row", for rows on which another effort bears; empty without any.
    """
    (settings, counts, efforts), (others, other_counts, other_efforts) = _parameters(one), _parameters(other)
    differ = [of for name, of in scales.EFFORTS.items() if efforts.get(name) != other_efforts.get(name)]
    same = settings == others and not any(re.search(of, one.name) for of in differ)
    return same, same and counts == other_counts, "|".join(differ)


def _parameters(table: Path) -> tuple[dict | None, dict, dict]:
    """The parameters that say what was measured, on how much, with what effort; None where there is no record."""
    try:
        given = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))["parameters"]
        sizes = scales.SIZES.get(given.get("notebook"), {}).keys()
        elsewhere = ("device", "out", "runs", "scale", "trainings")  # of 04_trainings each row says which
        named = {name: value for name, value in given.items() if name not in elsewhere}
        counts, efforts = (
            {name: named.pop(name) for name in some if name in named}
            for some in (sizes - scales.EFFORTS.keys(), sizes & scales.EFFORTS.keys())
        )
        return named, counts, efforts
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, {}, {}


def _numbers(run: Path, committed: Path, name: str) -> pd.DataFrame:
    there, here = (read_table(folder / f"{name}.csv") for folder in (committed, run))
    alike, as_many, other_effort = _alike(run / name, committed / name)
    if "picture" in there or not alike:
        return pd.DataFrame()
    numeric = [column for column in there.select_dtypes("number") if not TIMED.search(column)]
    here = here.assign(**{column: pd.to_numeric(here[column], errors="coerce") for column in numeric if column in here})
    there, here = _beside(there, here)
    if other_effort:
        other = _matching(other_effort, name + ", " + there["row"])
        there, here = there[~other], here[~other]
    ends = [column for column in numeric if column.split(" ")[-1] in ENDS]
    timed, biased, searched = (_matching(pattern, there["row"]) for pattern in (TIMED, BIASED, SEARCHED))
    rows = []
    for column in [column for column in numeric if column not in ends]:
        was = there[column].to_numpy(float)
        now = here[column].to_numpy(float) if column in here else np.full(len(there), np.nan)
        low, high = (_end(here, column, end) for end in ENDS)
        inside = (low <= was) & (was <= high) & np.isfinite(now)
        chosen, gap = ~timed & (~searched | (high > low)), np.full(len(there), np.nan)
        if not as_many:
            both = (low, high), [_end(there, column, end) for end in ENDS]
            gap, inside = _gap(now, was, *both), False
            chosen &= ~biased & (not BIASED.search(column)) & np.all([high > low for low, high in both], axis=0)
        same = np.isclose(now, was, rtol=SAME_RTOL, atol=1e-9, equal_nan=True) | inside
        found = {"table": name, "row": there["row"], "column": column, "committed": was, "run": now, "agrees": same}
        rows.append(pd.DataFrame(found | {"gap": gap}).reset_index(drop=True)[chosen])
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def _beside(there: pd.DataFrame, here: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of a committed table and the run's row for each, by their words and training, in a column `row`.

    NaN where the run lacks a row. `make seeds` takes hours: a training that the run does not have, or a mean over
    another number of trainings, is left out.
    """
    words = [column for column in there.columns if column not in there.select_dtypes("number") and column in here]
    both = [column for column in ("training", "trainings") if column in there.columns.intersection(here.columns)]
    seen = {*_keys(here, words)}
    there, here = (table.assign(row=_keys(table, words + both), words=_keys(table, words)) for table in (there, here))
    for table in (there, here):
        table["row"] += table.groupby("row").cumcount().map(lambda n: f" ({n + 1})" if n else "")
    if both:
        there = there[there["row"].isin(here["row"]) | ~there["words"].isin(seen)]
    return there.drop(columns="words"), here.set_index("row").reindex(there["row"]).reset_index()


def _matching(pattern: str | re.Pattern, rows: Iterable[str]) -> np.ndarray:
    """In which of some words a regular expression is found."""
    return np.array([bool(re.search(pattern, row)) for row in rows], bool)


def _keys(table: pd.DataFrame, columns: list[str]) -> list[str]:
    """What a row says in some columns; its number where there are none."""
    told = {column: [f"{column} {x:g}" for x in table[column]] for column in table[columns].select_dtypes("number")}
    parts = [told.get(column, table[column].map(str)) for column in columns]
    return [", ".join(row) for row in zip(*parts, strict=True)] if columns else [str(n) for n in range(len(table))]


def _gap(now: np.ndarray, was: np.ndarray, *ends: Sequence[np.ndarray]) -> np.ndarray:
    """How far two numbers are apart, in standard errors, by the sides of their 95 % intervals that face each other.

    Of a side of no width, where a number lies on its interval's end, the half of the interval stands in.
    """
    sides = []
    for value, (low, high), below in zip((now, was), ends, (now < was, was < now), strict=True):
        side = np.where(below, high - value, value - low)
        sides.append(np.where(side > 0, side, (high - low) / 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(now - was) / (np.hypot(*sides) / LEVEL)


def _end(table: pd.DataFrame, column: str, end: str) -> np.ndarray:
    """The end of a number's interval; NaN, in which nothing lies, where it has none."""
    names = [f"{column} {end}", *([end] if column in ("value", "difference", "FD-VGG16") else [])]
    found = [table[name].to_numpy(float) for name in names if name in table]
    return found[0] if found else np.full(len(table), np.nan)


def _verdicts(run: Path, committed: Path) -> pd.DataFrame:
    was, now = (_verdict_of(folder / "claims.csv") for folder in (committed, run))
    table = pd.DataFrame({"claim": was.index, "committed": was.to_numpy(), "run": now.reindex(was.index).to_numpy()})
    agrees = table["committed"] == table["run"]
    # Fewer pictures decide less, and Holm's correction makes every verdict depend on all claims
    was, now = (
        {name: (scale, _parameters(folder / name)[2]) for name, scale in scales.by_figure(folder).items()}
        for folder in (committed, run)
    )
    if any(was[name] != now[name] for name in was.keys() & now.keys()):
        agrees |= table["run"].notna() & (table[["committed", "run"]] == "undecided").any(axis=1)
    return table.assign(agrees=agrees)


def _verdict_of(path: Path) -> pd.Series:
    """Verdicts by claim; none where there is no table."""
    if not path.is_file():
        return pd.Series(dtype=object)
    return claims.verdicts(path)["verdict"]
