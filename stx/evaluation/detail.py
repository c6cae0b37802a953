"""What keeping detail brings and costs: distortion, what lives on after edits, which labels survive, and pictures from
elsewhere. The methods are those of `stx.detail.registry`; edits are judged as in `stx.evaluation.landing`.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from stx import metrics, resampling
from stx.baselines.optimisation import Inverted
from stx.detail.kept import Inversion
from stx.detail.registry import METHODS, TRAINED
from stx.domains import align, avatars, images
from stx.domains.splits import Dataset
from stx.evaluation.editing import Method
from stx.evaluation.inversions import ENCODE_BATCH, SEARCH_BATCH, Inverter
from stx.evaluation.landing import Cases, edit_all
from stx.evaluation.quality import attribute_logits
from stx.files.errors import ImageError
from stx.pipeline import Pipeline
from stx.reports import claims

SAME = 0.02  # differences of a picture and its truth below this are none: what an edit should not change
OTHER_STYLES = ("toon-head", "personas", "micah", "open-peeps", "avataaars-neutral")  # of DiceBear, beside ours
LESS = 0.02  # of edits that show, which count as none
PAPERS = {
    "hfgi": "HFGI",
    "hyperstyle": "HyperStyle",
    "features": "FeatureStyle",
    "feature_editor": "StyleFeatureEditor",
}
LOWER = [  # methods, whose distortion is lower and than whose, the claim and where it is made
    *(
        (name, "codes", f"{paper} has lower distortion than codes alone", f"{paper}, abstract")
        for name, paper in PAPERS.items()
    ),
    ("features", "hfgi", "FeatureStyle has lower distortion than HFGI", "FeatureStyle, figure 1"),
    (
        "feature_editor",
        "hyperstyle",
        "StyleFeatureEditor has lower distortion than HyperStyle",
        "StyleFeatureEditor, table 1",
    ),
]


def available(pipe: Pipeline) -> list[str]:
    """The methods that a domain has networks for, and those that need none."""
    return [
        name for name in METHODS if name not in TRAINED or (pipe.folder / "detail" / name / "config.json").is_file()
    ]


def inverters(pipe: Pipeline, methods: Sequence[str], *, steps: int) -> dict[str, Inverter]:
    """Methods as rows of the table of inversion. steps: of those that search."""
    made = {}
    for name in methods:
        searches = name in ("search", "tuning")
        net = (
            pipe.encoder if name == "codes" else None if searches else nn.ModuleList([pipe.encoder, pipe.detail(name)])
        )
        run = partial(_run, pipe, name)
        own = {"steps": steps, "batch": SEARCH_BATCH} if searches else {"batch": ENCODE_BATCH}
        made[name] = Inverter(METHODS[name].title, partial(run, steps=steps) if searches else run, net, **own)
    return made


def _run(pipe: Pipeline, method: str, image: Tensor, *, steps: int | None = None) -> Inverted:
    found = pipe.invert_detail(image, method, steps=steps)
    return Inverted(found.ws, pipe.reconstruct(found))


def numbers_kept(found: Inversion) -> int:
    """How many numbers are kept of one picture, its codes among them."""
    return found.ws[0].numel() + sum(value[0].numel() for value in found.kept.values())


def edited_inversions(
    pipe: Pipeline, method: str, edit: Method, cases: Cases, data: Dataset, *, steps: int
) -> Inversion:
    """Cases edited at strength 1, one after the other; each picture is inverted once. steps: of a search."""
    own, back = np.unique(cases.positions, return_inverse=True)
    found = pipe.invert_detail(data.batch(own), method, steps=steps)[torch.as_tensor(back)]
    return found.edit(edit_all(edit, found.ws, cases, 1.0))


def evidence(
    tables: Mapping[str, pd.DataFrame], landed: Mapping[str, pd.DataFrame], *, seed: int = 0
) -> list[claims.Evidence]:
    """What the methods' papers claim, as comparisons with codes alone and with each other, of methods that are there.

    tables: of inversions, by method, as `quality.per_picture` gives; landed: of edits, as `landing.landed`. "As often"
    is by at most `LESS` less often.
    """
    made = []
    for other, than, claim, where in LOWER:
        if {other, than} <= tables.keys():
            gap = resampling.difference(tables[than], tables[other], "LPIPS-Alex", seed=seed)
            line = claim, where, f"{METHODS[other].title} and {METHODS[than].title}", "LPIPS-Alex", gap
            made.append(claims.evidence(*line, "11_detail"))
    for other, paper in PAPERS.items():
        if {other, "codes"} <= landed.keys():
            bar = landed["codes"].assign(shown=landed["codes"]["shown"] - LESS)
            gap = resampling.difference(landed[other], bar, "shown", seed=seed)
            line = f"Edits of {paper}'s inversions show as often as those of codes", f"{paper}, abstract"
            compared = f"{METHODS[other].title} and codes less {100 * LESS:.0f} points", "share of edits"
            made.append(claims.evidence(*line, *compared, gap, "11_detail"))
    return made


@torch.no_grad()
def outside(pipe: Pipeline, found: Inversion, cases: Cases, source: Float[Tensor, "n 3 h w"]) -> pd.DataFrame:
    """Mean squared errors where an edit should change nothing: of the inversion ("before"), of its edit ("after").

    found: edited inversions, one a case. source: the pictures. Both are held against the truth where it is the source.
    """
    truth = cases.truth()
    same = (truth - source).abs().amax(1) < SAME  # [n, h, w]
    drawn = {"before": found.edit(found.ws), "after": found}
    wrong = {name: (pipe.reconstruct(one).cpu() - truth).square().mean(1) for name, one in drawn.items()}
    return pd.DataFrame({name: ((w * same).sum((1, 2)) / same.sum((1, 2))).numpy() for name, w in wrong.items()})


def lives_on(
    own: pd.DataFrame,
    codes: pd.DataFrame,
    positions: Int[np.ndarray, "n"],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The share of what a method gains over codes alone that is there after an edit, with its 95 % interval.

    own, codes: what `outside` gave, for the same cases. positions: of their pictures, which are drawn with all their
    cases. 1: all of the gain; 0: nothing is left.
    """
    gains = (codes - own)[["before", "after"]].groupby(positions).sum().to_numpy()

    def share(chosen: np.ndarray) -> float:
        before, after = gains[chosen].sum(0)
        return float(after / before) if before else float("nan")

    return share(np.arange(len(gains))), *metrics.bootstrap(share, len(gains), resamples=resamples, seed=seed)


def surviving(
    pipe: Pipeline,
    judge: nn.Module,
    found: Mapping[str, Inversion],
    image: Float[Tensor, "n 3 h w"],
    labels: Bool[np.ndarray, "n attributes"],
    names: Sequence[str],
) -> pd.DataFrame:
    """For every label, the share of pictures that show it whose inversions do, a column a method.

    A last row is for closed eyes behind clear glasses where a domain has these labels. Labels that no picture shows are
    left out.
    """
    groups = {name: labels[:, k] for k, name in enumerate(names)}
    which = {name: k for k, name in enumerate(names)}
    if {"Eyes_Closed", "Eyeglasses", "Sunglasses"} <= which.keys():
        groups["Eyes_Closed behind glasses"] = groups["Eyes_Closed"] & groups["Eyeglasses"] & ~groups["Sunglasses"]
        which["Eyes_Closed behind glasses"] = which["Eyes_Closed"]
    seen = {method: attribute_logits(pipe, judge, own) > 0 for method, own in found.items()}
    rows = []
    for name, chosen in groups.items():
        if chosen.any():
            shares = [logits[chosen, which[name]].mean() for logits in seen.values()]
            rows.append([name, int(chosen.sum()), *shares])
    return pd.DataFrame(rows, columns=["attribute", "pictures", *(METHODS[method].title for method in found)])


def strangers(pipe: Pipeline, count: int, photographs: int) -> dict[str, UInt8[np.ndarray, "n h w 3"]]:
    """Pictures that are not of the domain: faces of packaged photographs, and drawings in other styles.

    count: drawings of each style; photographs: files that are looked at.
    """
    height, width = pipe.domain.input_size
    faces: list[np.ndarray] = []
    for path in align.packaged_portraits()[:photographs]:
        try:
            faces += align.faces_in(path, max(height, width), device=pipe.device)
        except ImageError:  # nobody in it
            continue
    found = {"photographs": [images.resize(face, height, width) for face in faces]}
    for style in OTHER_STYLES:
        drawn = [avatars.rasterise(style, {"seed": str(i)}, resolution=max(height, width)) for i in range(count)]
        found[style] = [images.resize(picture, height, width) for picture in drawn]
    return {kind: np.stack(pictures) for kind, pictures in found.items() if pictures}


def told_apart(
    own: Float[np.ndarray, "n"], others: Mapping[str, Float[np.ndarray, "_"]], *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """AUROC of scores of strange pictures over those of the domain's own, by kind, with 95 % intervals over both."""
    rows = []
    for kind, scores in others.items():
        interval = metrics.percentile_interval(metrics.roc_auc, scores, own, resamples=resamples, seed=seed)
        rows.append([kind, len(scores), metrics.roc_auc(scores, own), *interval])
    return pd.DataFrame(rows, columns=["pictures", "count", "AUROC", "low", "high"])


@torch.no_grad()
def refined_strangers(
    pipe: Pipeline,
    judge: nn.Module,
    image: Float[Tensor, "n 3 h w"],
    inverted: Mapping[str, Inversion],
    add: Sequence[str],
) -> pd.DataFrame:
    """What methods make of pictures, and what edits of the result show: a row a method of `inverted`.

    Columns: LPIPS, distance of the codes to the manifold (about 1 in the domain), and the share of edits that add one
    of `add` to inversions that do not show it, after which the judge sees it.
    """
    rows, names = [], list(pipe.domain.attributes)
    for method, found in inverted.items():
        before, shown = attribute_logits(pipe, judge, found) > 0, []
        for name in add:
            lacking = np.flatnonzero(~before[:, names.index(name)])
            part = found[torch.as_tensor(lacking)]
            if len(lacking):
                after = attribute_logits(pipe, judge, part.edit(pipe.edit(part.ws, add=[name]))) > 0
                shown += after[:, names.index(name)].tolist()
        far = pipe.manifold.distance(found.ws).mean().item() if pipe.manifold is not None else float("nan")
        drawn = pipe.distortion(image, found).mean().item()
        rows.append([METHODS[method].title, len(image), drawn, far, np.mean(shown) if shown else float("nan")])
    return pd.DataFrame(rows, columns=["method", "pictures", "LPIPS-Alex", "code's distance", "shown after edits"])
