"""The command line: it answers at once, and tells errors of a user from bugs."""

import resource
import subprocess
import sys

import click
import pytest

from stx import cli
from stx.checkpoints import weights
from stx.cli.words import Command

HEAVY = {"torch", "papermill", "matplotlib", "pandas", "seaborn", "scipy", "sklearn", "numpy"}
AT_ONCE = {
    "help": (["--help"], 0),
    "nothing": ([], 2),
    "help of a command": (["invert", "--help"], 0),
    "unknown command": (["inwert"], 2),
    "unknown option": (["invert", "a.png", "--owt", "x"], 2),
    "missing option": (["invert", "a.png"], 2),
    "not a number": (["align", "a.png", "--out", "x", "--size", "many"], 2),
    "zero": (["bench", "--threads", "0"], 2),
    "two that exclude each other": (["train", "encoder", "avatars", "--more", "3", "--steps", "3"], 2),
    "an encoder's option": (["train", "generator", "avatars", "--compared"], 2),
    "no such picture": (["invert", "nothere.png", "--out", "x"], 2),
    "no such photograph": (["align", "nothere.jpg", "also_not.jpg", "--out", "x"], 2),
    "no such checkpoint": (["convert", "nothere.pt", "--out", "x"], 2),
    "no such method": (["score", "nothere.py"], 2),
    "no such folder": (["export", "nothere", "--to", "official", "--out", "x.pt"], 2),
}


@pytest.mark.parametrize(("words", "code"), AT_ONCE.values(), ids=AT_ONCE)
def test_it_answers_before_anything_heavy_is_imported(words, code, tmp_path):
    look = f"import sys; from stx import cli; code = cli.main({words!r}); print(*sys.modules); sys.exit(code)"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())
    assert "Traceback" not in done.stderr
    assert code == 0 or words == [] or done.stderr.strip()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 1.0  # 0.2 s on a quiet machine; torch alone takes 3
    assert not list(tmp_path.iterdir())


def test_several_words_of_one_option():
    seen = {}

    @click.command(cls=Command)
    @click.option("--sizes", type=int, multiple=True)
    @click.option("-p", "pairs", nargs=2, multiple=True)
    @click.argument("names", nargs=-1)
    def command(**given):
        seen.update(given)

    command.main(["--sizes", "2", "3", "-p", "a", "1", "-p", "b", "2", "--sizes", "5"], standalone_mode=False)
    assert seen == {"sizes": (2, 3, 5), "pairs": (("a", "1"), ("b", "2")), "names": ()}


def test_a_bug_keeps_its_traceback_and_an_interrupt_is_one_line(monkeypatch, capsys):
    def broken():
        raise ValueError("a bug")

    def stopped():
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "inventory", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["weights"])
    monkeypatch.setattr(weights, "inventory", stopped)
    assert cli.main(["weights"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("stx: interrupted")
