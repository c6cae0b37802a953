"""The site: sources put together, every link leads somewhere, nothing is loaded from elsewhere, a browser opens it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.explorer.test_browser import CHROMIUM, browser, page  # noqa: F401
from tests.explorer.test_static_page import served

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)


def test_links_of_the_sources_lead_to_pages(tmp_path):
    site = pages.Site(tmp_path)
    site.pages = {Path("notebooks/03.ipynb"), Path("docs/faults.md")}
    file = Path("docs/method.md")
    assert site.linked("[a](faults.md#files)", file) == "[a](faults.md#files)"
    assert site.linked("[a](../README.md)", file) == site.linked("[a](../figures)", file) == "[a](../index.md)"
    assert site.linked("[a](../Makefile)", file) == "[a](../code/Makefile.md)"
    assert site.linked("`[a](nothing.md)` [b](https://x.org)", file) == "`[a](nothing.md)` [b](https://x.org)"
    with pytest.raises(SystemExit, match="docs/method.md: the link nothing.md leads nowhere"):
        site.linked("[a](nothing.md)", file)
    site.show_code()
    assert "literalinclude} Makefile" in (tmp_path / "code" / "Makefile.md").read_text()


def test_every_source_has_its_pages(tmp_path):
    pages.assemble(tmp_path / "pages")
    index = (tmp_path / "pages" / "index.md").read_text()
    for how_to in (ROOT / "docs").glob("*.md"):
        assert how_to.stem == "index" or f"docs/{how_to.stem}\n" in index, how_to.name


def test_check_finds_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="https://x.org">x</a><img src="a.png?v=1">')
    (tmp_path / "b.html").write_text('<p id="there"><a href="a.html#gone">a</a>')
    (tmp_path / "a.png").touch()
    with pytest.raises(SystemExit, match=r"\Ab.html: a.html#gone leads nowhere\Z"):
        pages.check(tmp_path)
    (tmp_path / "b.html").write_text('<p id="there"><script src="https://cdn.org/x.js"></script>')
    with pytest.raises(SystemExit, match=r"\Ab.html: loads https://cdn.org/x.js\Z"):
        pages.check(tmp_path)
    (tmp_path / "b.html").write_text('<p id="there">')
    pages.check(tmp_path)


@pytest.mark.release
def test_the_site_is_built_without_warnings_and_opens(tmp_path, request):
    pages.assemble(tmp_path / "pages")
    given = ["-q", "-W", "--keep-going", tmp_path / "pages", tmp_path / "site"]
    done = subprocess.run([sys.executable, "-m", "sphinx", *given], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (tmp_path / "site" / "explorer").mkdir()
    (tmp_path / "site" / "explorer" / "index.html").touch()  # `docs/web.py` makes it (test_static_page)
    pages.check(tmp_path / "site")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    asked, wrong = [], []
    with served(tmp_path / "site") as address, page(request.getfixturevalue("browser")) as tab:
        tab.on("request", lambda sent: asked.append(sent.url))
        tab.on("console", lambda message: wrong.append(message) if message.type == "error" else None)
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(f"{address}/index.html")
        assert tab.locator("img").evaluate_all("all => all.every(img => img.naturalWidth > 0)")
        tab.get_by_role("link", name="Your own weights").first.click()
        tab.wait_for_selector("h1:has-text('Your own weights')")
        tab.goto(f"{address}/notebooks/02_train_inversion.html")
        assert tab.locator("math mfrac, math msup, math msub").count() > 3
        tab.goto(f"{address}/docs/api.html")
        assert "num_ws" in tab.locator("dl:has(> #stx\\.pipeline\\.Pipeline)").inner_text()
        tab.goto(f"{address}/search.html?q=pivotal")
        tab.wait_for_selector("ul.search li a")
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    # a browser asks for an icon of its own accord; there is none
    assert [e for e in wrong if isinstance(e, str) or not e.location["url"].endswith("/favicon.ico")] == []
