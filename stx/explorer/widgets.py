"""Controls of the latent explorer around `stx.explorer.state`: sliders, buttons, thumbnails; a notebook or a page."""

import base64
import html
import re
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import ipywidgets as widgets

from stx.explorer import uploads
from stx.explorer.state import Explorer, State, View, bars_html, picture_html, png
from stx.files.atomic import atomic_write, write_text
from stx.files.errors import StxError
from stx.files.places import safe_name

THUMBNAILS = 12
REACH = {  # the largest strength on a slider; the methods' units differ
    "matched pairs": 2.0,
    "natural, six steps": 24.0,
    "constrained, six steps": 24.0,
    "first order": 24.0,
    "second order": 24.0,
    "InterFaceGAN": 8.0,
    "InterFaceGAN, conditional": 16.0,
    "GANSpace": 8.0,
    "SeFa": 4.0,
    "LatentCLR": 12.0,
    "StyleSpace": 20.0,
    "StyleFlow": 8.0,
    "latent transformer": 8.0,
}
SLIDER_STEPS = 24  # of a slider, on each side
WIDE = {"description_width": "150px"}
LONG, AS_WIDE = {"width": "420px"}, {"width": "auto"}
TOLD = (StxError, ValueError, OSError)  # errors that are the user's to read


class CancelledError(Exception):
    """The user cancelled long work."""


class ExplorerApp:
    """The explorer as one widget, `app.widget`. folder: where reference editors train and results are saved."""

    def __init__(self, domain: str = "avatars", *, device: str = "auto", folder: str | Path = "runs/explorer"):
        self.explorer, self.folder = Explorer(domain, device=device), Path(folder)
        self._quiet, self._cancel = False, threading.Event()
        self._build()
        self._show(self.explorer.view())

    # ----------------------------------------------------------------------------------------------------- building

    def _build(self) -> None:
        explorer, tokens = self.explorer, self.explorer.pipe.generator.num_ws
        self.pictures = {name: widgets.HTML() for name in ("source", "inversion", "edit")}
        self.bars, self.message = widgets.HTML(), widgets.HTML()
        self.progress = widgets.FloatProgress(max=1.0, description="working", style=WIDE)
        self.stop = self._button("Cancel", self._cancel.set, "Call the running work off")
        self.busy = widgets.HBox([self.progress, self.stop], layout={"display": "none"})

        self.source = widgets.Dropdown(options=["test", "sample"], description="source", style=WIDE)
        self.number = widgets.BoundedIntText(
            min=0, max=len(explorer.test) - 1, description="picture or seed", style=WIDE
        )
        self.upload = widgets.FileUpload(
            accept="image/*", description="upload a picture", multiple=False, layout=AS_WIDE
        )
        self.method = widgets.Dropdown(options=list(explorer.methods), description="method", style=WIDE)
        self.tokens = widgets.IntRangeSlider(
            value=(0, tokens - 1), min=0, max=tokens - 1, description="edited tokens", style=WIDE
        )
        self.psi = widgets.FloatSlider(value=1.0, min=0.0, max=1.5, step=0.05, description="truncation psi", style=WIDE)
        self.mixed = widgets.Checkbox(description="mix in another code", style=WIDE)
        self.mix_seed = widgets.BoundedIntText(value=1, min=0, max=10**6, description="its seed", style=WIDE)
        self.mix_tokens = widgets.IntRangeSlider(
            value=(tokens // 2, tokens - 1), min=0, max=tokens - 1, description="its tokens", style=WIDE
        )
        self.carried = widgets.Dropdown(options=explorer.attributes, description="carry over", style=WIDE)
        self.sliders = {
            name: widgets.FloatSlider(description=name, style=WIDE, layout=LONG) for name in explorer.attributes
        }
        for name, slider in self.sliders.items():
            slider.add_class("stx-" + re.sub(r"\W+", "-", name))  # a class with a space in it breaks the page
        self._scale(self.explorer.state.method)
        self.recipe = widgets.Textarea(description="recipe", layout={"width": "100%", "height": "120px"})
        self.code = widgets.Textarea(description="code", layout={"width": "100%", "height": "120px"})
        self._connect()
        self.widget = self._arrange()

    def _connect(self) -> None:
        for control in (self.source, self.number):
            control.observe(self._pick, "value")
        self.upload.observe(lambda change: self._uploaded(change["new"]), "value")
        self.method.observe(self._choose_method, "value")
        for name, slider in self.sliders.items():
            slider.observe(lambda _, name=name: self._do(name, strengths=self._strengths()), "value")
        self.tokens.observe(lambda c: self._do("tokens", tokens=tuple(c["new"])), "value")
        self.psi.observe(lambda c: self._do("psi", psi=c["new"]), "value")
        for control in (self.mixed, self.mix_seed, self.mix_tokens):
            control.observe(self._mix, "value")

    def _arrange(self) -> widgets.Widget:
        undo = self._button("Undo", lambda: self._show(self.explorer.undo()), "Back to before the last change")
        reset = self._button("Reset", lambda: self._show(self.explorer.reset()), "No edits, the same source")
        save = self._button("Save picture and recipe", self._save, "Writes both into the run folder")
        load = self._button("Use recipe", self._use_recipe, "Takes the recipe in the text box")
        thumbs = self._thumbnails()
        none = self._button("No reference", lambda: self._do("", reference=None), "Without reference editing")
        panels = {
            "Label edits": [self.method, *self.sliders.values(), self.tokens],
            "Reference": [self.carried, thumbs, none],
            "Mixing": [self.psi, self.mixed, self.mix_seed, self.mix_tokens],
            "Recipe": [widgets.HBox([save, load]), self.recipe, self.code],
        }
        tabs = widgets.Tab([widgets.VBox(items) for items in panels.values()], titles=list(panels))
        shown = widgets.HBox(
            [widgets.VBox([widgets.Label(name), picture]) for name, picture in self.pictures.items()],
            layout={"flex_flow": "row wrap"},
        )
        top = widgets.HBox([self.source, self.number, self.upload, undo, reset], layout={"flex_flow": "row wrap"})
        below = widgets.HBox([tabs, self.bars], layout={"flex_flow": "row wrap"})
        return widgets.VBox([top, self.message, self.busy, shown, below, uploads.watch(self.upload)])

    def _thumbnails(self) -> widgets.Widget:
        """Buttons that look like their pictures."""
        rules, buttons = [], []
        for i, picture in enumerate(self.explorer.thumbnails(THUMBNAILS)):
            data = base64.b64encode(png(picture)).decode()
            look = f"background:url(data:image/png;base64,{data}) center/cover !important;color:transparent"
            rules.append(f".stx-ref-{i} {{{look}}}")
            button = self._button(str(i), lambda i=i: self._refer(i), f"Reference: test picture {i}")
            button.layout = {"width": "64px", "height": "64px"}
            button.add_class(f"stx-ref-{i}")
            buttons.append(button)
        style = widgets.HTML(f"<style>{''.join(rules)}</style>")
        return widgets.VBox([style, widgets.GridBox(buttons, layout={"grid_template_columns": "repeat(6, 70px)"})])

    def _button(self, label: str, action: Callable[[], None], tooltip: str) -> widgets.Button:
        button = widgets.Button(description=label, tooltip=tooltip)
        button.on_click(lambda _: self._attempt(label, action))
        return button

    # ------------------------------------------------------------------------------------------------------ showing

    def _show(self, view: View) -> None:
        """Pictures, bars and all controls as the present state has them."""
        self._put_controls(self.explorer.state)
        self._draw(view)

    def _draw(self, view: View) -> None:
        """Pictures, bars and texts; controls are left alone, for someone may be moving them."""
        state = self.explorer.state
        number = f"{zlib.crc32(view.edit.tobytes()):08x}"
        self.pictures["source"].value = picture_html(view.source, f"source: {self._source_name(state)}")
        self.pictures["inversion"].value = picture_html(view.inversion, "its inversion")
        edits = ", ".join(f"{name} {s:+.2f}" for name, s in state.strengths.items() if s) or "no label edits"
        self.pictures["edit"].value = picture_html(view.edit, f"edit: {edits} ({number})")
        self.bars.value = bars_html(view.before, view.after)
        self.recipe.value, self.code.value = state.to_json(), self.explorer.code()
        self._say("")

    def _put_controls(self, state: State) -> None:
        self._quiet = True
        try:
            if state.source in self.source.options:
                self.source.value, self.number.value = state.source, state.number
            self.method.value, self.psi.value = state.method, state.psi
            self._scale(state.method)
            for name, slider in self.sliders.items():
                slider.value = state.strengths.get(name, 0.0)
            self.tokens.value = state.tokens or (self.tokens.min, self.tokens.max)
            self.mixed.value = state.mix is not None
            if state.mix is not None:
                self.mix_seed.value, self.mix_tokens.value = state.mix, state.mix_tokens
        finally:
            self._quiet = False

    def _scale(self, method: str) -> None:
        reach = REACH.get(method, 8.0)
        for slider in self.sliders.values():
            slider.min, slider.max, slider.step = -reach, reach, reach / SLIDER_STEPS

    @staticmethod
    def _source_name(state: State) -> str:
        return state.name if state.source == "upload" else f"{state.source} {state.number}"

    def _say(self, text: str) -> None:
        self.message.value = (
            f'<div role="status" class="stx-message" style="min-height:1.4em">{html.escape(text)}</div>'
        )

    # ------------------------------------------------------------------------------------------------------ actions

    def _attempt(self, label: str, action: Callable[[], None]) -> None:
        """Does what a control asks for; what goes wrong is said, the state stays, and a bug is in the log as well."""
        try:
            action()
        except CancelledError:
            text = f"{label}: cancelled"
        except TOLD as error:
            text = str(error)
        except Exception as error:
            text = f"{label}: failed, {type(error).__name__}: {error}"
            self.message.log.exception(text)  # the kernel's log: what is printed here has no cell to go to
        else:
            return
        self._put_controls(self.explorer.state)
        self._say(text)

    def _do(self, control: str, **changes) -> None:
        """A change from a control."""
        if not self._quiet:
            self._attempt(control, lambda: self._draw(self.explorer.change(control, **changes)))

    def _strengths(self) -> dict[str, float]:
        values = {name: round(slider.value, 6) for name, slider in self.sliders.items()}
        return {name: value for name, value in values.items() if value}

    def _pick(self, _) -> None:
        self._do("source", source=self.source.value, number=self.number.value, name="")

    def _uploaded(self, files: Sequence[dict]) -> None:
        for file in files:
            self._attempt("upload", lambda file=file: self._take_upload(file))

    def _take_upload(self, file: dict) -> None:
        uploads.check(file["name"], file["type"], len(file["content"]))
        self._show(self.explorer.upload(file["name"], bytes(file["content"])))

    def _mix(self, _) -> None:
        seed = self.mix_seed.value if self.mixed.value else None
        self._do("mix", mix=seed, mix_tokens=tuple(self.mix_tokens.value))

    def _choose_method(self, change: dict) -> None:
        name = change["new"]
        if self._quiet:
            return
        if self.explorer.ready(name):
            self._attempt(name, lambda: self._take_method(name))
        else:
            self._work(f"fitting {name}", lambda: self.explorer.prepare(name), lambda: self._take_method(name))

    def _take_method(self, name: str) -> None:
        """Another method has other units: strengths start from zero, on sliders of another reach."""
        self._show(self.explorer.change(method=name, strengths={}))

    def _refer(self, position: int) -> None:
        name = self.carried.value

        def done() -> None:
            self._do("", reference=position, carried=name)

        if self.explorer.has_editor(name):
            done()
        else:
            self._work(f"learning {name}", lambda: self.explorer.prepare_editor(name, self.folder / "editors"), done)

    def _save(self) -> None:
        state = self.explorer.state
        stem = f"{safe_name(self._source_name(state))}_{zlib.crc32(state.to_json().encode()):08x}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / f"{stem}.png") as part:
                part.write_bytes(png(self.explorer.view().edit))
            write_text(self.folder / f"{stem}.json", state.to_json())
        except OSError as error:
            self._say(f"cannot be saved: {error}")
        else:
            self._say(f"saved {self.folder / stem}.png and .json")

    def _use_recipe(self) -> None:
        self._attempt("Use recipe", self._take_recipe)

    def _take_recipe(self) -> None:
        state = State.from_json(self.recipe.value)
        self.explorer.check(state)
        self.explorer.prepare(state.method)
        self._show(self.explorer.change(**{k: v for k, v in vars(state).items() if k != "domain"}))

    def _work(self, label: str, job: Callable[[], None], done: Callable[[], None]) -> None:
        """Long work beside the page: progress, and a button to call it off."""
        self._cancel.clear()
        self.progress.description, self.progress.value = label, 0.0
        self.busy.layout.display = "flex"

        def watch(share: float) -> None:
            if self._cancel.is_set():
                raise CancelledError
            self.progress.value = share

        def run() -> None:
            try:
                job()
            finally:
                self.busy.layout.display = "none"
            done()

        self.explorer.watch = watch
        self.thread = threading.Thread(target=self._attempt, args=(label, run), daemon=True)
        self.thread.start()
