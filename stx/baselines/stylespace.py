"""Editing by channels of StyleSpace: single ones (Wu et al. 2021), those of a part (Editing in Style, 2020).

StyleSpace vectors are dicts of `[b, channels]`, one entry per layer, as `Generator.styles` gives them. Channels of
ToRGB layers change colours everywhere and are left out of rankings, as in the papers.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stx.files.errors import EditError, InputError
from stx.runtime import plainly
from stx.stylegan2.networks import Generator

Styles = dict[str, Tensor]
CHANNEL_STD = 1e-6  # a channel that varies less than this over the population is constant
PIXELS = 20_000  # feature vectors that are clustered


def signal_to_noise(
    examples: Float[np.ndarray, "n channels"], mean: Float[np.ndarray, "channels"], std: Float[np.ndarray, "channels"]
) -> Float[np.ndarray, "channels"]:
    """|mean| / std over examples of (s - mean of the population) / std of the population (section 5 of StyleSpace)."""
    normed = (examples - mean) / std
    return np.abs(normed.mean(0)) / normed.std(0)


def ranked(scores: Sequence[np.ndarray]) -> list[tuple[int, int, float]]:
    """(layer, channel, score) of all channels by falling score; of equal ones the later first. scores: per layer."""
    places = [(layer, channel) for layer, s in enumerate(scores) for channel in range(len(s))]
    flat = np.concatenate(scores)
    return [(*places[i], float(flat[i])) for i in np.argsort(flat, kind="stable")[::-1]]


def overlap(
    maps: Float[np.ndarray, "n channels h w"], masks: Int[np.ndarray, "n h w"], classes: int
) -> Float[np.ndarray, "n channels classes 3"]:
    """How a channel's gradient map meets the regions of a picture: (overlap, union, area), NaN for absent classes.

    Of each map the strongest pixels are taken, as many as the class has (section 4 of StyleSpace).
    """
    found = np.full((*maps.shape[:2], classes, 3), np.nan)
    flat, regions = maps.reshape(*maps.shape[:2], -1), masks.reshape(len(masks), -1)
    for k in range(classes):
        for i, region in enumerate(regions == k):
            if area := region.sum():
                threshold = np.percentile(flat[i], (1 - area / region.size) * 100, axis=1, keepdims=True)
                strong = flat[i] > threshold
                found[i, :, k, 0], found[i, :, k, 1] = (strong & region).sum(1), (strong | region).sum(1)
                found[i, :, k, 2] = area
    return found


def top_share(overlaps: Float[np.ndarray, "n channels classes 3"]) -> Float[np.ndarray, "channels classes"]:
    """The share of the pictures with a class in which a channel meets it best, by overlap / area^2."""
    best = np.nanargmax(overlaps[..., 0] / overlaps[..., 2] ** 2, axis=2)  # [n, channels]
    classes = overlaps.shape[2]
    counts = (best[:, :, None] == np.arange(classes)).sum(0)
    return counts / np.maximum((~np.isnan(overlaps[:, 0, :, 2])).sum(0), 1)


def localised(
    shares: Sequence[np.ndarray], target: Sequence[int], *, at_least: float = 0.5, gap: float = 0.25
) -> list[tuple[int, int, float]]:
    """(layer, channel, share) of the channels that act on the `target` classes, by falling share.

    shares: per layer, of `top_share`. at_least: of the share of the target; gap: its distance from the next class.
    """
    others = [k for k in range(shares[0].shape[1]) if k not in target]
    sums = [s[:, list(target)].sum(1) for s in shares]
    fit = [(t > at_least) & (t - s[:, others].max(1) > gap) for t, s in zip(sums, shares, strict=True)]
    return [(layer, channel, share) for layer, channel, share in ranked(sums) if fit[layer][channel]]


@torch.no_grad()
def channel(generator: Generator, place: str, ws: Float[Tensor, "n num_ws w_dim"]) -> tuple[str, int, float]:
    """A channel as the paper names it, "6_501" (layer, channel): layer by our name, channel, its deviation over `ws`.

    Layers are counted in the order of use, ToRGB among them. Raises `EditError` for a place that there is not.
    """
    layers = generator.style_layers()
    found = re.fullmatch(r"(\d{1,3})_(\d{1,5})", place)
    if not found or int(found[1]) >= len(layers):
        raise EditError(
            f"stylespace:{place}: expected LAYER_CHANNEL, such as 6_501, with a layer of 0 to {len(layers) - 1}"
        )
    name, layer, token = layers[int(found[1])]
    values = layer.modulation(ws[:, token])
    if int(found[2]) >= values.shape[1]:
        raise EditError(f"stylespace:{place}: layer {found[1]} has the channels 0 to {values.shape[1] - 1}")
    return name, int(found[2]), float(values[:, int(found[2])].std())


class StyleSpace:
    """The channel in which codes with an attribute differ most from all, and edits of it alone (Wu et al. 2021).

    generator: gives the channels. top: which channel of the ranking to edit (0: the first). `ranking_` lists
    (layer's name, channel, signal to noise); `step_` is the population's standard deviation, signed towards the
    attribute.
    """

    def __init__(self, generator: Generator, *, top: int = 0):
        self.generator, self.top = generator, top

    @plainly
    @torch.no_grad()
    def fit(self, ws: Float[Tensor, "n num_ws w_dim"], labels: Bool[np.ndarray, "n"]) -> "StyleSpace":
        """Ranks channels on codes with labels. Raises `ValueError` when fewer than two codes have the attribute."""
        if labels.sum() < 2:
            raise InputError(f"{labels.sum()} of {len(labels)} codes have the attribute: too few to rank channels")
        found = {k: v.cpu().double().numpy() for k, v in self.generator.styles(ws).items() if "rgb" not in k}
        names, scores = list(found), []
        for s in found.values():
            spread = s.std(0)
            constant = spread < CHANNEL_STD
            score = signal_to_noise(s[labels], s.mean(0), np.where(constant, 1, spread))
            scores.append(np.where(constant, 0, score))
        self.ranking_ = [(names[layer], channel, score) for layer, channel, score in ranked(scores)]
        self.layer_, self.channel_, _ = self.ranking_[self.top]
        values = found[self.layer_][:, self.channel_]
        self.step_ = float(np.sign(values[labels].mean() - values.mean()) * values.std())
        return self

    @plainly
    @torch.no_grad()
    def edit(self, ws: Float[Tensor, "b num_ws w_dim"], strength: float) -> Styles:
        """The StyleSpace vectors of codes, the channel moved by `strength` standard deviations."""
        styles = self.generator.styles(ws)
        changed = styles[self.layer_].clone()
        changed[:, self.channel_] += strength * self.step_
        return styles | {self.layer_: changed}


class EditingInStyle:
    """Carries the style of one part over from a reference, channel by channel (Collins et al. 2020, 2004.14367).

    Feature vectors of the generator, of unit length, are clustered into parts (k-means; centres of the public code are
    of unit length too); a channel belongs to a part as far as its squared activations lie there. `share_` has
    `[parts, channels]` for every layer, columns of sum one; `parts_` the picture of the parts for the codes of `fit`.

    parts: number of clusters; layer: whose input is clustered; budget: how much of other parts the moved channels may
    touch (epsilon in the paper); least: of the share of a moved channel (rho).
    """

    def __init__(
        self,
        generator: Generator,
        *,
        parts: int = 12,
        layer: str = "convs.5",
        budget: float = 20.0,
        least: float = 0.1,
        seed: int = 0,
    ):
        self.generator, self.parts, self.layer = generator, parts, layer
        self.budget, self.least, self.seed = budget, least, seed

    @plainly
    @torch.no_grad()
    def fit(self, ws: Float[Tensor, "n num_ws w_dim"]) -> "EditingInStyle":
        """Clusters the features of codes. Raises `ValueError` that lists the layers when `layer` is unknown."""
        from sklearn.cluster import MiniBatchKMeans  # here, since scikit-learn takes seconds to import

        features = self._features(ws)
        if self.layer not in features:
            raise InputError(f"unknown layer {self.layer!r}; this generator has: {', '.join(features)}")
        n, _, h, w = features[self.layer].shape
        vectors = F.normalize(rearrange(features[self.layer], "n c h w -> (n h w) c"), dim=1).cpu().numpy()
        chosen = np.random.RandomState(self.seed).permutation(len(vectors))[:PIXELS]
        found = MiniBatchKMeans(self.parts, random_state=self.seed, n_init=3, batch_size=4096).fit(vectors[chosen])
        self.parts_ = found.predict(vectors).reshape(n, h, w)
        member = F.one_hot(torch.from_numpy(self.parts_).long(), self.parts).permute(0, 3, 1, 2).float()
        self.share_ = {}
        for name, x in features.items():
            x = x.cpu()
            x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True).clamp_min(1e-8)
            inside = F.interpolate(member, size=x.shape[2:], mode="area")
            energy = torch.einsum("nchw,nkhw->kc", x.square(), inside) / len(x)
            self.share_[name] = energy / energy.sum(0).clamp_min(1e-8)
        return self

    @plainly
    def channels(self, part: int) -> dict[str, Bool[Tensor, "channels"]]:
        """The channels that an edit of a part takes over: the largest shares first, while the budget lasts."""
        moved = {}
        for name, share in self.share_.items():
            order = share[part].argsort(descending=True)
            within = (1 - share[part][order]).cumsum(0) < self.budget
            moved[name] = torch.zeros(len(order), dtype=torch.bool)
            moved[name][order[within]] = True
            moved[name] &= share[part] > self.least
        return moved

    @plainly
    @torch.no_grad()
    def edit(
        self, ws: Float[Tensor, "b num_ws w_dim"], reference: Float[Tensor, "b num_ws w_dim"], part: int
    ) -> Styles:
        """The StyleSpace vectors of `ws` with the channels of a part from `reference`."""
        source, other = self.generator.styles(ws), self.generator.styles(reference)
        moved = self.channels(part)
        return source | {k: torch.where(moved[k].to(source[k].device), other[k], source[k]) for k in moved}

    def _features(self, ws: Tensor) -> dict[str, Float[Tensor, "n c h w"]]:
        """The input of every convolution but the first, which its style vector scales."""
        parts = [self.generator.features(part) for part in ws.split(16)]
        names = list(parts[0])
        return {after: torch.cat([part[before] for part in parts]) for before, after in pairwise(names)}
