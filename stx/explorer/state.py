"""What the latent explorer shows, without a widget in it: a state of plain numbers in, pictures and probabilities out.

A state is a recipe: as JSON it makes the same edit again. The order is: source code, truncation, style mixing,
reference editing, label edits. `stx.explorer.widgets` puts controls around it.
"""

import base64
import html
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stx import label_editing, pipeline, recipes
from stx.domains import images
from stx.evaluation import editing, quality
from stx.files.errors import ExplorerError
from stx.files.places import safe_name
from stx.files.untrusted import one_line
from stx.pipeline import Pipeline
from stx.reference_editing import ReferenceEditor

FIT_CODES = 2048  # codes on which methods other than label editing are fitted
TEST_PICTURES = 1024  # test pictures to choose from
EDITOR_CODES = 512  # pictures whose codes train a reference editor
SHOWN = 256  # pixels of a picture on the page, at least
AT_ONCE = ("matched pairs", "first order", "second order")  # methods that need no fitting
MAX_STRENGTH = 1000.0  # in a recipe; sliders end long before
MAX_PSI = 1.5
KINDS = {  # of what a recipe holds
    "domain": (str,),
    "source": (str,),
    "number": (int,),
    "name": (str,),
    "method": (str,),
    "strengths": (dict,),
    "tokens": (tuple, type(None)),
    "psi": (int, float),
    "mix": (int, type(None)),
    "mix_tokens": (tuple,),
    "reference": (int, type(None)),
    "carried": (str,),
}


@dataclass(frozen=True)
class State:
    """One position of all controls.

    source: "test" or "sample" with `number` (position or seed), or "upload" with `name` and the codes of the picture.
    strengths: by attribute, 0 being absent. tokens: first and last token that label edits touch. mix: seed of the code
    whose tokens `mix_tokens` are taken, or None. reference: position of a test picture, and its `carried` attribute.
    """

    domain: str = "avatars"
    source: str = "test"
    number: int = 0
    name: str = ""
    method: str = "first order"
    strengths: dict[str, float] = field(default_factory=dict)
    tokens: tuple[int, int] | None = None
    psi: float = 1.0
    mix: int | None = None
    mix_tokens: tuple[int, int] = (0, 0)
    reference: int | None = None
    carried: str = ""

    def to_json(self) -> str:
        """The recipe."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "State":
        """A state from its recipe. Raises `ExplorerError` when it is none."""
        try:
            given = json.loads(text)
            pairs = {name: tuple(given[name]) for name in ("tokens", "mix_tokens") if given.get(name) is not None}
            state = cls(**given | pairs)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ExplorerError(f"not a recipe of the explorer: {one_line(error)}") from None
        for name, kinds in KINDS.items():
            value = getattr(state, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ExplorerError(f"recipe: {name} is {value!r}, expected {' or '.join(k.__name__ for k in kinds)}")
        numbers = [state.psi, *state.strengths.values()]
        if not all(isinstance(x, int | float) and abs(x) <= MAX_STRENGTH for x in numbers):
            raise ExplorerError(f"recipe: psi and strengths are numbers of at most {MAX_STRENGTH:g} in size")
        return state


@dataclass(frozen=True)
class View:
    """What a state looks like. Pictures uint8 `[h, w, 3]`; probabilities by attribute, of inversion and edit."""

    source: np.ndarray
    inversion: np.ndarray
    edit: np.ndarray
    before: dict[str, float]
    after: dict[str, float]
    ws: Tensor


class Explorer:
    """A domain with its networks, and the history of states. Nothing here knows of widgets.

    Raises `WeightsError` for a domain without a latent classifier.
    """

    def __init__(self, domain: str | Path = "avatars", *, device: str | torch.device = "auto", seed: int = 0):
        self.pipe: Pipeline = pipeline.load(domain, device=device)
        self.seed = seed
        self.classifier: nn.Module = self.pipe.network("latent_classifier")
        self.attribute_classifier: nn.Module = self.pipe.network("classifier")
        self.attributes: tuple[str, ...] = self.classifier.attributes
        self.test = self.pipe.domain.split("test", TEST_PICTURES)
        self.state = State(domain=str(domain), tokens=(0, self.pipe.generator.num_ws - 1))
        self.watch: Callable[[float], None] = lambda share: None
        self._past: list[State] = []
        self._control = ""
        self._uploads: dict[str, np.ndarray] = {}
        has_pairs = (self.pipe.folder / "matched_pairs").is_dir()
        self.matched = self.pipe.network("matched_pairs") if has_pairs else None
        self.methods = editing.Methods(self.pipe, self.classifier, self._sampled, seed=seed)
        at_once = [name for name in AT_ONCE if name in self.methods]
        for name in at_once:
            self.prepare(name)
        self._usual = at_once[0]
        self.state = replace(self.state, method=self._usual)
        self._editors: dict[str, ReferenceEditor] = {}
        self._cached: tuple[Any, dict] = (None, {})
        self._started: tuple[Any, Any] = (None, None)

    # ------------------------------------------------------------------------------------------------------ changes

    def change(self, control: str = "", **changes) -> View:
        """The view after a change of the state; the state before can be had back by `undo`.

        control: what was moved; moving the same one again is undone together with it.
        """
        new = replace(self.state, **changes)
        view = self.view(new)
        if not control or control != self._control:
            self._past.append(self.state)
        self.state, self._control = new, control
        return view

    def undo(self) -> View:
        """The view of the state before the last change."""
        self._control = ""
        if self._past:
            self.state = self._past.pop()
        return self.view()

    def reset(self) -> View:
        """No edits, the same source."""
        tokens = (0, self.pipe.generator.num_ws - 1)
        fresh = State(domain=self.state.domain, method=self._usual, tokens=tokens)
        kept = {name: getattr(self.state, name) for name in ("source", "number", "name")}
        return self.change(**asdict(replace(fresh, **kept)))

    def upload(self, name: str, content: bytes) -> View:
        """The view of somebody's own picture. Raises `ImageError` for one that cannot be read."""
        self._started = (None, None)
        self._uploads[name] = images.read_image(io.BytesIO(content), name=name)
        return self.change(source="upload", name=name)

    # -------------------------------------------------------------------------------------------------- long work

    def ready(self, method: str) -> bool:
        """Whether `prepare` has nothing to do for a method."""
        return method in self.methods.fitted

    def prepare(self, method: str) -> None:
        """Fits a method; `watch` is told the share that is done, and what it raises ends the work.

        Raises `ExplorerError` for an unknown method.
        """
        if method not in self.methods:
            raise ExplorerError(f"unknown method {method!r}: {', '.join(self.methods)}")
        self.methods.watch = lambda share: self.watch(share)
        self.methods[method]

    def _sampled(self) -> tuple[Tensor, np.ndarray]:
        return quality.sampled_codes(
            self.pipe, self.attribute_classifier, FIT_CODES, seed=self.seed, watch=lambda s: self.watch(s)
        )

    def has_editor(self, attribute: str) -> bool:
        """Whether `prepare_editor` has nothing to do for an attribute, as where matched pairs know it."""
        return attribute in self._editors or self._carries(attribute)

    def _carries(self, attribute: str) -> bool:
        return self.matched is not None and bool(self.matched.known[:, self.attributes.index(attribute)].all())

    def prepare_editor(self, attribute: str, folder: str | Path, *, steps: int = 300) -> None:
        """Trains the reference editor of an attribute in `folder`, where it resumes; `watch` as in `prepare`."""
        if self.has_editor(attribute):
            return
        train = self.pipe.domain.split("train", EDITOR_CODES)
        codes = quality.invert_all(self.pipe, train, watch=lambda share: self.watch(share / 2))
        recipe = recipes.ReferenceRecipe(steps=steps, seed=self.seed)
        editor, _ = recipes.train_reference_editor(
            self.classifier,
            attribute,
            codes,
            recipe,
            Path(folder) / safe_name(attribute),
            device=self.pipe.device,
            watch=lambda share: self.watch(0.5 + share / 2),
        )
        self._editors[attribute] = editor.requires_grad_(False)

    # ---------------------------------------------------------------------------------------------------- pictures

    def check(self, state: State) -> None:
        """Raises `ExplorerError` for a recipe of another domain, or with what no control here can be set to."""
        last = self.pipe.generator.num_ws - 1
        if state.domain != self.state.domain:
            raise ExplorerError(f"a recipe of the domain {state.domain!r}; this explorer shows {self.state.domain!r}")
        if not 0 <= state.psi <= MAX_PSI:
            raise ExplorerError(f"recipe: truncation psi is {state.psi}, expected 0 to {MAX_PSI}")
        for name in ("tokens", "mix_tokens"):
            pair = getattr(state, name)
            if pair is not None and not (
                len(pair) == 2 and all(isinstance(i, int) for i in pair) and 0 <= pair[0] <= pair[1] <= last
            ):
                raise ExplorerError(f"recipe: {name} are {list(pair)}, expected a first and a last one of 0 to {last}")
        for name in [*state.strengths, *([state.carried] if state.carried else [])]:
            label_editing.position(name, self.attributes)

    @torch.no_grad()
    def view(self, state: State | None = None) -> View:
        """What a state looks like, by default the present one. Raises `ExplorerError` when it makes no sense."""
        state = state or self.state
        source, start, picture, before = self._start(state)
        ws = self.codes(state, start)
        edit = self.pipe.reconstruct(ws)
        after = self._probabilities(edit)
        return View(source, picture, images.to_uint8(edit)[0], before, after, start)

    def codes(self, state: State, ws: Tensor) -> Tensor | dict[str, Tensor]:
        """The codes or StyleSpace vectors that a state makes of a source's code `[1, num_ws, w_dim]`."""
        generator = self.pipe.generator
        for name in state.strengths:
            label_editing.position(name, self.attributes)
        if state.psi != 1.0:
            ws = generator.truncate(ws, state.psi, generator.w_avg())
        if state.mix is not None:
            first, last = state.mix_tokens
            ws = ws.clone()
            ws[:, first : last + 1] = self.pipe.sample(1, seed=state.mix)[:, first : last + 1]
        if state.reference is not None and state.carried and self.has_editor(state.carried):
            other = self.pipe.invert(self.test.batch([self._position(state.reference)]))
            ws = self._carry(ws, other, state.carried)
        first, last = state.tokens or (0, generator.num_ws - 1)
        return self._label_edits(state, ws, slice(first, last + 1))

    def _carry(self, ws: Tensor, other: Tensor, attribute: str) -> Tensor:
        if not self._carries(attribute):
            return self._editors[attribute](ws, other)
        k = self.attributes.index(attribute)
        shown = [self.attribute_classifier(self.pipe.reconstruct(code))[:, k] > 0 for code in (ws, other)]
        return ws + self.matched.carry(ws, other, [k], tuple(shown))

    def _label_edits(self, state: State, ws: Tensor, tokens: slice) -> Tensor | dict[str, Tensor]:
        """All label edits, each taken from the unedited code, added up: sliders do not depend on their order."""
        chosen = {name: s for name, s in state.strengths.items() if s}
        if chosen and not self.ready(state.method):
            raise ExplorerError(f"{state.method} is not fitted yet")
        moved, styles = ws.clone(), None
        for name, strength in sorted(chosen.items()):
            result = self._edit(state, ws, name, strength > 0)(abs(strength))
            if isinstance(result, Tensor):
                moved[:, tokens] += (result - ws)[:, tokens]
            else:
                base = self.pipe.generator.styles(ws)
                styles = {k: (styles or {}).get(k, 0) + result[k] - base[k] for k in base}
        if styles is None:
            return moved
        return {k: v + styles[k] for k, v in self.pipe.generator.styles(moved).items()}

    def _edit(self, state: State, ws: Tensor, name: str, add: bool) -> Callable[[float], Any]:
        """The edit of one attribute, added or removed; kept while the code stays, so that dragging is cheap."""
        key = (state.method, ws.cpu().double().sum().item(), ws.shape)
        if self._cached[0] != key:
            self._cached = (key, {})
        kept = self._cached[1]
        if (name, add) not in kept:
            with torch.enable_grad():
                kept[name, add] = self.methods[state.method](ws, self.attributes.index(name), float(add))
        return kept[name, add]

    def _start(self, state: State) -> tuple[np.ndarray, Tensor, np.ndarray, dict[str, float]]:
        """Source picture, its code, the code's picture and what the classifier sees in it; kept for the next step."""
        key = (state.source, state.number, state.name)
        if self._started[0] != key:
            self._started = (key, self._begin(state))
        return self._started[1]

    def _begin(self, state: State) -> tuple[np.ndarray, Tensor, np.ndarray, dict[str, float]]:
        if state.source == "sample":
            ws = self.pipe.sample(1, seed=state.number).contiguous()
            drawn = self.pipe.reconstruct(ws)
            picture = images.to_uint8(drawn)[0]
            return picture, ws, picture, self._probabilities(drawn)
        if state.source == "upload":
            if state.name not in self._uploads:
                raise ExplorerError(f"the picture {state.name!r} is not here: upload it again")
            tensor = self.pipe.images(self._uploads[state.name])
        elif state.source == "test":
            tensor = self.test.batch([self._position(state.number)])
        else:
            raise ExplorerError(f"unknown source {state.source!r}: expected test, sample or upload")
        ws = self.pipe.invert(tensor)
        drawn = self.pipe.reconstruct(ws)
        return images.to_uint8(tensor)[0], ws, images.to_uint8(drawn)[0], self._probabilities(drawn)

    def _position(self, number: int) -> int:
        if not 0 <= number < len(self.test):
            raise ExplorerError(f"test picture {number}: there are 0 to {len(self.test) - 1}")
        return number

    def _probabilities(self, image: Tensor) -> dict[str, float]:
        p = self.attribute_classifier(image)[0].sigmoid().cpu().tolist()
        return dict(zip(self.attributes, p, strict=True))

    def thumbnails(self, count: int) -> list[np.ndarray]:
        """The first test pictures, to choose a reference from."""
        return list(self.test.uint8(range(min(count, len(self.test)))))

    def code(self) -> str:
        """Python that makes the present picture."""
        lines = ["from stx.explorer.state import Explorer, State", "", f"explorer = Explorer({self.state.domain!r})"]
        if self.state.source == "upload":
            lines.append(f"explorer.upload({self.state.name!r}, open({self.state.name!r}, 'rb').read())")
        lines += [f"state = {self.state!r}", "explorer.prepare(state.method)"]  # repr: text stays inside of literals
        if self.state.reference is not None:
            lines.append(f"explorer.prepare_editor({self.state.carried!r}, 'runs/explorer')")
        return "\n".join([*lines, "view = explorer.view(state)  # view.edit: uint8 [h, w, 3]", ""])


def png(picture: np.ndarray) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def picture_html(picture: np.ndarray, alt: str) -> str:
    """A picture as an image element, its pixels kept sharp when it is small."""
    width = max(SHOWN, picture.shape[1])
    data = base64.b64encode(png(picture)).decode()
    style = f"width:{width}px;max-width:100%;image-rendering:{'pixelated' if picture.shape[1] < SHOWN else 'auto'}"
    return f'<img alt="{html.escape(alt)}" style="{style}" src="data:image/png;base64,{data}">'


def bars_html(before: dict[str, float], after: dict[str, float]) -> str:
    """All probabilities before (line) and after (bar); what changed sides is in bold."""
    rows = []
    for name, p in after.items():
        flipped = (p > 0.5) != (before[name] > 0.5)
        label = f"<b>{html.escape(name)}</b>" if flipped else html.escape(name)
        bar = (
            f'<div style="position:relative;width:120px;height:10px;background:#eee">'
            f'<div style="width:{100 * p:.1f}%;height:10px;background:{"#d55e00" if flipped else "#0173b2"}"></div>'
            f'<div style="position:absolute;top:-2px;left:{100 * before[name]:.1f}%;width:2px;height:14px;'
            f'background:#000"></div></div>'
        )
        rows.append(
            f'<tr><td style="padding-right:6px">{label}</td><td>{bar}</td>'
            f'<td style="padding-left:6px;text-align:right">{before[name]:.2f} → {p:.2f}</td></tr>'
        )
    return f'<table style="font-size:11px;line-height:12px">{"".join(rows)}</table>'
