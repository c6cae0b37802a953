"""Words of a command line, labels and texts that would be taken for something else than was typed."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from stx import cli
from stx.checkpoints import weights
from stx.domains import avatars, datasets, images
from stx.explorer import uploads
from stx.explorer.state import Explorer
from stx.files.errors import DomainError, EditError, InputError, WeightsError
from stx.files.places import ROOT


@pytest.mark.parametrize(
    ("words", "told"),
    [
        pytest.param(["nothing"], "No such command 'nothing'", id="a command"),
        pytest.param(["invert", "a.png", "--nothing", "1"], "No such option '--nothing'", id="an option"),
        pytest.param(["invert", "a.png", "--out", "o", "--shard", "a\nb"], r"'a\nb' is not", id="a line break"),
        pytest.param(["train", "nothing", "avatars"], "'nothing' is not one of 'generator'", id="a choice"),
        pytest.param(["edit", "a.png", "--add", "Bald", "--add", "Smiling"], "--add is given 2 times", id="add twice"),
        pytest.param(["invert", "a.png", "--out", "o", "--out=p"], "--out is given 2 times", id="out twice"),
        pytest.param(["invert", "a.png", "--out", "--domain", "avatars"], "path is missing", id="an unset variable"),
        pytest.param(["run", "a.ipynb", "--out", "b.ipynb", "--timeout", "9" * 20], "not in the range", id="seconds"),
        pytest.param(["draw", "bottts", "--out", "o", "--count", "9" * 12], "not in the range", id="drawings"),
        pytest.param(["edit", "a.png", "--add", "x", "--out", "o", "--tokens", "9" * 5000], "--tokens 9", id="digits"),
    ],
)
def test_wrong_words(words, told, tmp_path, monkeypatch, capsys):
    """Words that a command does not take, or would take for others, are one line and exit code 2."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stx: ") and told in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("table", "told"),
    [
        pytest.param("file,Hat\na.png,0\nb.png,-1\n", "Hat is both 0 and -1", id="0 and -1"),
        pytest.param('file,"Ha\nt"\na.png,1\nb.png,0\n', r"'Ha\nt'", id="line break in a name"),
        pytest.param("file,Hat,\u200bHat\na.png,1,0\nb.png,0,0\n", r"'\u200bHat'", id="invisible letter in a name"),
        pytest.param("file,\u00e9,e\u0301\na.png,1,0\nb.png,0,0\n", "all different", id="one name in two forms"),
    ],
)
def test_labels_of_two_meanings(table, told, tmp_path):
    """Labels and names of attributes that mean two things, or look alike, are told in one line and not guessed."""
    for name in "ab":
        images.save_image(avatars.draw(next(avatars.sample("test"))), tmp_path / f"{name}.png")
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    with pytest.raises(DomainError) as error:
        datasets.load(tmp_path)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("given", ["much", "-1", "1.5", pytest.param("9" * 5000, id="digits")])
def test_a_limit_that_is_no_number(given, monkeypatch):
    """A limit of uploads in the environment that is no whole number is told by its name."""
    monkeypatch.setenv("STX_UPLOAD_MB", given)
    with pytest.raises(InputError, match="STX_UPLOAD_MB"):
        uploads.limit()


def test_an_attribute_that_is_not_carried():
    """An attribute that is unknown to the explorer is told where its editor is asked for."""
    explorer = SimpleNamespace(matched=SimpleNamespace(known=None), attributes=("Hat",))
    with pytest.raises(EditError, match="unknown attribute 'Cap'"):
        Explorer._carries(explorer, "Cap")


def test_a_record_that_is_a_pipe(tmp_path):
    """A pipe in the place of a network's record is told, and nobody waits for its other end."""
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(WeightsError, match="a folder, a pipe or a device"):
        weights.read_config(tmp_path)


def test_texts_in_another_locale(tmp_path):
    """Texts are UTF-8 in files, also where the terminal's letters are others."""
    program = "from pathlib import Path; from stx.files.atomic import write_text; write_text(Path('t'), 'é – σ')"
    other = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", ascii(program).join(("exec(", ")"))], check=True, env=other, cwd=tmp_path)
    assert (tmp_path / "t").read_text(encoding="utf-8") == "é – σ"
    assert not [path for path in (ROOT / "stx").rglob("*.py") if ".read_text()" in path.read_text(encoding="utf-8")]
