"""Notebooks run in batch by papermill, with what papermill leaves out: unknown or mistyped parameters are errors.

`stx run`, which the workflow calls too; nothing here waits for torch.
"""

import ast
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stx.files.atomic import write_text
from stx.files.errors import NotebookError
from stx.files.outputs import Kind, claim_files
from stx.files.places import ROOT
from stx.files.untrusted import one_line

PLACES = ("device", "out", "runs", "ship")  # parameters on which no number depends
TIMEOUT = 3 * 3600  # seconds for a cell; papermill's own default is forever


def parameters(path: str | Path) -> dict:
    """The parameters of a notebook with their defaults, from its `parameters` cell.

    Raises `NotebookError` for a file that is missing or no notebook, and for a default that is no literal.
    """
    path = Path(path)
    if not path.is_file():
        raise NotebookError(f"{path}: no such notebook")
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        cell = next((c for c in cells if "parameters" in c["metadata"].get("tags", [])), {"source": ""})
        lines = ast.parse("".join(cell["source"])).body
        assigned = [(x.target if isinstance(x, ast.AnnAssign) else x.targets[0], x.value) for x in lines]
        return {target.id: ast.literal_eval(value) for target, value in assigned}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
        raise NotebookError(f"{path}: not a notebook with a cell of parameters ({one_line(error)})") from None


def begin(name: str, names: dict[str, Any], **more) -> dict:
    """How every notebook begins: at the repository's root, in the style of all figures, with the record of its results.

    name: of the notebook, without its ending; names: its `globals()`, from which the values of its parameters are
    taken as they are now, and where sizes that are 0 become those of the scale (`stx.reports.scales`), which is said;
    more: what else the record's `parameters` say. Parameters of `PLACES` are left out. Returns what
    `figures.provenance` does. Raises `NotebookError` where a parameter has no value, `InputError` for another scale.
    """
    from stx.reports import figures, scales
    from stx.runtime import pick_device

    at_root()
    known = parameters(ROOT / "notebooks" / f"{name}.ipynb")
    lacking = [parameter for parameter in known if parameter not in names]
    if lacking:
        raise NotebookError(f"{name}: no value for {', '.join(lacking)}; run the cell of parameters first")
    names |= (chosen := scales.sizes(name, names))
    if chosen:
        told = ", ".join(f"{parameter} {size:,}" for parameter, size in chosen.items())
        print(f"at {scales.told(names)} scale: {told}")
    figures.use_style()
    given = {parameter: names[parameter] for parameter in known if parameter not in PLACES}
    return figures.provenance(notebook=name, device=pick_device(names["device"]), **given | more)


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
    import papermill  # here, since it takes seconds to import
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    _check_form(path)
    claim_files([Path(output)], [path], kind=Kind.NOTEBOOK, suffixes=(".ipynb",))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / Path(output).with_suffix(".ipynb").name
        try:
            papermill.execute_notebook(
                str(path),
                str(made),
                parameters=given,
                kernel_name="python3",
                language="python",
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
                "a killed one is mostly out of memory: smaller counts need less; `pip install ipykernel` if none starts"
            )
            raise NotebookError(f"{path}: its kernel died or could not start ({reason}); {remedy}") from error
        finally:
            _keep(made, Path(output))


def _keep(made: Path, output: Path) -> None:
    """Puts an executed copy in the place of the former one, as far as it came; half of a file replaces nothing."""
    try:
        book = json.loads(made.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    book["metadata"].get("papermill", {})["output_path"] = str(output)
    write_text(output, json.dumps(book, indent=1))


def _check_form(path: str | Path) -> None:
    import nbformat.reader

    try:
        book = nbformat.reader.reads(Path(path).read_text(encoding="utf-8"))
        if book.get("nbformat") != 4:
            raise NotebookError(f"its format is {book.get('nbformat')}, expected 4")
        nbformat.validate(book)
    except Exception as error:  # nbformat, and jsonschema below it, raise many kinds
        reason = one_line(next(iter(str(error).splitlines()), "")) or type(error).__name__
        remedy = "open it in JupyterLab and save it again"
        raise NotebookError(f"{path}: not a valid notebook ({reason[:200]}); {remedy}") from None


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
