"""The methods that label editing is compared with, fitted on the same codes and called in the same way.

A method is a function (ws, index of the attribute, target) -> (strength -> W+ codes or StyleSpace vectors); target is
1 to add the attribute, 0 to remove it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stx import label_editing, metrics, resampling
from stx.attribute_dependency import best_match, changes, dependency, strengths
from stx.baselines.directions import GANSpace, InterFaceGAN, SeFa, conditioned
from stx.baselines.learned_editing import LatentCLR, LatentTransformer, StyleFlow
from stx.baselines.registry import EDITORS
from stx.baselines.stylespace import StyleSpace
from stx.detail.kept import split_codes
from stx.evaluation.quality import MEASURE_BATCH, attribute_logits
from stx.files.errors import InputError
from stx.matched_pairs import MatchedPairs
from stx.perception.lpips import load_lpips, vgg16_features
from stx.pipeline import Codes, Pipeline

Edit = Callable[[float], Tensor | dict[str, Tensor]]
Method = Callable[[Tensor, int, float], Edit]
STRENGTH_CODES = 4  # codes on which strengths are found
ATTRIBUTE_CODES = 16  # codes on which attributes are tried
MATCHED_COMPONENTS = 32  # of GANSpace and SeFa, as many as LatentCLR has


def paper_method(
    classifier: nn.Module, *, order: Callable[..., Tensor] = label_editing.first_order, **options
) -> Method:
    """The paper's: a direction of each code's own."""

    def method(ws: Tensor, index: int, target: float) -> Edit:
        direction = order(classifier, ws, [index] * len(ws), [target] * len(ws), **options)
        return lambda strength: label_editing.edit(ws, direction, strength)

    return method


def walked(classifier: nn.Module, order: Callable[..., Tensor], *, steps: int = 6, **options) -> Method:
    """A direction of each code's own, taken anew before each of `steps` equal steps."""

    def method(ws: Tensor, index: int, target: float) -> Edit:
        where, wanted = [index] * len(ws), [target] * len(ws)
        return lambda s: label_editing.walk(classifier, ws, where, wanted, s, steps=steps, order=order, **options)

    return method


def matched_method(matched: MatchedPairs) -> Method:
    """Edits by matched pairs; strength 1 is a whole one."""

    def method(ws: Tensor, index: int, target: float) -> Edit:
        change = matched(ws, [index] * len(ws), [target] * len(ws))
        return lambda strength: label_editing.edit(ws, change, strength)

    return method


def orders(
    classifier: nn.Module,
    ws: Float[Tensor, "n num_ws w_dim"],
    index: int,
    *,
    widths: Sequence[float],
    iterations: int,
    seed: int = 0,
) -> list[float]:
    """How alike the second order is to the first, for an attribute that is added.

    For each of `widths` (xi) the share of codes that have a second order and the mean cosine over these; at last the
    cosine of the released script's direction.
    """
    where, wanted = [index] * len(ws), [1.0] * len(ws)
    first, row = label_editing.first_order(classifier, ws, where, wanted), []
    for xi in widths:
        second = label_editing.second_order(classifier, ws, where, wanted, iterations=iterations, xi=xi, seed=seed)
        there = second.flatten(1).norm(dim=1) > 0.5
        row += [there.float().mean().item(), (first * second).sum((1, 2))[there].mean().item()]
    released = label_editing.released_second_order(classifier, ws, index, seed=seed)
    return [*row, F.cosine_similarity(first.flatten(1), released.flatten(1)).mean().item()]


class Methods(Mapping):
    """Every method by name, each fitted when it is first asked for; `EDITORS` are fitted on this object.

    codes: gives, when a method first needs them, sampled codes (all tokens alike) and the image classifier's logits for
    their pictures. Methods without labels (GANSpace, SeFa, LatentCLR) give for an attribute the direction that goes
    with it best. The steps are those of StyleFlow, the latent transformer and LatentCLR. `watch`: see
    `stx.baselines.learned_editing`. `fitted` holds what has been asked for.
    """

    def __init__(
        self,
        pipe: Pipeline,
        classifier: nn.Module,
        codes: Callable[[], tuple[Tensor, np.ndarray]],
        *,
        flow_steps: int = 300,
        transformer_steps: int = 300,
        contrastive_steps: int = 150,
        seed: int = 0,
    ):
        self.pipe, self.classifier, self.codes, self.seed = pipe, classifier, codes, seed
        self.steps = {"flow": flow_steps, "transformer": transformer_steps, "contrastive": contrastive_steps}
        self.watch: Callable[[float], None] | None = None
        self.fitted: dict[str, Method] = {}
        self._fit = self._ours() | {
            "first order": lambda: paper_method(classifier),
            "second order": lambda: paper_method(self._smooth(), order=label_editing.second_order, seed=seed),
            "InterFaceGAN": lambda: along(self._planes),
            "InterFaceGAN, conditional": self._conditional,
            "GANSpace": self._ganspace,
            "SeFa": lambda: self._matched(SeFa().fit(pipe.generator).directions_[:MATCHED_COMPONENTS]),
            "LatentCLR": self._latentclr,
            "StyleSpace": self._stylespace,
            "StyleFlow": self._styleflow,
            "latent transformer": self._latent_transformer,
        }
        if taken := [name for name in EDITORS if name in self._fit]:
            raise InputError(f"{taken[0]!r} is a method of the package; register yours under another name")
        self._fit |= {name: partial(fit, self) for name, fit in EDITORS.items()}

    def __getitem__(self, name: str) -> Method:
        if name not in self.fitted:
            self.fitted[name] = self._fit[name]()
        return self.fitted[name]

    def __contains__(self, name: object) -> bool:
        return name in self._fit  # without fitting it

    def __iter__(self) -> Iterator[str]:
        return iter(self._fit)

    def __len__(self) -> int:
        return len(self._fit)

    def _ours(self) -> dict[str, Callable[[], Method]]:
        """The methods that a domain's matched pairs make possible, none where it has no such network."""
        if not (self.pipe.folder / "matched_pairs").is_dir():
            return {}
        matched = self.pipe.network("matched_pairs")
        steps = {"natural": matched.natural}
        bound = steps | {"tied": matched.tied}
        return {
            "matched pairs": lambda: matched_method(matched),
            "natural, six steps": lambda: walked(self.classifier, label_editing.natural_order, **steps),
            "constrained, six steps": lambda: walked(self.classifier, label_editing.constrained_order, **bound),
        }

    def _smooth(self) -> nn.Module:
        """The classifier of pictures, which has a Hessian; the latent classifier where the domain has no other."""
        smooth = (self.pipe.folder / "picture_classifier").is_dir()
        return self.pipe.network("picture_classifier") if smooth else self.classifier

    @cached_property
    def sampled(self) -> tuple[Tensor, np.ndarray]:
        """The codes that methods are fitted on, and the logits of their pictures."""
        ws, logits = self.codes()
        return ws.to(self.pipe.device), logits

    @cached_property
    def _planes(self) -> list[np.ndarray]:
        ws, logits = self.sampled
        w = ws[:, 0].cpu().numpy()
        return [InterFaceGAN(seed=self.seed).fit(w, scores).direction_ for scores in logits.T]

    def _conditional(self) -> Method:
        planes = self._planes
        others = [planes[:k] + planes[k + 1 :] for k in range(len(planes))]
        return along([conditioned(p, rest) if rest else p for p, rest in zip(planes, others, strict=True)])

    def _matched(self, directions: np.ndarray) -> Method:
        ws, logits = self.sampled
        matches = [best_match(directions, ws[:, 0].cpu().numpy(), scores) for scores in logits.T]
        return along([sign * directions[index] for index, sign in matches])

    def _ganspace(self) -> Method:
        w = self.sampled[0][:, 0].cpu().numpy()
        return self._matched(GANSpace(components=min(MATCHED_COMPONENTS, *w.shape)).fit(w).directions_)

    def _latentclr(self) -> Method:
        found = LatentCLR(
            self.pipe.generator, steps=self.steps["contrastive"], count=MATCHED_COMPONENTS, seed=self.seed
        )
        return self._matched(found.fit(self.sampled[0][:, 0], self.watch).directions_)

    def _stylespace(self) -> Method:
        ws, logits = self.sampled
        labels = logits > 0
        found = [StyleSpace(self.pipe.generator).fit(ws, own) if own.sum() > 1 else None for own in labels.T]

        def method(codes: Tensor, index: int, target: float) -> Edit:
            if found[index] is None:
                return lambda strength: codes
            return lambda strength: found[index].edit(codes, strength if target > 0.5 else -strength)

        return method

    def _styleflow(self) -> Method:
        ws, logits = self.sampled
        probabilities = torch.from_numpy(logits).float().sigmoid().to(ws)
        flow = StyleFlow(steps=self.steps["flow"], seed=self.seed).fit(ws[:, 0], probabilities, self.watch)

        def method(codes: Tensor, index: int, target: float) -> Edit:
            return flow.editor(codes, self.classifier(codes)[0].sigmoid(), index, target)

        return method

    def _latent_transformer(self) -> Method:
        found = LatentTransformer(self.classifier, steps=self.steps["transformer"], seed=self.seed)
        found.fit(self.sampled[0], self.sampled[1] > 0, self.watch)
        return lambda codes, index, target: lambda s: found.edit(codes, s if target > 0.5 else -s, index)


@torch.no_grad()
def strangeness(pipe: Pipeline, image: Float[Tensor, "n 3 h w"]) -> Float[np.ndarray, "n"]:
    """LPIPS of pictures to their own inversions: small for what the domain has, large for a picture that is broken."""
    return pipe.distortion(image).cpu().numpy()


@torch.no_grad()
def examine(
    pipe: Pipeline,
    attribute_classifier: nn.Module,
    method: Method,
    ws: Float[Tensor, "n num_ws w_dim"],
    index: int,
    sigma: Float[np.ndarray, "attributes"],
    *,
    truth: Float[Tensor, "n 3 h w"] | None = None,
    count: int = 4,
) -> tuple[pd.DataFrame, Float[np.ndarray, "edits attributes"]]:
    """Edits that add attribute `index`, at `count` strengths up to a large target change: a row per code and strength.

    Columns: picture, strength, target change (signed, in sigmas), the change at which the image classifier says that
    the attribute is shown, mean-AD, max-AD, strangeness (see there), ID to the unedited picture where the domain has an
    identity network, and LPIPS to `truth`, the pictures the edits should give. Beside it the delta of every logit. The
    strengths are found on the first codes.
    """
    alex, identity, edit = load_lpips("alex", pipe.device), pipe.identity(), method(ws, index, 1.0)
    unedited = pipe.reconstruct(ws)
    before, who = attribute_classifier(unedited).cpu().numpy(), identity(unedited) if identity is not None else None
    few = method(ws[:STRENGTH_CODES], index, 1.0)

    def achieved(strength: float) -> float:
        return float(
            (
                (attribute_logits(pipe, attribute_classifier, few(strength)) - before[:STRENGTH_CODES])[:, index]
                / sigma[index]
            ).mean()
        )

    tables, deltas = [], []
    for strength in strengths(achieved, count=count):
        image = pipe.reconstruct(edit(float(strength)))
        after = attribute_classifier(image).cpu().numpy()
        delta = changes(before, after, sigma)
        mean_ad, max_ad = dependency(delta, index)
        signed = (after - before)[:, index] / sigma[index]
        table = {"picture": np.arange(len(ws)), "strength": strength, "target change": signed}
        table |= {"change to be shown": -before[:, index] / sigma[index], "mean-AD": mean_ad, "max-AD": max_ad}
        table["strangeness"] = strangeness(pipe, image)
        if identity is not None:
            table["ID"] = F.cosine_similarity(identity(image), who).cpu().numpy()
        if truth is not None:
            table["LPIPS to truth"] = alex(image, truth.to(pipe.device)).flatten().cpu().numpy()
        tables.append(pd.DataFrame(table))
        deltas.append(delta)
    return pd.concat(tables, ignore_index=True), np.concatenate(deltas)


@torch.no_grad()
def easiest(
    pipe: Pipeline,
    attribute_classifier: nn.Module,
    method: Method,
    ws: Float[Tensor, "n num_ws w_dim"],
    logits: Float[np.ndarray, "n attributes"],
    *,
    count: int = 3,
    share: float = 0.8,
    most: float = 12.0,
) -> dict[int, float]:
    """The attributes that a method's edits show at the least strength, `count` at most, with that strength.

    ws, logits: codes and the image classifier's logits for their pictures, of which the first few without the
    attribute are edited. An attribute is shown at the least of 12 strengths up to `most` at which `share` of the
    pictures show it; those that are at none are left out.
    """
    lacking = {k: ws[logits[:, k] < 0][:ATTRIBUTE_CODES].to(pipe.device) for k in range(logits.shape[1])}
    edits = {k: method(codes, k, 1.0) for k, codes in lacking.items() if len(codes)}
    found: dict[int, float] = {}
    for strength in np.linspace(0, most, 13)[1:].tolist():
        for k in [k for k in edits if k not in found]:
            if (attribute_logits(pipe, attribute_classifier, edits[k](strength))[:, k] > 0).mean() >= share:
                found[k] = strength
        if len(found) >= count:
            break
    return dict(itertools.islice(found.items(), count))


@torch.no_grad()
def editability(
    pipe: Pipeline,
    attribute_classifier: nn.Module,
    codes: Mapping[str, Float[Tensor, "n num_ws w_dim"]],
    method: Method,
    index: int,
    strength: float,
    real: Float[np.ndarray, "m 512"],
    *,
    resamples: int = 50,
    seed: int = 0,
) -> pd.DataFrame:
    """Attribute `index` added to the codes that several inversions gave for the same pictures, a row for each.

    real: VGG16 features of real pictures that show the attribute. Columns: FD-VGG16 of edited pictures to them with its
    interval over edited pictures, KD-VGG16 (`metrics.kernel_distance`), the share that shows the attribute, ID to the
    unedited inversion (NaN without an identity network).
    """
    vgg, identity, rows = load_lpips("vgg", pipe.device), pipe.identity(), []
    fitted = metrics.Gaussian.of(real)
    for name, ws in codes.items():
        found = {"features": [], "shown": [], "ID": []}
        for part in ws.to(pipe.device).split(MEASURE_BATCH):
            image = pipe.reconstruct(method(part, index, 1.0)(strength))
            found["features"].append(vgg16_features(vgg, image).cpu().double().numpy())
            found["shown"].append(attribute_classifier(image)[:, index].cpu().numpy() > 0)
            if identity is not None:
                found["ID"].append(F.cosine_similarity(identity(image), identity(pipe.reconstruct(part))).cpu().numpy())
        features, shown = np.concatenate(found["features"]), np.concatenate(found["shown"])

        def distance(chosen: np.ndarray, features: np.ndarray = features) -> float:
            return metrics.frechet_distance(fitted, features[chosen])

        low, high = metrics.bootstrap(distance, len(features), resamples=resamples, seed=seed)
        likeness = float(np.concatenate(found["ID"]).mean()) if found["ID"] else float("nan")
        fd, kernel = distance(np.arange(len(features))), metrics.kernel_distance(real, features)
        rows.append([name, fd, low, high, kernel, *metrics.share_interval(shown), likeness])
    columns = ["inversion", "FD-VGG16", "low", "high", "KD-VGG16", "shown", "shown low", "shown high", "ID"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def likeness(pipe: Pipeline, codes: Codes, source: Float[Tensor, "n num_ws w_dim"]) -> Float[np.ndarray, "n"]:
    """Cosine of the identities of the pictures of codes and of their sources; NaN where the domain has no network."""
    identity = pipe.identity()
    if identity is None:
        return np.full(len(source), np.nan)
    found = []
    for edited, before in zip(split_codes(codes, MEASURE_BATCH), source.split(MEASURE_BATCH), strict=True):
        who = (identity(pipe.reconstruct(part)) for part in (edited, before))
        found.append(F.cosine_similarity(*who).cpu().numpy())
    return np.concatenate(found)


def summarise_carried(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row for each attribute, way and method of `pairs`: the share carried with its interval, and other means.

    pairs: what `stx.evaluation.landing.landed` gave, "shown" named "carried", with columns `method` and `ID`.
    """
    rows = []
    for (name, way, method), part in pairs.groupby(["attribute", "way", "method"], sort=False):
        carried = metrics.share_interval(part["carried"].to_numpy())
        rows.append([name, way, method, len(part), *carried, part["others right"].mean(), part["ID"].mean()])
    columns = ["attribute", "way", "method", "pairs", "carried", "carried low", "carried high", "others right", "ID"]
    return pd.DataFrame(rows, columns=columns)


def carried_means(pairs: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """A row for each way and method of `pairs` (see `summarise_carried`): means over attributes with intervals.

    Pictures are resampled with all pairs that they are the source of: column `picture`.
    """
    rows = []
    for (way, method), part in pairs.groupby(["way", "method"], sort=False):
        row = {"way": way, "method": method}
        for name in ("carried", "others right", "all right", "ID"):
            found = resampling.mean(part, name, resamples=resamples, seed=seed)
            row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def along(steps: Sequence[np.ndarray] | Float[Tensor, "count *code"]) -> Method:
    """The method that adds a step of its own for each attribute, or takes it away: the same one for all codes."""

    def method(ws: Tensor, index: int, target: float) -> Edit:
        step = torch.as_tensor(steps[index]).to(ws) * (1.0 if target > 0.5 else -1.0)
        return lambda strength: ws + strength * step

    return method
