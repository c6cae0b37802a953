"""The repository's own promises: environment, file tree, data table, flat package."""

import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stx.baselines.registry import METHODS
from stx.domains import avatars, images
from stx.reports import notebooks

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}


def pins() -> dict[str, str]:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [x for x in listed if isinstance(x, str)] + next(x["pip"] for x in listed if isinstance(x, dict))
    found = dict(re.split("={1,2}", line) for line in lines if "=" in line)
    return {CONDA_NAMES.get(name, name): version for name, version in found.items()}


def requirements() -> dict[str, list[tuple[str, str]]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.match(r"[\w-]+", line)[0]: re.findall(r"(>=|<)([\d.]+)", line) for line in lines}
    return names | {"python": re.findall(r"(>=|<)([\d.]+)", project["requires-python"])}


def number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_environment_pins_what_the_project_asks_for():
    assert set(pins()) == set(requirements())
    for name, bounds in requirements().items():
        assert bounds, name
        for relation, bound in bounds:
            inside = number(pins()[name]) >= number(bound) if relation == ">=" else number(pins()[name]) < number(bound)
            assert inside, (name, pins()[name], relation, bound)


def tracked() -> set[str]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return set(done.stdout.split())


def test_readme_tree_is_the_tree():
    block = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    named = set(re.findall(r"^\s*([\w./-]+)", block, re.M))
    modules = {Path(p).name for p in tracked() if re.fullmatch(r"stx/\w+\.py", p)} - {"__init__.py"}
    books = {Path(p).name for p in tracked() if p.startswith("notebooks/")}
    assert modules | books <= named
    leaves = {name for name in named if not name.endswith("/")}
    assert leaves <= {Path(p).name for p in tracked()} | {Path(p).as_posix() for p in tracked()}


def test_readme_figures_exist():
    for link in re.findall(r"\]\((figures/[^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).is_file(), link


def test_data_table_is_the_code():
    text = (ROOT / "data" / "README.md").read_text()
    assert f"long hair {avatars.P_TOP['long']}, short hair {avatars.P_TOP['short']}" in text
    for dark, name in ((True, "dark skin"), (False, "other skin")):
        colors = ", ".join(f"{c.lower()} {p:.2f}" for c, p in avatars.P_HAIR[dark].items())
        assert f"| hair colour, {name} | {colors} |" in text
    for top, name in {"long": "long hair", "short": "short hair", "hat": "hat", "bald": "bald"}.items():
        p = avatars.P_FACIAL_HAIR[top]
        assert f"| beard / moustache, {name} | {p['beard']:.2f} / {p['mustache']:.2f} |" in text
    for given, name in {"hat": "with a hat", "gray": "with gray hair", "other": "otherwise"}.items():
        p = avatars.P_GLASSES[given]
        assert f"| clear / dark glasses, {name} | {p['clear']:.2f} / {p['dark']:.2f} |" in text
    named = re.findall(r"^\| ((?:[A-Z]\w+(?:, )?)+) \|", text, re.M)
    assert [n for cell in named for n in cell.split(", ")] == list(avatars.ATTRIBUTES)


def test_shipped_weights_are_under_120_megabytes():
    """Of the working tree's 150."""
    assert sum(path.stat().st_size for path in (ROOT / "data" / "avatars").rglob("*.*")) < 120e6


def test_modules_are_small_and_say_what_they_are():
    for module in (ROOT / "stx").rglob("*.py"):
        lines = module.read_text().splitlines()
        assert len(lines) <= 450, module
        assert lines[0].startswith('"""'), module


def test_modules_are_imported_when_they_are_asked_for():
    """`import stx` alone opens the front door and every module; torch is not waited for before it is needed."""
    code = """
import sys, stx, stx.reports.notebooks
assert "torch" not in sys.modules
assert stx.batch.load_codes and stx.load
for name in ("nothing", "__path"):
    assert not hasattr(stx, name), name
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_python_of_the_readme_runs(tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    people = avatars.sample("test")
    bare, wears = (next(a for a in people if avatars.labels(a)[0] == side) for side in (False, True))
    for name, avatar in (("photo.png", bare), ("reference.png", wears)):
        images.save_image(avatars.draw(avatar), tmp_path / name)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        exec(block, names)
    assert METHODS["mine"].network is names["Mine"]
    assert names["image"].shape == names["edited"].shape == (1, 3, 64, 64)
    assert not names["image"].equal(names["edited"])
    assert not names["image"].equal(names["alike"])
    assert not names["image"].equal(names["papers"])


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_parameters_are_typed_and_explained(path):
    assert {"domain", "device", "out", "smoke"} <= set(notebooks.parameters(path))
    text = path.read_text()
    for name in notebooks.parameters(path):
        assert re.search(rf"\b{name}: (int|float|str|bool) = [^#]+  # \w", text), name


def bench_line(row: dict) -> str:
    numbers = [f"{row[name]:.2f}" for name in ("draw, s", "invert, s", "memory, GiB")]
    share, times = row["share of a matrix product"], row["draw, times faster"]
    return f"| {row['pixels']} | {row['form']} | {' | '.join(numbers)} | {share:.0%} | {times:.1f} |"


def table(name: str) -> pd.DataFrame:
    """A committed table: `make reproduce` writes others over it, with times and the rounding of another machine."""
    show = ["git", "show", f"HEAD:./figures/{name}.csv"]
    committed = subprocess.run(show, cwd=ROOT, capture_output=True)
    return pd.read_csv(ROOT / "figures" / f"{name}.csv" if committed.returncode else io.BytesIO(committed.stdout))


def test_readme_numbers_are_those_of_the_tables():
    text = (ROOT / "README.md").read_text()
    one, two = table("bench_processes").to_dict("records")
    for what, digits in (("pictures inverted per s", 0), ("updates per s", 1)):
        assert f"{one[what]:.{digits}f}" in text
        assert f"{two[what]:.{digits}f}" in text
    quality = table("03_quality")
    assert len(quality) >= 6
    for row in quality.itertuples():
        assert f"| {row.metric} | {row.value:.3g} | {row.low:.3g} to {row.high:.3g} |" in text
    steps = pd.read_csv(ROOT / "data" / "avatars" / "style_transformer" / "log.csv")["step"].max()
    assert f"{steps:,} updates of 16 pictures" in text
    for row in table("bench").to_dict("records"):
        assert bench_line(row) in text
    for value in table("01_fd_vgg16")["FD-VGG16"]:
        assert f"{value:.3g}" in text
    accuracy = table("00_classifier").set_index("attribute")["accuracy"]["mean"]
    assert f"{100 * accuracy:.2f} %" in text
    assert f"AUC {table('00_verification')['AUC'][0]:.4f}" in text


def test_readme_table_of_inversion_is_the_table():
    text = (ROOT / "README.md").read_text().split("<!-- table -->")[1].split("<!-- /table -->")[0].strip().splitlines()
    shown = table("04_editability").groupby("inversion")["shown"].mean()
    told = f"so do {shown['e4e']:.0%} of e4e's edits and {shown['Style Transformer']:.0%} of the Style".replace(
        "%", " %"
    )
    assert told in " ".join((ROOT / "README.md").read_text().split())
    names = [cell.strip() for cell in text[0].strip("|").split("|")]
    numbers = table("04_table").pivot(index="method", columns="metric", values="value")
    assert len(text) - 2 == len(numbers)
    for line in text[2:]:
        method, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name, cell in zip(names[1:], cells, strict=True):
            assert cell == ("" if pd.isna(numbers[name][method]) else f"{numbers[name][method]:.3g}"), (method, name)


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def test_readme_numbers_of_editing_are_those_of_the_tables():
    text = " ".join((ROOT / "README.md").read_text().split())
    means = table("07_reference_means").set_index(["method", "way"])["carried"]
    for method in ("paper form", "released form", "Editing in Style", "matched pairs"):
        name = method.replace("paper form", "paper's form")
        adds, removes = percent(means[method, "add"]), percent(means[method, "remove"])
        told = rf"{name} (carries )?{adds} (when it adds )?and {removes}"
        assert re.search(told, text), method
    kinds = table("07_kinds").groupby("method")["kind right"].mean()
    assert all(percent(kinds[method]) in text for method in ("matched pairs", "paper form", "label edit"))
    at_one = table("08_curves").query("`from` == 0.75").set_index("method")["mean-AD"]
    best = at_one.drop("first order").idxmin()
    assert f"a mean-AD of {at_one['first order']:.2f}, the lowest of the others, {best}, {at_one[best]:.2f}" in text
    way = table("08_truth").groupby("method")["share of the way"].median()
    papers = way.drop(["first order", "matched pairs", "natural, six steps", "constrained, six steps"])
    assert f"goes {percent(way['first order'])} of the way" in text
    assert f"matched pairs {percent(way['matched pairs'])}" in text
    assert f"between {percent(papers.min())} and {percent(papers.max())}" in text
    verdicts = table("claims")["verdict"].value_counts()
    told = [f"{verdicts.get(v, 0)} {words}" for v, words in (("holds", "hold here"), ("does not hold", "do not"))]
    assert all(words in text for words in told)
    step = table("09_time")["median, ms"][0]
    assert f"A step takes {step:.0f} ms" in text


def test_readme_table_of_label_edits_is_the_table():
    text = (ROOT / "README.md").read_text().split("<!-- landing -->")[1].split("<!-- /landing -->")[0]
    measured = table("06_landing").set_index(["way", "method"]).drop("unedited", level="method")
    columns = ["shown", "others right", "all right", "any right", "share of the way"]
    lines = text.strip().splitlines()[2:]
    assert len(lines) == len(measured)
    for line in lines:
        way, method, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert cells == [percent(measured.loc[(way, method), name]) for name in columns], (way, method)
    assert (
        f"{measured['pictures'].iloc[0] // 17} pictures for each of 17 attributes" in (ROOT / "README.md").read_text()
    )


@pytest.mark.parametrize(("flow", "jobs"), [("Snakefile", 14), ("train.smk", 12), ("seeds.smk", 51)])
def test_the_workflow_on_a_cluster(flow, jobs, tmp_path):
    """A dry run with the SLURM profile: every job is planned, nothing is submitted."""
    given = ["--config", f"runs={tmp_path}", f"out={tmp_path}"]
    command = [sys.executable, "-m", "snakemake", "-s", flow, "--profile", "profiles/slurm", "--dry-run", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^total +{jobs}$", done.stdout + done.stderr, re.M)
    assert "runtime=240" in done.stdout + done.stderr
