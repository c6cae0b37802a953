"""Every notebook at smoke size, through the workflow; parameters are checked."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from stx import cli
from stx.files.errors import NotebookError
from stx.reports import notebooks

ROOT = Path(__file__).parents[2]
WRITES = "import pathlib; pathlib.Path(out).write_text('x')"
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def snakemake(folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nolock", *words, "--config", "smoke=true"]
    done = subprocess.run(
        [*command, f"out={folder}/figures", f"runs={folder}/runs"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout + done.stderr


@pytest.mark.long
def test_workflow_runs_every_notebook_once(tmp_path):
    snakemake(tmp_path)
    for book in BOOKS:
        executed = json.loads((tmp_path / "runs" / book.name).read_text())
        assert all(cell.get("execution_count") for cell in executed["cells"] if cell["cell_type"] == "code")
        made = {p.suffix for p in (tmp_path / "figures").glob(f"{book.stem[:2]}_*")}
        assert {".png", ".pdf", ".csv", ".md", ".json"} <= made
    for path in (tmp_path / "figures").glob("[0-9c]*.json"):
        told = json.loads(path.read_text())["parameters"]
        asked = set(notebooks.parameters(ROOT / "notebooks" / f"{told['notebook']}.ipynb"))
        assert asked - set(notebooks.PLACES) <= told.keys(), path.name
    record = json.loads((tmp_path / "figures" / "03_quality.json").read_text())
    assert record["parameters"]["smoke"] is True
    assert record["packages"]["torch"]
    assert len(record["commit"]) >= 7
    quality = pd.read_csv(tmp_path / "figures" / "03_quality.csv")
    assert set(quality["metric"]) == {"L2", "LPIPS-Alex", "ID", "MS-SSIM", "SWD", "FD-VGG16", "KD-VGG16"}
    assert (quality["low"] <= quality["high"]).all()
    assert "Nothing to be done" in snakemake(tmp_path)


def test_folders_are_seen_from_where_the_caller_is(tmp_path, monkeypatch):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in ("out: str = 'a'", WRITES)])
    book.cells[0].metadata["tags"] = ["parameters"]
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(book, tmp_path / "book.ipynb")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    notebooks.run(Path("../book.ipynb"), "done.ipynb", {"out": "mine"}, log_output=False)
    assert {p.name for p in (tmp_path / "here").iterdir()} == {"done.ipynb", "mine"}


def test_opened_in_jupyterlab_notebooks_write_beside_their_folder(tmp_path, monkeypatch):
    for book in BOOKS:
        assert f'record = notebooks.begin(\\"{book.stem}\\", globals())' in book.read_text()
    monkeypatch.chdir(ROOT / "notebooks")
    notebooks.at_root()
    assert Path.cwd() == ROOT
    monkeypatch.chdir(tmp_path)
    notebooks.at_root()
    assert Path.cwd() == tmp_path


def test_unknown_and_mistyped_parameters_are_errors(tmp_path, capsys):
    book = ROOT / "notebooks" / "03_inversion_quality.ipynb"
    for given, match in (({"cuont": 3}, "unknown parameter 'cuont'; it has: domain"), ({"count": "3"}, "expected int")):
        with pytest.raises(NotebookError, match=match):
            notebooks.run(book, tmp_path / "x.ipynb", given)
    with pytest.raises(NotebookError, match="no such notebook"):
        notebooks.run(ROOT / "notebooks" / "99.ipynb", tmp_path / "x.ipynb", {})
    assert cli.main(["run", str(book), "--out", str(tmp_path / "x.ipynb"), "-p", "smok", "true"]) == 2
    assert "unknown parameter 'smok'" in capsys.readouterr().err
    assert not (tmp_path / "x.ipynb").exists()


def test_a_failed_cell_is_told_in_one_line(tmp_path, capsys):
    """A domain called 2024 is a word, not a number; the executed copy keeps the traceback."""
    out = tmp_path / "x.ipynb"
    words = ["run", str(ROOT / "notebooks" / "00_domain.ipynb"), "--out", str(out), "-p", "domain", "2024"]
    assert cli.main(words) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stx: ")]
    assert len(told) == 1
    assert "00_domain.ipynb, cell " in told[0]
    assert "DomainError: unknown domain '2024': expected avatars" in told[0]
    assert str(out) in told[0]
    assert "Traceback" in out.read_text()


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("3", 3), ("1e-3", 1e-3), ("avatars", "avatars"), ("a/b", "a/b")],
)
def test_values_from_the_command_line(text, value):
    parsed = notebooks.parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_notebook_begins_with_the_values_that_its_parameters_have(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = notebooks.parameters(ROOT / "notebooks" / "06_label_editing.ipynb")
    record = notebooks.begin("06_label_editing", names | {"count": 7, "other": 1, "device": "cpu"})
    assert record["parameters"]["notebook"] == "06_label_editing"
    assert record["parameters"]["count"] == 7
    assert record["parameters"].keys() == {"notebook", *names} - set(notebooks.PLACES)
    del names["seed"]
    with pytest.raises(NotebookError, match="no value for seed"):
        notebooks.begin("06_label_editing", names)


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_every_parameter_is_used_and_keeps_the_value_of_the_record(path):
    """Cells below the first, which shrinks them for smoke and begins the record, give no parameter another value.

    `smoke` and `scale` are what sizes follow from when a notebook begins.
    """
    _, *cells = (c["source"] for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    setup, *below = ([x for x in ast.walk(ast.parse("".join(cell))) if isinstance(x, ast.Name)] for cell in cells)
    names = set(notebooks.parameters(path))
    assert names - {"smoke", "scale"} <= {x.id for cell in (setup, *below) for x in cell if isinstance(x.ctx, ast.Load)}
    assert not names & {x.id for cell in below for x in cell if isinstance(x.ctx, ast.Store)}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cells": 1}', "\0"])
def test_what_is_no_notebook_is_told(text, tmp_path):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(NotebookError, match=r"a\.ipynb: not a notebook"):
        notebooks.parameters(tmp_path / "a.ipynb")


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_teaches(path):
    """Equations, a toy that is checked, what to see, links that lead somewhere, and things to try that exist."""
    cells = json.loads(path.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    assert "$$" in text
    assert "By hand" in text
    assert any("assert " in cell for cell in code)
    assert "**What to see:**" in text
    tried = text.split("## Try this")[1]
    asked = re.findall(r"-p (\w+) ", tried)
    assert len(asked) >= 2
    assert set(asked) <= set(notebooks.parameters(path))
    links = set(re.findall(r"\]\((?!http)([^)#]+)", text))
    at = BOOKS.index(path)
    assert {book.name for book in (BOOKS[at - 1 : at] if at else []) + BOOKS[at + 1 : at + 2]} <= links
    assert any(link.startswith("../stx/") for link in links)
    assert not [x for x in links if not x.startswith("../docs/") and not (path.parent / x).exists()]
    assert not [cell for cell in code if re.search(r"^(class|def) ", cell, re.M)]
