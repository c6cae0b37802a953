"""The command line: `stx invert`, `edit`, `align`, `train`, `tune`, `weights`, `convert`, `export`, `run`, `check`...

Words are read before anything heavy is imported: each command imports what it needs, so that `--help` and a typing
error answer at once.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence

import click

from stx.cli import networks, pictures, results  # noqa: F401 - each adds its commands
from stx.cli.words import commands
from stx.files.errors import StxError

NO_WORDS = getattr(click.exceptions, "NoArgsIsHelpError", ())  # of click from 8.2: its message is the help
REMEDY = "give fewer or smaller pictures; a training a smaller --batch, that of an encoder --accumulate 4"


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 all done, 1 some pictures failed, 2 nothing could be done.

    What a user can mend is one line: wrong words, `StxError`, errors of the operating system and too little memory.
    Ctrl-C and SIGTERM give 130, a reader of the output that has gone (`stx ... | head`) 1. Anything else is a bug and
    keeps its traceback.
    """
    _open_outputs()
    try:
        with _heeding_sigterm():
            code = commands.main(words, prog_name="stx", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written goes nowhere
        return 1
    except click.ClickException as error:
        if isinstance(error, NO_WORDS):
            error.show()
        else:
            command = error.ctx.command_path if getattr(error, "ctx", None) else "stx"
            told = " ".join(error.format_message().split())
            print(f"stx: {StxError(told)} (`{command} --help` tells more)", file=sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("stx: interrupted; what was finished is kept, the same command completes it", file=sys.stderr)
        return 130
    except (StxError, OSError) as error:
        print(f"stx: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        print(f"stx: not enough memory; {REMEDY}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _heeding_sigterm() -> Iterator[None]:
    """While inside, SIGTERM, of schedulers and `timeout`, is as Ctrl-C."""
    try:
        former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _is_of_memory(error: Exception) -> bool:
    """Whether an error is Python's, or torch's on any device, for too little memory."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in told or "allocate memory" in told


def _open_outputs() -> None:
    """Stdout and stderr where a process has none (`>&-`); what they cannot show of names is escaped."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - open to the end
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
