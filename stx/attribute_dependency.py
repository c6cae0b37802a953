"""Attribute dependency: what else an edit changed (Wu et al. 2021, StyleSpace, section 6; Hu et al. 2022, figure 9).

For an edit towards attribute t, delta_i = |change of logit i| / sigma_i, with the logits of an image classifier and
their standard deviations over unedited generated pictures. mean-AD is the mean of delta_i over i != t, max-AD the
largest, both compared at equal delta_t. Avatars can also be drawn again with nothing but the attribute changed: the
ground truth that no set of photographs has.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from stx import metrics, resampling
from stx.files.errors import InputError

BINS = (0.25, 0.75, 1.25, 1.75, 2.25)  # edges of achieved target change, in standard deviations of the logit
FARTHEST = 2.0  # mean target change at which strengths end
DOUBLINGS = 7  # to 64 times the first strength: beyond lie no codes that draw a face
PEAK = 0.1  # a fall of the target change by this says that the peak is passed


def changes(
    before: Float[np.ndarray, "n attributes"],
    after: Float[np.ndarray, "n attributes"],
    sigma: Float[np.ndarray, "attributes"],
) -> Float[np.ndarray, "n attributes"]:
    """delta_i = |l_i(after) - l_i(before)| / sigma(l_i) of logits. Raises `ValueError` for one that never varies."""
    if (sigma <= 0).any():
        raise InputError(f"logit {int(np.argmin(sigma))} does not vary over the unedited pictures: sigma is zero")
    return np.abs(after - before) / sigma


def dependency(
    delta: Float[np.ndarray, "n attributes"], target: int
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """mean-AD, the mean of delta_i over i != t, and max-AD, their maximum, of each edit of `target` t.

    NaN where there is no other attribute.
    """
    others = np.delete(delta, target, axis=1)
    if not others.shape[1]:
        return np.full(len(delta), np.nan), np.full(len(delta), np.nan)
    return others.mean(1), others.max(1)


def curve(
    edits: pd.DataFrame,
    columns: Sequence[str],
    *,
    beside: pd.DataFrame | None = None,
    bins: Sequence[float] = BINS,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Means of columns (mean-AD, max-AD, ...) by achieved target change, with 95 % intervals over pictures.

    edits: rows with `picture`, `attribute`, `target change` and the columns. beside: those of another method, to which
    the difference is told too, on the pictures of each attribute that both have in a bin. A row per bin that has edits:
    its edges, how many, their mean target change, and of every column mean (attributes count alike), low and high.
    """
    rows = []
    for low, high in itertools.pairwise(bins):
        inside, others = (
            None if table is None else table[table["target change"].between(low, high, inclusive="left")]
            for table in (edits, beside)
        )
        if inside.empty:
            continue
        row = {"from": low, "to": high, "edits": len(inside), "target change": inside["target change"].mean()}
        for name in columns:
            found = {name: resampling.mean(inside, name, resamples=resamples, seed=seed)}
            if others is not None and len(others):
                found[f"{name} less"] = resampling.difference(inside, others, name, resamples=resamples, seed=seed)
            for told, of in found.items():
                row |= {told: of.value, f"{told} low": of.low, f"{told} high": of.high}
        rows.append(row)
    return pd.DataFrame(rows)


def where(edits: pd.DataFrame, needed: float | str, columns: Sequence[str]) -> pd.DataFrame:
    """What an edit has changed else at the point where its target change is first as large as needed.

    edits: rows with `attribute`, `picture`, `strength`, `target change` and the columns (mean-AD, ...), which are 0
    without an edit; between strengths all change linearly. needed: in sigmas, or the column that says it for each
    picture. A row per attribute and picture: the columns there, NaN where the target change is never reached.
    """
    rows = []
    for (attribute, picture), part in edits.sort_values("strength").groupby(["attribute", "picture"], sort=False):
        change = np.append(0.0, part["target change"])
        least = part[needed].iloc[0] if isinstance(needed, str) else needed
        reached = np.flatnonzero(change[1:] >= least)
        row = [attribute, picture, *[np.nan] * len(columns)]
        if least > 0 and len(reached):
            i = reached[0]
            share = (least - change[i]) / (change[i + 1] - change[i])
            ends = (np.append(0.0, part[name])[i : i + 2] for name in columns)
            row[2:] = [a + share * (b - a) for a, b in ends]
        rows.append(row)
    return pd.DataFrame(rows, columns=["attribute", "picture", *columns])


def reached(edits: pd.DataFrame, points: Mapping[str, float | str]) -> dict[tuple[str, str], pd.DataFrame]:
    """`where` for mean-AD and max-AD, by method and point; points: what is needed (see there) by its name."""
    methods = list(edits.groupby("method", sort=False))
    columns = ["mean-AD", "max-AD"]
    return {(method, point): where(part, points[point], columns) for method, part in methods for point in points}


def by_attribute(
    found: Mapping[tuple[str, str], pd.DataFrame], names: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """A row per method and attribute of what `reached` found: how many pictures get to each point, and AD there.

    With 95 % intervals over pictures, of shares Wilson's. Columns of the first point have the plain names.
    """
    methods, points = (list(dict.fromkeys(keys)) for keys in zip(*found, strict=True))
    rows = []
    for method, name in itertools.product(methods, names):
        row = {"method": method, "attribute": name}
        for point in points:
            part = found[method, point].query("attribute == @name")
            there = metrics.share_interval(part["mean-AD"].notna().to_numpy())
            row |= dict(zip((f"reached, {point}{end}" for end in ("", " low", " high")), there, strict=True))
            for key in ("mean-AD", "max-AD"):
                at = resampling.mean(part, key, resamples=resamples, seed=seed)
                told = key if point == points[0] else f"{key} {point}"
                row |= {told: at.value, f"{told} low": at.low, f"{told} high": at.high}
        rows.append(row)
    return pd.DataFrame(rows)


def strengths(
    achieved: Callable[[float], float], *, count: int = 6, most: float = FARTHEST, first: float = 1.0
) -> np.ndarray:
    """`count` equal steps of strength up to where the mean target change `achieved(strength)` reaches `most` sigmas.

    Found by doubling from `first`, at most `DOUBLINGS` times; where the change falls again before, its peak is the end.
    """
    best, last = -np.inf, first
    for power in range(DOUBLINGS):
        strength = first * 2.0**power
        now = achieved(strength)
        if now < best - PEAK:
            break
        if now > best:
            best, last = now, strength
        if now >= most:
            break
    return np.linspace(0, last, count + 1)[1:]


def best_match(
    directions: Float[np.ndarray, "k w_dim"], codes: Float[np.ndarray, "n w_dim"], scores: Float[np.ndarray, "n"]
) -> tuple[int, float]:
    """Which unlabelled direction goes with a label: index and sign of the strongest correlation with `scores`."""
    along = codes @ directions.T
    r = np.nan_to_num(np.array([np.corrcoef(a, scores)[0, 1] for a in along.T]))
    index = int(np.abs(r).argmax())
    return index, float(np.sign(r[index]) or 1.0)


def per_sigma(
    delta: Float[np.ndarray, "n attributes"], target_change: Float[np.ndarray, "n"], target: int, *, least: float = 0.5
) -> Float[np.ndarray, "attributes"]:
    """How much every logit changed per sigma of the target, over edits that changed it by `least`; NaN for the target.

    All NaN where no edit did.
    """
    strong = target_change > least
    ratio = delta[strong] / delta[strong][:, [target]]
    means = ratio.mean(0) if strong.any() else np.full(delta.shape[1], np.nan)
    return np.where(np.arange(delta.shape[1]) == target, np.nan, means)


def shares_in_domain(edits: pd.DataFrame) -> pd.DataFrame:
    """How often a method's pictures stay in the domain: a row per method, at its least strength and at its largest.

    edits: a row per method, attribute, picture and strength, with "target change" and "in domain".
    """
    rows = []
    for label, part in edits.groupby("method", sort=False):
        ends = part.groupby(["attribute", "picture"])["strength"].rank(method="first")
        shares = [part.loc[ends == end, "in domain"].mean() for end in (1, ends.max())]
        rows.append([label, *shares, part.loc[ends == ends.max(), "target change"].mean()])
    columns = ["in domain, least strength", "in domain, largest strength", "target change, largest strength"]
    return pd.DataFrame(rows, columns=["method", *columns])


def strength_near(edits: pd.DataFrame, change: float = 1.0) -> tuple[float, bool]:
    """The strength whose mean target change is nearest to `change`, of those that leave half of the pictures in the
    domain; where none does, the least strength and True: the method breaks pictures.

    edits: of one method and attribute, with "strength", "target change" and "in domain".
    """
    part = edits.groupby("strength")
    near = (part["target change"].mean() - change).abs()[part["in domain"].mean() >= 0.5]
    return float(edits["strength"].min() if near.empty else near.idxmin()), near.empty
