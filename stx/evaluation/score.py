"""Somebody's own methods through the protocol of our tables, beside ours: `stx score mine.py`.

Inversions of the same test pictures, paired by picture with the Style Transformer's; edits of the same pictures that
add and remove every attribute, said by the judge and, of avatars, held against the drawn truth, each method at the
strength that is best for it on other pictures. What a method does wrong is told and the others are measured.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stx import resampling
from stx.baselines.registry import EDITORS, INVERTERS, METHODS
from stx.domains import images
from stx.domains.splits import Dataset
from stx.evaluation import editing, inversions, landing, quality
from stx.files.errors import EditError, InputError
from stx.files.untrusted import one_line
from stx.pipeline import MAX_ABS_INPUT, Codes, Pipeline
from stx.runtime import progress

OURS = "Style Transformer"  # that inversions are compared with
PLAIN = "first order"  # that edits are compared with
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
INVERSION = ("L2", "LPIPS-Alex", "ID", "ID-MoCo", "MS-SSIM")
EDITING = ("shown", "others right", "all right", "share of the way")
COLUMNS = ("method", "own", "metric", "pictures", "value", "low", "high", "beside", "gap", "gap_low", "gap_high", "p")
SHOWN_PICTURES = 6  # pictures of a method on the page


@dataclass
class Scores:
    """What was measured. table: a row per method and metric; pictures: of the page, by method; wrong: what failed.

    titles: of the pictures' columns.
    """

    table: pd.DataFrame
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def inversion(pipe: Pipeline, sizes: dict[str, int], *, seed: int = 0) -> Scores:
    """Trained encoders and `INVERTERS` on test pictures: distances and likeness with intervals, and to `OURS`.

    sizes: `count` pictures, of which searches get the first `searched`, and `resamples`.
    """
    test = pipe.domain.split("test", sizes["count"])
    shown = min(SHOWN_PICTURES, len(test), sizes["searched"])
    scores = Scores(pd.DataFrame(), {"picture": test.uint8(range(shown))})
    methods = inversions.encoders(pipe, inversions.names(pipe.domain.name, pipe.folder))
    own = {method.title for name, method in methods.items() if not _of_stx(name)}
    scores.wrong += [
        f"{METHODS[name].title}: not trained yet; `stx train encoder {pipe.domain.name} --compared --method {name}`"
        for name in METHODS
        if name not in methods and not _of_stx(name)
    ]
    methods |= inversions.longer(pipe)
    for name, make in INVERTERS.items():
        made = _tried(scores, name, lambda make=make: _made(make(pipe), [of.title for of in methods.values()]), pipe)
        if made is not None:
            methods[name] = made
            own.add(made.title)
    measured = {}
    for method in methods.values():
        found = _tried(scores, method.title, lambda method=method: _inverted(pipe, test, method, sizes), pipe)
        if found is not None:
            measured[method.title], drawn = found
            scores.pictures[method.title] = drawn[:shown]
    scores.table = _rows(measured, INVERSION, own, OURS, sizes["resamples"], seed)
    return scores


def edits(pipe: Pipeline, sizes: dict[str, int], *, seed: int = 0) -> Scores:
    """First order, matched pairs and `EDITORS` on edits of test pictures: whether they land, and how near the truth.

    sizes: `pictures` for each attribute, added and removed; `tried` others on which strengths are chosen; `sampled`
    codes that methods are fitted on; `resamples`. Raises `EditError` for a domain without labels or networks.
    """
    if not pipe.domain.attributes:
        raise EditError(f"{pipe.domain.name} has no labels: edits cannot be scored")
    net, classifier, judge = (pipe.network(name) for name in ("latent_classifier", "classifier", "judge"))
    codes = functools.cache(partial(quality.sampled_codes, pipe, classifier, sizes["sampled"], seed=seed))
    methods = editing.Methods(pipe, net, codes, seed=seed)
    tried = [name for name in (PLAIN, "matched pairs", *EDITORS) if name in methods]
    cases = landing.cases_of(pipe, "test", sizes["pictures"], seed=seed)
    starts = landing.starts_of(pipe, "test", cases)
    small = landing.cases_of(pipe, "val", sizes["tried"], seed=seed)
    others = small, landing.starts_of(pipe, "val", small)
    truth = landing.distance_to_truth(pipe, starts, cases.truth())
    added = np.flatnonzero(cases.target == 1)
    chosen = added[:: max(len(added) // SHOWN_PICTURES, 1)][:SHOWN_PICTURES]
    scores = Scores(pd.DataFrame(), {"inversion": images.to_uint8(pipe.reconstruct(starts[chosen]))})
    scores.titles = [pipe.domain.attributes[k] for k in cases.index[chosen]]
    measured = {}
    for name in progress(tried, desc="editors", unit="method"):
        found = _tried(
            scores, name, lambda name=name: _landed(pipe, judge, methods[name], cases, starts, truth, others), pipe
        )
        if found is not None:
            measured[name], drawn = found
            scores.pictures[name] = drawn(chosen)
    if cases.people is not None:
        scores.pictures["drawn truth"] = images.to_uint8(cases.truth()[chosen])
    scores.table = _rows(measured, EDITING, set(EDITORS), PLAIN, sizes["resamples"], seed)
    return scores


def readable(table: pd.DataFrame, order: str, *, lower: bool) -> pd.DataFrame:
    """A line per method, the best by `order` first: "value [low, high]" of each metric, and how it compares."""
    lines = {}
    for row in table.itertuples():
        name = f"**{row.method}**" if row.own else row.method
        told = f"{row.value:.3g} [{row.low:.3g}, {row.high:.3g}]"
        line = lines.setdefault(name, {"pictures": f"{row.pictures:.0f}"})
        line[row.metric] = "" if np.isnan(row.value) else told
        if row.metric == order and np.isfinite(row.gap):
            line[f"{order}, less {row.beside}"] = f"{row.gap:.3g} [{row.gap_low:.3g}, {row.gap_high:.3g}]"
    values = table[table["metric"] == order].sort_values("value", ascending=lower)
    names = [f"**{row.method}**" if row.own else row.method for row in values.itertuples()]
    return pd.DataFrame.from_dict(lines, orient="index").reindex(names).fillna("").reset_index(names="method")


def _of_stx(name: str) -> bool:
    return METHODS[name].network.__module__.startswith("stx.")


def _tried(scores: Scores, title: str, work: Callable, pipe: Pipeline):
    """What `work` gives, or None and a line about what went wrong: a method of somebody raises anything.

    The networks that it changes are put back, with a line, so that those after it are measured as they are.
    """
    networks = (pipe.generator, pipe.encoder)
    before = [{name: value.clone() for name, value in net.state_dict().items()} for net in networks]
    try:
        return work()
    except (Exception, SystemExit) as error:
        scores.wrong.append(f"{title}: {type(error).__name__}: {one_line(error)}")
        return None
    finally:
        for net, was in zip(networks, before, strict=True):
            if not all(torch.equal(value, was[name]) for name, value in net.state_dict().items()):
                net.load_state_dict(was)
                scores.wrong.append(f"{title}: changed the {type(net).__name__}, which was put back; change a copy")


def _made(found: object, taken: Sequence[str]) -> inversions.Inverter:
    """What a factory of somebody gives, where it is a method with a title that is not `taken`; else `InputError`."""
    if not isinstance(found, inversions.Inverter) or not isinstance(found.title, str):
        raise InputError(f"gave a {type(found).__name__}, expected an Inverter with a title")
    if found.title in taken:
        raise InputError(f"there is already a method called {found.title!r}; choose another title")
    return found


def _inverted(
    pipe: Pipeline, test: Dataset, method: inversions.Inverter, sizes: dict[str, int]
) -> tuple[pd.DataFrame, np.ndarray]:
    count = min(len(test), sizes["count"] if method.steps is None else sizes["searched"])
    found = inversions.run_all(replace(method, run=_drawn(method.run)), pipe, test, count)
    expected = (count, pipe.generator.num_ws, pipe.generator.w_dim)
    _check(found.ws, expected)
    if len(found.pictures) != count or found.pictures.shape[1:3] != test.uint8([0]).shape[1:3]:
        raise EditError(
            f"gave pictures {list(found.pictures.shape)} for {count} of {list(test.uint8([0]).shape[1:3])} px"
        )
    return quality.per_picture(pipe, test, found.pictures), found.pictures


def _drawn(run: Callable[..., inversions.Inverted]) -> Callable[..., inversions.Inverted]:
    """A method's `run` that raises `EditError` for what it gives as pictures and is none in [-1, 1], or near."""

    def checked(*given, **options) -> inversions.Inverted:
        found = run(*given, **options)
        image = found.image
        if not (isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 4 and image.shape[1] == 3):
            told = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise EditError(f"gave pictures as {told}, expected floats [b, 3, h, w]")
        if not (torch.isfinite(image).all() and image.abs().max() <= MAX_ABS_INPUT):
            raise EditError("gave pictures that are not in [-1, 1]")
        return found

    return checked


def _check(codes: object, shape: tuple[int, ...]) -> None:
    """Raises `EditError` for codes of another shape, or with a number that is none."""
    for part in codes.values() if isinstance(codes, dict) else [codes]:
        if not isinstance(part, Tensor):
            raise EditError(f"gave a {type(part).__name__}, expected a tensor of codes")
        if not isinstance(codes, dict) and tuple(part.shape) != shape:
            raise EditError(f"gave codes {list(part.shape)}, expected {list(shape)}")
        if not torch.isfinite(part).all():
            raise EditError("gave codes that are not finite")


def _landed(
    pipe: Pipeline,
    judge: torch.nn.Module,
    method: editing.Method,
    cases: landing.Cases,
    starts: Tensor,
    truth: np.ndarray | None,
    others: tuple[landing.Cases, Tensor],
) -> tuple[pd.DataFrame, Callable[[np.ndarray], np.ndarray]]:
    """A row per edit at the strength that is best on `others`, and the pictures of some of them."""

    def edited(cases: landing.Cases, starts: Tensor, strength: float) -> Codes:
        codes = landing.edit_all(method, starts.clone(), cases, strength)
        _check(codes, tuple(starts.shape))
        return codes

    def goodness(strength: float) -> tuple[float, float]:
        table = landing.landed(pipe, {"judge": judge}, others[0], edited(*others, strength), None)
        return table["all right"].mean(), table["shown"].mean()

    best = max(STRENGTHS, key=goodness)
    codes = edited(cases, starts, best)
    table = landing.landed(pipe, {"judge": judge}, cases, codes, truth)
    table["attribute"] = table["way"] + table["attribute"].map(" {}".format)
    table = table.assign(strength=best)

    def drawn(chosen: np.ndarray) -> np.ndarray:
        some = {k: v[chosen] for k, v in codes.items()} if isinstance(codes, dict) else codes[chosen]
        return images.to_uint8(pipe.reconstruct(some))

    return table, drawn


def _rows(
    measured: dict[str, pd.DataFrame], metrics: tuple[str, ...], own: set[str], beside: str, resamples: int, seed: int
) -> pd.DataFrame:
    rows, options = [], {"resamples": resamples, "seed": seed}
    for method, table in measured.items():
        for metric in (name for name in metrics if name in table):
            of = np.nanmedian if metric == "share of the way" else np.nanmean
            found = resampling.mean(table, metric, of=of, **options)
            row = {"method": method, "own": method in own, "metric": metric, "pictures": found.pictures}
            row |= {"value": found.value, "low": found.low, "high": found.high, "beside": beside}
            if beside in measured and method != beside:
                gap = resampling.difference(table, measured[beside], metric, of=of, **options)
                row |= {"gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "p": gap.p}
            if "strength" in table:
                row["strength"] = table["strength"].iloc[0]
            rows.append(row)
    strength = ["strength"] if any("strength" in table for table in measured.values()) else []
    return pd.DataFrame(rows).reindex(columns=[*COLUMNS, *strength])
