"""The claims of the paper, each with what we measured: `claims.csv` and `claims.md`, filled notebook by notebook."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock
from jaxtyping import Float

from stx.metrics import mean_interval
from stx.reports.figures import read_table, save_table


@dataclass(frozen=True)
class Claim:
    """One claim: in our words, where the paper makes it, and a measured difference that is positive where it holds.

    unit: what `difference` and its 95 % interval `low`, `high` are numbers of. notebook: where it is measured.
    """

    claim: str
    paper: str
    unit: str
    difference: float
    low: float
    high: float
    notebook: str

    @property
    def verdict(self) -> str:
        """ "holds", "does not hold", or "undecided" when the interval has zero in it (or is not a number)."""
        if self.low > 0:
            return "holds"
        return "does not hold" if self.high < 0 else "undecided"


def measured(claim: str, paper: str, unit: str, gaps: Float[np.ndarray, "n"], notebook: str, *, seed: int = 0) -> Claim:
    """A claim whose difference was measured on pictures or pairs: its mean and 95 % bootstrap interval over them."""
    return Claim(claim, paper, unit, *mean_interval(gaps, seed=seed), notebook)


def save(claims: list[Claim], folder: str | Path, record: dict) -> pd.DataFrame:
    """Puts claims into `claims.csv` and `claims.md` in place of what their notebooks had there; returns the table.

    Raises `InputError` for a damaged `claims.csv`, which is kept.
    """
    path = Path(folder) / "claims.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    note = (
        "A difference is positive where the claim holds; it holds when the whole 95 % interval is positive, and does "
        "not when all of it is negative. Measured on our domain, generator and budget, not on the paper's."
    )
    new = pd.DataFrame([asdict(c) | {"verdict": c.verdict} for c in claims])
    with FileLock(path.with_name(".claims.lock")):  # notebooks run side by side
        kept = read(path) if path.is_file() else new[:0]
        kept = kept[~kept["notebook"].isin(new["notebook"])]
        table = pd.concat([part for part in (kept, new) if len(part)]).sort_values(["notebook", "claim"])
        save_table(table, "claims", folder, record, note=note)
    return table.reset_index(drop=True)


def read(path: str | Path) -> pd.DataFrame:
    """A `claims.csv`. Raises `InputError` that names the file and the remedy where it is damaged."""
    numbers = [field.name for field in fields(Claim) if field.type is float]
    words = [field.name for field in fields(Claim) if field.name not in numbers]
    return read_table(path, words=[*words, "verdict"], numbers=numbers)
