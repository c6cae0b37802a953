"""`docs/faults.md`: what is tried and promised, made from the tests of this folder (`python -m tests.faults.page`).

The first sentence of a test's docstring is the promise, or its name in words; the ids of its cases are what was tried.
"""

import contextlib
import inspect
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from stx.files.atomic import write_text
from tests.faults import fuzz, rounds

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
LONGEST = 60  # characters of an id that are shown
HEAD = """# Faults: what is tried and promised

Made from the cases in `tests/faults` by `python -m tests.faults.page`; a test sees to it that this page is not stale.
{cases} cases of {tests} tests run with `make test`; `make fuzz` looks for what nobody thought of.
"""


class Collected:
    """A plugin that keeps the cases that pytest finds."""

    def __init__(self):
        self.items: list[pytest.Item] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called once all are found."""
        self.items = list(session.items)


def collect() -> list[pytest.Item]:
    """The cases of this folder, none of which is run. Raises `RuntimeError` where they cannot be collected."""
    plugin = Collected()
    words = ["--collect-only", "-qq", "-o", "addopts=", "-p", "no:cacheprovider", str(ROOT / "tests" / "faults")]
    with contextlib.redirect_stdout(io.StringIO()) as told:
        failed = pytest.main(words, plugins=[plugin])
    if failed:
        raise RuntimeError(f"pytest collects no tests here: {failed!r}\n{told.getvalue()}")
    return plugin.items


def code(text: str) -> str:
    """Any text as code in Markdown: in one line, shortened, in more backticks than it has itself."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    fence = "`"
    while fence in text:
        fence += "`"
    space = " " if not text or "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"


def promise(thing: object, name: str) -> str:
    """The first sentence of a docstring, or a name in words, as one line."""
    words = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    return words or f"{name.removeprefix('test_').replace('_', ' ').capitalize()}."


def page(items: Iterable[pytest.Item]) -> str:
    """The whole page."""
    modules: dict = {}
    for item in items:
        tried = modules.setdefault(item.module, {}).setdefault(item.function, [])
        tried += [item.callspec.id] if hasattr(item, "callspec") else []
    tests = [tried for functions in modules.values() for tried in functions.values()]
    parts = [HEAD.format(cases=sum(max(len(tried), 1) for tried in tests), tests=len(tests))]
    for module, functions in modules.items():
        place = Path(module.__file__).relative_to(ROOT).as_posix()
        parts.append(f"## {promise(module, module.__name__)}\n\n`{place}`\n")
        lines = [
            f"- {promise(function, function.__name__)}" + (f" Tried: {', '.join(map(code, tried))}." if tried else "")
            for function, tried in functions.items()
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join([*parts, fuzzing()])


def fuzzing() -> str:
    """What `make fuzz` does, from its rounds."""
    readers = ", ".join(map(code, ("picture", "upload", "checkpoint", *fuzz.FOLDERS)))
    files = "A spoilt file is read, or refused in one line, in 5 s and 1 GB."
    lines = [f"- `files`: {files} Kinds: {readers}."]
    tasks = ", ".join(code(task.__name__) for task in rounds.TASKS)
    for name, call in rounds.ROUNDS.items():
        lines.append(f"- `{name}`: {promise(call, name)}")
    head = (
        "## What nobody thought of: rounds of random faults\n\n`make fuzz SEED=0 MINUTES=5`; what finds one is kept in "
    )
    return head + "`runs/fuzz`.\n\n" + "\n".join([*lines, f"\nTasks that are disturbed: {tasks}."]) + "\n"


def main() -> int:
    """Writes the page; with `--check` only says whether it is stale, as exit code 1."""
    made = page(collect())
    if "--check" in sys.argv[1:]:
        stale = not PAGE.is_file() or PAGE.read_text() != made
        print(f"{PAGE}: stale; run python -m tests.faults.page" if stale else f"{PAGE}: as the tests have it")
        return int(stale)
    PAGE.parent.mkdir(exist_ok=True)
    write_text(PAGE, made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
