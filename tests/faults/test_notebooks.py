"""Kernels that die or do not start: one line, no traceback; and pictures of anybody in the notebooks."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image

from stx import cli
from stx.domains import avatars
from stx.files.outputs import lock_output
from stx.reports import notebooks

ROOT = Path(__file__).parents[2]
DEATHS = {
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "ended": "import os; os._exit(3)",
    "too slow": "import time; time.sleep(60)",
}


def book(path, code: str, kernel: str = "python3"):
    made = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": kernel, "display_name": "p", "language": "python"}}
    )
    parameters = nbformat.v4.new_code_cell("count: int = 1  # of nothing", metadata={"tags": ["parameters"]})
    made.cells = [parameters, nbformat.v4.new_code_cell(code)]
    nbformat.write(made, path)
    return path


@pytest.mark.parametrize("code", DEATHS.values(), ids=DEATHS)
def test_a_dying_kernel_is_told_in_one_line(code, tmp_path, capsys):
    """A kernel that dies or hangs while `stx run` waits for it is told in one line that names the notebook."""
    path = book(tmp_path / "a.ipynb", code)
    assert cli.main(["run", str(path), "--out", str(tmp_path / "b.ipynb"), "--timeout", "5"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stx: ")]
    assert len(told) == 1
    assert "a.ipynb" in told[0]


def test_a_kernel_that_is_not_python(tmp_path, capsys, monkeypatch):
    """A kernel that does not start is told in one line."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        '{"argv": ["/bin/false", "{connection_file}"], "display_name": "p", "language": "python"}'
    )
    assert cli.main(["run", str(book(tmp_path / "a.ipynb", "1")), "--out", str(tmp_path / "b.ipynb")]) == 2
    assert "kernel died or could not start" in capsys.readouterr().err


def test_a_second_reproduction_in_one_clone_waits(tmp_path):
    """Two `make reproduce` into one folder: the second waits for the first, then finds its work done."""
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--nolock", f"{tmp_path}/runs/done/index"]
    command += ["--touch", "--config", "smoke=true", f"runs={tmp_path}/runs", f"out={tmp_path}/figures"]
    with lock_output(tmp_path / "runs"):
        second = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert "waiting" in second.stderr.readline()
        assert second.poll() is None
    told = second.communicate(timeout=600)
    assert second.returncode == 0, told


@pytest.mark.parametrize(
    "name", ["03_inversion_quality", pytest.param("04_inversion_table", marks=pytest.mark.release)]
)
def test_one_picture_of_anybody(name, tmp_path):
    """Notebooks that measure inversions take one picture without labels, and leave out what it cannot give."""
    Image.fromarray(avatars.draw(next(avatars.sample("test")))).save(tmp_path / "mine.png")
    given = {"pictures": str(tmp_path / "mine.png"), "out": str(tmp_path / "out"), "smoke": True}
    notebooks.run(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "done.ipynb", given, log_output=False)
    made = {path.stem for path in (tmp_path / "out").glob("*.md")}
    assert f"{name[:2]}_per_picture" in made or f"{name[:2]}_table" in made
    assert not made & {"03_labels", "04_editability", "claims"}
