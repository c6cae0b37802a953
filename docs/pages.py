"""The sources of the site, put together: notebooks (as `make reproduce` executed them, where it did), pages, figures.

    python docs/pages.py sources OUT [EXECUTED ...]
    python docs/pages.py check SITE

A link to a file that is a page becomes one to the page, one to other code a page with that code; a link to nothing is
an error. `check` holds the finished site to it: every link and anchor is there, and nothing is loaded from elsewhere.
"""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from stx.reports.figures import write_index

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"```.*?```|`[^`\n]*`|(?<!\\)\]\(([^)\s#]+)(#[^)\s]*)?\)", re.DOTALL)  # code has none
CODE = {".py": "python", ".smk": "python", ".yml": "yaml", ".toml": "toml", "": "make"}


class Site:
    """A folder that gets the pages at the places of their files in the repository."""

    def __init__(self, out: Path):
        self.out = out
        shutil.rmtree(out, ignore_errors=True)
        self.pages: set[Path] = set()  # files that are pages or pictures, relative to the repository
        self.code: set[Path] = set()  # files that are linked to and shown as they are

    def add(self, file: Path, text: str) -> None:
        """A page of text, which is at `file` in the repository."""
        target = self.out / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def linked(self, text: str, file: Path) -> str:
        """The text of a page with its links as they are on the site. Raises `SystemExit` for one to nothing."""

        def on_site(match: re.Match) -> str:
            link, anchor = match[1], match[2] or ""
            if not link or re.match(r"[a-z]+:", link):
                return match[0]
            target = (ROOT / file.parent / link).resolve()
            if not target.is_relative_to(ROOT) or not (target.exists() or target.relative_to(ROOT) in self.pages):
                raise SystemExit(f"{file}: the link {link} leads nowhere")
            target = target.relative_to(ROOT)
            if target in self.pages:
                return f"]({link}{anchor})"
            top = "../" * (len(file.parts) - 1)
            if not (ROOT / target).is_file() or target == Path("README.md"):
                return f"]({top}index.md)"
            self.code.add(target)
            return f"]({top}code/{target}.md)"

        return LINK.sub(on_site, text)

    def show_code(self) -> None:
        """A page for each file of code that other pages lead to."""
        for file in sorted(self.code):
            shown = self.out / "code" / file
            shown.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, shown)
            language = CODE.get(file.suffix, "text")
            text = (
                f"---\norphan: true\n---\n\n# {file}\n\n```{{literalinclude}} {file.name}\n:language: {language}\n```\n"
            )
            Path(f"{shown}.md").write_text(text)


def assemble(out: Path, *executed: Path) -> None:
    """Writes the sources. executed: folders of executed notebooks, of which the first copy is taken."""
    site = Site(out)
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
    made = Path("figures/index.md")  # below
    tables = [table for table in sorted((ROOT / "figures").rglob("*.md")) if table != ROOT / made]
    pages += [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *tables]
    pictures = [p for kind in ("png", "gif", "csv") for p in sorted((ROOT / "figures").rglob(f"*.{kind}"))]
    site.pages = {path.relative_to(ROOT) for path in [*books, *pages, *pictures]} | {made}
    shutil.copytree(ROOT / "figures", out / "figures")
    write_index(out / "figures")
    for page in pages:
        file = page.relative_to(ROOT)
        text = site.linked(page.read_text(), file)
        text = text if text.startswith("# ") else f"# {file.stem.capitalize()}\n\n{text}"
        site.add(file, text if _in_contents(file) else f"---\norphan: true\n---\n\n{text}")
    index = out / made
    index.write_text(re.sub(r"\[PDF\]\([^)]+\)\n\n", "", index.read_text()))
    for book in books:
        found = next((folder / book.name for folder in executed if (folder / book.name).is_file()), book)
        content = json.loads(found.read_text())
        for cell in content["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = site.linked("".join(cell["source"]), book.relative_to(ROOT))
        site.add(book.relative_to(ROOT), json.dumps(content))
    shutil.move(out / "docs" / "index.md", out / "index.md")
    (out / "index.md").write_text((out / "index.md").read_text().replace("](../", "]("))
    shutil.copytree(ROOT / "docs" / "static", out / "docs" / "static")
    for file in ("docs/conf.py", "pyproject.toml"):
        shutil.copy(ROOT / file, out)
    site.show_code()


def _in_contents(file: Path) -> bool:
    return file.parts[0] != "figures" or file == Path("figures/claims.md")


class Links(HTMLParser):
    """What a page names (`ids`), leads to (`links`) and loads (`loads`)."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads = {""}, [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for every element."""
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given.get("id", ""), given.get("name", "")}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self.loads += [given[name] for name in ("src", "href") if name in given and tag != "a"]


def check(site: Path) -> None:
    """Raises `SystemExit` that lists links and anchors which lead nowhere, and what is loaded from another host."""
    pages = {path.resolve(): Links(path) for path in sorted(site.rglob("*.html"))}
    wrong = []
    for path, page in pages.items():
        wrong += [f"{path.name}: loads {url}" for url in page.loads if re.match(r"(https?:)?//", url)]
        for url in [*page.links, *page.loads]:
            link, _, anchor = unquote(re.sub(r"\?[^#]*", "", url)).partition("#")
            if re.match(r"[a-z]+:|//", url):
                continue
            target = (path.parent / link).resolve() if link else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (target in pages and anchor not in pages[target].ids):
                wrong.append(f"{path.relative_to(site.resolve())}: {url} leads nowhere")
    if wrong:
        raise SystemExit("\n".join(sorted(set(wrong))))
    print(f"{len(pages)} pages, all links lead somewhere: {site / 'index.html'}")


if __name__ == "__main__":
    {"sources": assemble, "check": check}[sys.argv[1]](*map(Path, sys.argv[2:]))
