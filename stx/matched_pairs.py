"""Edits learnt from labels alone, as treatment effects: what differs between codes that differ in one label only.

Ours; the paper has nothing of the kind. For every code without an attribute the nearest code with it is looked for,
first with the other labels equal, then near in the principal components of codes (Rosenbaum & Rubin 1985; Abadie &
Imbens 2006 for what nearest neighbours leave over). The nearest *other* code without the attribute is its placebo: the
difference between the two neighbours is the effect, from which what both neighbours are wrong about (they lie nearer
the mean than the code: other clothes, another background) cancels, as in differences in differences. A ridge
regression of effects on codes gives every code its own edit. Directions in which matched pairs vary more than placebos
(a generalised eigenproblem) tell which kind of an attribute a code shows, so that a reference's kind can be carried
over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import EditError, InputError
from stx.runtime import batches, plain_torch, progress

FEWEST = 8  # codes with an attribute, and without, from which an edit of it is learnt
EQUAL = 1e3  # how much one other label outweighs a distance of codes
SEARCH_BATCH = 1024  # codes whose neighbours are looked for together
EXCLUSIVE, IMPLIED = 0.05, 0.98  # of co-occurrence over chance; of a conditional share
SHRINK = 0.01  # of the mean variance, added to all: codes are not exactly flat
KIND_SHRINK = 0.02  # the same where kinds are looked for
KIND_RATIO = 30.0  # of variances with and without an attribute, above which a direction tells its kind


class MatchedPairs(Configured, nn.Module):
    """Edits of all attributes of a domain, linear in the code and each code's own; made by `fit`.

    num_ws, w_dim: shape of the codes; attributes: their names; components: principal components that are edited;
    kinds: directions that tell the kind of an attribute.
    """

    def __init__(self, *, num_ws: int, w_dim: int, attributes: Sequence[str], components: int = 256, kinds: int = 8):
        super().__init__()
        self.num_ws, self.w_dim, self.attributes = num_ws, w_dim, tuple(attributes)
        self.components, self.kinds, count = components, kinds, len(self.attributes)
        self.register_buffer("mean", torch.zeros(num_ws * w_dim))
        self.register_buffer("basis", torch.zeros(num_ws * w_dim, components))
        self.register_buffer("spread", torch.zeros(components))  # standard deviations of the components
        self.register_buffer("floor", torch.zeros(()))  # standard deviation of every other direction
        self.register_buffer("effect", torch.zeros(2, count, components + 1, components))  # by target and attribute
        self.register_buffer("kind_basis", torch.zeros(2, count, components, kinds))
        self.register_buffer("kind_usual", torch.zeros(2, count, components + 1, kinds))
        self.register_buffer("kind_effect", torch.zeros(2, count, kinds, components))
        self.register_buffer("known", torch.zeros(2, count, dtype=torch.bool))
        self.register_buffer("tied", torch.zeros(count, count, dtype=torch.bool))

    def forward(
        self, ws: Float[Tensor, "b num_ws w_dim"], index: Sequence[int], target: Sequence[float]
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """The change of each code that gives attribute `index[i]` the label `target[i]`; to be added once.

        Half of it is half an edit. Raises `InputError` for codes of another shape, `EditError` where there were too few
        pictures to learn from.
        """
        z, where = self._start(ws, index, target)
        return self._codes(_each(z, self.effect, where))

    def carry(
        self,
        ws: Float[Tensor, "b num_ws w_dim"],
        reference: Float[Tensor, "b num_ws w_dim"],
        index: Sequence[int],
        shown: tuple[Bool[Tensor, "b"], Bool[Tensor, "b"]],
    ) -> Float[Tensor, "b num_ws w_dim"]:
        """The change of each code that gives it attribute `index[i]` as the reference has it, its kind included.

        shown: whether source and reference show it now. Where both do, the kind changes alone; where neither, nothing.
        """
        has, wanted = (part.to(ws.device) for part in shown)
        z, where = self._start(ws, index, wanted.float().tolist())
        other = self._components(reference)
        kind = _each(other, self.kind_basis, where)
        usual = _each(z, self.kind_usual, where)
        own = _each(z[:, :-1], self.kind_basis, where)
        differs = (has != wanted)[:, None]
        change = _each(kind - torch.where(differs, usual, own), self.kind_effect, where)
        change = change + differs * _each(z, self.effect, where)
        return self._codes(change * (has | wanted)[:, None])

    def natural(self, gradient: Float[Tensor, "*b num_ws w_dim"]) -> Float[Tensor, "*b num_ws w_dim"]:
        """Sigma g, with Sigma the covariance of codes: the steepest ascent where steps are measured by their spread."""
        flat = gradient.flatten(-2).to(self.basis)
        along = flat @ self.basis
        spread = along * (self.spread.square() - self.floor.square())
        return (spread @ self.basis.T + self.floor.square() * flat).to(gradient).view_as(gradient)

    def _start(self, ws: Tensor, index: Sequence[int], target: Sequence[float]) -> tuple[Tensor, tuple]:
        if ws.ndim != 3 or tuple(ws.shape[1:]) != (self.num_ws, self.w_dim):
            raise InputError(f"codes of shape {tuple(ws.shape)}: expected [batch, {self.num_ws}, {self.w_dim}]")
        wanted = ([int(y > 0.5) for y in target], index)
        where = tuple(torch.as_tensor(numbers, dtype=torch.long, device=ws.device) for numbers in wanted)
        for side, k in zip(where[0][~self.known[where]].tolist(), where[1][~self.known[where]].tolist(), strict=True):
            what = "with" if side else "without"
            raise EditError(f"too few training pictures {what} {self.attributes[k]} to learn an edit from")
        z = self._components(ws)
        return _with_ones(z), where

    def _components(self, ws: Tensor) -> Tensor:
        return (ws.flatten(1).to(self.mean) - self.mean) @ self.basis

    def _codes(self, change: Tensor) -> Tensor:
        return (change @ self.basis.T).view(-1, self.num_ws, self.w_dim)


@dataclass(frozen=True)
class Matching:
    """How pairs are found. sources: codes of each side at most; compared: principal components of the distance.

    ridge: of the regression, in units of the mean variance. seed: of which codes are taken.
    """

    sources: int = 8000
    compared: int = 128
    ridge: float = 1.0
    seed: int = 0


@plain_torch()
@torch.no_grad()
def fit(
    ws: Float[Tensor, "n num_ws w_dim"],
    labels: Bool[np.ndarray, "n attributes"],
    attributes: Sequence[str],
    *,
    components: int = 256,
    kinds: int = 8,
    matching: Matching = Matching(),
    watch: Callable[[float], None] = lambda share: None,
) -> MatchedPairs:
    """Edits from codes and their labels. watch: told the share that is done; what it raises ends the work.

    Attributes with fewer than `FEWEST` codes on a side get no edit on it. A minute for 16,384 codes and 17
    attributes on one core.
    """
    if len(ws) != len(labels) or labels.shape[1] != len(attributes):
        raise InputError(f"{len(ws)} codes, labels {labels.shape}, {len(attributes)} attributes do not fit")
    components = min(components, len(ws) - 1, ws[0].numel())
    net = MatchedPairs(
        num_ws=ws.shape[1],
        w_dim=ws.shape[2],
        attributes=attributes,
        components=components,
        kinds=min(kinds, components),
    )
    _fit_space(net, ws)
    net.tied.copy_(torch.from_numpy(tied(labels)))
    z, shows = net._components(ws), torch.from_numpy(labels).float()
    jobs = [(target, k) for target in (0, 1) for k in range(len(attributes))]
    for done, (target, k) in enumerate(progress(jobs, desc="matching", unit="edit")):
        watch(done / len(jobs))
        pairs = _pairs(z, shows, k, target, matching)
        if pairs is not None:
            _regress(net, (target, k), *pairs, matching.ridge)
    return net.eval().requires_grad_(False)


def tied(labels: Bool[np.ndarray, "n attributes"]) -> Bool[np.ndarray, "attributes attributes"]:
    """Which labels cannot stay when another changes: those that exclude each other, and those that imply another."""
    y = labels.astype(float)
    share, together = y.mean(0), y.T @ y / len(y)
    exclusive = together < EXCLUSIVE * share[:, None] * share[None]
    implied = together > IMPLIED * share[:, None]
    found = exclusive | implied | implied.T
    np.fill_diagonal(found, False)
    return found


def _fit_space(net: MatchedPairs, ws: Tensor) -> None:
    flat = ws.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(flat))
    net.mean.copy_(mean)
    net.basis.copy_(vectors.flip(1)[:, : net.components])
    floor = SHRINK * values.mean().clamp_min(0)
    net.floor.copy_(floor.sqrt())
    net.spread.copy_((values.flip(0)[: net.components].clamp_min(0) + floor).sqrt())


@dataclass(frozen=True)
class Pairs:
    """Components of codes without a label, of codes with it that are matched to them, and of their placebos."""

    source: Float[Tensor, "n components"]
    found: Float[Tensor, "n components"]
    placebo: Float[Tensor, "n components"]


def _pairs(z: Tensor, shows: Tensor, k: int, target: int, matching: Matching) -> tuple[Pairs, Pairs] | None:
    """For codes without the wanted label their nearest with it; and for codes with it their nearest without.

    The first pairs say what the least change is; in the second every kind of the attribute occurs as often as it is.
    None where there are too few.
    """
    random = torch.Generator().manual_seed(matching.seed)
    lacking, having = (torch.nonzero((shows[:, k] == target) == side)[:, 0] for side in (False, True))
    if min(len(lacking), len(having)) < FEWEST:
        return None
    lacking, having = (part[torch.randperm(len(part), generator=random)] for part in (lacking, having))
    sources, others = lacking[: matching.sources], [i for i in range(shows.shape[1]) if i != k]
    near, labels = z[:, : matching.compared], shows[:, others].clone()
    companion = _companion(near, labels, sources, having) if target == 0 else None
    goal = labels.clone()
    if companion is not None:
        having = having[labels[having, companion] > 0.5]
        goal[:, companion] = 1
    found = _nearest(near, labels, sources, goal[sources], having)
    backwards = _nearest(near, goal, having[: matching.sources], labels[having[: matching.sources]], lacking)
    placebos = lacking[torch.randperm(len(lacking), generator=random)[: len(having)]]

    def pairs(source: Tensor, found: Tensor) -> Pairs:
        return Pairs(z[source], z[found], z[_nearest(near, labels, source, labels[source], placebos)])

    return pairs(sources, found), pairs(backwards, having[: matching.sources])


def _companion(near: Tensor, labels: Tensor, sources: Tensor, having: Tensor) -> int | None:
    """The label that has to come where one goes, because one of them is always there (a hair colour): the nearest.

    None where most codes have neighbours whose other labels are all equal.
    """
    few = sources[:SEARCH_BATCH]
    gained = labels[_nearest(near, labels, few, labels[few], having)] - labels[few] > 0.5
    return None if (~gained.any(1)).float().mean() >= 0.5 else int(gained.float().mean(0).argmax())


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """How many labels differ, `[len(a), len(b)]`."""
    return a.sum(1)[:, None] + b.sum(1)[None] - 2 * a @ b.T


def _nearest(near: Tensor, labels: Tensor, sources: Tensor, goal: Tensor, pool: Tensor) -> Tensor:
    """For each source the position of the code of `pool` (never itself) that is nearest in labels, then in place."""
    found = []
    for part in batches(len(sources), SEARCH_BATCH):
        own = sources[part.start : part.stop]
        cost = torch.cdist(near[own], near[pool]) + EQUAL * _apart(goal[part.start : part.stop], labels[pool])
        cost[own[:, None] == pool[None]] = torch.inf
        found.append(pool[cost.argmin(1)])
    return torch.cat(found)


def _regress(net: MatchedPairs, at: tuple[int, int], nearest: Pairs, every: Pairs, ridge: float) -> None:
    """The effect from the nearest pairs, the kinds and what they do from those in which every kind occurs."""
    basis = _kinds(every, net.kinds)
    basis = basis / (every.found @ basis).std(0).clamp_min(1e-6)
    kind, effect = every.found @ basis, every.found - every.placebo
    kind, effect = (part - _with_ones(every.source) @ _ridge(every.source, part, ridge) for part in (kind, effect))
    gram = kind.T @ kind + 0.01 * len(kind) * torch.eye(net.kinds)
    net.effect[at] = _ridge(nearest.source, nearest.found - nearest.placebo, ridge)
    net.kind_basis[at] = basis
    net.kind_usual[at] = _ridge(nearest.source, nearest.found @ basis, ridge)
    net.kind_effect[at] = torch.linalg.solve(gram, kind.T @ effect)
    net.known[at] = True


def _each(x: Tensor, maps: Float[Tensor, "2 attributes i j"], where: tuple[Tensor, Tensor]) -> Tensor:
    """Every row of x by the map of its target and attribute, without a copy of a map for each row."""
    found = x.new_empty(len(x), maps.shape[-1])
    for target, k in set(zip(*(part.tolist() for part in where), strict=True)):
        own = (where[0] == target) & (where[1] == k)
        found[own] = x[own] @ maps[target, k]
    return found


def _with_ones(z: Tensor) -> Tensor:
    return torch.cat([z, z.new_ones(len(z), 1)], 1)


def _kinds(pairs: Pairs, count: int) -> Float[Tensor, "components kinds"]:
    """The directions in which codes with an attribute vary most, measured by how those without it vary: eigenvectors.

    Directions in which codes vary nearly as much without it tell nothing of its kind, and are zeros.
    """
    signal, noise = (torch.cov(part.double().T, correction=0) for part in (pairs.found, pairs.source))
    size = len(noise)
    noise = noise + KIND_SHRINK * noise.diag().mean() * torch.eye(size, dtype=noise.dtype)
    ratio, vectors = scipy.linalg.eigh(signal.numpy(), noise.numpy(), subset_by_index=[size - count, size - 1])
    return torch.from_numpy(np.where(ratio > KIND_RATIO, vectors, 0.0)[:, ::-1].copy()).to(pairs.source)


def _ridge(x: Tensor, y: Tensor, ridge: float) -> Float[Tensor, "inputs out"]:
    """Ridge regression with a free constant, which is the last row."""
    x_mean, y_mean = x.double().mean(0), y.double().mean(0)
    centred = x.double() - x_mean
    gram = centred.T @ centred
    penalty = ridge * gram.diag().mean().clamp_min(1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    slope = torch.linalg.solve(gram + penalty, centred.T @ (y.double() - y_mean))
    return torch.cat([slope, (y_mean - x_mean @ slope)[None]]).to(x)
