"""The list of what is tried and promised."""

import subprocess
import sys

import pytest

from tests.faults import page


def test_the_list_is_not_stale():
    """`docs/faults.md` is what the cases in `tests/faults` say."""
    command = [sys.executable, "-m", "tests.faults.page", "--check"]
    done = subprocess.run(command, cwd=page.ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    "text", ["`", "``a`", "a|b", "<img src=x>", "[a](b)", "x" * 200, "a\nb", "", "\x1b[2J"], ids=ascii
)
def test_text_of_cases_is_code(text):
    """The text of a case is one line of code in Markdown, whatever it is."""
    shown = page.code(text)
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    inside = shown[len(fence) : -len(fence)]
    assert fence
    assert shown.endswith(fence)
    assert fence not in inside.strip()
    assert shown.isprintable()
    assert len(inside) <= page.LONGEST + 2
