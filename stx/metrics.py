"""How good is an inversion: per-picture distances, distances of sets, cost; with bootstrap intervals.

Extractor, statistic and number are three functions; names state the protocol (backbone, scales), because numbers of
another one do not compare. Pictures are in [-1, 1].
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from stx.files.errors import InputError

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, fine to coarse
SSIM_WINDOW = 11
PATCH = 7  # side of the patches of the sliced Wasserstein distance


# ----------------------------------------------------------------------------------------------- one number per picture


def l2(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """|a - b|^2 / (3 h w), the mean squared difference per picture."""
    return (a - b).square().mean((1, 2, 3))


def ms_ssim_scales(side: int) -> int:
    """How many of the five scales fit a picture: its smallest version must hold the window of 11 pixels."""
    return max(n for n in range(1, 6) if n == 1 or side / 2 ** (n - 1) >= SSIM_WINDOW)


def ms_ssim(a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """l_M^b_M prod_j (c_j s_j)^b_j over scales j of luminance l, contrast c and structure s (Wang et al. 2003).

    1 for equal pictures. Luminance is compared in [0, 1], for which the formula is made: about zero a small difference
    counts as a large one. Small pictures take fewer scales (`ms_ssim_scales`), their weights scaled to the sum one.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim  # slow to import

    betas = np.array(MS_SSIM_WEIGHTS[: ms_ssim_scales(min(a.shape[2:]))])
    a, b = ((image + 1) / 2 for image in (a, b))
    options, terms = {"reduction": "none", "data_range": (0.0, 1.0), "return_contrast_sensitivity": True}, []
    for _ in betas:
        whole, contrast = ssim(a, b, **options)  # l c s and c s; torchmetrics' own loop takes no four scales of 96 px
        terms.append(contrast.reshape(len(a)).relu())
        a, b = (F.avg_pool2d(image, 2) for image in (a, b))
    terms[-1] = whole.reshape(len(a)).relu()
    return (torch.stack(terms) ** torch.tensor(betas / betas.sum()).to(a)[:, None]).prod(0)


# ------------------------------------------------------------------------------------------------- one number per set


class Gaussian(NamedTuple):
    """What a Fréchet distance knows of a set: the mean, and a matrix R with the covariance R^T R."""

    mean: Float[np.ndarray, "d"]
    root: Float[np.ndarray, "k d"]

    @classmethod
    def of(cls, samples: Float[np.ndarray, "n d"]) -> "Gaussian":
        """Of samples, in float64. Raises `ValueError` for fewer than two."""
        if len(samples) < 2:
            raise InputError(f"a Fréchet distance of {len(samples)} pictures: at least 2")
        samples = samples.astype(np.float64, copy=False)
        mean = samples.mean(0)
        centred = (samples - mean) / np.sqrt(len(samples) - 1)
        return cls(mean, np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred)


def frechet_distance(a: Gaussian | Float[np.ndarray, "n d"], b: Gaussian | Float[np.ndarray, "m d"]) -> float:
    """|mean_a - mean_b|^2 + Tr(A + B - 2 (A B)^(1/2)) for the covariances A, B (Heusel et al. 2017).

    a, b: samples, or what `Gaussian.of` made of a set that is compared often. With fewer samples than dimensions it is
    still defined, but biased upwards: compare equal counts only. Raises `ValueError` for fewer than two samples.
    """
    a, b = (x if isinstance(x, Gaussian) else Gaussian.of(x) for x in (a, b))
    # Tr (A B)^(1/2) is the nuclear norm of A^(1/2) B^(1/2), so of the product of the roots
    shared = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    return float(np.square(a.mean - b.mean).sum() + np.square(a.root).sum() + np.square(b.root).sum() - 2 * shared)


def kernel_distance(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], *, paired: bool = False) -> float:
    """The unbiased squared MMD of the kernel (x . y / d + 1)^3, times 1000, as KID (Binkowski et al. 2018).

    Unlike a Fréchet distance it does not fall with more pictures, and may be negative. paired: row i of both is of the
    same picture, so that the two are not independent (Gretton et al. 2012, equation 4). Computed in float64. Raises
    `ValueError` for fewer than two samples, and for pairs of which one is missing.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(f"a kernel distance of {len(a)} and {len(b)} pictures: at least 2 of each")
    if paired and len(a) != len(b):
        raise InputError(f"a kernel distance of {len(a)} and {len(b)} pictures in pairs: as many of each")
    a, b = (x.astype(np.float64, copy=False) for x in (a, b))
    aa, bb, ab = (((x @ y.T) / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    inner = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in ((aa, bb, ab) if paired else (aa, bb))]
    across = inner[2] if paired else ab.mean()
    return float(1000 * (inner[0] + inner[1] - 2 * across))


def halves_interval(
    statistic: Callable[[np.ndarray], float], n: int, *, resamples: int = 100, seed: int = 0
) -> tuple[float, float]:
    """A 95 % interval of `statistic(positions)` from halves of the pictures 0..n-1, none of which comes twice.

    For statistics that compare every picture with every other, as `kernel_distance`: one that is drawn twice would be
    its own likeness. The half of a set deviates from the whole as the whole does from all pictures there could be.
    """
    random = np.random.RandomState(seed)
    values = np.array([statistic(random.permutation(n)[: max(n // 2, 2)]) for _ in range(resamples)])
    low, high = statistic(np.arange(n)) + np.percentile(values - values.mean(), [2.5, 97.5])
    return float(low), float(high)


def laplacian_pyramid(image: Float[Tensor, "b 3 h w"], smallest: int = 16) -> list[Float[Tensor, "b 3 h2 w2"]]:
    """Band-passed pictures, fine to coarse, down to a side of `smallest`, which keeps its low frequencies.

    A level is the picture less its smaller version, expanded with the same kernel (Burt and Adelson 1983).
    """
    levels = []
    while min(image.shape[2:]) >= 2 * smallest:
        small = _smooth(image)[:, :, ::2, ::2]
        sparse = torch.zeros_like(image)
        sparse[:, :, ::2, ::2] = small
        levels.append(image - 4 * _smooth(sparse))
        image = small
    return [*levels, image]


def _smooth(image: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=image.device, dtype=image.dtype) / 16
    kernel = torch.outer(taps, taps).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def swd_projections(
    image: Float[Tensor, "b 3 h w"], *, patches: int = 32, directions: int = 64, seed: int = 0
) -> list[np.ndarray]:
    """What the sliced Wasserstein distance compares: per pyramid level, patches seen along random directions.

    Each `[b, patches, directions]`; 7x7 patches at random places, the same in all pictures.
    """
    random = torch.Generator().manual_seed(seed)
    levels = []
    for level in laplacian_pyramid(image.cpu()):
        b, _, h, w = level.shape
        unfolded = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [b, 3, h', w', 7, 7]
        y = torch.randint(h - PATCH + 1, (patches,), generator=random)
        x = torch.randint(w - PATCH + 1, (patches,), generator=random)
        axes = torch.randn(3 * PATCH * PATCH, directions, generator=random)
        found = unfolded[:, :, y, x].permute(0, 2, 1, 3, 4).reshape(b, patches, -1)
        levels.append((found @ (axes / axes.norm(dim=0)).to(found)).numpy())
    return levels


def sliced_wasserstein(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """1000 times the mean of |sort(a t) - sort(b t)| over patches, directions t and levels (Karras et al. 2018).

    That is the mean of the 1-D Wasserstein-1 distances of patches seen along random directions.
    a, b: what `swd_projections` gave for two sets of equal size. Patches are taken at the same places in both, in units
    of [-1, 1] (not normalised per channel as in the paper on progressive growing, so compare within this package only).
    """
    levels = []
    for left, right in zip(a, b, strict=True):
        # a row for each direction: sorting columns takes twice as long
        left, right = (np.sort(np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)) for x in (left, right))
        levels.append(np.abs(left - right).mean())
    return float(1000 * np.mean(levels))


# --------------------------------------------------------------------------------------------------- intervals, cost


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """A percentile interval of `statistic(positions)` over resampled pictures 0..n-1, less the bias (Efron 1979).

    The bias is how far resampling moves the mean of the statistic: distances of sets rise when pictures come twice, so
    that scipy's percentile interval would lie beside the value.
    """
    random = np.random.RandomState(seed)
    values = np.array([statistic(random.randint(n, size=n)) for _ in range(resamples)])
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail]) - values.mean() + statistic(np.arange(n))
    return float(low), float(high)


def mean_interval(
    values: Float[np.ndarray, "n"], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of one number per picture with its 95 % bootstrap interval: (mean, low, high).

    For a share of pictures, `share_interval`; for pictures with many numbers each, and for two methods,
    `stx.resampling`.
    """
    mean = float(values.mean())
    low, high = percentile_interval(np.mean, values, resamples=resamples, seed=seed)
    return mean, min(low, mean), max(high, mean)  # of one picture all are its number, but for rounding


def difference_interval(
    a: Float[np.ndarray, "n"], b: Float[np.ndarray, "m"], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """mean(a) - mean(b) of two unpaired samples with its 95 % bootstrap interval; NaN where one is empty."""
    if not len(a) or not len(b):
        return float("nan"), float("nan"), float("nan")

    found = percentile_interval(lambda a, b, axis: a.mean(axis) - b.mean(axis), a, b, resamples=resamples, seed=seed)
    return float(a.mean() - b.mean()), *found


def percentile_interval(
    statistic: Callable, *samples: Num[np.ndarray, "_"], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic of independent samples (Efron 1979); NaN where one has a NaN.

    statistic: of arrays like `samples`, in that order; one with an argument `axis` is given many resamples at once.
    """
    from scipy.stats import bootstrap  # slow to import

    if any(np.isnan(x).any() for x in samples):
        return float("nan"), float("nan")
    # scipy asks for two observations; one that stands there twice has the same resamples
    samples = tuple(np.repeat(x, 2) if len(x) == 1 else x for x in samples)
    options = {"n_resamples": resamples, "batch": 100, "method": "percentile"}
    found = bootstrap(samples, statistic, **options, random_state=np.random.RandomState(seed)).confidence_interval
    return float(found.low), float(found.high)


def share_interval(values: Bool[np.ndarray, "n"] | Num[np.ndarray, "n"]) -> tuple[float, float, float]:
    """The share of ones among outcomes of 0 or 1 with its 95 % Wilson interval, in [0, 1]: (share, low, high).

    NaN without outcomes. Raises `ValueError` for other numbers than 0 and 1.
    """
    from scipy.stats import binomtest  # slow to import

    if not len(values):
        return float("nan"), float("nan"), float("nan")
    if not np.isin(values, (0, 1)).all():
        raise InputError("a share of numbers other than 0 and 1: give `mean_interval` the numbers")
    found = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return float(values.mean()), float(found.low), float(found.high)


def roc_auc(positive: Num[np.ndarray, "n"], negative: Num[np.ndarray, "m"]) -> float:
    """The probability that a positive scores above a negative (ties count half); NaN where one set is empty."""
    from sklearn.metrics import roc_auc_score  # slow to import

    if not len(positive) or not len(negative):
        return float("nan")
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))


def parameters(*nets: nn.Module) -> int:
    """Number of weights of networks, each counted once."""
    return sum({id(p): p.numel() for net in nets for p in net.parameters()}.values())


def flops(function: Callable[[], object]) -> int:
    """Floating-point operations of a call: two per multiply-add of convolutions and matrix products.

    The networks must be frozen (`requires_grad_(False)`), as `stx.checkpoints.weights.load` gives them.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # torch's counter does not know the fused self-attention
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def seconds(function: Callable[[], object], *, device: str = "cpu", repeats: int = 10, warm_up: int = 2) -> float:
    """The median wall time of a call after `warm_up` calls, the device synchronised before each reading."""

    def now() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        elif device.startswith("mps"):
            torch.mps.synchronize()
        return time.perf_counter()

    times = []
    with torch.no_grad():
        for _ in range(warm_up + repeats):
            start = now()
            function()
            times.append(now() - start)
    return float(np.median(times[warm_up:]))
