"""The claims of the paper, each with what we measured: `claims.csv` and `claims.md`, filled notebook by notebook.

A claim has a row with its verdict, and below it the comparisons that bear on it. It holds when all of them do and fails
when one of them does, at 0.05 after Holm's correction over all claims. Counts of parameters are facts, not claims:
`04_published_sizes`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from stx import resampling
from stx.files.errors import InputError
from stx.reports import scales
from stx.reports.figures import read_table, save_table
from stx.resampling import Interval

LEVEL, UNASKED = 0.05, "not asked"
FORMER = "claim,paper,unit,difference,low,high,notebook,verdict"
NOTE = (
    "A difference is positive where it speaks for the claim; in brackets its 95 % interval. A claim holds when every "
    "comparison below it does and does not when one is the other way round, at 0.05 after Holm's correction over all "
    "claims of this table (the p of its row); p of comparisons are two-sided, for each alone. Intervals and p by "
    "resampling pictures with all that was measured on them. Measured on our domain, generator and budget, not on the "
    "paper's. Counts of parameters and operations are facts: `04_published_sizes`."
)
VARIANCE = (
    "How much further than the Style Transformer a method's inversions are, the mean of all runs, and the standard "
    "deviation that it has from the choice of pictures, the encoders' training seed and the generator, by moments."
)


@dataclass(frozen=True)
class Evidence:
    """A comparison that bears on a claim. claim: in our words; paper: where it makes it; comparison: what was measured.

    difference: positive where it speaks for the claim; unit: of it and its 95 % interval `low`, `high`. p: of its being
    zero, two-sided. notebook: where it is measured.
    """

    claim: str
    paper: str
    comparison: str
    unit: str
    difference: float
    low: float
    high: float
    p: float
    pictures: int
    notebook: str


def evidence(claim: str, paper: str, comparison: str, unit: str, found: Interval, notebook: str) -> Evidence:
    """A comparison as `stx.resampling` measured it."""
    numbers = found.value, found.low, found.high, found.p, found.pictures
    return Evidence(claim, paper, comparison, unit, *numbers, notebook)


def save(found: list[Evidence], folder: str | Path, record: dict) -> pd.DataFrame:
    """Puts comparisons into `claims.csv` and `claims.md` in place of what their notebooks had there; returns the table.

    A row of a claim has its verdict, no comparison, and the p after Holm's correction. Without any comparison nothing
    is written. Raises `InputError` for a damaged `claims.csv`, which is kept.
    """
    path = Path(folder) / "claims.csv"
    if not found:
        return read(path) if path.is_file() else pd.DataFrame(columns=[field.name for field in fields(Evidence)])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pd.DataFrame([asdict(one) for one in found])
    with FileLock(path.with_name(".claims.lock")):  # notebooks run side by side
        kept = read(path) if path.is_file() and not _is_former(path) else new[:0]
        kept = kept[(kept["comparison"] != "") & ~kept["notebook"].isin(new["notebook"])].reindex(columns=new.columns)
        lines = pd.concat([part for part in (kept, new) if len(part)]).sort_values(["notebook", "claim"], kind="stable")
        table = _with_verdicts(lines)
        note = f"{NOTE} {_told_scales(table, path.parent, record)}"
        save_table(table, "claims", folder, record, note=note, shown=_readable(table))
    return table


def _told_scales(table: pd.DataFrame, folder: Path, record: dict) -> str:
    """At which scales the notebooks of a table of claims measured, by what they left beside it."""
    told: dict[str, set[str]] = {name[:2]: set() for name in sorted(table["notebook"].unique())}
    for figure, scale in scales.by_figure(folder).items():
        told.get(figure[:2], set()).add(scale)
    now = record["parameters"].get("notebook", "")[:2]
    told |= {now: {scales.told(record["parameters"])}} if now in told else {}
    parts = [f"{name} {', '.join(sorted(found)) or 'unknown'}" for name, found in told.items()]
    return f"Scales: {'; '.join(parts)}."


def _is_former(path: Path) -> bool:
    """Whether stx 0.2 wrote this table: a row a claim, without what bears on it. Its notebooks make it anew."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip() == FORMER


def read(path: str | Path) -> pd.DataFrame:
    """A `claims.csv`. Raises `InputError` that names the file and the remedy where it is damaged."""
    numbers = [field.name for field in fields(Evidence) if field.type in (float, int)]
    words = [field.name for field in fields(Evidence) if field.name not in numbers]
    table = read_table(path, words=[*words, "verdict"], numbers=numbers)
    return table.fillna(dict.fromkeys([*words, "verdict"], ""))


def verdicts(path: str | Path) -> pd.DataFrame:
    """The claims of a `claims.csv`, a row each without what bears on it. Raises `InputError` as `read` does."""
    found = read(path)
    found = found[found["comparison"] == ""].set_index("claim")
    if twins := sorted(found.index[found.index.duplicated()]):
        raise InputError(f"{path}: the claim '{twins[0]}' is there twice; run the notebook again")
    return found


def side_by_side(runs: Mapping[str, Path], out: str | Path, record: dict) -> pd.DataFrame:
    """Each claim's verdict in several runs, in `claims_side_by_side.csv` and `.md`; those that differ first.

    runs: folders with a `claims.csv`, by name. A claim that a run did not ask is "not asked" there; whether verdicts
    agree is then told only where those asked differ. Raises `InputError` for a folder without the table and for a name
    that another column has.
    """
    if taken := sorted({"claim", "agree"} & runs.keys()):
        raise InputError(f"a run called {taken[0]!r}: a column of the table has that name; give it another")
    asked = {name: verdicts(Path(folder) / "claims.csv") for name, folder in runs.items()}
    order = pd.concat([found["notebook"] for found in asked.values()])
    table = pd.DataFrame(index=order[~order.index.duplicated()].sort_values(kind="stable").index)
    for name, found in asked.items():
        table[name] = found["verdict"].reindex(table.index).fillna(UNASKED)
    differ = table.where(table != UNASKED).nunique(axis=1) > 1
    table["agree"] = np.where(differ, "no", np.where((table == UNASKED).any(axis=1), UNASKED, "yes"))
    table = table.sort_values(
        "agree", key=lambda agree: agree.map(["no", "yes", UNASKED].index), kind="stable"
    ).reset_index()
    note = "Verdicts as in each run's `claims`, which has what bears on them."
    save_table(table, "claims_side_by_side", out, record, note=note)
    return table


def variance(runs: Mapping[str, Path], out: str | Path, record: dict) -> pd.DataFrame:
    """Where differences between encoders come from: `claims_variance.csv` and `.md`, a row per method and metric.

    runs: folders by name, each another generator; of them count those that have notebook 04's `04_differences` of the
    pictures that the first of them has (others are no other generator). By moments: of the pictures the mean
    squared standard error of a difference, of the encoder's training the variance between trainings in a run, of the
    generator what the variance between the runs' means has beyond its share of trainings (runs see the same pictures),
    not below 0. NaN where there is one training or one run only.
    """
    paths = {name: path for name, folder in runs.items() if (path := Path(folder) / "04_differences.csv").is_file()}
    seen = {name: _pictures(path) for name, path in paths.items()}
    numbers = ["training", "difference", "standard error", "pictures"]
    parts = [
        read_table(path, words=["method", "metric"], numbers=numbers).assign(run=name)
        for name, path in paths.items()
        if seen[name] == next(iter(seen.values()))
    ]
    rows = []
    for key, found in pd.concat(parts).groupby(["method", "metric"], sort=False) if parts else ():
        by_run = found.groupby("run")["difference"]
        encoder = by_run.var().mean()
        share = 0.0 if np.isnan(encoder) else encoder * (1 / by_run.size()).mean()
        generator = max(by_run.mean().var() - share, 0.0) if len(by_run) > 1 else np.nan
        of = {"pictures": (found["standard error"] ** 2).mean(), "encoder": encoder, "generator": generator}
        sd = {f"sd, {name}": value**0.5 for name, value in of.items()}
        rows.append({"method": key[0], "metric": key[1], "runs": len(by_run), "trainings": len(found)})
        rows[-1] |= {"difference": by_run.mean().mean()} | sd
    table = pd.DataFrame(rows)
    if len(table):
        save_table(table, "claims_variance", out, record, note=VARIANCE)
    return table


def _pictures(table: Path) -> list:
    """Which pictures a table is of: domain, folder and count of its record, empty without one."""
    try:
        given = json.loads(table.with_suffix(".json").read_text(encoding="utf-8"))["parameters"]
        return [str(given.get(name, "")).rstrip("/") for name in ("domain", "pictures", "count")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def judged(p_for: float, p_against: float, p_of_family: float) -> str:
    """ "holds", "does not hold" or "undecided"."""
    if not p_of_family < LEVEL:
        return "undecided"
    return "holds" if p_for < p_against else "does not hold"


def _with_verdicts(lines: pd.DataFrame) -> pd.DataFrame:
    """Comparisons, above those of each claim its own row."""
    parts = [part for _, part in lines.groupby(["notebook", "claim"], sort=False)]
    one_sided = [_one_sided(part["difference"].to_numpy(), part["p"].to_numpy()) for part in parts]
    family = resampling.holm(np.array([min(2 * min(sides), 1) for sides in one_sided], float))
    rows = []
    for part, sides, p in zip(parts, one_sided, family, strict=True):
        first = part.iloc[[0]][["claim", "paper", "notebook"]]
        rows += [first.assign(comparison="", unit="", p=p, verdict=judged(*sides, p)), part.assign(verdict="")]
    return pd.concat(rows, ignore_index=True)[[*lines.columns, "verdict"]]


def _one_sided(difference: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """The p of a claim: that all comparisons hold (the largest of theirs), that one fails (Bonferroni)."""
    speaks_for = np.where(difference > 0, p / 2, 1 - p / 2)
    against = np.where(difference < 0, p / 2, 1 - p / 2)
    return float(speaks_for.max()), float(min(len(p) * against.min(), 1))


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    """As `claims.md` has it: the claims in bold, with what was measured indented below them."""
    rows = []
    for row in table.itertuples():
        if not row.comparison:
            rows.append([f"**{row.claim}** ({row.paper})", "", f"{row.p:.2g}", f"**{row.verdict}**", row.notebook])
            continue
        size = f"{row.difference:.3g} [{row.low:.3g}, {row.high:.3g}] {row.unit}, {row.pictures:.0f} pictures"
        rows.append([f"· {row.comparison}", size, f"{row.p:.2g}", "", ""])
    return pd.DataFrame(rows, columns=["claim, and what bears on it", "difference", "p", "verdict", "notebook"])
