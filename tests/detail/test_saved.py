"""Pictures are inverted once, with what codes lose, and edited many times: what `stx invert --detail` writes."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

import stx
from stx import batch, cli
from stx.detail.registry import METHODS
from stx.domains import avatars, images
from stx.files.errors import EditError, StxError, WeightsError
from stx.reference_editing import ReferenceEditor

TRAINED = ["features", "feature_editor", "hfgi", "hyperstyle"]


@pytest.fixture(scope="module")
def pipe():
    return stx.load("avatars", device="cpu")


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    for i, avatar in zip(range(3), avatars.sample("test"), strict=False):
        images.save_image(avatars.draw(avatar), folder / f"p{i}.png")
    return folder


def run(*words) -> int:
    return cli.main([*map(str, words), "--device", "cpu"])


def one_line(told: str) -> str:
    lines = [line for line in told.splitlines() if line.startswith("stx: ")]
    assert len(lines) == 1, told
    return lines[0]


def shown(folder, names) -> np.ndarray:
    return np.stack([images.read_image(folder / f"{name}.png").astype(int) for name in names])


@pytest.mark.parametrize("method", TRAINED)
def test_inverted_once_and_edited_again(method, pipe, faces, tmp_path):
    """What a folder keeps gives the same pictures as the pictures themselves do, edited or not."""
    codes, twice, once = (tmp_path / name for name in ("codes", "twice", "once"))
    paths = sorted(faces.glob("*.png"))
    assert batch.invert_files(pipe, paths, codes, shard=2, detail=method) == (0, [])
    names, ws = batch.load_codes(codes)
    assert names == ["p0", "p1", "p2"]
    found = pipe.invert_detail(paths, method)
    torch.testing.assert_close(ws, found.ws, rtol=1e-4, atol=1e-4)
    assert abs(shown(codes, names) - images.to_uint8(pipe.synthesize(found))).max() <= 1
    parts = list(batch.load_inversions(codes, pipe))
    assert [own for own, _ in parts] == [["p0", "p1"], ["p2"]]
    assert {part.method for _, part in parts} == {method}

    def edit(ws):
        return pipe.edit(ws, add=["Eyeglasses"])

    assert batch.edit_codes(pipe, [codes], twice, edit) == 3
    assert batch.edit_files(pipe, paths, once, edit, detail=method) == []
    assert abs(shown(twice, names) - shown(once, names)).max() <= 1
    assert batch.invert_files(pipe, paths, codes, detail=method) == (3, [])
    with pytest.raises(WeightsError, match=f"detail: {method} there, none now"):  # codes alone are another folder's
        batch.invert_files(pipe, paths, codes)


def test_commands_keep_detail_and_edit_it(faces, tmp_path, capsys):
    codes = tmp_path / "codes"
    assert run("invert", faces / "p0.png", "--detail", "hfgi", "--out", codes) == 0
    assert run("edit", codes, "--add", "Eyeglasses", "--remove", "Smiling", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "p0.png").is_file() and "1 of 1" in capsys.readouterr().out
    assert run("edit", codes, "--add", "Eyeglasses", "--detail", "hfgi", "--out", tmp_path / "out") == 2
    assert "leave --detail out" in one_line(capsys.readouterr().err)


def test_a_search_is_kept_too(pipe, faces, tmp_path, monkeypatch):
    from stx.detail import refinement

    monkeypatch.setattr(refinement, "STEPS", {"search": 2, "tuning": 2})
    for method in ("search", "tuning"):
        batch.invert_files(pipe, sorted(faces.glob("*.png"))[:2], tmp_path / method, detail=method)
        ((names, found),) = batch.load_inversions(tmp_path / method, pipe)
        assert names == ["p0", "p1"]
        shown = images.to_uint8(pipe.synthesize(found))
        for name, picture in zip(names, shown, strict=True):
            assert abs(images.read_image(tmp_path / method / f"{name}.png").astype(int) - picture).max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_every_edit_takes_every_inversion(method, pipe, faces, monkeypatch):
    """Attributes, directions, components, channels, references by code and by attention, one after the other."""
    from stx.detail import refinement

    monkeypatch.setattr(refinement, "STEPS", {"search": 1, "tuning": 1})
    image = pipe.images(faces)
    found = pipe.invert_detail(image, method)
    plain = pipe.synthesize(found)
    edits = [{"add": ["Eyeglasses"], "until": 0.9}, {"add": ["sefa:1"], "strength": 3.0}]
    edits += [{"add": ["stylespace:6_3"], "strength": 30.0}, {"add": ["Smiling"], "tokens": (0, 5)}]
    changed = [pipe.edit(found, **edit) for edit in edits]
    torch.manual_seed(0)
    attention = ReferenceEditor(w_dim=pipe.generator.w_dim).eval()
    with torch.no_grad():
        changed.append(found.edit(attention(found.ws, found.ws.roll(1, 0))))
    for edited in changed:
        drawn = pipe.synthesize(edited)
        assert drawn.shape == plain.shape and drawn.isfinite().all()
        assert (drawn - plain).abs().max() > 0.02
        torch.testing.assert_close(pipe.synthesize(edited.edit(found.ws)), plain, rtol=1e-3, atol=1e-3)
    both = pipe.edit(pipe.edit(found, add=["sefa:1"]), add=["sefa:2"])
    torch.testing.assert_close(both.edited, pipe.edit(found.ws, add=["sefa:1", "sefa:2"]))
    with pytest.raises(EditError, match="StyleSpace"):
        pipe.edit(pipe.edit(found, add=["stylespace:6_3"]), add=["sefa:1"])


def test_other_networks_are_refused_in_a_line(pipe, faces, tmp_path, capsys):
    """A file and a folder of another generator or network; codes alone are drawn, with a line that says so."""
    codes, plain = tmp_path / "codes", tmp_path / "plain"
    paths = sorted(faces.glob("*.png"))
    batch.invert_files(pipe, paths, codes, detail="hfgi")
    batch.invert_files(pipe, paths, plain)
    pipe.invert_detail(paths, "hfgi").save(tmp_path / "kept.safetensors")
    import copy
    from dataclasses import replace

    generator = copy.deepcopy(pipe.generator)
    with torch.no_grad():
        generator.input.input.add_(0.01)
    other = replace(pipe, generator=generator)
    with pytest.raises(WeightsError, match=r"kept\.safetensors: kept for another generator"):
        other.load_inversion(tmp_path / "kept.safetensors")
    assert len(pipe.load_inversion(tmp_path / "kept.safetensors")) == 3
    with pytest.raises(WeightsError, match=r"codes: kept for another generator"):
        batch.edit_codes(other, [codes], tmp_path / "out", lambda ws: ws)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert batch.edit_codes(other, [plain], tmp_path / "out", lambda ws: ws) == 3
    assert "codes of another generator" in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("fault", ["cut", "renamed", "short", "no such method", "other network", "flipped"])
def test_damage_is_told_in_a_line(fault, pipe, faces, tmp_path):
    codes = tmp_path / "codes"
    batch.invert_files(pipe, sorted(faces.glob("*.png")), codes, detail="features")
    shard, index = codes / "codes-00000.safetensors", codes / "index.json"
    raw = shard.read_bytes()
    if fault == "cut":
        shard.write_bytes(raw[:-50])
    elif fault == "flipped":
        shard.write_bytes(raw[:9] + b"}" + raw[10:])
    elif fault in ("renamed", "short"):
        tensors = safetensors.torch.load_file(shard)
        kept = tensors.pop("kept.features")
        tensors |= {"kept.other": kept} if fault == "renamed" else {"kept.features": kept[:1]}
        safetensors.torch.save_file(tensors, shard)
    else:
        told = json.loads(index.read_text())
        told |= {"detail": "none"} if fault == "no such method" else {"features": "0" * 8}
        index.write_text(json.dumps(told))
    with pytest.raises(StxError) as caught:
        batch.edit_codes(pipe, [codes], tmp_path / "out", lambda ws: ws)
    assert "\n" not in str(caught.value) and str(codes) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["invert", "p0.png", "--detail", "hgfi"], "unknown method 'hgfi'"),
        (["edit", "p0.png", "--add", "Smiling", "--detail", "hgfi"], "unknown method 'hgfi'"),
    ],
)
def test_wrong_words_are_told_before_anything_is_written(words, told, faces, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(faces)
    assert run(*words, "--out", tmp_path / "out") == 2
    assert told in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
