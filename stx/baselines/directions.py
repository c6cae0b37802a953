"""Edits of files, and global directions, the same for every picture: InterFaceGAN, SeFa and GANSpace, fitted here.

Estimators in scikit-learn's manner: numbers in the constructor, `fit` returns self, what was learnt ends in `_`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stx.files.config import Configured
from stx.files.errors import InputError
from stx.runtime import plainly
from stx.stylegan2.networks import Generator


class Directions(Configured, nn.Module):
    """Edit directions in W or W+: `directions [count, tokens, w_dim]` of unit length, tokens 1 for W.

    GANSpace's also have `mean [w_dim]` and `std [count]` of the principal components; zeros and ones otherwise.
    """

    def __init__(self, *, count: int, tokens: int, w_dim: int):
        super().__init__()
        self.count = count
        self.register_buffer("directions", torch.zeros(count, tokens, w_dim))
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("std", torch.ones(count))

    def check_fit(self, generator: Generator) -> None:
        """Raises `ValueError` with both shapes when the directions are not of this generator's codes."""
        tokens, w_dim = self.directions.shape[1:]
        if w_dim != generator.w_dim or tokens not in (1, generator.num_ws):
            raise InputError(
                f"directions of {tokens} x {w_dim} do not fit codes of {generator.num_ws} x {generator.w_dim}"
            )

    @classmethod
    def of(cls, directions: Float[np.ndarray, "count w_dim"], *, mean=0.0, std=1.0) -> "Directions":
        """Directions in W that were fitted, as a network that can be saved."""
        count, w_dim = directions.shape
        net = cls(count=count, tokens=1, w_dim=w_dim)
        for buffer, given in ((net.directions, directions[:, None]), (net.mean, mean), (net.std, std)):
            buffer.copy_(torch.as_tensor(np.asarray(given)).expand_as(buffer))
        return net

    def moves(self, ws: Float[Tensor, "b num_ws w_dim"], index: int = 0) -> Float[Tensor, "b num_ws w_dim"]:
        """What direction `index` adds to codes at strength 1, a standard deviation of GANSpace's: the same to each."""
        return (self.std[index] * self.directions[index]).expand_as(ws)


class TokenMaps(Configured, nn.Module):
    """T of w + alpha T(w): a linear map for each attribute and token (Yao et al. 2021, 2106.11895).

    `maps [count, num_ws, w_dim, w_dim]`, `offsets [count, num_ws, w_dim]`, `mean [num_ws, w_dim]` of codes.
    """

    def __init__(self, *, count: int, num_ws: int, w_dim: int):
        super().__init__()
        self.count = count
        self.maps = nn.Parameter(torch.zeros(count, num_ws, w_dim, w_dim))
        self.offsets = nn.Parameter(torch.zeros(count, num_ws, w_dim))
        self.register_buffer("mean", torch.zeros(num_ws, w_dim))

    def forward(
        self, codes: Float[Tensor, "k b num_ws w_dim"], which: slice = slice(None)
    ) -> Float[Tensor, "k b num_ws w_dim"]:
        """T of the codes of each attribute among `which`."""
        moved = torch.einsum("kbni,knoi->kbno", codes - self.mean, self.maps[which])
        return moved + self.offsets[which][:, None]

    def moves(self, ws: Float[Tensor, "b num_ws w_dim"], index: int = 0) -> Float[Tensor, "b num_ws w_dim"]:
        """What attribute `index` adds to codes at strength 1."""
        return self(ws[None], slice(index, index + 1))[0]

    def check_fit(self, generator: Generator) -> None:
        """Raises `InputError` with both shapes when the maps are not of this generator's codes."""
        num_ws, w_dim = self.mean.shape
        if (num_ws, w_dim) != (generator.num_ws, generator.w_dim):
            raise InputError(f"maps of {num_ws} x {w_dim} do not fit codes of {generator.num_ws} x {generator.w_dim}")


class InterFaceGAN:
    """The normal of the plane between codes that show an attribute most and least (Shen et al. 2020, 1907.10786).

    share: of the codes taken at each end of the scores, or, above 1, their number. seed: of their order. `direction_`
    has the shape of a code.
    """

    def __init__(self, *, share: float = 0.02, seed: int = 0):
        self.share, self.seed = share, seed

    def fit(self, codes: Float[np.ndarray, "n *code"], scores: Float[np.ndarray, "n"]) -> "InterFaceGAN":
        """A linear support vector machine on the extremes. Raises `ValueError` for fewer than two codes at an end."""
        from sklearn.svm import SVC  # here, since scikit-learn takes seconds to import

        chosen = min(int(self.share * (len(codes) if self.share <= 1 else 1)), len(codes) // 2)
        if chosen < 2:
            raise InputError(f"{len(codes)} codes, a share of {self.share} at each end: too few to separate")
        order = np.argsort(scores)
        flat = codes.reshape(len(codes), -1)
        ends = np.concatenate([flat[order[-chosen:]], flat[order[:chosen]]])
        labels = np.repeat([1, 0], chosen)
        shuffled = np.random.RandomState(self.seed).permutation(len(ends))
        normal = SVC(kernel="linear").fit(ends[shuffled], labels[shuffled]).coef_[0]
        self.direction_ = (normal / np.linalg.norm(normal)).reshape(codes.shape[1:])
        return self

    def edit(self, codes: np.ndarray, strength: float) -> np.ndarray:
        """`codes + strength * direction_`."""
        return codes + strength * self.direction_

    def place(self, codes: Float[np.ndarray, "n *code"], distance: float) -> np.ndarray:
        """Codes at a signed distance from the plane through the origin: the public code's way to edit codes of W."""
        along = (codes * self.direction_).reshape(len(codes), -1).sum(1)
        return codes + (distance - along).reshape(-1, *[1] * self.direction_.ndim) * self.direction_


def conditioned(direction: Float[np.ndarray, "*code"], others: Sequence[np.ndarray]) -> np.ndarray:
    """A direction with the span of others projected out, of unit length: an edit that leaves their attributes alone.

    Raises `ValueError` when nothing is left.
    """
    basis = np.stack([other.ravel() for other in others])
    flat = direction.ravel()
    left = flat - np.linalg.lstsq(basis.T, flat, rcond=None)[0] @ basis
    size = np.linalg.norm(left)
    if size < 1e-8:
        raise InputError("the direction lies in the span of those it should leave alone")
    return (left / size).reshape(direction.shape)


class SeFa:
    """Directions that move style vectors most, in closed form from the generator's weights (Shen & Zhou 2021).

    layers: names as in `Generator.style_layers`, by default every convolution (no ToRGB). normalise: each column of the
    weights to unit length, as genforce's code does. `directions_ [w_dim, w_dim]`, `values_` falling; the sign is such
    that the largest entry of a direction is positive.
    """

    def __init__(self, *, layers: Sequence[str] | None = None, normalise: bool = True):
        self.layers, self.normalise = layers, normalise

    @plainly
    def fit(self, generator: Generator) -> "SeFa":
        """Eigenvectors of W W^T. Raises `ValueError` that lists the layers when one is unknown."""
        known = {name: layer for name, layer, _ in generator.style_layers()}
        names = self.layers or [name for name in known if "rgb" not in name]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"unknown layer {unknown[0]!r}; this generator has: {', '.join(known)}")
        weights = torch.cat([known[name].modulation.weight.detach().cpu().double().T for name in names], 1)
        if self.normalise:
            weights = weights / weights.norm(dim=0, keepdim=True)
        values, vectors = torch.linalg.eigh(weights @ weights.T)
        directions = vectors.flip(1).T
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        self.values_ = values.flip(0).numpy()
        self.directions_ = (directions * largest.sign()).numpy()
        return self

    @plainly
    def edit(self, ws: Tensor, strength: float, index: int = 0) -> Tensor:
        """`ws` with direction `index` added to every token."""
        return ws + strength * torch.from_numpy(self.directions_[index]).to(ws)


class GANSpace:
    """Principal components of sampled w (Härkönen et al. 2020, 2004.02546).

    components: how many. incremental: as the public code does, sample batch by sample batch, with its batches of 2,000
    or three times the components (what does not fill one is dropped, unless it is all); the exact ones otherwise.
    `mean_ [w_dim]`, `directions_ [components, w_dim]` of unit length, `std_ [components]`: as there the deviation of
    the samples where the components are exact, and that estimated for all of W (n - 1) where they are incremental.
    """

    def __init__(self, *, components: int = 80, incremental: bool = False):
        self.components, self.incremental = components, incremental

    def fit(self, w: Float[np.ndarray, "n w_dim"]) -> "GANSpace":
        """The components of samples of W. Raises `ValueError` when there are fewer samples than components."""
        from sklearn.decomposition import PCA, IncrementalPCA

        if min(w.shape) < self.components:
            raise InputError(f"{w.shape[0]} samples of {w.shape[1]} numbers do not give {self.components} components")
        if self.incremental:
            size = min(max(2000, 3 * self.components), len(w))
            found = IncrementalPCA(self.components)
            for start in range(0, len(w) - size + 1, size):
                found.partial_fit(w[start : start + size])
        else:
            found = PCA(self.components, svd_solver="full").fit(w)
        self.mean_, self.directions_, self.std_ = found.mean_, found.components_, np.sqrt(found.explained_variance_)
        if not self.incremental:
            self.std_ = self.std_ * np.sqrt(1 - 1 / len(w))
        return self

    def lat_stdev(self, w: Float[np.ndarray, "n w_dim"]) -> Float[np.ndarray, "components"]:
        """The public code's `lat_stdev`: the deviation of fresh samples (there 5,000) along each component."""
        return (w @ self.directions_.T).std(0)

    @plainly
    def edit(self, ws: Tensor, strength: float, index: int = 0, tokens: slice = slice(None)) -> Tensor:
        """`ws` with component `index` added to a range of tokens, in units of its standard deviation."""
        step = torch.from_numpy(self.directions_[index] * self.std_[index]).to(ws)
        edited = ws.clone()
        edited[:, tokens] += strength * step
        return edited


COMPONENTS, SAMPLES = 80, 10_000  # of GANSpace where they are fitted on request: the public code's number, and codes


@torch.no_grad()
def sefa(generator: Generator) -> Directions:
    """All of SeFa's directions of a generator, on the CPU; strength is a length in W."""
    return Directions.of(SeFa().fit(generator).directions_)


@plainly
def ganspace(generator: Generator) -> Directions:
    """The first 80 of GANSpace's components, or all there are, of 10,000 random codes; on the CPU, with deviations."""
    z = torch.randn(SAMPLES, generator.w_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        w = torch.cat([generator.mapping(part.to(generator.latent_avg)) for part in z.split(1000)]).cpu().numpy()
    found = GANSpace(components=min(COMPONENTS, generator.w_dim)).fit(w)
    return Directions.of(found.directions_, mean=found.mean_, std=found.std_)


FITTED = {"sefa": sefa, "ganspace": ganspace}  # what needs no labels and no file
