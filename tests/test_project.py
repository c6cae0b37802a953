"""The repository's own promises: environment, file tree, data table, flat package."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from packaging.requirements import Requirement

from stx import cli, recipes  # cli adds the commands
from stx.baselines.registry import METHODS
from stx.cli.words import commands as words_of_stx
from stx.domains import avatars, images, styles
from stx.evaluation import detail
from stx.reports import notebooks, readme

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


def test_lock_is_of_what_the_project_asks_for():
    """uv.lock (`uv lock`) is for the present pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    own = next(package for package in lock if package["name"] == project["name"])
    asked = {Requirement(text) for text in project["dependencies"]}
    for name, texts in project["optional-dependencies"].items():
        asked |= {Requirement(f"{text} ; extra == '{name}'") for text in texts}
    locked = {
        Requirement(f"{one['name']}{one.get('specifier', '')}" + (f" ; {one['marker']}" if "marker" in one else ""))
        for one in own["metadata"]["requires-dist"]
    }
    assert {(one.name, str(one.specifier), str(one.marker)) for one in asked} == {
        (one.name, str(one.specifier), str(one.marker)) for one in locked
    }


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


def test_tree_of_the_contributors_is_the_tree():
    block = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)[1]
    named = set(re.findall(r"^\s*([\w./-]+)", block, re.M))
    modules = {Path(p).name for p in tracked() if re.fullmatch(r"stx/\w+\.py", p)} - {"__init__.py"}
    books = {Path(p).name for p in tracked() if p.startswith("notebooks/")}
    assert modules | books <= named
    leaves = {name for name in named if not name.endswith("/")}
    assert leaves <= {Path(p).name for p in tracked()} | {Path(p).as_posix() for p in tracked()}


def test_artwork_in_figures_is_credited():
    """Creators and licences as the package of the drawings has them; a licence such as CC BY asks for it."""
    text = (ROOT / "docs" / "credits.md").read_text()
    package = Path(importlib.util.find_spec("dicebear_styles").submodule_search_locations[0])
    for style in ("avataaars", *styles.STYLES, *detail.OTHER_STYLES):
        (file,) = package.rglob(f"{style}.json")
        told = json.loads(file.read_text())["meta"]
        (line,) = [line for line in text.splitlines() if told["source"]["url"].rstrip("/") in line]
        assert told["creator"]["name"] in line and told["license"]["name"].rstrip(".") in line, style


PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "data/README.md", *PAGES])
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    links = re.findall(r"(?<!\\)\]\((?!http)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    site = (ROOT / "docs" / "index.md").is_file()
    made = {"../figures/index.md", "explorer/index.html"}  # by `stx index`, `make site`
    missing = {link for link in links if not (ROOT / page).parent.joinpath(link).exists()} - made
    assert not {link for link in missing if site or not link.startswith("docs/")}


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
    assert cli.main(["invert", "photo.png", "--detail", "feature_editor", "--out", "kept/"]) == 0
    names = {}
    for page in ("README.md", "docs/method.md", "docs/running.md"):
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            exec(block, names)
    assert METHODS["mine"].network is names["Mine"]
    assert names["image"].shape == names["edited"].shape == (1, 3, 64, 64)
    assert not names["image"].equal(names["edited"])
    assert not names["image"].equal(names["alike"])


def printed(text: str) -> list[tuple[list[str], bool]]:
    """The commands of a page, and whether they are whole: lines of its blocks of shell are, mentions in a text not."""
    text = text.replace("\\\n", " ")
    blocks = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " ")
    lines = [(line, True) for line in blocks] + [(line, False) for line in re.findall(r"`((?:stx|make) [^`]+)`", text)]
    told = [(shlex.split(line, comments=True), whole) for line, whole in lines]
    return [(words, whole) for words, whole in told if words[:1] in (["stx"], ["make"])]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "data/README.md", *PAGES])
def test_commands_that_pages_print_are_understood(page):
    """Every word is a command, an option or a target that there is; nothing is run."""
    targets = set(re.findall(r"^([\w/.-]+):", (ROOT / "Makefile").read_text(), re.M))
    for (program, name, *rest), whole in printed((ROOT / page).read_text()):
        if program == "make":
            assert {word for word in (name, *rest) if "=" not in word} <= targets, (name, rest)
            continue
        given = [re.sub(r"^[A-Z]$", "2", word) for word in rest if word != "..."]  # numbers that the reader chooses
        try:
            words_of_stx.commands[name].make_context(name, given).close()
        except click.MissingParameter as error:
            assert not whole, (name, rest, error)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_parameters_are_typed_and_explained(path):
    assert {"domain", "device", "out", "smoke"} <= set(notebooks.parameters(path))
    text = path.read_text()
    for name in notebooks.parameters(path):
        assert re.search(rf"\b{name}: (int|float|str|bool) = [^#]+  # \w", text), name


@pytest.mark.parametrize(
    ("name", "recipe"), [("01_generator", recipes.GeneratorRecipe), ("02_train_inversion", recipes.EncoderRecipe)]
)
def test_parameters_of_trainings_begin_as_their_recipes(name, recipe):
    given = notebooks.parameters(ROOT / "notebooks" / f"{name}.ipynb")
    shared = {field.name: field.default for field in dataclasses.fields(recipe) if field.name in given}
    assert {"steps", "batch", "lr"} <= shared.keys()
    assert {parameter: given[parameter] for parameter in shared} == shared


def without_places(text: str) -> str:
    """A text without what `stx readme` fills in, without code and links."""
    for what in (r"<!-- stx: .*?<!-- /stx -->", r"```.*?```", r"`[^`]*`", r"\]\([^)]*\)"):
        text = re.sub(what, "", text, flags=re.DOTALL)
    return text


def test_readme_numbers_are_those_of_the_tables():
    """Filled in again nothing changes; and no share, decimal or interval of the results was typed."""
    text = (ROOT / "README.md").read_text()
    assert readme.fill(text, ROOT / "figures") == (text, [])
    results = without_places(text.split("## Results")[1].split("## Limits")[0])
    typed = [number for number in re.findall(r"\d+(?:\.\d+)?(?: ?%)?", results) if "." in number or "%" in number]
    assert set(typed) <= {"0.95", "95 %"}  # the probability that is asked for, and the level of intervals
    assert not re.search("^<!-- stx: (?!table)", text, re.M), "a line that begins with a comment is no Markdown"


def test_readme_is_seven_screens():
    assert len((ROOT / "README.md").read_text().split()) < 2300


@pytest.mark.parametrize(("flow", "jobs"), [("Snakefile", 14), ("train.smk", 12), ("seeds.smk", 79)])
def test_the_workflow_on_a_cluster(flow, jobs, tmp_path):
    """A dry run with the SLURM profile: every job is planned, nothing is submitted."""
    given = ["--config", f"runs={tmp_path}", f"out={tmp_path}"]
    command = [sys.executable, "-m", "snakemake", "-s", flow, "--profile", "profiles/slurm", "--dry-run", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^total +{jobs}$", done.stdout + done.stderr, re.M)
    assert "runtime=240" in done.stdout + done.stderr


def test_committed_pages_link_to_committed_files():
    """What lies beside them on this machine alone, a PDF that git ignores, hides a link that leads nowhere."""
    files = tracked()
    folders = {parent.as_posix() for file in files for parent in Path(file).parents}
    made = {"figures/index.md", "docs/explorer/index.html"}  # by `stx index`, `make site`
    for page in (file for file in files if file.endswith(".md")):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
        for link in re.findall(r"(?<!\\)\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
            target = os.path.normpath(Path(page).parent / link)
            assert target in files | folders | made, f"{page}: {link}"
