"""Do edits land: is the attribute shown afterwards, are the other labels as they should be, how near is the truth.

Said by a judge that no training has used, on pictures drawn from edited codes, against the truth where it can be drawn:
an avatar with one option changed, or with the reference's option. A set of photographs has no truth; there the other
labels should be as before.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stx import label_editing, resampling
from stx.detail.kept import count_of, split_codes
from stx.domains import avatars, counterparts
from stx.domains.avatars import Avatar
from stx.domains.images import to_tensor
from stx.evaluation import editing
from stx.evaluation.quality import MEASURE_BATCH, attribute_logits
from stx.files.errors import EditError, InputError
from stx.matched_pairs import MatchedPairs
from stx.perception.lpips import load_lpips
from stx.pipeline import Codes, Pipeline
from stx.runtime import progress

WAYS = ("remove", "add")  # by target
MEASURES = ("shown", "others right", "all right")


@dataclass(frozen=True)
class Cases:
    """Edits to be made, and what they should give. positions: of pictures; index, target: attribute and wanted label.

    labels: that the edited picture should have; any_labels: for each case all label vectors that would be right,
    where a label that goes can leave one of several (hair colours). people: the avatars that it should show, or None.
    references: positions of reference pictures, or None.
    """

    positions: Int[np.ndarray, "n"]
    index: Int[np.ndarray, "n"]
    target: Int[np.ndarray, "n"]
    labels: Bool[np.ndarray, "n attributes"]
    any_labels: Sequence[Bool[np.ndarray, "_ attributes"]]
    people: Sequence[Avatar] | None = None
    references: Int[np.ndarray, "n"] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def subset(self, chosen: Sequence[int] | np.ndarray) -> "Cases":
        """Some of the cases, in this order."""
        own = {f.name: part for f in fields(self) if (part := getattr(self, f.name)) is not None}
        return Cases(**{k: v[chosen] if isinstance(v, np.ndarray) else [v[i] for i in chosen] for k, v in own.items()})

    def by_edit(self) -> Iterator[tuple[int, int, Int[np.ndarray, "m"]]]:
        """Attribute, wanted label and the cases of each edit that there is."""
        for k, target in sorted(set(zip(self.index.tolist(), self.target.tolist(), strict=True))):
            yield k, target, np.flatnonzero((self.index == k) & (self.target == target))

    def truth(self) -> Float[Tensor, "n 3 h w"] | None:
        """The pictures that the edits should give, drawn once; None where nobody can draw them."""
        return self._truth

    @cached_property
    def _truth(self) -> Float[Tensor, "n 3 h w"] | None:
        return None if self.people is None else to_tensor(np.stack([avatars.draw(a) for a in self.people]))


def edit_cases(
    labels: Bool[np.ndarray, "n attributes"],
    names: Sequence[str],
    people: Sequence[Avatar] | None,
    count: int,
    *,
    known: Bool[np.ndarray, "2 attributes"] | None = None,
    seed: int = 0,
) -> Cases:
    """`count` pictures to add each attribute to and as many to remove it from: the first that allow it.

    people: the avatars behind the pictures, of which those without a counterpart are passed over; or None. known: which
    edits to ask for, by target and attribute (None: all). Raises `InputError` where there is no picture to edit.
    """
    rows, wanted, right, drawn = [], [], [], []
    for k, target in itertools.product(range(len(names)), (0, 1)):
        if known is not None and not known[target, k]:
            continue
        given = np.flatnonzero(labels[:, k] != target)
        if people is None:
            for i in given[:count]:
                rows.append((i, k, target))
                wanted.append(np.where(np.arange(len(names)) == k, bool(target), labels[i]))
                right.append(wanted[-1][None])
            continue
        found = ((i, counterparts.counterpart(people[i], names[k], seed=seed)) for i in given)
        for i, other in itertools.islice(((i, other) for i, other in found if other), count):
            rows.append((i, k, target))
            wanted.append(avatars.labels(other))
            every = counterparts.counterparts(people[i], names[k])
            right.append(np.unique(np.stack([avatars.labels(a) for a in every]), axis=0))
            drawn.append(other)
    if not rows:
        raise InputError(f"{len(labels)} pictures: there is no picture to edit")
    positions, index, targets = (np.array(column, int) for column in zip(*rows, strict=True))
    return Cases(positions, index, targets, np.stack(wanted).astype(bool), right, drawn if people is not None else None)


def cases_of(pipe: Pipeline, split: str, count: int, *, seed: int = 0) -> Cases:
    """`edit_cases` of a split of the pipeline's domain, of edits that its matched pairs (if any) have learnt."""
    data, names = pipe.domain.split(split), pipe.domain.attributes
    people = list(itertools.islice(avatars.sample(split), len(data))) if pipe.domain.name == "avatars" else None
    known = pipe.network("matched_pairs").known.cpu().numpy() if "matched_pairs" in pipe.present() else None
    return edit_cases(data.labels, names, people, count, known=known, seed=seed)


def starts_of(pipe: Pipeline, split: str, cases: Cases) -> Float[Tensor, "n num_ws w_dim"]:
    """The codes of the pictures that are edited, each picture inverted once."""
    data = pipe.domain.split(split)
    unique, position = np.unique(cases.positions, return_inverse=True)
    parts = np.array_split(unique, -(-len(unique) // MEASURE_BATCH))
    return torch.cat([pipe.invert(data.batch(part)) for part in parts])[position]


def carry_cases(
    labels: Bool[np.ndarray, "n attributes"],
    chosen: Mapping[str, int],
    people: Sequence[Avatar] | None,
    count: int,
    *,
    seed: int = 0,
) -> Cases:
    """`count` pairs of pictures for each attribute and way: a source, and a random reference on which they differ."""
    rng, rows, wanted, drawn = np.random.RandomState(seed), [], [], []
    for (name, k), target in itertools.product(chosen.items(), (0, 1)):
        sources, references = (np.flatnonzero(labels[:, k] == side) for side in (1 - target, target))
        made = 0
        for i in rng.permutation(sources) if len(references) else ():
            j = rng.choice(references)
            other = counterparts.transplant(people[i], people[j], name) if people is not None else None
            if people is not None and other is None:
                continue
            rows.append((i, k, target, j))
            plain = np.where(np.arange(labels.shape[1]) == k, bool(target), labels[i])
            wanted.append(plain if other is None else avatars.labels(other))
            drawn.append(other)
            made += 1
            if made == count:
                break
    if not rows:
        raise InputError(f"{len(labels)} pictures: no two of them differ in {', '.join(chosen)}")
    positions, index, targets, references = (np.array(column, int) for column in zip(*rows, strict=True))
    wanted = np.stack(wanted).astype(bool)
    right, drawn = [row[None] for row in wanted], drawn if people is not None else None
    return Cases(positions, index, targets, wanted, right, drawn, references)


def label_ways(
    classifier: nn.Module, reader: nn.Module, matched: MatchedPairs, *, seed: int = 0
) -> dict[str, tuple[editing.Method, float]]:
    """The ways to edit by a label that are held against the drawn truth, each with its strength.

    classifier: the paper's, of codes; reader: that of pictures, which is smooth.
    """
    bound = {"natural": matched.natural, "tied": matched.tied}
    smooth = editing.paper_method(reader, order=label_editing.second_order, seed=seed)
    natural = editing.walked(classifier, label_editing.natural_order, natural=matched.natural)
    return {
        "unedited": (editing.matched_method(matched), 0.0),
        "first order, 12 (the paper's)": (editing.paper_method(classifier), 12.0),
        "first order, 16": (editing.paper_method(classifier), 16.0),
        "second order, smooth classifier, 12": (smooth, 12.0),
        "natural, six steps, 16": (natural, 16.0),
        "constrained, six steps, 16": (editing.walked(classifier, label_editing.constrained_order, **bound), 16.0),
        "matched pairs": (editing.matched_method(matched), 1.0),
    }


@torch.no_grad()
def landed(
    pipe: Pipeline, judges: Mapping[str, nn.Module], cases: Cases, codes: Codes, start: Float[np.ndarray, "n"] | None
) -> pd.DataFrame:
    """What edited codes of `cases` show, a row a case: for each judge `MEASURES`, and "any right", "share of the way".

    judges: by name, the first without a suffix in the columns. start: LPIPS of the unedited pictures to the truth, as
    `distance_to_truth` gives, or None. "others right": share of the other labels that are as the truth's; "any right":
    whether all labels are those of one of the truths; "share of the way": of the LPIPS distance to the drawn truth.
    """
    ways = [WAYS[target] for target in cases.target]
    table = pd.DataFrame({"attribute": cases.index, "way": ways, "picture": cases.positions})
    own = np.arange(len(cases)), cases.index
    for number, (name, judge) in enumerate(judges.items()):
        suffix = f", {name}" if number else ""
        now = attribute_logits(pipe, judge, codes) > 0
        same = now == cases.labels
        others = (same.sum(1) - same[own]) / max(same.shape[1] - 1, 1)
        for measure, values in zip(MEASURES, (same[own], others, same.all(1)), strict=True):
            table[f"{measure}{suffix}"] = values.astype(float)
        if not number:
            right = [(row == every).all(1).any() for row, every in zip(now, cases.any_labels, strict=True)]
            table["any right"] = np.array(right, float)
    if start is not None:
        table["share of the way"] = 1 - distance_to_truth(pipe, codes, cases.truth()) / start
    return table


def until(
    classifier: nn.Module,
    ws: Float[Tensor, "n num_ws w_dim"],
    change: Float[Tensor, "n num_ws w_dim"],
    index: int,
    probability: float,
    *,
    least: float = 0.0,
    most: float = 60.0,
) -> tuple[Float[Tensor, "n num_ws w_dim"], Bool[np.ndarray, "n"]]:
    """Codes moved along `change` until a classifier gives attribute `index` the probability, and which reach it.

    least, most: strengths; a code that does not reach it goes as far as `most`.
    """
    where, wanted = [index] * len(ws), [1.0] * len(ws)
    strength = label_editing.strength_for(classifier, ws, change, where, wanted, probability, most=most)
    edited = label_editing.edit(ws, change, strength.nan_to_num(most).clamp_min(least))
    return edited, strength.isfinite().cpu().numpy()


@torch.no_grad()
def shown_and_changed(
    pipe: Pipeline, judge: nn.Module, before: Codes, after: Codes, index: int
) -> tuple[Bool[np.ndarray, "n"], float]:
    """By a judge, which edited pictures show attribute `index`, and the share of other labels that differ.

    before, after: the codes of the same pictures, unedited and edited.
    """
    was, now = (attribute_logits(pipe, judge, codes) > 0 for codes in (before, after))
    changed = np.delete(was != now, index, axis=1)
    return now[:, index], float(changed.mean()) if changed.size else 0.0


def edit_until(
    pipe: Pipeline, ws: Float[Tensor, "n num_ws w_dim"], cases: Cases, names: Sequence[str], probability: float
) -> Float[Tensor, "n num_ws w_dim"]:
    """The codes of all cases after `pipe.edit` with `until`. names: of the attributes."""
    found = torch.empty_like(ws)
    for k, target, own in cases.by_edit():
        found[own] = pipe.edit(ws[own], **{WAYS[target]: [names[k]]}, until=probability)
    return found


def distance_to_truth(
    pipe: Pipeline, codes: Codes, truth: Float[Tensor, "n 3 h w"] | None
) -> Float[np.ndarray, "n"] | None:
    """LPIPS-Alex of the pictures of codes to the drawn truth; None without one."""
    return None if truth is None else pipe.distortion(truth, codes).cpu().numpy()


def edit_all(
    method: Callable[[Tensor, int, float], Callable[[float], Codes]],
    ws: Float[Tensor, "n num_ws w_dim"],
    cases: Cases,
    strength: float,
) -> Codes:
    """The codes of all cases after a method's edits (`stx.evaluation.editing`), at one strength."""
    parts = {}
    for k, target, chosen in cases.by_edit():
        for batch in np.array_split(chosen, -(-len(chosen) // MEASURE_BATCH)):
            edited = parts[tuple(batch)] = method(ws[batch], k, float(target))(strength)
            if count_of(edited) != len(batch):
                raise EditError(f"gave {count_of(edited)} codes for {len(batch)}")
    return _in_order(list(parts.values()), [np.array(where) for where in parts])


def _in_order(parts: Sequence[Codes], places: Sequence[np.ndarray]) -> Codes:
    """Codes that were made in parts, put back where they belong."""
    order = torch.from_numpy(np.argsort(np.concatenate(places)))
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))[order]
    return {layer: torch.cat([part[layer] for part in parts])[order] for layer in parts[0]}


def summarise(table: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """A row for each way: the mean over attributes of each measure with its 95 % interval over pictures.

    The interval resamples pictures, each with all its edits (`stx.resampling`). Of "share of the way" it is the median
    of the attributes' means.
    """
    rows = []
    for way, part in table.groupby("way", sort=True):
        row = {"way": way, "edits": len(part)}
        for name in part.columns.drop(["attribute", "way", "picture"]):
            of = np.nanmedian if name == "share of the way" else np.nanmean
            found = resampling.mean(part, name, of=of, resamples=resamples, seed=seed)
            row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def carry(
    pipe: Pipeline,
    attribute_classifier: nn.Module,
    source: Float[Tensor, "n num_ws w_dim"],
    reference: Float[Tensor, "n num_ws w_dim"],
    index: int,
) -> Float[Tensor, "n num_ws w_dim"]:
    """The source's codes with attribute `index` as their references have it, by the domain's matched pairs.

    What source and reference show is said by an image classifier.
    """
    shown = (
        torch.from_numpy(attribute_logits(pipe, attribute_classifier, ws)[:, index] > 0) for ws in (source, reference)
    )
    return source + pipe.network("matched_pairs").carry(source, reference, [index] * len(source), tuple(shown))


def by_attribute(
    cases: Cases,
    source: Float[Tensor, "n num_ws w_dim"],
    reference: Tensor,
    edit: Callable[[Tensor, Tensor, int], Codes],
) -> Codes:
    """The codes of all cases, edited attribute by attribute: edit(source, reference, index) of each one's own."""
    places = [np.flatnonzero(cases.index == k) for k in np.unique(cases.index)]
    return _in_order([edit(source[own], reference[own], int(cases.index[own[0]])) for own in places], places)


@torch.no_grad()
def kinds_right(pipe: Pipeline, cases: Cases, codes: Codes, names: Sequence[str]) -> pd.DataFrame:
    """Whether the kind of an added attribute (which glasses, which hat) is the truth's: a row a case of avatars.

    The edited picture is held against the truth drawn with every kind; right is the one that is nearest by LPIPS.
    "chance": one in so many kinds.
    """
    alex, rows = load_lpips("alex", pipe.device), []
    chosen = [i for i in range(len(cases)) if cases.target[i]]
    pictures = torch.cat([pipe.reconstruct(part) for part in split_codes(codes, MEASURE_BATCH)])
    for i in chosen:
        drawn = counterparts.other_kinds(cases.people[i], names[cases.index[i]])
        if len(drawn) > 1:
            truth = to_tensor(np.stack([avatars.draw(a) for a in drawn])).to(pipe.device)
            nearest = int(alex(pictures[i : i + 1].expand(len(drawn), -1, -1, -1), truth).flatten().argmin())
            rows.append([cases.index[i], float(nearest == 0), 1 / len(drawn)])
    return pd.DataFrame(rows, columns=["attribute", "kind right", "chance"])


@torch.no_grad()
def drawn_ridge(
    pipe: Pipeline, people: Sequence[Avatar], names: Sequence[str], count: int, *, penalty: float = 0.1, seed: int = 0
) -> Callable[[Tensor, int, float], Callable[[float], Tensor]]:
    """A ceiling: edits learnt from `count` avatars of `people` drawn before and after each edit, by ridge regression.

    What generator and codes can do where the truth of edits is known, which no set of photographs has. penalty: in
    units of the mean diagonal of the Gram matrix.
    """
    fitted = {}
    for k, target in progress(list(itertools.product(range(len(names)), (0, 1))), desc="drawing pairs", unit="edit"):
        fitting = (a for a in people if avatars.labels(a)[k] != target)
        drawn = ((a, counterparts.counterpart(a, names[k], seed=seed)) for a in fitting)
        pairs = list(itertools.islice(((a, other) for a, other in drawn if other), count))
        before, after = (
            torch.cat([pipe.invert(part) for part in to_tensor(np.stack(side)).split(MEASURE_BATCH)]).flatten(1)
            for side in zip(*[(avatars.draw(a), avatars.draw(b)) for a, b in pairs], strict=True)
        )
        fitted[k, target] = _kernel_ridge(before.double(), (after - before).double(), penalty)

    def method(ws: Tensor, index: int, target: float) -> Callable[[float], Tensor]:
        change = fitted[index, int(target)](ws.flatten(1).double()).view_as(ws).to(ws)
        return lambda strength: ws + strength * change

    return method


def _kernel_ridge(x: Tensor, y: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
    """Ridge regression with a constant, in its dual form: there are fewer examples than numbers in a code."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    gram = (x - x_mean) @ (x - x_mean).T
    weights = torch.linalg.solve(gram + penalty * gram.diag().mean() * torch.eye(len(x)).to(gram), y - y_mean)
    return lambda given: y_mean + (given - x_mean) @ (x - x_mean).T @ weights
