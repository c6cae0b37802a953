"""The explorer without a browser: states and recipes, undo, every control, long work that is cancelled, faults."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from stx.explorer import state as module
from stx.explorer.state import Explorer, State
from stx.explorer.widgets import REACH, ExplorerApp
from stx.files.errors import ExplorerError


@pytest.fixture(scope="module")
def session():
    return Explorer("avatars", device="cpu")


@pytest.fixture
def fresh(session):
    session.state, session._past, session._control = State(tokens=(0, 9)), [], ""
    session.watch = lambda share: None
    return session


def upload(size=(80, 60)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_recipe_reproduces_the_picture(fresh):
    before = fresh.view()
    assert np.array_equal(before.edit, before.inversion)
    assert before.before == before.after
    edited = fresh.change(strengths={"Eyeglasses": 18.0}, tokens=(0, 5), psi=0.9, mix=7, mix_tokens=(8, 9))
    assert not np.array_equal(edited.edit, before.edit)
    again = Explorer("avatars", device="cpu")
    assert np.array_equal(again.view(State.from_json(fresh.state.to_json())).edit, edited.edit)
    scope: dict = {}
    exec(fresh.code(), scope)
    assert np.array_equal(scope["view"].edit, edited.edit)


def test_every_control_does_what_it_says(fresh):
    plain = fresh.view()
    for changes in ({"strengths": {"Smiling": 20.0}}, {"psi": 0.5}, {"mix": 3, "mix_tokens": (0, 9)}):
        assert not np.array_equal(fresh.view(State(tokens=(0, 9), **changes)).edit, plain.edit), changes
    nothing = State(tokens=(0, 9), strengths={"Smiling": 0.0}, psi=1.0)
    assert np.array_equal(fresh.view(nothing).edit, plain.edit)
    average = fresh.codes(State(psi=0.0), plain.ws)
    torch.testing.assert_close(average[0, 4], fresh.pipe.generator.w_avg())
    mixed = fresh.codes(State(mix=3, mix_tokens=(2, 4)), plain.ws)
    assert torch.equal(mixed[:, 2:5], fresh.pipe.sample(1, seed=3)[:, 2:5])
    assert torch.equal(mixed[:, 5:], plain.ws[:, 5:])
    some = fresh.codes(State(tokens=(3, 3), strengths={"Smiling": 9.0}), plain.ws)
    changed = (some - plain.ws).abs().amax((0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == [3]
    one, other = ({"Smiling": 9.0, "Beard": 5.0}, {"Beard": 5.0, "Smiling": 9.0})
    assert torch.equal(fresh.codes(State(strengths=one), plain.ws), fresh.codes(State(strengths=other), plain.ws))


def test_undo_and_reset(fresh):
    first = fresh.view().edit
    fresh.change(number=5)
    for s in (4.0, 8.0, 12.0):
        fresh.change("Smiling", strengths={"Smiling": s})
    fresh.change("Beard", strengths={"Smiling": 12.0, "Beard": 3.0})
    assert fresh.undo() is not None
    assert fresh.state.strengths == {"Smiling": 12.0}
    fresh.undo()  # one drag is one step
    assert fresh.state.strengths == {}
    assert fresh.state.number == 5
    fresh.change(strengths={"Smiling": 3.0}, psi=0.3)
    fresh.reset()
    assert fresh.state == State(tokens=(0, 9), number=5, method="matched pairs")
    for _ in range(9):
        last = fresh.undo()
    assert np.array_equal(last.edit, first)


def test_sources(fresh):
    sampled = fresh.change(source="sample", number=11)
    assert np.array_equal(sampled.source, sampled.inversion)
    torch.testing.assert_close(sampled.ws, fresh.pipe.sample(1, seed=11))
    own = fresh.upload("me.jpg", upload())
    assert own.source.shape == (64, 64, 3)
    assert "explorer.upload('me.jpg'" in fresh.code()
    with pytest.raises(module.images.ImageError, match="broken.png: not a picture"):
        fresh.upload("broken.png", b"not a picture at all")
    assert fresh.state.name == "me.jpg"


def test_states_that_make_no_sense_are_told_and_change_nothing(fresh):
    state = fresh.state
    cases = [
        ({"number": 9999}, "test picture 9999: there are 0 to 1023"),
        ({"source": "moon"}, "unknown source 'moon'"),
        ({"strengths": {"Smilling": 1.0}}, "did you mean Smiling"),
        ({"source": "upload", "name": "gone.png"}, "'gone.png' is not here"),
        ({"method": "SeFa", "strengths": {"Smiling": 1.0}}, "SeFa is not fitted yet"),
    ]
    for changes, match in cases:
        with pytest.raises(ValueError, match=match):
            fresh.change(**changes)
        assert fresh.state == state
    for text in ("{", "[1]", '{"nonsense": 1}'):
        with pytest.raises(ExplorerError, match="not a recipe"):
            State.from_json(text)
    with pytest.raises(ExplorerError, match="unknown method 'Magic': matched pairs"):
        fresh.prepare("Magic")


def test_fitted_methods_edit_codes_or_channels(fresh, monkeypatch):
    monkeypatch.setattr(module, "FIT_CODES", 128)
    shares = []
    fresh.watch = shares.append
    plain = fresh.view()
    for method in ("GANSpace", "StyleSpace"):
        fresh.prepare(method)
        edited = fresh.change(method=method, strengths={"Long_Hair": REACH[method]})
        assert not np.array_equal(edited.edit, plain.edit)
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert set(REACH) == set(fresh.methods)


def test_widgets_follow_the_state_and_say_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIT_CODES", 128)
    app = ExplorerApp("avatars", device="cpu", folder=tmp_path)
    start = app.pictures["edit"].value
    app.sliders["Eyeglasses"].value = 1.5
    assert app.explorer.state.strengths == {"Eyeglasses": 1.5}
    assert "Eyeglasses +1.50" in app.pictures["edit"].value
    assert app.pictures["edit"].value != start
    app._use_recipe()
    app.explorer.undo()
    app._show(app.explorer.reset())
    assert app.sliders["Eyeglasses"].value == 0
    assert app.pictures["edit"].value == start
    content = {"name": "x.png", "content": memoryview(b"nothing"), "type": "", "size": 7, "last_modified": 0}
    app._uploaded([content])
    assert "x.png: not a picture" in app.message.value
    app._save()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".png"]
    app.recipe.value = "rubbish"
    app._use_recipe()
    assert "not a recipe" in app.message.value


def test_long_work_can_be_called_off_and_done(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FIT_CODES", 256)
    app = ExplorerApp("avatars", device="cpu", folder=tmp_path)
    counter = itertools.count()
    monkeypatch.setattr(app.explorer.methods, "watch", None)

    def stop_at_once(share: float) -> None:
        next(counter)
        app._cancel.set()

    app.progress.observe(lambda change: stop_at_once(change["new"]), "value")
    app.method.value = "SeFa"
    app.thread.join(60)
    assert "fitting SeFa: cancelled" in app.message.value
    assert app.method.value == app.explorer.state.method == "matched pairs"
    app.progress.unobserve_all()
    app.method.value = "SeFa"
    app.thread.join(60)
    assert app.explorer.state.method == "SeFa"
    assert app.sliders["Smiling"].max == REACH["SeFa"]
    assert app.busy.layout.display == "none"


def test_a_bug_takes_the_bar_down_and_is_told_and_logged(tmp_path, monkeypatch):
    app = ExplorerApp("avatars", device="cpu", folder=tmp_path)
    logged: list[str] = []
    monkeypatch.setattr(app.message.log, "exception", logged.append)

    def fails(*_, **__):
        raise KeyError("a bug")

    def told() -> bool:
        return app.busy.layout.display == "none" and "failed, KeyError: &#x27;a bug&#x27;" in app.message.value

    monkeypatch.setattr(app.explorer, "prepare", fails)
    app.method.value = "SeFa"
    app.thread.join(60)
    assert told()
    assert app.method.value == "matched pairs"
    app._work("nothing", lambda: app._say(""), fails)  # the work is done, what comes after it is not
    app.thread.join(60)
    assert told()
    monkeypatch.setattr(app.explorer, "view", fails)
    actions = [
        lambda: setattr(app.sliders["Smiling"], "value", 3.0),
        lambda: app._uploaded([{"name": "x.png", "content": upload(), "type": ""}]),
        *(lambda label=label: button(app, label).click() for label in ("Undo", "Save picture and recipe")),
        app._use_recipe,
    ]
    for action in actions:
        app._say("")
        action()
        assert told()
    assert app.sliders["Smiling"].value == 0
    assert len(logged) == 2 + len(actions)


def button(app, label):
    """The button of an app that has a label."""
    found, left = [], [app.widget]
    while left:
        widget = left.pop()
        found += [widget] if getattr(widget, "description", "") == label else []
        left += getattr(widget, "children", ())
    return found[0]


def test_reference_editing_trains_once_and_carries_over(fresh, tmp_path, monkeypatch):
    """Where a domain has no matched pairs."""
    monkeypatch.setattr(module, "EDITOR_CODES", 40)
    monkeypatch.setattr(fresh, "matched", None)
    plain = fresh.view()
    assert not fresh.has_editor("Sunglasses")
    fresh.prepare_editor("Sunglasses", tmp_path, steps=30)
    assert fresh.has_editor("Sunglasses")
    edited = fresh.change(reference=2, carried="Sunglasses")
    assert not np.array_equal(edited.edit, plain.edit)
    assert fresh.view().ws.shape == plain.ws.shape


def test_references_carry_over_at_once_by_matched_pairs(fresh):
    labels, k = fresh.test.labels, fresh.attributes.index("Sunglasses")
    without, wears = (int(np.flatnonzero(labels[:, k] == side)[0]) for side in (0, 1))
    assert fresh.has_editor("Sunglasses")
    plain = fresh.change(number=without)
    worn = fresh.change(reference=wears, carried="Sunglasses")
    assert plain.after["Sunglasses"] < 0.5 < worn.after["Sunglasses"]
    other = int(np.flatnonzero(labels[:, k] == 0)[1])
    assert np.array_equal(fresh.change(reference=other).edit, plain.edit)  # neither wears any
