"""The architecture of the method, drawn: inversion (Hu et al. 2022, section 3.2, figure 2) and editing (figure 3).

Boxes with a thick frame are trained, grey ones are frozen, text without a frame is data with its shape.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stx.reports.figures import SMALL, TICKS, WIDTH

STAGES = ("coarse", "medium", "fine")
TRAINED = {"facecolor": "#dbe9f6", "edgecolor": "black", "linewidth": 1.3, "boxstyle": "round,pad=0.35"}
FROZEN = {"facecolor": "0.85", "edgecolor": "0.5", "linewidth": 0.6, "boxstyle": "round,pad=0.35"}
DATA = {"facecolor": "white", "edgecolor": "none", "boxstyle": "square,pad=0.15"}
ARROW = {"arrowstyle": "-|>", "linewidth": 0.8, "color": "black", "shrinkA": 1, "shrinkB": 1}

Boxes = Mapping[str, tuple[float, float, str, dict]]


def inversion(*, num_ws: int, w_dim: int, image: Sequence[int], maps: Sequence[tuple[int, int]]) -> Figure:
    """The Style Transformer: queries attend to coarse, medium and fine features, a layer each, and become the code.

    num_ws, w_dim: of the codes; image: height and width of the picture; maps: of the feature maps that the queries
    attend to, as many as there are stages.
    """
    boxes = {
        "image": (0.0, 2.0, f"picture\n3 × {image[0]} × {image[1]}", DATA),
        "backbone": (1.25, 2.0, "IR-SE\nbackbone", TRAINED),
        "z": (0.0, 0.0, f"z, learnt\n{num_ws} × {w_dim}", DATA),
        "mapping": (1.25, 0.0, "mapping\nMLP", TRAINED),
    }
    arrows = [("image", "backbone", ""), ("z", "mapping", "")]
    before = "mapping"
    for i, (stage, (h, w)) in enumerate(zip(STAGES, maps, strict=False)):
        at = 2.75 + 1.45 * i
        boxes[f"map {i}"] = (at, 2.0, f"{stage} features\n{h} × {w} tokens", DATA)
        boxes[f"layer {i}"] = (at, 0.0, "self-attention\ncross-attention\nfeed-forward", TRAINED)
        label = "queries" if i == 0 else ""
        arrows += [
            ("backbone" if i == 0 else f"map {i - 1}", f"map {i}", ""),
            (f"map {i}", f"layer {i}", "keys,\nvalues"),
        ]
        arrows.append((before, f"layer {i}", label))
        before = f"layer {i}"
    end = 2.75 + 1.45 * len(maps)
    boxes["code"] = (end, 0.0, f"+ average\n= w: {num_ws} × {w_dim}", DATA)
    boxes["generator"] = (end, 1.0, "generator", FROZEN)
    boxes["out"] = (end, 2.0, "inversion", DATA)
    arrows += [(before, "code", ""), ("code", "generator", ""), ("generator", "out", "")]
    return _draw(boxes, arrows, width=end, height=2.0)


def editing() -> Figure:
    """Both ways to edit a code: by a label (section 3.3, above) and by a reference (section 3.4, below)."""
    boxes = {
        "w": (0.0, 3.0, "code w", DATA),
        "C": (1.8, 3.0, "latent\nclassifier C", FROZEN),
        "loss": (3.6, 3.0, "loss of label y", DATA),
        "n": (5.4, 3.0, "n = −∇L / ‖∇L‖", DATA),
        "we": (7.2, 3.0, "w + α n", DATA),
        "ws": (0.0, 1.3, "source $w_s$", DATA),
        "self": (1.8, 1.3, "self-\nattention", TRAINED),
        "T": (3.6, 1.3, "attention with\nSoftmax$_Q$, Norm$_K$", TRAINED),
        "delta": (5.4, 1.3, "change Δw", DATA),
        "wr": (3.6, 0.0, "reference $w_r$", DATA),
        "out": (7.2, 1.3, "$w_s$ + Δw", DATA),
        "C2": (7.2, 0.0, "latent\nclassifier C", FROZEN),
        "like": (5.4, 0.0, "attribute like $w_r$,\nothers like $w_s$", DATA),
    }
    plain = "w C, C loss, n we, ws self, T delta, delta out, out C2, C2 like"
    arrows = [(*pair.split(), "") for pair in plain.split(", ")]
    arrows += [("loss", "n", "gradient"), ("self", "T", "queries"), ("wr", "T", "keys, values")]
    figure = _draw(boxes, arrows, width=7.2, height=3.0)
    figure.axes[0].axhline(2.25, color="0.7", linewidth=0.6)
    for y, name in ((3.75, "by a label"), (2.0, "by a reference")):
        figure.axes[0].text(-0.6, y, name, fontsize=TICKS, weight="bold", va="center")
    return figure


def _draw(boxes: Boxes, arrows: Sequence[tuple[str, str, str]], *, width: float, height: float) -> Figure:
    figure, ax = plt.subplots(figsize=(WIDTH, 0.8 * WIDTH * (height + 1.2) / (width + 1.6)))
    figure.subplots_adjust(0, 0, 1, 1)
    ax.set(xlim=(-0.75, width + 0.85), ylim=(-0.55, height + 0.65))
    ax.set_axis_off()
    artists = {
        name: ax.text(x, y, text, fontsize=TICKS, ha="center", va="center", bbox=style, parse_math=True)
        for name, (x, y, text, style) in boxes.items()
    }
    figure.draw_without_rendering()  # boxes get their sizes
    for start, end, label in arrows:
        _arrow(ax, artists[start], artists[end], boxes[start][:2], boxes[end][:2], label)
    return figure


def _arrow(ax: Axes, start, end, at: tuple[float, float], to: tuple[float, float], label: str) -> None:
    style = ARROW | {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch()}
    ax.annotate("", to, at, arrowprops=style)
    if label:
        middle = [(a + b) / 2 for a, b in zip(at, to, strict=True)]
        upright = at[0] == to[0]
        beside = {"ha": "left", "va": "center"} if upright else {"ha": "center", "va": "bottom"}
        offset = (4, 0) if upright else (0, 2)
        ax.annotate(label, middle, offset, textcoords="offset points", fontsize=SMALL, **beside)
