"""Commands that are disturbed, by Ctrl-C or a poisoned picture, and tables, records and notebooks that are damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stx import cli
from stx.batch import load_codes
from stx.explorer.state import State
from stx.files.errors import ExplorerError, InputError, NotebookError
from stx.reports import claims, figures, notebooks
from tests.conftest import SIZE
from tests.faults.test_notebooks import book
from tests.faults.test_outputs import _broken
from tests.test_runtime import launched

RECORD = figures.provenance(notebook="08")
# What a shell starts in the background ignores Ctrl-C, and so does all that it starts: a run of these tests, for one
HEEDS_CTRL_C = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from stx import cli
sys.exit(cli.main(sys.argv[1:]))
"""
POISON = ("dds", "nan", "eps", "exif", "empty", "text", "gone")


@pytest.fixture
def photos(tmp_path, home, monkeypatch):
    """A folder of good pictures and their networks."""
    for i in range(12):
        picture = np.random.RandomState(i).randint(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i:02d}.png")
    monkeypatch.setenv("STX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    shutil.copytree(home, tmp_path / "data" / "photos")
    return tmp_path / "photos"


def poison(folder) -> None:
    """Pictures that cannot be read, each in a way of its own, in between the good ones."""
    for i, kind in enumerate(POISON):
        path = folder / f"{i:02d}-{kind}.png"
        if kind in ("empty", "text"):
            path.write_bytes({"empty": b"", "text": b"no picture"}[kind])
        elif kind == "gone":
            path.symlink_to(folder / "elsewhere.png")
        elif kind == "exif":
            Image.new("RGB", (SIZE, SIZE)).save(path)
            path.write_bytes(path.read_bytes()[:50])
        else:
            _broken(kind, path)


def words(photos, out) -> list[str]:
    files = sorted(str(path) for path in photos.iterdir())
    given = ["--domain", str(photos), "--out", str(photos.parent / out), "--device", "cpu", "--shard", "4"]
    return ["invert", *files, *given]


def test_poisoned_pictures_with_two_processes(photos, capsys):
    """With one process and with two, every good picture is inverted, each poisoned one told, and the exit code is 1."""
    poison(photos)
    assert cli.main(words(photos, "one")) == 1
    told = [capsys.readouterr().err]
    done = launched(*words(photos, "two"))
    told.append(done.stderr)
    assert done.returncode == 1
    (names, one), (others, two) = load_codes(photos.parent / "one"), load_codes(photos.parent / "two")
    assert sorted(names) == sorted(others) == [f"{i:02d}" for i in range(12)]
    torch.testing.assert_close(two[[others.index(name) for name in names]], one, rtol=1e-4, atol=1e-5)
    for lines in told:
        mine = [line for line in lines.splitlines() if line.startswith("stx: ")]
        assert len(mine) == len(POISON)
        assert all(sum(f"-{kind}.png" in line for line in mine) == 1 for kind in POISON)


def test_an_interrupt_is_one_line_and_loses_nothing(photos):
    """Ctrl-C, or SIGTERM, is one line and exit code 130; what was finished is kept, the same command goes on."""
    for i in range(12, 300):
        shutil.copy(photos / f"{i % 12:02d}.png", photos / f"{i:03d}.png")
    given, out, kept = words(photos, "out"), photos.parent / "out", {}
    for number in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-c", HEEDS_CTRL_C, *given]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            while len(list(out.glob("codes-*"))) < len(kept) + 3 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            _, told = process.communicate(timeout=600)
        assert process.returncode == 130, told
        assert [line[:16] for line in told.splitlines() if line] == ["stx: interrupted"]  # one is empty, after ^C
        assert {path: path.read_bytes() for path in kept} == kept
        kept = {path: path.read_bytes() for path in out.glob("codes-*")}
    assert 6 <= len(kept) < 70
    assert cli.main(given) == 0
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(load_codes(out)[0]) == 300
    assert not list(out.glob(".*.part"))


# ------------------------------------------------------------------------------------------------------------- tables


def table(path) -> pd.DataFrame:
    """A valid `claims.csv`, as it is read."""
    claims.save([claims.Evidence("a", "figure 9", "x", "sigmas", 0.5, 0.1, 0.9, 0.01, 9, "04")], path.parent, RECORD)
    return pd.read_csv(path, dtype={"notebook": str})


DAMAGE = {
    "empty": lambda t: b"",
    "only a line break": lambda t: b"\n",
    "without the notebook": lambda t: t.drop(columns="notebook").to_csv(index=False).encode(),
    "without the interval": lambda t: t.drop(columns=["low", "high"]).to_csv(index=False).encode(),
    "words for numbers": lambda t: t.assign(difference="much").to_csv(index=False).encode(),
    "another table": lambda t: b"n,m\n1,2\n",
    "a longer line": lambda t: t.to_csv(index=False).encode() + b"1,2,3,4,5,6,7,8,9,10,11,12\n",
    "an open quote": lambda t: t.to_csv(index=False).encode() + b'"',
    "not UTF-8": lambda t: t.to_csv(index=False).encode() + b"\xff,x,x,1,1,1,04,holds\n",
    "not CSV": lambda t: b"\x89PNG\r\n\x1a\n\x00\x00",
    "JSON": lambda t: b'{"claims": []}',
    "null bytes": lambda t: b"\0" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("where", ["a notebook adds claims", "a sweep"])
def test_a_damaged_table_of_claims(tmp_path, damage, where, capsys):
    """A damaged `claims.csv` is told in one line with the file and the remedy, wherever it is read, and kept."""
    paths = [tmp_path / run / "claims.csv" for run in ("one", "two")]
    for path in paths:
        whole = table(path)
    paths[1].write_bytes(raw := damage(whole))
    if where == "a sweep":
        words = ["sweep", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]
        assert cli.main(words) == 2
        (told,) = capsys.readouterr().err.splitlines()
    else:
        with pytest.raises(InputError) as caught:
            claims.save(
                [claims.Evidence("b", "figure 9", "x", "sigmas", 0.5, 0.1, 0.9, 0.01, 9, "08")],
                tmp_path / "two",
                RECORD,
            )
        told = str(caught.value)
    assert f"{paths[1]}: not a readable table" in told
    assert "delete it and make it again" in told
    assert "\n" not in told
    assert paths[1].read_bytes() == raw


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": "x"},
        {"parameters": None},
        {"commit": 1.5},
        {"commit": None},
        {"device": None},
        {"made": []},
        {"parameters": {"notebook": 8}},
        {"parameters": {"command": ["stx"]}},
    ],
    ids=str,
)
def test_a_damaged_record_of_a_result(tmp_path, change, capsys):
    """A damaged record beside a figure or table is told in one line with the file and the remedy."""
    figures.save_table(pd.DataFrame({"n": [1]}), "08_x", tmp_path, RECORD)
    path = tmp_path / "08_x.json"
    path.write_text(json.dumps(RECORD | change))
    assert cli.main(["index", str(tmp_path)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"{path}: not a readable record" in told
    assert "make it again" in told


def test_a_table_of_another_encoding_in_the_index(tmp_path):
    """A table that somebody saved in another encoding does not end the index."""
    figures.save_table(pd.DataFrame({"n": [1]}), "08_x", tmp_path, RECORD)
    (tmp_path / "08_x.md").write_bytes(b"caf\xe9\n")
    assert "caf" in figures.write_index(tmp_path).read_text()


# ------------------------------------------------------------------------------------------ notebooks, recipes, locks


@pytest.mark.parametrize("damage", ["no cells", "cell of another kind", "cells without source", "no format"])
def test_a_damaged_notebook(tmp_path, damage):
    """What is no valid notebook is told in one line before a kernel starts."""
    path = book(tmp_path / "a.ipynb", "1")
    content = json.loads(path.read_text())
    if damage == "no cells":
        content["cells"] = {}
    elif damage == "cell of another kind":
        content["cells"][1]["cell_type"] = 5
    elif damage == "cells without source":
        del content["cells"][1]["source"]
    else:
        del content["nbformat"]
    path.write_text(json.dumps(content))
    with pytest.raises(NotebookError, match=r"a\.ipynb: not a ") as caught:
        notebooks.run(path, tmp_path / "b.ipynb", {})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b.ipynb").exists()


def test_a_notebook_that_does_not_say_its_language(tmp_path):
    """A notebook whose metadata lack the language is run as Python."""
    path = book(tmp_path / "a.ipynb", "print(count)")
    content = json.loads(path.read_text())
    content["metadata"] = {}
    path.write_text(json.dumps(content))
    notebooks.run(path, tmp_path / "b.ipynb", {"count": 7})
    assert '"7\\n"' in (tmp_path / "b.ipynb").read_text()


def test_a_full_disk_keeps_the_former_executed_copy(tmp_path, monkeypatch):
    """A disk that is full while a notebook runs leaves its former executed copy as it was."""
    import papermill

    def full(source, made, **_):
        Path(made).write_text('{"cells": [')
        raise OSError("No space left on device")

    path, out = book(tmp_path / "a.ipynb", "1"), tmp_path / "b.ipynb"
    notebooks.run(path, out, {})
    before = out.read_bytes()
    assert json.loads(before)["metadata"]["papermill"]["output_path"] == str(out)
    monkeypatch.setattr(papermill, "execute_notebook", full)
    assert cli.main(["run", str(path), "--out", str(out)]) == 2
    assert out.read_bytes() == before


def test_a_recipe_with_line_breaks_in_its_names():
    """Names in a recipe of the explorer stay in one line of the message."""
    with pytest.raises(ExplorerError) as caught:
        State.from_json(json.dumps({"a\nb": 1}))
    assert "\n" not in str(caught.value)


def test_the_cache_of_a_killed_run_holds_nobody(tmp_path):
    """A process that is killed while it adds claims leaves no lock and no half of a file."""
    code = "import os, signal\nfrom stx.reports import claims, figures\n"
    code += "figures.save_table.__globals__['write_text'] = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
    code += "one = claims.Evidence('a', 'p', 'c', 'u', 1., 1., 1., .1, 9, '04')\n"
    code += f"claims.save([one], {str(tmp_path)!r}, figures.provenance())"
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == -signal.SIGKILL
    found = claims.save([claims.Evidence("b", "p", "c", "u", 1.0, 1.0, 1.0, 0.1, 9, "08")], tmp_path, RECORD)
    assert set(found["claim"]) == {"b"}
