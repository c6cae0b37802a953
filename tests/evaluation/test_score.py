"""`stx score` with files as strangers write them: one inverts, one edits, one is broken in several ways."""

import re

import pandas as pd
import pytest
import torch

from stx import cli
from stx.baselines import registry
from stx.evaluation import inversions, score
from stx.files.errors import EditError

SHIFTED = """
from stx.baselines.optimisation import Inverted
from stx.baselines.registry import register
from stx.evaluation.inversions import Inverter


def shifted(pipe):
    def run(image):
        ws = 0.9 * pipe.invert(image)
        return Inverted(ws, pipe.reconstruct(ws))

    return Inverter("shrunk codes", run)


register("shrunk", inverter=shifted)
"""
TWO_MEANS = """
import torch
from stx.baselines.registry import register


def two_means(methods):
    ws, logits = methods.sampled
    shown = torch.from_numpy(logits > 0)
    towards = [ws[s].mean(0) - ws[~s].mean(0) if s.any() and (~s).any() else ws[0] * 0 for s in shown.T]

    def method(codes, index, target):
        sign = 1 if target > 0.5 else -1
        return lambda strength: codes + sign * strength * towards[index]

    return method


register("two means", editor=two_means)
"""
BROKEN = """
import torch
from stx.baselines.optimisation import Inverted
from stx.baselines.registry import register
from stx.evaluation.inversions import Inverter


def flat(pipe):  # one code for a batch
    return Inverter("flat", lambda image: Inverted(pipe.invert(image)[:, 0], image))


def typo(pipe):
    return Inverter("typo", lambda image: pipe.inverts(image))


def unready(pipe):
    raise RuntimeError("weights.bin is missing")


def named_as_ours(pipe):
    return Inverter("Style Transformer", lambda image: Inverted(pipe.invert(image), image))


def bytes_(pipe):
    return Inverter("bytes", lambda image: Inverted(pipe.invert(image), (image * 127.5 + 127.5)))


def leaves(pipe):
    return Inverter("leaves", lambda image: exit(0))


def forgets(pipe):
    Inverter("forgets", lambda image: Inverted(pipe.invert(image), image))


def tunes(pipe):
    def run(image):
        ws = pipe.invert(image)
        for weight in pipe.generator.parameters():
            weight.mul_(1.01)
        return Inverted(ws, pipe.reconstruct(ws))

    return Inverter("tunes", run)


for of in (named_as_ours, bytes_, leaves, forgets, tunes):
    register(of.__name__, inverter=of)
register("flat", inverter=flat)
register("typo", inverter=typo)
register("unready", inverter=unready)
register("far", editor=lambda methods: lambda ws, k, target: lambda s: ws / torch.zeros_like(ws))
def unfitted(methods):
    raise KeyError("directions")


register("unfitted", editor=unfitted)
register("twice", editor=lambda methods: lambda ws, k, target: lambda s: torch.cat([ws, ws]))
register("in place", editor=lambda methods: lambda ws, k, target: lambda s: ws.mul_(0) + s)
"""


@pytest.fixture(autouse=True)
def unregistered(monkeypatch):
    """What a file registers in this process is taken out again; fewer encoders and strengths to wait for."""
    compared = inversions.names("avatars")
    few = {name: compared[name] for name in ("style_transformer", "e4e")}
    monkeypatch.setattr(inversions, "names", lambda *_: few)
    monkeypatch.setattr(score, "STRENGTHS", (1.0, 8.0))
    tables = [registry.METHODS, registry.INVERTERS, registry.EDITORS]
    before = [dict(table) for table in tables]
    yield
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def scored(tmp_path, text: str) -> int:
    (tmp_path / "mine.py").write_text(text)
    return cli.main(
        ["score", str(tmp_path / "mine.py"), "--scale", "smoke", "--out", str(tmp_path / "out"), "--device", "cpu"]
    )


@pytest.mark.long
def test_an_inverter_of_a_stranger(tmp_path, capsys):
    assert scored(tmp_path, SHIFTED) == 0
    table = pd.read_csv(tmp_path / "out" / "score_inversion.csv").set_index(["method", "metric"])
    mine, ours = table.loc[("shrunk codes", "L2")], table.loc[("Style Transformer", "L2")]
    assert mine["own"] and not ours["own"]
    assert mine["low"] <= mine["value"] <= mine["high"]
    assert mine["value"] - ours["value"] == pytest.approx(mine["gap"])
    assert mine["pictures"] == 12
    assert ("Style Transformer (trained longer)", "L2") in table.index
    text = (tmp_path / "out" / "LEADERBOARD.md").read_text()
    assert "| **shrunk codes** " in text and "## Send a row" in text and "at smoke scale" in text
    page = (tmp_path / "out" / "index.md").read_text()
    assert "score_inversion_pictures.png" in page and "editing" not in page
    assert "LEADERBOARD.md" in capsys.readouterr().out


@pytest.mark.long
def test_an_editor_of_a_stranger(tmp_path):
    assert scored(tmp_path, TWO_MEANS) == 0
    table = pd.read_csv(tmp_path / "out" / "score_editing.csv")
    assert list(table["method"].unique()) == ["first order", "matched pairs", "two means"]
    mine = table[table["method"] == "two means"].set_index("metric")
    assert {"shown", "others right", "all right", "share of the way"} <= set(mine.index)
    assert mine["own"].all() and mine["strength"].nunique() == 1
    assert mine.loc["share of the way", "value"] < 1
    assert mine["gap"].drop("share of the way").notna().all()


@pytest.mark.release
def test_without_a_file_ours_are_scored_alone(tmp_path):
    assert cli.main(["score", "--scale", "smoke", "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    for part, method in {"inversion": "e4e", "editing": "matched pairs"}.items():
        table = pd.read_csv(tmp_path / "out" / f"score_{part}.csv")
        assert method in set(table["method"]) and not table["own"].any()
    assert "| **" not in (tmp_path / "out" / "LEADERBOARD.md").read_text()


def test_what_is_broken_is_told_and_the_rest_is_scored(tmp_path, capsys):
    assert scored(tmp_path, BROKEN) == 1  # "in place" edits, however badly
    told = capsys.readouterr().out
    for line in (
        "flat: ",  # the annotations of the tests are faster than the check of the command
        "typo: AttributeError: ",
        "unready: RuntimeError: weights.bin is missing",
        "far: EditError: gave codes that are not finite",
        "unfitted: KeyError: ",
        "twice: EditError: gave 2",
        "named_as_ours: InputError: there is already a method called 'Style Transformer'",
        "bytes: EditError: gave pictures that are not in [-1, 1]",
        "leaves: SystemExit: 0",
        "forgets: InputError: gave a NoneType, expected an Inverter",
        "tunes: changed the Generator, which was put back",
    ):
        assert f"stx: {line}" in told
    assert "Not scored: unready" in (tmp_path / "out" / "score_inversion.md").read_text()
    table = pd.read_csv(tmp_path / "out" / "score_inversion.csv").query("metric == 'L2'").set_index("method")["value"]
    assert "tunes" in table and "bytes" not in table
    assert table["Style Transformer"] > table["Style Transformer (trained longer)"]  # ours, not of that name
    table = pd.read_csv(tmp_path / "out" / "score_editing.csv")
    assert set(table["method"]) == {"first order", "matched pairs", "in place"}
    right = table.query("method == 'matched pairs' and metric == 'shown'")["value"].item()
    assert right > 0.5  # what one method does to its codes is not done to those of others


def test_an_editor_named_as_ours(tmp_path, capsys):
    assert scored(tmp_path, TWO_MEANS.replace('"two means"', '"first order"')) == 2
    assert "'first order' is a method of the package" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (torch.zeros(12, 256), r"gave codes \[12, 256\], expected \[12, 10, 256\]"),
        (torch.full((12, 10, 256), float("nan")), "not finite"),
        ({"conv1": torch.full((12, 8), float("inf"))}, "not finite"),
        (None, "gave a NoneType, expected a tensor of codes"),
    ],
)
def test_codes_that_are_none(codes, told):
    with pytest.raises(EditError, match=told):
        score._check(codes, (12, 10, 256))
    score._check({"conv1": torch.zeros(12, 8)}, (12, 10, 256))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "registers no method; call `stx.baselines.registry.register`"),
        ("import nothing_of_the_kind", r"does not run \(ModuleNotFoundError: "),
        ("def f(:", r"does not run \(SyntaxError: "),
    ],
)
def test_files_that_cannot_be_scored(text, told, tmp_path, capsys):
    assert scored(tmp_path, text) == 2
    assert re.search(f"stx: .*mine.py: {told}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
