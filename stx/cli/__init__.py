"""The command line: `stx invert`, `edit`, `align`, `train`, `tune`, `weights`, `convert`, `export`, `run`, `check`...

Words are read before anything heavy is imported: each command imports what it needs, so that `--help` and a typing
error answer at once.
"""

import io
import os
import sys
from collections.abc import Sequence

import click

from stx.cli import networks, pictures, results  # noqa: F401 - each adds its commands
from stx.cli.words import commands
from stx.files.errors import StxError


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 all done, 1 some pictures failed, 2 nothing could be done.

    What a user can mend is one line: `StxError` and errors of the operating system. Ctrl-C gives 130, a reader of the
    output that has gone (`stx ... | head`) 1. Anything else is a bug and keeps its traceback.
    """
    _open_outputs()
    try:
        code = commands.main(words, prog_name="stx", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written goes nowhere
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("stx: interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except (StxError, OSError) as error:
        print(f"stx: {error}", file=sys.stderr)
        return 2


def _open_outputs() -> None:
    """Stdout and stderr where a process has none (`>&-`); what they cannot show of names is escaped."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - open to the end
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
