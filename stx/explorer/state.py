"""What the latent explorer shows, without a widget in it: a state of plain numbers in, pictures and probabilities out.

A state is a recipe: as JSON it makes the same edit again. The order is: source code, truncation, style mixing,
reference editing, edits. `stx.explorer.widgets` puts controls around it.
"""

import importlib.util
import io
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from stx import pipeline, recipes
from stx.domains import align, images
from stx.domains.splits import Dataset
from stx.evaluation import editing, quality
from stx.explorer.choices import GANSPACE, Choices
from stx.explorer.recipe import MAX_SEED, State, check_numbers, examples
from stx.files.errors import DomainError, ExplorerError
from stx.files.places import safe_name
from stx.files.untrusted import one_line
from stx.label_editing import position
from stx.pipeline import Pipeline
from stx.reference_editing import ReferenceEditor

TEST_PICTURES = 1024  # test pictures to choose from
EDITOR_CODES = 512  # pictures whose codes train a reference editor
TRIED, REFERENCES = 24, 12  # pictures that are looked at for an attribute, and those that are shown
USUAL_PICTURES, USUAL_PIXELS = 32, 1 << 24  # that tell what is usual in a domain; fewer where pictures are large
STRANGE = 1.5  # times the largest strangeness of these
SURPRISES = 2  # edits of a surprise, at most
PAGE_SIDE = 512  # pixels of an edit on the page, at most


@dataclass(frozen=True)
class View:
    """What a state looks like. Pictures uint8 `[h, w, 3]`; probabilities by attribute, of inversion and edit.

    large: the edit as the generator drew it, where that has more pixels than encoders see; else as `edit`.
    """

    source: np.ndarray
    inversion: np.ndarray
    edit: np.ndarray
    before: dict[str, float]
    after: dict[str, float]
    ws: Tensor
    large: np.ndarray


class Explorer:
    """A domain with its networks, and the history of states. Nothing here knows of widgets.

    Without classifiers there are no attributes: `choices` then has components and converted directions, and a domain
    without pictures begins with samples.
    """

    def __init__(self, domain: str | Path = "avatars", *, device: str | torch.device = "auto", seed: int = 0):
        self.pipe: Pipeline = pipeline.load(domain, device=device)
        self.seed, present = seed, self.pipe.present()
        self.classifier: nn.Module | None = self._network("latent_classifier", present)
        self.attribute_classifier: nn.Module | None = self._network("classifier", present)
        self.attributes: tuple[str, ...] = tuple(self.classifier.attributes) if self.classifier else ()
        self.test = self._pictures("test", TEST_PICTURES)
        self.watch: Callable[[float], None] = lambda share: None
        self._past: list[State] = []
        self._future: list[State] = []
        self._control = ""
        self._uploads: dict[tuple[str, bool], np.ndarray] = {}
        self.matched = self._network("matched_pairs", present)
        self.choices = Choices(self.pipe, self.classifier, self.attribute_classifier, seed=seed)
        self.choices.watch = lambda share: self.watch(share)
        self._ready: set[str] = set()
        self.prepare(self.choices.usual)
        self.state = self._fresh(State(domain=str(domain), source="test" if self.test else "sample"))
        self._editors: dict[str, ReferenceEditor] = {}
        self._references: dict[str, list[int]] = {}
        self._limit: float | None = None
        self._cached: tuple[Any, dict] = (None, {})
        self._started: tuple[Any, Any] = (None, None)

    def _network(self, name: str, present: set[str]) -> nn.Module | None:
        return self.pipe.network(name) if name in present else None

    def _pictures(self, split: str, count: int) -> Dataset | None:
        try:
            found = self.pipe.domain.split(split, count)
        except DomainError:
            return None
        return found if len(found) else None

    # ------------------------------------------------------------------------------------------------------ changes

    def change(self, control: str = "", **changes) -> View:
        """The view after a change of the state; the state before can be had back by `undo`.

        control: what was moved; moving the same one again is undone together with it.
        """
        new = replace(self.state, **changes)
        view = self.view(new)
        if new != self.state:
            if not control or control != self._control:
                self._past.append(self.state)
            self._future.clear()
            self.state, self._control = new, control
        return view

    def undo(self) -> View:
        """The view of the state before the last change."""
        return self._travel(self._past, self._future)

    def redo(self) -> View:
        """The view of the state before the last `undo`."""
        return self._travel(self._future, self._past)

    def _travel(self, origin: list[State], goal: list[State]) -> View:
        self._control = ""
        if origin:
            view = self.view(origin[-1])
            goal.append(self.state)
            self.state = origin.pop()
            return view
        return self.view()

    @property
    def can_undo(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether there is something to redo."""
        return bool(self._future)

    def _fresh(self, state: State) -> State:
        """No edits, the same source."""
        kept = {name: getattr(state, name) for name in ("domain", "source", "number", "name", "aligned")}
        return State(**kept, method=self.choices.usual, tokens=(0, self.pipe.generator.num_ws - 1))

    def reset(self) -> View:
        """No edits, the same source."""
        return self.change(**asdict(self._fresh(self.state)))

    def step(self, by: int) -> View:
        """The same edit of the picture, sample or upload `by` places further, from the end to the beginning again."""
        if self.state.source != "upload":
            count = len(self.test) if self.state.source == "test" else MAX_SEED + 1
            return self.change("step", number=(self.state.number + by) % count)
        own = list(self._uploads)
        name, aligned = own[(own.index((self.state.name, self.state.aligned)) + by) % len(own)]
        return self.change("step", name=name, aligned=aligned)

    def surprise(self, chance: random.Random | None = None) -> View:
        """Another picture with an edit or two, taken by chance; an upload stays."""
        chance, fresh = chance or random.Random(), self._fresh(self.state)
        if fresh.source != "upload":
            fresh = replace(fresh, number=chance.randrange(len(self.test) if fresh.source == "test" else MAX_SEED + 1))
        shown, names = self._start(fresh)[3], self.choices.sliders(fresh.method)
        chosen = chance.sample(names, min(chance.randint(1, SURPRISES), len(names)))
        size = self.choices.reach(fresh.method) / 2
        strengths = {name: -size if shown.get(name, chance.random()) > 0.5 else size for name in chosen}
        return self.change(**asdict(replace(fresh, strengths=strengths)))

    def examples(self) -> dict[str, dict[str, Any]]:
        """Changes to begin with, by title."""
        return examples(self.attributes, self.choices.usual, GANSPACE, self.pipe.generator.num_ws - 1)

    def example(self, title: str) -> View:
        """An example's edit of the present source. Raises `ExplorerError` for an unknown one."""
        known = self.examples()
        if title not in known:
            raise ExplorerError(f"unknown example {title!r}: {', '.join(known)}")
        changes, shown = known[title], self._start(self.state)[3]
        self.prepare(changes.get("method", self.choices.usual))
        wanted = {k: s for k, s in changes.get("strengths", {}).items() if (shown.get(k, s < 0) > 0.5) != (s > 0)}
        return self.change(**asdict(self._fresh(self.state)) | changes | {"strengths": wanted})

    # ------------------------------------------------------------------------------------------------------ uploads

    def upload(self, name: str, content: bytes, *, aligned: bool = False) -> View:
        """The view of somebody's own picture. Raises `ImageError` for one that cannot be read.

        aligned: the picture is what `align` gave for that name, on another day.
        """
        return self._take(name, images.read_image(io.BytesIO(content), name=name), aligned)

    def align(self, name: str) -> View:
        """The view of the face in an upload, upright and cut out. Raises `ExplorerError` without one."""
        if (name, False) not in self._uploads:
            raise ExplorerError(f"the picture {one_line(name)!r} is not here: upload it again")
        photo = self._uploads[name, False]
        faces = align.find_faces(photo, device=self.pipe.device)
        if not faces:
            raise ExplorerError(f"{one_line(name)}: no face found; take a photo with a larger, frontal face")
        return self._take(name, align.align(photo, faces[0], max(self.pipe.domain.input_size)), True)

    def can_align(self) -> bool:
        """Whether a face of the present upload can be looked for."""
        is_raw = self.state.source == "upload" and not self.state.aligned
        return is_raw and importlib.util.find_spec("facenet_pytorch") is not None

    def _take(self, name: str, picture: np.ndarray, aligned: bool) -> View:
        self._started = (None, None)
        self._uploads[name, aligned] = picture
        return self.change(source="upload", name=name, aligned=aligned)

    @property
    def uploads(self) -> list[tuple[str, bool]]:
        """Name and alignment of the pictures that were uploaded, the last one at the end."""
        return list(self._uploads)

    def strange(self) -> str | None:
        """What tells the present source from the domain's pictures, in words; None where nothing does.

        By the domain's manifold (`Pipeline.strangeness`), or where it has none by the LPIPS of usual pictures.
        """
        image = self._tensor(self.state)
        if self.pipe.manifold is not None:
            return next(iter(self.pipe.strangeness(image).warnings(["This picture"])), None)
        score, limit = float(editing.strangeness(self.pipe, image)[0]), self._strange_limit()
        told = f"LPIPS to its inversion is {score:.2f}, where the domain's own stay below {limit:.2f}"
        return f"This picture: not a picture of this kind ({told})" if score > limit else None

    def _strange_limit(self) -> float:
        if self._limit is None:
            count = max(4, min(USUAL_PICTURES, USUAL_PIXELS // (8 * self.pipe.generator.size**2)))
            if self.test is None:
                usual = self.pipe.reconstruct(self.pipe.sample(count, seed=self.seed))
            else:
                usual = self.test.batch(range(min(count, len(self.test))))
            self._limit = STRANGE * float(editing.strangeness(self.pipe, usual).max())
        return self._limit

    # -------------------------------------------------------------------------------------------------- long work

    def ready(self, method: str) -> bool:
        """Whether `prepare` has next to nothing to do for a method."""
        return method in self._ready or (method in self.choices and self.choices.is_quick(method))

    def prepare(self, method: str) -> None:
        """Fits a method; `watch` is told the share that is done, and what it raises ends the work.

        Raises `ExplorerError` for an unknown method.
        """
        self.choices[method]
        self._ready.add(method)

    def has_editor(self, attribute: str) -> bool:
        """Whether `prepare_editor` has nothing to do for an attribute, as where matched pairs know it."""
        return attribute in self._editors or self._carries(attribute)

    def _carries(self, attribute: str) -> bool:
        return self.matched is not None and bool(self.matched.known[:, position(attribute, self.attributes)].all())

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

    @torch.no_grad()
    def references(self, attribute: str) -> list[int]:
        """Positions of test pictures that show an attribute, and whose inversions do; kept."""
        k = position(attribute, self.attributes)
        if self.test is None or self.attribute_classifier is None:
            return []
        if attribute not in self._references:
            labels = self.test.labels
            tried = np.arange(len(self.test)) if labels is None else np.flatnonzero(labels[:, k])
            tried = tried[: TRIED * (1 if labels is not None else 4)]
            batches = np.array_split(tried, max(len(tried) // TRIED, 1))
            codes = [self.pipe.invert(self.test.batch(part)) for part in batches if len(part)]
            shown = [quality.attribute_logits(self.pipe, self.attribute_classifier, ws)[:, k] > 0 for ws in codes]
            found = tried[np.concatenate(shown)] if shown else tried
            self._references[attribute] = found[:REFERENCES].tolist()
        return self._references[attribute]

    # ---------------------------------------------------------------------------------------------------- pictures

    def check(self, state: State) -> None:
        """Raises `ExplorerError` for a recipe of another domain, or with what no control here can be set to."""
        if state.domain != self.state.domain:
            raise ExplorerError(
                f"a recipe of the domain {one_line(state.domain)!r}; this explorer shows {self.state.domain!r}"
            )
        check_numbers(state, self.pipe.generator.num_ws - 1)
        reach, sliders = self.choices.reach(state.method), self.choices.sliders(state.method)
        for name, strength in state.strengths.items():
            position(name, sliders)
            if abs(strength) > reach:
                raise ExplorerError(f"recipe: {name} is {strength:g}, {state.method} takes {-reach:g} to {reach:g}")
        if state.carried:
            position(state.carried, self.attributes)
        if state.source == "test":
            self._position(state.number)
        if state.reference is not None:
            self._position(state.reference)

    @torch.no_grad()
    def view(self, state: State | None = None) -> View:
        """What a state looks like, by default the present one. Raises `ExplorerError` when it makes no sense."""
        state = state or self.state
        source, start, picture, before = self._start(state)
        drawn = self.pipe.synthesize(self.codes(state, start))
        edit = self.pipe.domain.view(drawn)
        small, after = images.to_uint8(edit)[0], self._probabilities(edit)
        is_square = edit.shape[-1] == edit.shape[-2]
        large = images.to_uint8(drawn)[0] if is_square and drawn.shape[-1] > edit.shape[-1] else small
        return View(source, picture, small, before, after, start, large)

    def codes(self, state: State, ws: Tensor) -> Tensor | dict[str, Tensor]:
        """The codes or StyleSpace vectors that a state makes of a source's code `[1, num_ws, w_dim]`."""
        generator = self.pipe.generator
        for name in state.strengths:
            position(name, self.choices.sliders(state.method))
        if state.psi != 1.0:
            ws = generator.truncate(ws, state.psi, generator.w_avg())
        if state.mix is not None:
            first, last = state.mix_tokens
            ws = ws.clone()
            ws[:, first : last + 1] = self.pipe.sample(1, seed=state.mix)[:, first : last + 1]
        if state.reference is not None and state.carried and self.has_editor(state.carried):
            self._position(state.reference)
            other = self.pipe.invert(self.test.batch([state.reference]))
            ws = self._carry(ws, other, state.carried)
        first, last = state.tokens or (0, generator.num_ws - 1)
        return self._edits(state, ws, slice(first, last + 1))

    def _carry(self, ws: Tensor, other: Tensor, attribute: str) -> Tensor:
        if not self._carries(attribute):
            return self._editors[attribute](ws, other)
        k = self.attributes.index(attribute)
        shown = [self.attribute_classifier(self.pipe.reconstruct(code))[:, k] > 0 for code in (ws, other)]
        return ws + self.matched.carry(ws, other, [k], tuple(shown))

    def _edits(self, state: State, ws: Tensor, tokens: slice) -> Tensor | dict[str, Tensor]:
        """All edits, each taken from the unedited code, added up: sliders do not depend on their order."""
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
        """One edit, forwards or backwards; kept while the code stays, so that dragging is cheap."""
        key = (state.method, ws.cpu().double().sum().item(), ws.shape)
        if self._cached[0] != key:
            self._cached = (key, {})
        kept = self._cached[1]
        if (name, add) not in kept:
            with torch.enable_grad():
                index = self.choices.sliders(state.method).index(name)
                kept[name, add] = self.choices[state.method](ws, index, float(add))
        return kept[name, add]

    def _start(self, state: State) -> tuple[np.ndarray, Tensor, np.ndarray, dict[str, float]]:
        """Source picture, its code, the code's picture and what the classifier sees in it; kept for the next step."""
        key = (state.source, state.number, state.name, state.aligned)
        if self._started[0] != key:
            self._started = (key, self._begin(state))
        return self._started[1]

    def _begin(self, state: State) -> tuple[np.ndarray, Tensor, np.ndarray, dict[str, float]]:
        if state.source == "sample":
            ws = self.pipe.sample(1, seed=state.number).contiguous()
            drawn = self.pipe.reconstruct(ws)
            picture = images.to_uint8(drawn)[0]
            return picture, ws, picture, self._probabilities(drawn)
        tensor = self._tensor(state)
        ws = self.pipe.invert(tensor)
        drawn = self.pipe.reconstruct(ws)
        return images.to_uint8(tensor)[0], ws, images.to_uint8(drawn)[0], self._probabilities(drawn)

    def _tensor(self, state: State) -> Tensor:
        """The picture that a state begins with, `[1, 3, h, w]`."""
        if state.source == "upload":
            if (state.name, state.aligned) not in self._uploads:
                raise ExplorerError(f"the picture {one_line(state.name)!r} is not here: upload it again")
            return self.pipe.images(self._uploads[state.name, state.aligned])
        if state.source == "test":
            self._position(state.number)
            return self.test.batch([state.number]).to(self.pipe.device)
        if state.source == "sample":
            return self.pipe.reconstruct(self.pipe.sample(1, seed=state.number))
        raise ExplorerError(f"unknown source {one_line(state.source)!r}: expected test, sample or upload")

    def _position(self, number: int) -> None:
        """Raises `ExplorerError` for a test picture that is not there."""
        if self.test is None:
            raise ExplorerError(f"test picture {number}: this domain has no pictures here; take a sample or your own")
        if not 0 <= number < len(self.test):
            raise ExplorerError(f"test picture {number}: there are 0 to {len(self.test) - 1}")

    def _probabilities(self, image: Tensor) -> dict[str, float]:
        if self.attribute_classifier is None:
            return {}
        p = self.attribute_classifier(image)[0].sigmoid().cpu().tolist()
        return dict(zip(self.attribute_classifier.attributes, p, strict=True))

    def code(self) -> str:
        """Python that makes the present picture."""
        name = self.state.name
        lines = ["from stx.explorer.state import Explorer, State", "", f"explorer = Explorer({self.state.domain!r})"]
        if self.state.source == "upload":
            lines.append(f"explorer.upload({name!r}, open({name!r}, 'rb').read())")
        if self.state.source == "upload" and self.state.aligned:
            lines.append(f"explorer.align({name!r})")
        lines += [f"state = {self.state!r}", "explorer.prepare(state.method)"]  # repr: text stays inside of literals
        if self.state.reference is not None:
            lines.append(f"explorer.prepare_editor({self.state.carried!r}, 'runs/explorer')")
        return "\n".join([*lines, "view = explorer.view(state)  # view.edit: uint8 [h, w, 3]", ""])


def png(picture: np.ndarray, most: int | None = None) -> bytes:
    """A picture as a file; of at most `most` pixels along a side, as a page shows it."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    if most and max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
