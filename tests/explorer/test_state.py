"""The explorer without a browser: states, recipes, undo, requests, domains without labels, long work, faults."""

import io
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image

from stx.checkpoints import weights
from stx.domains import align, images
from stx.evaluation import editing
from stx.explorer import choices, recipe, server
from stx.explorer import state as module
from stx.explorer.choices import CONVERTED, GANSPACE, REACH, UNLABELLED
from stx.explorer.state import Explorer, State
from stx.explorer.widgets import ExplorerApp, title
from stx.files.errors import ExplorerError, ImageError
from tests.explorer.test_browser import noise_picture


@pytest.fixture(scope="module")
def session():
    return Explorer("avatars", device="cpu")


@pytest.fixture
def fresh(session):
    session.state, session._past, session._future = State(tokens=(0, 9)), [], []
    session._control, session._uploads = "", {}
    session.watch = lambda share: None
    return session


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return ExplorerApp("avatars", device="cpu", folder=tmp_path_factory.mktemp("explorer"))


@pytest.fixture
def app(shared):
    """The widget, as it was when it was made."""
    explorer = shared.explorer
    explorer.state = explorer._fresh(State())
    explorer._past.clear(), explorer._future.clear(), explorer._uploads.clear(), shared._warnings.clear()
    shared._last = {"test": 0, "sample": 0}
    shared._show(explorer.view(), fresh=True)
    return shared


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
    for _ in range(9):
        fresh.redo()
    assert fresh.state == State(tokens=(0, 9), number=5, method="matched pairs")
    fresh.undo()
    assert fresh.can_redo
    fresh.change(strengths={"Smiling": 1.0})  # another way from here
    assert not fresh.can_redo
    count = len(fresh._past)
    fresh.change(strengths={"Smiling": 1.0})  # what changes nothing is no step
    assert len(fresh._past) == count


def test_sources(fresh):
    sampled = fresh.change(source="sample", number=11)
    assert np.array_equal(sampled.source, sampled.inversion)
    torch.testing.assert_close(sampled.ws, fresh.pipe.sample(1, seed=11))
    own = fresh.upload("me.jpg", upload())
    assert own.source.shape == (64, 64, 3)
    assert "explorer.upload('me.jpg'" in fresh.code()
    with pytest.raises(ImageError, match="broken.png: not a picture"):
        fresh.upload("broken.png", b"not a picture at all")
    assert fresh.state.name == "me.jpg"


def test_states_that_make_no_sense_are_told_and_change_nothing(fresh):
    state = fresh.state
    cases = [
        ({"number": 9999}, "test picture 9999: there are 0 to 1023"),
        ({"source": "moon"}, "unknown source 'moon'"),
        ({"strengths": {"Smilling": 1.0}}, "did you mean Smiling"),
        ({"source": "upload", "name": "gone.png"}, "'gone.png' is not here"),
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
    for changes, match in (
        ({"mix": -1}, "the seed that is mixed in is -1, expected 0 to 1000000"),
        ({"mix_tokens": (3, 10)}, r"mix_tokens are \[3, 10\], expected a first and a last one of 0 to 9"),
        ({"tokens": (-1, 3)}, r"tokens are \[-1, 3\]"),
        ({"method": GANSPACE, "strengths": {"Smiling": 1.0}}, "known: component 1"),
        ({"number": 5000}, "test picture 5000: there are 0 to 1023"),
        ({"reference": -2}, "test picture -2"),
        ({"carried": "Hat"}, "unknown attribute 'Hat'"),
        ({"strengths": {"Smiling": 24.5}}, "Smiling is 24.5, first order takes -24 to 24"),
    ):
        with pytest.raises(ValueError, match=match):
            fresh.check(State(**{"tokens": (0, 9)} | changes))
    with pytest.raises(ExplorerError, match="unknown 'color'; it has: domain, source"):
        State.from_json('{"color": 1}')


def test_no_choice_waits_on_avatars(fresh):
    """Every method that is offered: its logits are shipped, so that nothing has to be drawn to fit it."""
    plain = fresh.view()
    assert set(REACH) - {CONVERTED} == set(fresh.choices)
    for method in fresh.choices:
        assert fresh.ready(method)
        began = time.process_time()
        fresh.prepare(method)
        name = fresh.choices.sliders(method)[6]
        edited = fresh.change(method=method, strengths={name: REACH[method]})
        assert time.process_time() - began < 30  # of the processor, whatever else runs; three on ours
        assert not np.array_equal(edited.edit, plain.edit)
    own = fresh.view(State(tokens=(0, 9), method=GANSPACE, strengths={"component 1": 2.0}))
    back = fresh.view(State(tokens=(0, 9), method=GANSPACE, strengths={"component 1": -2.0}))
    assert not np.array_equal(own.edit, back.edit)


def test_logits_are_kept_and_damaged_ones_made_anew(fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("STX_CACHE", str(tmp_path))
    monkeypatch.setattr(choices, "FIT_CODES", 128)
    mine = choices.Choices(fresh.pipe, fresh.classifier, fresh.attribute_classifier)
    assert not mine.is_quick("StyleSpace")
    shares: list[float] = []
    mine.watch = shares.append
    ws, logits = mine.sampled()
    assert shares == sorted(shares) == [0, 0.5]
    (file,) = (tmp_path / choices.SHIPPED).iterdir()
    again = mine.sampled()
    assert torch.equal(again[0], ws)
    assert np.array_equal(again[1], logits)
    assert len(shares) == 2
    assert mine.is_quick("StyleSpace")
    file.write_bytes(file.read_bytes()[:-40])
    assert np.array_equal(mine.sampled()[1], logits)
    assert len(shares) == 4


def test_examples_do_what_they_say(fresh):
    for name, changes in recipe.EXAMPLES.items():
        for number in (0, 5):
            fresh.change(number=number)
            after = fresh.example(name).after
            right = [(after[attribute] > 0.5) == (strength > 0) for attribute, strength in changes.items()]
            assert all(right), (name, number)
    plain = fresh.reset().edit
    for name in set(fresh.examples()) - set(recipe.EXAMPLES):
        assert not np.array_equal(fresh.example(name).edit, plain), name
    with pytest.raises(ExplorerError, match="unknown example 'Moon': Sunglasses"):
        fresh.example("Moon")


def test_next_previous_and_surprises(fresh):
    for by, number in ((-1, 1023), (1, 0), (1, 1)):
        fresh.step(by)
        assert fresh.state.number == number
    fresh.upload("a.jpg", upload())
    fresh.upload("b.jpg", upload((60, 60)))
    fresh.step(1)
    assert fresh.state.name == "a.jpg"
    fresh.surprise(random.Random(1))
    assert fresh.state.name == "a.jpg"  # an upload stays
    fresh.change(source="test", name="")
    for seed in range(3):
        view = fresh.surprise(random.Random(seed))
        first = fresh.state
        flipped = [(view.before[name] > 0.5) != (s > 0) for name, s in first.strengths.items()]
        assert all(flipped)
        assert len(flipped) in (1, 2)
        fresh.surprise(random.Random(seed))
        assert fresh.state == first
    fresh.undo()


def test_only_references_that_show_it_are_offered(fresh):
    for name in ("Mustache", "Wearing_Hat"):
        found = fresh.references(name)
        assert 0 < len(found) <= module.REFERENCES
        k = fresh.attributes.index(name)
        assert fresh.test.labels[found, k].all()
        codes = fresh.pipe.invert(fresh.test.batch(found))
        assert (fresh.attribute_classifier(fresh.pipe.reconstruct(codes))[:, k] > 0).all()


def test_pictures_of_another_kind_are_told(fresh, monkeypatch):
    assert fresh.strange() is None  # a test picture
    fresh.change(number=77)
    assert fresh.strange() is None
    fresh.upload("noise.png", noise_picture())
    assert "stranger than" in fresh.strange()
    assert fresh.can_align()
    with pytest.raises(ExplorerError, match=r"noise.png: no face found"):
        fresh.align("noise.png")
    with pytest.raises(ExplorerError, match="'gone.png' is not here"):
        fresh.align("gone.png")
    face = align.Face((10, 10, 60, 60), np.array([[25, 30], [45, 30], [35, 40], [27, 50], [43, 50.0]]), 1.0)
    monkeypatch.setattr(align, "find_faces", lambda photo, device: [face])
    raw = fresh.view().source
    aligned = fresh.align("noise.png")
    assert fresh.state.aligned
    assert not np.array_equal(aligned.source, raw)
    assert "explorer.align('noise.png')" in fresh.code()
    assert not fresh.can_align()
    again = Image.fromarray(aligned.source)
    buffer = io.BytesIO()
    again.save(buffer, "PNG")
    fresh._uploads.clear()
    other = fresh.upload("noise.png", buffer.getvalue(), aligned=True)  # what the browser keeps of it
    assert np.array_equal(other.edit, aligned.edit)


@pytest.fixture
def bare(tiny, tmp_path, monkeypatch):
    """A domain of pictures without labels: generator, encoder and converted directions."""
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for i in range(12):
        images.save_image(np.random.RandomState(i).randint(0, 255, (16, 16, 3), dtype=np.uint8), folder / f"{i}.png")
    for name in ("generator", "style_transformer"):
        weights.save(tiny[name], tmp_path / "data" / folder.name / name, dtype=torch.float32)
    directions = tiny["directions"]
    torch.nn.init.orthogonal_(directions.directions[:, 0])
    weights.save(directions, tmp_path / "data" / folder.name / "directions-age", dtype=torch.float32)
    return folder


def test_a_domain_without_labels(bare, monkeypatch):
    monkeypatch.setattr(choices, "SHOWN_COMPONENTS", 3)
    monkeypatch.setattr(editing, "strangeness", lambda pipe, image: image.square().mean((1, 2, 3)).numpy())
    app = ExplorerApp(str(bare), device="cpu")
    explorer = app.explorer
    assert tuple(explorer.choices) == UNLABELLED
    assert explorer.choices.sliders(CONVERTED) == ("age:0", "age:1", "age:2")
    assert app.widget.setup["attributes"] == ()
    assert not app.widget.setup["carries"]
    plain = explorer.view()
    assert plain.after == {}
    for method in UNLABELLED:
        app.ask("method", method=method)
        name = explorer.choices.sliders(method)[1]
        app.ask("change", control=name, changes={"strengths": {name: 2.0}})
        assert app.widget.shown["said"] == ""
        assert app.widget.shown["state"]["strengths"] == {name: 2.0}
        assert not np.array_equal(explorer.view().edit, plain.edit)
    moved = explorer.codes(State(method=CONVERTED, strengths={"age:1": 2.0}), plain.ws) - plain.ws
    torch.testing.assert_close(moved, 2 * explorer.pipe.directions("age")[1:2])
    for example in explorer.examples():
        app.ask("example", title=example)
        assert app.widget.shown["said"] == ""
    app.ask("surprise")
    assert app.widget.shown["said"] == ""
    assert explorer.strange() is None
    scope: dict = {}
    exec(explorer.code(), scope)
    assert np.array_equal(scope["view"].edit, explorer.view().edit)


def test_a_domain_without_pictures(tiny, tmp_path, monkeypatch):
    """As ffhq after `stx convert`: there are samples and uploads."""
    monkeypatch.setenv("STX_DATA", str(tmp_path))
    monkeypatch.setattr(module.pipeline.datasets, "SIZES", {"ffhq": (16, (16, 16))})
    monkeypatch.setattr(choices, "SHOWN_COMPONENTS", 3)
    for name in ("generator", "style_transformer"):
        weights.save(tiny[name], tmp_path / "ffhq" / name, dtype=torch.float32)
    app = ExplorerApp("ffhq", device="cpu")
    assert app.explorer.test is None
    assert app.widget.setup["sources"] == ["sample", "upload"]
    assert app.explorer.state.source == "sample"
    app.ask("step", by=-1)
    assert app.widget.shown["state"]["number"] == recipe.MAX_SEED
    app.ask("source", source="test")
    assert "this domain has no pictures here; take a sample or your own" in app.widget.shown["said"]
    app.ask("upload", name="me.png", start=0, part=noise_picture())
    app.thread.join(60)
    assert app.widget.shown["state"]["source"] == "upload"


def test_requests_follow_the_state_and_say_what_is_wrong(app):
    shown = lambda: app.widget.shown  # noqa: E731
    start, alt = app.widget.edit, shown()["alt"]["edit"]
    assert shown()["fresh"]
    app.ask("change", id="a-1", control="Eyeglasses", changes={"strengths": {"Eyeglasses": 1.5}})
    assert app.explorer.state.strengths == {"Eyeglasses": 1.5}
    assert shown()["done"] == "a-1"
    assert "Eyeglasses +1.50" in shown()["alt"]["edit"]
    assert app.widget.edit != start
    assert not shown()["fresh"]
    text = shown()["short"]
    app.ask("undo")
    assert (app.widget.edit, shown()["alt"]["edit"], shown()["redo"]) == (start, alt, True)
    app.ask("recipe", text=text, restored=True)
    assert "in this page's address" in shown()["said"]
    assert shown()["state"]["strengths"] == {"Eyeglasses": 1.5}
    app.ask("reset")
    assert app.widget.edit == start
    app.ask("upload", id="a-2", name="x.png", start=0, part=b"nothing")
    assert "x.png: not a picture" in shown()["said"]
    assert shown()["done"] == "a-2"
    app.ask("too_large", name="y.png", size=10**9)
    assert "y.png: 1000.0 MB are too many" in shown()["said"]
    app.ask("save")
    assert sorted(p.suffix for p in app.folder.iterdir()) == [".json", ".png"]
    for text, words in (("rubbish", "not a recipe"), ('{"method": "Moon"}', "unknown method 'Moon'")):
        app.ask("recipe", text=text)
        assert words in shown()["said"]
    app.ask("references", carried="Sunglasses")
    position = app.widget.references["pictures"][0][0]
    app.ask("refer", reference=position, carried="Sunglasses")
    assert shown()["state"]["reference"] == position
    app.ask("source", source="sample")
    app.ask("step", by=5)
    app.ask("source", source="test")
    app.ask("source", source="sample")
    assert shown()["state"]["number"] == 5
    assert title("Mouth_Slightly_Open") == "Mouth slightly open"


def test_an_upload_comes_in_parts_and_is_looked_at(app):
    content = noise_picture()
    for start in (0, 1000):
        app.ask("part", name="me.png", start=start, part=content[start : start + 1000])
    app.ask("upload", name="me.png", start=2000, part=content[2000:])
    app.thread.join(60)
    assert app.widget.shown["state"]["name"] == "me.png"
    assert "not a picture of this kind" in app.widget.shown["warning"]
    assert app.widget.shown["can_align"]
    app.ask("source", source="test")
    assert app.widget.shown["warning"] == ""
    app.ask("source", source="upload")
    assert "not a picture of this kind" in app.widget.shown["warning"]
    app.ask("part", name="other.png", start=1000, part=content)
    assert "a part of the picture was lost" in app.widget.shown["said"]


def test_long_work_can_be_called_off_and_done(app, tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "FIT_CODES", 256)  # other than those shipped
    monkeypatch.setenv("STX_CACHE", str(tmp_path))
    monkeypatch.setattr(app.explorer.choices, "is_quick", lambda name: False)
    app.explorer._ready.discard("SeFa")
    app.explorer.choices._by_label.fitted.pop("SeFa", None)
    app.explorer.choices._by_label.__dict__.pop("sampled", None)
    stop = lambda change: app.ask("cancel")  # noqa: E731
    app.widget.observe(stop, "busy")
    app.ask("method", method="SeFa")
    app.thread.join(60)
    app.widget.unobserve(stop, "busy")
    assert "fitting SeFa: cancelled" in app.widget.shown["said"]
    assert app.explorer.state.method == "matched pairs"
    app.ask("method", method="SeFa")
    app.thread.join(60)
    assert app.explorer.state.method == app.widget.shown["state"]["method"] == "SeFa"
    assert app.widget.shown["reach"] == REACH["SeFa"]
    assert app.widget.busy == {}


def test_a_bug_takes_the_bar_down_and_is_told_and_logged(app, monkeypatch):
    logged: list[str] = []
    monkeypatch.setattr(app.widget.log, "exception", logged.append)

    def fails(*_, **__):
        raise KeyError("a bug")

    def told() -> bool:
        return app.widget.busy == {} and "failed, KeyError: 'a bug'" in app.widget.shown["said"]

    app._work("nothing", fails, lambda: None)
    app.thread.join(60)
    assert told()
    app._work("nothing", lambda: app._say(""), fails)  # the work is done, what comes after it is not
    app.thread.join(60)
    assert told()
    monkeypatch.setattr(app.explorer, "view", fails)
    requests = [
        ("change", {"control": "Smiling", "changes": {"strengths": {"Smiling": 1.0}}}),
        ("upload", {"name": "x.png", "start": 0, "part": upload()}),
        ("undo", {}),
        ("save", {}),
        ("recipe", {"text": app.widget.shown["recipe"]}),
    ]
    for i, (do, given) in enumerate(requests):
        app._say("")
        app.ask(do, id=str(i), **given)
        assert told(), do
        assert app.widget.shown["done"] == str(i)  # the page goes on
    assert app.widget.shown["state"]["strengths"] == {}
    assert len(logged) == 2 + len(requests)
    app.ask("nonsense")
    assert "unknown request 'nonsense'" in app.widget.shown["said"]


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


def test_the_page_of_a_notebook(monkeypatch):
    """Its tagged cells, with the domain asked for as a literal; another notebook stays as it is."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    def cell(text: str, *tags: str):
        return new_code_cell(text, metadata={"tags": list(tags)})

    book = new_notebook(cells=[new_markdown_cell("# Title"), cell("domain = 'avatars'", "parameters")])
    assert server.as_page(None, book, "") is book
    book.cells += [cell("app", "page"), cell("figures")]
    monkeypatch.delenv("STX_DOMAIN", raising=False)
    assert [c.source for c in server.as_page(None, book, "").cells[1:]] == ["domain = 'avatars'", "app"]
    for name in ("ffhq", 'it\'s "mine"; import os #', "a\\b"):
        monkeypatch.setenv("STX_DOMAIN", name)
        _, _, added, last = server.as_page(None, book, "").cells
        scope: dict = {}
        exec(added.source, scope)
        assert scope["domain"] == name
        assert last.source == "app"
    assert len(book.cells) == 4
