"""The latent explorer as one widget around `stx.explorer.state`; in a notebook, or on a page of its own.

The page (`page.js`, an `anywidget`) shows what the traits hold and sends requests; here they become changes of the
state. A request names what to `do`, and is answered by `shown["done"]`.
"""

import base64
import os
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from stx.explorer import uploads
from stx.explorer.choices import UNLABELLED
from stx.explorer.recipe import MAX_PSI, MAX_SEED, State
from stx.explorer.state import PAGE_SIDE, Explorer, View, png
from stx.files.atomic import atomic_write, write_text
from stx.files.errors import ExplorerError, StxError
from stx.files.places import safe_name
from stx.files.untrusted import one_line

HERE = Path(__file__).parent
THUMBNAIL = 128  # pixels
TOLD = (StxError, ValueError, OSError)  # errors that are the user's to read


class CancelledError(Exception):
    """The user cancelled long work."""


class Page(anywidget.AnyWidget):
    """What the page shows: setup stays as it is, pictures are PNG files, busy has a label and a share of work."""

    _esm = HERE / "page.js"
    _css = HERE / "page.css"
    setup = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    busy = traitlets.Dict().tag(sync=True)
    references = traitlets.Dict({"carried": "", "pictures": []}).tag(sync=True)
    source = traitlets.Bytes().tag(sync=True)
    inversion = traitlets.Bytes().tag(sync=True)
    edit = traitlets.Bytes().tag(sync=True)


class ExplorerApp:
    """The explorer as one widget, `app.widget`.

    number: test picture (or seed of a sample) to begin with. folder: where reference editors train and results are
    saved.
    """

    def __init__(
        self,
        domain: str | Path = "avatars",
        *,
        number: int = 0,
        device: str = "auto",
        folder: str | Path = "runs/explorer",
    ):
        self.explorer, self.folder = Explorer(domain, device=device), Path(folder)
        self.explorer.state = replace(self.explorer.state, number=number)
        self._cancel, self._parts, self._lock = threading.Event(), uploads.Parts(), threading.Lock()
        self._warnings: dict[tuple[str, bool], str] = {}
        self._last = {"test": 0, "sample": 0} | {self.explorer.state.source: number}
        self._actions: dict[str, Callable[..., None]] = {
            "change": self._change,
            "source": self._choose_source,
            "step": lambda by: self._show(self.explorer.step(by)),
            "surprise": lambda: self._show(self.explorer.surprise()),
            "example": lambda title: self._show(self.explorer.example(title)),
            "undo": lambda: self._show(self.explorer.undo()),
            "redo": lambda: self._show(self.explorer.redo()),
            "reset": lambda: self._show(self.explorer.reset()),
            "method": self._choose_method,
            "references": self._offer_references,
            "refer": self._refer,
            "upload": self._upload,
            "part": lambda name, start, part: self._parts.add(name, start, part) and None,
            "too_large": uploads.check,
            "align": self._align,
            "recipe": self._take_recipe,
            "save": self._save,
            "download": self._download,
            "cancel": self._cancel.set,
        }
        self._began = time.perf_counter()
        self.widget = Page(setup=self._setup())
        self._show(self.explorer.view(), fresh=True, start=self.explorer.state.short())
        self.widget.on_msg(self._asked)
        self.thread: threading.Thread | None = None

    def _setup(self) -> dict[str, Any]:
        explorer = self.explorer
        names = list(explorer.choices)
        return {
            "page": is_page(),
            "attributes": explorer.attributes,
            "methods": {
                "Attributes": [name for name in names if name not in UNLABELLED],
                "Without labels": [name for name in names if name in UNLABELLED],
            },
            "sources": ["test", "sample", "upload"] if explorer.test else ["sample", "upload"],
            "pictures": len(explorer.test or ()),
            "tokens": explorer.pipe.generator.num_ws,
            "psi": MAX_PSI,
            "seeds": MAX_SEED,
            "examples": list(explorer.examples()),
            "carries": bool(explorer.attributes and explorer.test and explorer.attribute_classifier),
            "upload": uploads.limit(),
        }

    # ------------------------------------------------------------------------------------------------------- requests

    def _asked(self, _, content: dict[str, Any], buffers: list[memoryview]) -> None:
        given = {name: value for name, value in content.items() if name not in ("do", "id", "control", "from")}
        if content.get("do") in ("upload", "part"):
            given |= {"start": content.get("from"), "part": bytes(buffers[0]) if buffers else b""}
        self.ask(content.get("do", ""), id=content.get("id"), control=content.get("control", ""), **given)

    def ask(self, do: str, *, id: str | None = None, control: str = "", **given) -> None:
        """What the page's request does. What goes wrong is said, the state stays, and a bug is in the log as well."""
        self._began = time.perf_counter()
        self._put(fresh=False)
        if control:
            given["control"] = control
        self._attempt(do, lambda: self._action(do)(**given))
        if id:
            self._put(done=id)

    def _action(self, do: str) -> Callable[..., None]:
        if do not in self._actions:
            raise ExplorerError(f"unknown request {one_line(do)!r}")
        return self._actions[do]

    def _attempt(self, label: str, action: Callable[[], None]) -> None:
        try:
            action()
        except CancelledError:
            text = f"{label}: cancelled"
        except TOLD as error:
            text = str(error)
        except Exception as error:
            text = f"{label}: failed, {type(error).__name__}: {error}"
            self.widget.log.exception(text)  # the kernel's log: what is printed here has no cell to go to
        else:
            return
        self._say(text)

    def _change(self, changes: dict[str, Any], control: str = "") -> None:
        pairs = {k: tuple(changes[k]) for k in ("tokens", "mix_tokens") if changes.get(k) is not None}
        self.explorer.check(replace(self.explorer.state, **changes | pairs))
        self._show(self.explorer.change(control, **changes | pairs))

    def _choose_source(self, source: str) -> None:
        if source == "upload":
            name, aligned = self.explorer.uploads[-1]
            self._show(self.explorer.change(source=source, name=name, aligned=aligned))
        else:
            self._show(self.explorer.change(source=source, number=self._last.get(source, 0), name="", aligned=False))

    def _choose_method(self, method: str) -> None:
        """Another method has other units: strengths start from zero, on sliders of another reach."""
        self._prepared(method, lambda: self._show(self.explorer.change(method=method, strengths={})))

    def _prepared(self, method: str, done: Callable[[], None]) -> None:
        if self.explorer.ready(method):
            self.explorer.prepare(method)
            done()
        else:
            self._work(f"fitting {one_line(method)}", lambda: self.explorer.prepare(method), done)

    def _offer_references(self, carried: str) -> None:
        found = self.explorer.references(carried)
        pictures = [png(self.explorer.test.read(i), THUMBNAIL) for i in found]
        encoded = [[i, base64.b64encode(content).decode()] for i, content in zip(found, pictures, strict=True)]
        self.widget.references = {"carried": carried, "pictures": encoded}
        self._say("")

    def _refer(self, reference: int, carried: str) -> None:
        self._with_editor(carried, lambda: self._change({"reference": reference, "carried": carried}))

    def _with_editor(self, carried: str, done: Callable[[], None]) -> None:
        if not carried or self.explorer.has_editor(carried):
            done()
        else:
            folder = self.folder / "editors"
            self._work(f"learning {carried}", lambda: self.explorer.prepare_editor(carried, folder), done)

    def _take_recipe(self, text: str, restored: bool = False) -> None:
        state = State.from_json(text)
        self.explorer.check(state)
        told = "The edit in this page's address; Undo goes back to the beginning." if restored else ""

        def show() -> None:
            changed = {name: value for name, value in vars(state).items() if name != "domain"}
            self._show(self.explorer.change(**changed), said=told)

        carried = state.carried if state.reference is not None else ""
        self._prepared(state.method, lambda: self._with_editor(carried, show))

    # -------------------------------------------------------------------------------------------------------- uploads

    def _upload(self, name: str, start: int, part: bytes, aligned: bool = False) -> None:
        self._show(self.explorer.upload(name, self._parts.add(name, start, part), aligned=aligned))
        self._examine()

    def _align(self) -> None:
        self._show(self.explorer.align(self.explorer.state.name))
        self._examine()

    def _examine(self) -> None:
        """Beside the page: a warning where the networks have seen nothing like an upload."""
        key = self.explorer.state.name, self.explorer.state.aligned

        def look() -> None:
            found = self.explorer.strange()
            if found and key == (self.explorer.state.name, self.explorer.state.aligned):
                self._warnings[key] = f"{found}. What is shown will not look like it."
                self._put(warning=self._warnings[key])

        self._in_thread("looking at the upload", look)

    # --------------------------------------------------------------------------------------------------------- showing

    def _show(self, view: View, said: str = "", **more) -> None:
        """Pictures, numbers and texts as the present state has them."""
        explorer, state = self.explorer, self.explorer.state
        if state.source != "upload":
            self._last[state.source] = state.number
        number = f"{zlib.crc32(view.edit.tobytes()):08x}"
        edits = ", ".join(f"{title(name)} {s:+.2f}" for name, s in state.strengths.items() if s) or "no edits"
        files = {name: png(getattr(view, name), PAGE_SIDE) for name in ("source", "inversion")}
        files["edit"] = png(view.large, PAGE_SIDE)
        with self.widget.hold_sync():
            for name, content in files.items():
                setattr(self.widget, name, content)
            self._put(
                state=asdict(state),
                sliders=explorer.choices.sliders(state.method),
                reach=explorer.choices.reach(state.method),
                before=view.before,
                after=view.after,
                alt={
                    "source": f"source: {self._source_name()}",
                    "inversion": "its inversion",
                    "edit": f"edit: {edits} ({number})",
                },
                recipe=state.to_json(),
                short=state.short(),
                code=explorer.code(),
                undo=explorer.can_undo,
                redo=explorer.can_redo,
                uploads=explorer.uploads,
                can_align=explorer.can_align(),
                warning=self._warnings.get((state.name, state.aligned), "") if state.source == "upload" else "",
                ms=1000 * (time.perf_counter() - self._began),
                said=said,
                **more,
            )

    def _put(self, **changes) -> None:
        """Some of what is shown, from any thread."""
        with self._lock:
            self.widget.shown = {"done": "", **self.widget.shown, **changes}

    def _say(self, text: str) -> None:
        self._put(said=text)

    def _source_name(self) -> str:
        state = self.explorer.state
        if state.source == "upload":
            return f"{state.name}, aligned" if state.aligned else state.name
        return f"{state.source} {state.number}"

    # --------------------------------------------------------------------------------------------------------- keeping

    def _stem(self) -> str:
        state = self.explorer.state
        return f"{safe_name(self._source_name())}_{zlib.crc32(state.to_json().encode()):08x}"

    def _save(self) -> None:
        stem = self._stem()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / f"{stem}.png") as part:
                part.write_bytes(png(self.explorer.view().large))
            write_text(self.folder / f"{stem}.json", self.explorer.state.to_json())
        except OSError as error:
            self._say(f"cannot be saved: {error}")
        else:
            self._say(f"saved {self.folder / stem}.png and .json")

    def _download(self) -> None:
        self.widget.send({"download": f"{self._stem()}.png"}, [png(self.explorer.view().large)])
        self._say("")

    # ------------------------------------------------------------------------------------------------------- long work

    def _work(self, label: str, job: Callable[[], None], done: Callable[[], None]) -> None:
        """Long work beside the page: progress, and a button to cancel it."""
        self._cancel.clear()
        self.widget.busy = {"label": label, "share": 0.0}

        def watch(share: float) -> None:
            if self._cancel.is_set():
                raise CancelledError
            self.widget.busy = {"label": label, "share": share}

        def run() -> None:
            try:
                job()
            finally:
                self.widget.busy = {}
            done()

        self.explorer.watch = watch
        self._in_thread(label, run)

    def _in_thread(self, label: str, action: Callable[[], None]) -> None:
        self.thread = threading.Thread(target=self._attempt, args=(label, action), daemon=True)
        self.thread.start()


def title(name: str) -> str:
    """An identifier as it is read: Mouth slightly open."""
    return name.replace("_", " ").capitalize() if "_" in name else name


def is_page() -> bool:
    """Whether this kernel is that of a page of `stx.explorer.server`."""
    return os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
