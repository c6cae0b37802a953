"""Text from files stays text: in code, paths, markup, mathematical text and the shell."""

import ast
import os
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from stx.explorer import server
from stx.explorer.state import Explorer, State
from stx.files.errors import ExplorerError
from stx.files.places import safe_name
from stx.reports import figures

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "end of a literal": "'''+str(reached.append(1))+'''",
    "double quotes": '"""+str(reached.append(1))+"""',
    "backslash": "\\'+str(reached.append(1))+'",
    "line break": "a\nreached.append(1)\n",
    "markup": "<img src=x onerror=alert(1)>",
    "closing tag": "</script></style><b>",
    "mathematical text": r"$\nosuchcommand{$",
    "one dollar": "US$",
    "column": "a|b",
    "parent folder": "../../etc/passwd",
    "absolute path": "/etc/passwd",
    "null": "a\0b",
    "too long": "x" * 400,
    "dots": "..",
    "empty": "",
    "command": "`touch OWNED`$(touch OWNED)",
}
RECORD = {"parameters": {"notebook": "00"}, "commit": "0" * 40, "packages": {}, "machine": "m", "device": "cpu"}
RECORD["made"] = "now"
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


class Bare(Explorer):
    """An explorer without networks."""

    def __init__(self, state):
        self.state = state


@hostile
@pytest.mark.parametrize("place", ["name", "carried", "domain", "method", "attribute"])
def test_no_statement_of_a_recipe_runs_in_the_code_box(text, place):
    """No text of a recipe becomes a statement in the explorer's code box."""
    given = {"strengths": {text: 1.0}} if place == "attribute" else {place: text}
    state = State.from_json(State(source="upload", aligned=True, reference=1, **given).to_json())
    code = Bare(state).code()
    reached: list = []
    names = {"State": State, "reached": reached}
    line = next(line for line in code.splitlines() if line.startswith("state ="))
    exec(line, names)
    assert names["state"] == state
    assert not reached
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)}
    known = {"Explorer", "explorer.upload", "explorer.align", "open", "State", "explorer.prepare"}
    assert calls <= known | {"explorer.prepare_editor", "explorer.view", f"open({state.name!r}, 'rb').read"}


@hostile
def test_text_is_one_part_of_a_path(text, tmp_path):
    """Text from a file is one part of a path, in its folder and not hidden."""
    name = safe_name(text)
    assert Path(name).name == name
    assert not name.startswith(".")
    (tmp_path / f"{name}.png").write_bytes(b"x")
    assert [p.parent for p in tmp_path.rglob("*.png")] == [tmp_path]


def test_two_texts_are_two_names():
    """Two texts are two names."""
    names = {safe_name(text) for text in (*HOSTILE.values(), "a b", "a_b", "a/b", "x" * 401, "Smiling")}
    assert len(names) == len(HOSTILE) + 5
    assert safe_name("Mouth_Slightly_Open") == "Mouth_Slightly_Open"


@hostile
def test_text_in_a_figure_and_a_table(text, tmp_path):
    """Text from a file stays text in figures and tables: no mathematics, no markup, no further column."""
    figures.use_style()
    figure, ax = plt.subplots()
    ax.bar([text or "none"], [10.0], label=text)
    ax.set(xlabel=text, title=text, yscale="log")
    figures.save_figure(figure, f"00_{text}", tmp_path, RECORD)
    figures.save_table(pd.DataFrame({text: [text], "n": [1.5]}), f"00_{text}", tmp_path, RECORD)
    files = list(tmp_path.rglob("*.*"))
    assert {p.suffix for p in files} == {".png", ".pdf", ".json", ".csv", ".md"}
    assert {p.parent for p in files} == {tmp_path}
    rows = next(tmp_path.glob("*.md")).read_text().split("\n\n")[0].splitlines()
    assert len(rows) == 3
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows)
    assert "<img" not in rows[2]


def test_axes_of_a_logarithm_keep_their_exponents(tmp_path):
    """Axes of a logarithm keep their exponents, and a dollar sign stays one."""
    figures.use_style()
    figure, ax = plt.subplots()
    ax.plot([1, 1000], [1, 1000])
    ax.set(xscale="log", title="cost in US$")
    figures.save_figure(figure, "00_log", tmp_path, RECORD)
    assert all(tick.label1.get_parse_math() for tick in ax.xaxis.get_major_ticks())
    assert not ax.title.get_parse_math()
    with Image.open(tmp_path / "00_log.png") as image:
        assert image.width > 100


def test_the_explorers_page_sets_text_as_text():
    """No text of a recipe or file becomes markup on the explorer's page."""
    script = (ROOT / "stx" / "explorer" / "page.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "srcdoc", "eval("):
        assert way not in script


@hostile
def test_the_domain_of_the_explorers_page_is_a_literal(text, monkeypatch):
    """The name of a folder becomes no statement in the page's notebook."""
    if "\0" in text:
        return  # no variable of the shell holds it
    book = new_notebook(
        cells=[new_code_cell("domain = ''", metadata={"tags": [tag]}) for tag in ("parameters", "page")]
    )
    monkeypatch.setenv("STX_DOMAIN", text)
    names: dict = {"reached": []}
    for cell in server.as_page(None, book, "").cells[1:-1]:
        exec(cell.source, names)
    assert names["domain"] == text
    assert not names["reached"]


@pytest.mark.parametrize("target", ["reproduce", "train", "sweep", "explore"])
@pytest.mark.parametrize(
    "name", ["pics`touch OWNED`", "pics$(touch OWNED)", "pics$(shell touch OWNED)", 'a";touch OWNED;"']
)
def test_the_name_of_a_folder_is_no_command(name, target, tmp_path):
    """The name of a folder given to make is no command."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    tools = tmp_path / "v" / "bin"
    tools.mkdir(parents=True)
    for tool in ("snakemake", "stx", "python"):
        (tools / tool).write_text('#!/bin/sh\nprintf "%s\\n" "$@" "domain=$STX_DOMAIN"\n')
        (tools / tool).chmod(0o755)
    (tmp_path / "v" / "installed").touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "-s", target, "VENV=v", "SEEDS=1", f"DOMAIN={name}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert f"domain={name}" in done.stdout.splitlines()
    assert not list(tmp_path.rglob("OWNED"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '"state"',
        '{"nothing": 1}',
        '{"psi": "much"}',
        '{"psi": NaN}',
        '{"psi": 1e999}',
        '{"strengths": {"Smiling": 1e9}}',
        '{"strengths": {"Smiling": "1"}}',
        '{"strengths": [1]}',
        '{"number": 1.5}',
        '{"number": true}',
        '{"tokens": 5}',
        '{"method": ["first order"]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_recipe_is_told(text):
    """What is no recipe of the explorer is told."""
    with pytest.raises(ExplorerError, match="recipe"):
        State.from_json(text)
