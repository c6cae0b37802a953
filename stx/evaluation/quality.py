"""One protocol for every encoder: invert a test set, measure each picture and the set, with intervals and cost."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from stx import metrics
from stx.detail.kept import split_codes
from stx.domains import images
from stx.domains.splits import Dataset
from stx.perception.lpips import load_lpips, real_features, vgg16_features
from stx.pipeline import Codes, Pipeline
from stx.runtime import batched, batches, progress

MEASURE_BATCH = 64
SET = 4  # pictures from which distances of sets are told
BETTER = {
    "L2": "lower",
    "LPIPS-Alex": "lower",
    "ID": "higher",
    "ID-MoCo": "higher",
    "ID-MobileFace": "higher",
    "MS-SSIM": "higher",
    "SWD": "lower",
    "FD-VGG16": "lower",
    "KD-VGG16": "lower",
}


def invert_all(
    pipe: Pipeline, data: Dataset, *, watch: Callable[[float], None] = lambda share: None
) -> Float[Tensor, "n num_ws w_dim"]:
    """The codes of a whole data set, on the CPU. watch: told the share that is done; what it raises ends the work."""
    return batched(pipe.invert, data, MEASURE_BATCH, watch=watch, desc="inverting", unit="batch")


@torch.no_grad()
def attribute_logits(pipe: Pipeline, attribute_classifier: nn.Module, codes: Codes) -> np.ndarray:
    """The image classifier's logits for the pictures of codes, `[n, attributes]`."""
    return np.concatenate(
        [attribute_classifier(pipe.reconstruct(part)).cpu().numpy() for part in split_codes(codes, MEASURE_BATCH)]
    )


def sampled_codes(
    pipe: Pipeline,
    attribute_classifier: nn.Module,
    count: int,
    *,
    seed: int = 0,
    watch: Callable[[float], None] = lambda share: None,
) -> tuple[Float[Tensor, "count num_ws w_dim"], Float[np.ndarray, "count attributes"]]:
    """Codes of random z on the CPU, and the image classifier's logits for their pictures. watch: as in `invert_all`."""
    ws = pipe.sample(count, seed=seed).cpu().contiguous()
    logits = batched(lambda part: attribute_classifier(pipe.reconstruct(part)), ws, MEASURE_BATCH, watch=watch)
    return ws, logits.numpy()


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve, NaN where only one label occurs."""
    return metrics.roc_auc(scores[labels], scores[~labels])


def as_files(pipe: Pipeline, codes: Codes) -> UInt8[np.ndarray, "n h w 3"]:
    """The pictures of codes as files would hold them: at the encoders' size, in 8 bits."""
    return np.concatenate([images.to_uint8(pipe.reconstruct(part)) for part in split_codes(codes, MEASURE_BATCH)])


@torch.no_grad()
def per_picture(
    pipe: Pipeline, data: Dataset, inverted: UInt8[np.ndarray, "n h w 3"], *, identity_nets: Sequence[nn.Module] = ()
) -> pd.DataFrame:
    """The first pictures of `data` against their inversions (8 bits, as files): a row each.

    Columns: picture (its name), L2, LPIPS-Alex, ID where the domain has an identity network, a column for each of
    `identity_nets` by its `metric` name, MS-SSIM.
    """
    alex, own, rows = load_lpips("alex", pipe.device), pipe.identity(), []
    identity_nets = [*([own] if own is not None else []), *identity_nets]
    for part in progress(batches(len(inverted), MEASURE_BATCH), desc="measuring", unit="batch"):
        real = data.batch(part).to(pipe.device)
        again = images.to_tensor(inverted[part.start : part.stop]).to(pipe.device)
        scores = {
            "L2": metrics.l2(real, again),
            "LPIPS-Alex": alex(again, real).flatten(),
            **{net.metric: F.cosine_similarity(net(real), net(again)) for net in identity_nets},
            "MS-SSIM": metrics.ms_ssim(again, real),
        }
        numbers = {name: value.cpu().numpy() for name, value in scores.items()}
        rows.append(pd.DataFrame({"picture": [data.names[j] for j in part]} | numbers))
    return pd.concat(rows, ignore_index=True)


@torch.no_grad()
def measure(
    pipe: Pipeline,
    data: Dataset,
    inverted: UInt8[np.ndarray, "n h w 3"],
    *,
    identity_nets: Sequence[nn.Module] = (),
    known: dict[str, list[np.ndarray]] | None = None,
) -> tuple[pd.DataFrame, dict[str, list[np.ndarray]]]:
    """The table of `per_picture`, and what distances of sets need: VGG16 features and patch projections of both sides.

    known: the latter of an earlier call for as many of the same pictures, whose real side is taken over.
    """
    table = per_picture(pipe, data, inverted, identity_nets=identity_nets)
    vgg, sets = load_lpips("vgg", pipe.device), {"real": [], "inverted": [], "real_patches": [], "inverted_patches": []}
    for part in progress(batches(len(inverted), MEASURE_BATCH), desc="features of sets", unit="batch"):
        again = images.to_tensor(inverted[part.start : part.stop]).to(pipe.device)
        sets["inverted"].append(vgg16_features(vgg, again).cpu().double().numpy())
        sets["inverted_patches"].append(metrics.swd_projections(again))
        if known is None:
            real = data.batch(part).to(pipe.device)
            sets["real"].append(real_features(vgg, real).astype(np.float64))
            sets["real_patches"].append(metrics.swd_projections(real))
    if known is not None:
        sets |= {name: known[name] for name in ("real", "real_patches")}
    return table, sets


def summarise(
    table: pd.DataFrame, sets: dict[str, list[np.ndarray]], *, resamples: int = 1000, set_resamples: int = 50, seed=0
) -> pd.DataFrame:
    """One row per metric: value, 95 % bootstrap interval over pictures, and which way is better.

    Distances of sets are left out, in words, where there are fewer than `SET` pictures; one picture has no interval.
    """
    n = len(table)
    real, inverted = (np.concatenate(sets[name]) for name in ("real", "inverted"))
    patches = [
        [np.concatenate(level) for level in zip(*sets[f"{name}_patches"], strict=True)] for name in ("real", "inverted")
    ]

    def swd(chosen: np.ndarray) -> float:
        return metrics.sliced_wasserstein(*([level[chosen] for level in levels] for levels in patches))

    def mean(name: str, chosen: np.ndarray) -> float:
        return float(table[name].to_numpy()[chosen].mean())

    statistics: dict[str, Callable[[np.ndarray], float]] = {
        name: partial(mean, name) for name in BETTER if name in table
    }
    if n < SET:
        print(f"SWD, FD-VGG16 and KD-VGG16 are distances of sets and are left out: {n} pictures, at least {SET}")
    else:
        statistics["SWD"] = swd
        statistics["FD-VGG16"] = lambda chosen: metrics.frechet_distance(real[chosen], inverted[chosen])
        statistics["KD-VGG16"] = lambda chosen: metrics.kernel_distance(real[chosen], inverted[chosen], paired=True)
    rows = []
    for name, statistic in progress(statistics.items(), desc="bootstrap", unit="metric"):
        interval = metrics.halves_interval if name == "KD-VGG16" else metrics.bootstrap
        times = set_resamples if name in ("SWD", "FD-VGG16", "KD-VGG16") else resamples
        low, high = interval(statistic, n, resamples=times, seed=seed) if n > 1 else (np.nan, np.nan)
        rows.append([name, statistic(np.arange(n)), low, high, BETTER[name]])
    return pd.DataFrame(rows, columns=["metric", "value", "low", "high", "better"])


@torch.no_grad()
def labels_kept(
    pipe: Pipeline, judge: nn.Module, data: Dataset, inverted: UInt8[np.ndarray, "n h w 3"]
) -> pd.DataFrame:
    """Which labels survive inversion: a row per attribute, by a judge on the first pictures of `data` and `inverted`.

    Of pictures with the attribute ("shown") and without ("absent"): how many, the share of inversions that the judge
    says the same of with its 95 % Wilson interval, and the share of the pictures themselves. NaN where there are none.
    """
    n, rows = len(inverted), []
    seen = [
        batched(lambda part: judge(part.to(pipe.device)), images_of, MEASURE_BATCH).numpy() > 0
        for images_of in (data.batch(range(n)), images.to_tensor(inverted))
    ]
    for k, name in enumerate(pipe.domain.attributes):
        row = {"attribute": name}
        for word, label in (("shown", True), ("absent", False)):
            chosen = data.labels[:n, k] == label
            real, again = (found[chosen, k] == label for found in seen)
            told = *metrics.share_interval(again), metrics.share_interval(real)[0]
            columns = f"{word} kept", f"{word} kept low", f"{word} kept high", f"{word}, of the pictures"
            row |= {f"{word} pictures": int(chosen.sum())} | dict(zip(columns, told, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def cost(pipe: Pipeline, image: Float[Tensor, "1 3 h w"]) -> pd.DataFrame:
    """Parameters, operations and time per picture of the encoder alone and of the whole inversion."""
    image = image.to(pipe.device)
    with torch.no_grad():
        ws = pipe.invert(image)
    steps = {
        "encoder": ((pipe.encoder,), lambda: pipe.invert(image)),
        "generator": ((pipe.generator,), lambda: pipe.generator(ws)),
        "inversion": ((pipe.encoder, pipe.generator), lambda: pipe.generator(pipe.invert(image))),
    }
    rows = [
        [name, metrics.parameters(*nets), metrics.flops(call) / 1e9, 1000 * metrics.seconds(call, device=pipe.device)]
        for name, (nets, call) in steps.items()
    ]
    return pd.DataFrame(rows, columns=["part", "parameters", "GFLOPs", "ms per picture"])
