"""What `stx score` writes: tables and pictures with a page of both, and LEADERBOARD.md with how to send a row."""

from pathlib import Path

import matplotlib.pyplot as plt

from stx.baselines.registry import EDITORS, INVERTERS, METHODS, add_own
from stx.evaluation import score
from stx.evaluation.score import Scores
from stx.files.atomic import write_text
from stx.files.errors import InputError
from stx.files.outputs import claim_files
from stx.reports import figures

ORDER = {"inversion": ("LPIPS-Alex", True), "editing": ("all right", False)}  # the best by it first; is less better
PAGE_TEXT = """# Leaderboard

Inversion and editing methods under one protocol, beside those of the paper and ours. Made by `stx score`.

{tables}
## The protocol

{protocol}

## Send a row

1. Write your method as in docs/method.md: one Python file that calls `register`.
2. `stx score mine.py --scale evidence --out runs/score/mine` (hours; `--scale quick` shows in minutes that it runs).
3. Open a pull request that adds the file as `figures/leaderboard/NAME.py` and the folder's `score_*.csv` and \
`score_*.json` as `figures/leaderboard/NAME/`. Say what it was trained on. Rows count that come from a commit without \
changes (the JSON says so) and that another run of the same command gives within the intervals.
"""
PROTOCOL = {
    "inversion": "Inversion: {count} test pictures that no method was trained on, searches on the first {searched}; "
    "8-bit pictures; 95 % intervals over pictures, differences paired by picture.",
    "editing": "Editing: every attribute added to and removed from {pictures} test pictures each, by the judge that no "
    "method was trained with; all labels must be as the truth's for 'all right'; the share of the way to the drawn "
    "truth is by LPIPS, the median of attributes. Each method at the strength of {strengths} that was best for it on "
    "other pictures. 95 % intervals over pictures within attributes.",
}


def add_methods(file: str | Path) -> list[str]:
    """Runs somebody's file (`registry.add_own`) and says which of "inversion" and "editing" it has methods for.

    Raises `InputError` where it fails, or registers no method.
    """
    add_own(file)
    encoders = [name for name, method in METHODS.items() if not method.network.__module__.startswith("stx.")]
    parts = ["inversion"] * bool(encoders or INVERTERS) + ["editing"] * bool(EDITORS)
    if not parts:
        raise InputError(f"{file}: registers no method; call `stx.baselines.registry.register` as in docs/method.md")
    return parts


def write(found: dict[str, Scores], folder: str | Path, record: dict) -> Path:
    """Tables, pictures and LEADERBOARD.md of what was scored, by part; returns the page that shows all of it.

    Raises `FileError` where something that stx did not make would be replaced.
    """
    folder = Path(folder)
    claim_files([folder / "LEADERBOARD.md"])
    figures.use_style()
    tables, protocol = [], []
    for part, scores in found.items():
        sizes = record["parameters"] | {"strengths": ", ".join(f"{s:g}" for s in score.STRENGTHS)}
        protocol.append(PROTOCOL[part].format(**sizes))
        if len(scores.table):
            shown = score.readable(scores.table, ORDER[part][0], lower=ORDER[part][1])
            note = "\n\n".join([protocol[-1], *(f"Not scored: {line}" for line in scores.wrong)])
            figures.save_table(scores.table, f"score_{part}", folder, record, note=note, shown=shown)
            tables.append((folder / f"score_{part}.md").read_text(encoding="utf-8").split("\n\n")[0])
        grid = figures.show_grid(list(scores.pictures.values()), row_names=list(scores.pictures), titles=scores.titles)
        figures.save_figure(grid, f"score_{part}_pictures", folder, record)
        plt.close(grid)
    body = PAGE_TEXT.format(tables="".join(f"{table}\n\n" for table in tables), protocol="\n\n".join(protocol))
    scale, commit = record["parameters"]["scale"], record["commit"][:12]
    write_text(folder / "LEADERBOARD.md", f"{body}\n\nMade {record['made']} by stx {commit} at {scale} scale.\n")
    return figures.write_index(folder)
