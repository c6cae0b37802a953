"""Intervals and p-values of what was measured on pictures: paired, clustered, stratified, with training as a level.

Tables have a row per number and say what it belongs to: `picture`; where there are several, `attribute` and `training`
(the seed of a training). Pictures are drawn with replacement (Efron 1979), each with all that was measured on it: all
strengths, all attributes, both methods. Attributes stay as they are and count alike. Trainings are drawn as well,
those of two methods apart. Of many claims some hold by chance: `holm`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

RESAMPLES = 20_000  # a p-value is at least two in so many: sixteen comparisons and fifteen claims leave room under 0.05
RESAMPLE_BATCH = 1000  # resamples at a time
WILSON = 1.959963984540054  # the standard normal's quantile at 0.975
LEVELS = ("training", "attribute")


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % percentile interval, the two-sided p-value of its being zero, and on how many pictures.

    The p-value is at least what a sign test of so many pictures can give, 2 / 2^n.
    """

    value: float
    low: float
    high: float
    p: float
    pictures: int


def mean(
    table: pd.DataFrame, column: str, *, of: Callable = np.nanmean, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of a column: over the rows of a picture, then pictures, then trainings and attributes.

    of: how attributes' means become one number, `np.nanmean` or `np.nanmedian`. NaN in the table are left out; all is
    NaN, with a p of 1, of fewer than two pictures.
    """
    return _interval([(table, 1.0)], column, of, resamples, seed)


def difference(
    a: pd.DataFrame,
    b: pd.DataFrame,
    column: str,
    *,
    of: Callable = np.nanmean,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of a column in `a` less that in `b`, on the pictures of each attribute that both have.

    of: how attributes' means become each side's number, as in `mean`.
    """
    return _interval([(a, 1.0), (b, -1.0)], column, of, resamples, seed)


def share(table: pd.DataFrame, column: str) -> tuple[float, float, float]:
    """The share of ones in a column of 0 and 1 with its 95 % Wilson interval: (share, low, high).

    The interval is that of as many trials as there are pictures: all edits of one may stand and fall together. Unlike
    resampling it has a width where all rows agree.
    """
    known = table.dropna(subset=[column])
    n, found, z2 = known["picture"].nunique(), known[column].mean(), WILSON**2
    if not n:
        return float("nan"), float("nan"), float("nan")
    centre = (found + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * found * (1 - found) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    return float(found), float(centre - half), float(centre + half)


def holm(p: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """p-values of a family of n claims, adjusted so that one in twenty families has a false one at 0.05 (Holm 1979).

    The k-th smallest is multiplied by n - k + 1, none falls below a smaller one's, none is above 1.
    """
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(raised, 1)
    return adjusted


def _interval(
    sides: list[tuple[pd.DataFrame, float]], column: str, of: Callable, resamples: int, seed: int
) -> Interval:
    arrays, signs = _common([_cells(table, column) for table, _ in sides]), [sign for _, sign in sides]
    known = np.logical_and.reduce([np.isfinite(array).all(0) for array in arrays])  # [attributes, pictures]
    pictures = int(known.any(0).sum())
    nothing = Interval(float("nan"), float("nan"), float("nan"), 1.0, pictures)
    if pictures < 2:
        return nothing
    arrays, known = [_spread(array[:, :, known.any(0)]) for array in arrays], known[:, known.any(0)]
    once = [np.ones((1, n)) for n in (pictures, *map(len, arrays))]
    value = _statistic(arrays, signs, known, once, of).item()
    rng = np.random.RandomState(seed)
    drawn = np.concatenate([_statistic(arrays, signs, known, _draw(rng, arrays, n), of) for n in _parts(resamples)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return nothing
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = max(2 * (1 + int(tail)) / (1 + len(drawn)), 2.0 ** (1 - pictures))  # of few pictures a sign test says no less
    return Interval(value, low, high, min(p, 1.0), pictures)


def _cells(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means by training and attribute (rows, of every pair of them) and picture (columns)."""
    table = table.assign(**{level: 0 for level in LEVELS if level not in table}).dropna(subset=[column])
    found = table.pivot_table(index=list(LEVELS), columns="picture", values=column, aggfunc="mean")
    rows = pd.MultiIndex.from_product([found.index.unique(level) for level in LEVELS], names=LEVELS)
    return found.reindex(rows)


def _common(cells: list[pd.DataFrame]) -> list[Float[np.ndarray, "_ attributes pictures"]]:
    """The numbers of the attributes and pictures that all have."""
    pictures = sorted(set.intersection(*(set(table.columns) for table in cells)))
    attributes = sorted(set.intersection(*(set(table.index.unique("attribute")) for table in cells)))
    arrays = []
    for table in cells:
        trainings = table.index.unique("training")
        rows = pd.MultiIndex.from_product([trainings, attributes], names=LEVELS)
        numbers = table.reindex(index=rows, columns=pictures).to_numpy(float)
        arrays.append(numbers.reshape(len(trainings), len(attributes), len(pictures)))
    return arrays


def _spread(array: Float[np.ndarray, "trainings attributes pictures"]) -> Float[np.ndarray, "trainings _ _"]:
    """Trainings moved apart: n drawn with replacement vary by (n - 1) / n of what n new ones would."""
    centre, count = array.mean(0), len(array)
    return centre + (array - centre) * np.sqrt(count / max(count - 1, 1))


def _parts(resamples: int) -> Iterator[int]:
    return (min(RESAMPLE_BATCH, resamples - start) for start in range(0, resamples, RESAMPLE_BATCH))


def _draw(rng: np.random.RandomState, arrays: list[np.ndarray], count: int) -> list[np.ndarray]:
    """How often each picture is drawn, then each training of each side: `count` rows."""
    sizes = (arrays[0].shape[2], *map(len, arrays))
    return [rng.multinomial(n, np.full(n, 1 / n), size=count).astype(float) for n in sizes]


def _statistic(
    arrays: list[Float[np.ndarray, "_ attributes pictures"]],
    signs: list[float],
    known: Bool[np.ndarray, "attributes pictures"],
    times: list[Float[np.ndarray, "n _"]],
    of: Callable,
) -> Float[np.ndarray, "n"]:
    """For each row of `times`, as `_draw` gives it, the signed sum of the sides; NaN where nothing is drawn."""
    pictures, *trainings = times
    total = pictures @ known.T.astype(float)  # [n, attributes], 0 where none of an attribute's pictures is drawn
    usable = (total > 0).any(1)
    value = np.where(usable, 0.0, np.nan)
    for array, sign, own in zip(arrays, signs, trainings, strict=True):
        flat = np.where(known, array, 0).reshape(-1, known.shape[1])  # [trainings * attributes, pictures]
        found = (pictures @ flat.T).reshape(len(pictures), len(array), -1)
        sums = np.einsum("nta,nt->na", found, own / own.sum(1, keepdims=True))
        means = np.divide(sums, total, out=np.full_like(total, np.nan), where=total > 0)
        value[usable] += sign * of(means[usable], axis=1)
    return value
