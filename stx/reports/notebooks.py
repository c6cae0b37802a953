"""Notebooks run in batch by papermill, with what papermill leaves out: unknown or mistyped parameters are errors.

`stx run`; the workflow calls it as `python -m stx.reports.notebooks`, which does not wait for torch.
"""

import argparse
import ast
import logging
import os
import sys
from pathlib import Path

from stx.files.errors import NotebookError
from stx.files.places import ROOT

TIMEOUT = 3 * 3600  # seconds for a cell; papermill's own default is forever


def parameters(path: str | Path) -> dict:
    """The parameters of a notebook with their defaults, from its `parameters` cell."""
    path = Path(path)
    if not path.is_file():
        raise NotebookError(f"{path}: no such notebook")
    import papermill  # here, since it takes seconds to import

    found = papermill.inspect_notebook(str(path))
    return {name: ast.literal_eval(entry["default"]) for name, entry in found.items()}


def check(path: str | Path, given: dict) -> None:
    """Raises `NotebookError` for a parameter the notebook does not have or a value of another type."""
    known = parameters(path)
    for name, value in given.items():
        if name not in known:
            raise NotebookError(f"{path}: unknown parameter {name!r}; it has: {', '.join(known)}")
        default = known[name]
        fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not fits:
            kind = type(default).__name__
            raise NotebookError(f"{path}: parameter {name} is {value!r}, expected {kind} as in {name} = {default!r}")


def parse(text: str):
    """A value from the command line: Python's literals (1, 1e-3, True), everything else a string; true is True."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def run(path: str | Path, output: str | Path, given: dict, *, timeout: int = TIMEOUT, log_output: bool = True) -> None:
    """Executes a notebook with parameters; the executed copy is `output`. Folders are seen from where the caller is.

    Raises `NotebookError` before anything runs, or with the error of the cell that failed.
    """
    import papermill

    check(path, given)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(path),
            str(output),
            parameters=given,
            kernel_name="python3",
            execution_timeout=timeout,
            log_output=log_output,
            progress_bar=False,
        )
    except papermill.PapermillExecutionError as error:
        told = f"{path}, cell {error.exec_count}: {error.ename}: {error.evalue}; its traceback is in {output}"
        raise NotebookError(told) from error


def at_root() -> None:
    """Leaves `notebooks/`, where JupyterLab starts a notebook, for the folder above: `figures` and `runs` lie there."""
    if Path.cwd() == ROOT / "notebooks":
        os.chdir(ROOT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `stx run`."""
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the executed copy")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds for a cell")
    parser.set_defaults(command=command)


def command(options: argparse.Namespace) -> int:
    """`stx run`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # papermill logs what cells print
    words = {name for name, default in parameters(options.notebook).items() if isinstance(default, str)}
    given = {name: value if name in words else parse(value) for name, value in options.parameter}
    run(options.notebook, options.out, given, timeout=options.timeout)
    print(f"executed copy: {options.out}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="stx run")
    add_arguments(parser)
    options = parser.parse_args()
    try:
        sys.exit(options.command(options))
    except (NotebookError, OSError) as error:
        sys.exit(f"stx: {error}")
