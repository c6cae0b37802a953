"""Notebooks run in batch by papermill, with what papermill leaves out: unknown or mistyped parameters are errors.

`stx run`, which the workflow calls too; nothing here waits for torch.
"""

import ast
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import papermill
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from stx.files.errors import NotebookError
from stx.files.outputs import claim_files
from stx.files.places import ROOT

TIMEOUT = 3 * 3600  # seconds for a cell; papermill's own default is forever


def parameters(path: str | Path) -> dict:
    """The parameters of a notebook with their defaults, from its `parameters` cell."""
    path = Path(path)
    if not path.is_file():
        raise NotebookError(f"{path}: no such notebook")
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

    Raises `NotebookError` before anything runs, or with the error of the cell that failed; `FileError` for an `output`
    that stx did not make, such as the notebook itself.
    """
    check(path, given)
    claim_files([Path(output)], [path])
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
    except (DeadKernelError, CellTimeoutError, NoSuchKernel, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "ernel" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        remedy = (
            "a killed kernel is mostly out of memory: smaller counts need less; `pip install ipykernel` if none starts"
        )
        raise NotebookError(f"{path}: its kernel died or could not start ({reason}); {remedy}") from error


def at_root() -> None:
    """Leaves `notebooks/`, where JupyterLab starts a notebook, for the folder above: `figures` and `runs` lie there."""
    if Path.cwd() == ROOT / "notebooks":
        os.chdir(ROOT)


def run_words(path: Path, output: Path, words: Sequence[tuple[str, str]], *, timeout: int = TIMEOUT) -> None:
    """`run` with parameters as a command line gives them, each read by the type of its default; cells print as they go.

    Raises `NotebookError` as `run` does.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # papermill logs what cells print
    texts = {name for name, default in parameters(path).items() if isinstance(default, str)}
    run(path, output, {name: value if name in texts else parse(value) for name, value in words}, timeout=timeout)
