"""The explorer in a real browser: as a Voilà page and in JupyterLab, by keyboard, with good and bad uploads.

Skipped, with the reason, where Chromium or Playwright is missing; nothing is installed here.
"""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BOOK = "09_explorer.ipynb"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
WAIT = 120_000  # ms

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(folder: Path, command: list[str], ready: str):
    """A Jupyter server in its own folders, stopped at the end."""
    own = {
        name: str(folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    env = (
        os.environ
        | own
        | {"IPYTHONDIR": str(folder / "ipython"), "OMP_NUM_THREADS": "2", "STX_DATA": str(ROOT / "data")}
    )
    log = open(folder / "server.log", "w")
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(ready, timeout=2)
                break
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@contextlib.contextmanager
def page():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser.new_page(viewport={"width": 1400, "height": 1400})
        finally:
            browser.close()


@pytest.fixture
def book(tmp_path) -> Path:
    """The notebook with its outputs in a temporary folder."""
    content = json.loads((ROOT / "notebooks" / BOOK).read_text())
    for cell in content["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            cell["source"] = "".join(cell["source"]).replace('"figures"', f'"{tmp_path}/figures"')
            cell["source"] = cell["source"].replace('"runs"', f'"{tmp_path}/runs"')
    (tmp_path / BOOK).write_text(json.dumps(content))
    return tmp_path / BOOK


def edit_of(tab) -> str:
    return tab.locator('img[alt^="edit:"]').get_attribute("alt", timeout=WAIT)


def wait_for(tab, part: str) -> None:
    tab.wait_for_selector(f'img[alt*="{part}"]', timeout=WAIT)


def drag_by_keyboard(tab, attribute: str, presses: int) -> None:
    handle = tab.locator(f".stx-{attribute} .noUi-handle")
    handle.focus(timeout=WAIT)
    for _ in range(presses):
        handle.press("ArrowRight")


def upload(tab, name: str, content: bytes) -> None:
    with tab.expect_file_chooser(timeout=WAIT) as chosen:
        tab.get_by_role("button", name="upload a picture").click()
    chosen.value.set_files({"name": name, "mimeType": "image/png", "buffer": content})


def noise_picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.RandomState(0).randint(0, 255, (90, 70, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.timeout(400)
def test_page(book):
    port = free_port()
    command = ["stx.explorer.server", BOOK, "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", "--template=lab"]
    with server(book.parent, command, f"http://127.0.0.1:{port}/voila/static/voila.js"), page() as tab:
        tab.goto(f"http://127.0.0.1:{port}/", timeout=WAIT)
        first = edit_of(tab)
        assert "no label edits" in first
        drag_by_keyboard(tab, "Eyeglasses", 12)
        wait_for(tab, "Eyeglasses +1.00")  # not one press lost
        moved = edit_of(tab)
        recipe = json.loads(tab.locator("textarea").first.input_value())
        assert recipe["strengths"] == {"Eyeglasses": pytest.approx(1)}
        tab.get_by_role("button", name="Undo").press("Enter")
        tab.wait_for_function("a => document.querySelector('img[alt^=\"edit:\"]').alt == a", arg=first, timeout=WAIT)
        tab.get_by_role("tab", name="Recipe").click()
        tab.locator("textarea").first.fill(json.dumps(recipe))
        tab.locator("textarea").first.blur()
        tab.get_by_role("button", name="Use recipe").click()
        tab.wait_for_function("a => document.querySelector('img[alt^=\"edit:\"]').alt == a", arg=moved, timeout=WAIT)
        upload(tab, "broken.png", b"this is no picture")
        tab.wait_for_selector(".stx-message:has-text('broken.png: not a picture')", timeout=WAIT)
        assert edit_of(tab) == moved
        upload(tab, "mine.png", noise_picture())
        wait_for(tab, "source: mine.png")
        assert edit_of(tab) != moved


@pytest.mark.timeout(400)
def test_jupyterlab(book):
    port, token = free_port(), "stx"
    flags = [
        *("--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0"),
        *("--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--LabApp.extension_manager=readonly"),
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        *(f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"),
    ]
    with (
        server(book.parent, ["jupyterlab", *flags], f"http://127.0.0.1:{port}/api/status?token={token}"),
        page() as tab,
    ):
        tab.goto(f"http://127.0.0.1:{port}/doc/tree/{BOOK}?token={token}", timeout=WAIT)
        tab.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.context?.isReady", timeout=WAIT)
        tab.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.ready }")
        tab.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        first = edit_of(tab)
        drag_by_keyboard(tab, "Eyeglasses", 4)
        tab.wait_for_function("a => document.querySelector('img[alt^=\"edit:\"]').alt != a", arg=first, timeout=WAIT)
        wait_for(tab, "Eyeglasses +0.33")
        upload(tab, "large.png", bytes(11_000_000))  # more than Jupyter's own server takes
        tab.wait_for_selector(".stx-message:has-text('large.png: 11.0 MB are too many')", timeout=WAIT)
        assert tab.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0


@pytest.mark.timeout(400)
@pytest.mark.skipif(
    "STX_RECORD" not in os.environ, reason="`make recording` makes the README's picture of the explorer"
)
def test_recording(book):
    """Drags two attributes and writes what is seen into $STX_RECORD/explorer.gif."""
    port = free_port()
    command = ["stx.explorer.server", BOOK, "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", "--template=lab"]
    with server(book.parent, command, f"http://127.0.0.1:{port}/voila/static/voila.js"), page() as tab:
        tab.set_viewport_size({"width": 1000, "height": 960})
        tab.goto(f"http://127.0.0.1:{port}/", timeout=WAIT)
        edit_of(tab)
        frames = [tab.screenshot()]
        for attribute, presses in (("Eyeglasses", 14), ("Mustache", 16)):
            for step in range(1, presses + 1):
                drag_by_keyboard(tab, attribute, 1)
                wait_for(tab, f"{attribute} +{step / 12:.2f}")
                if step % 2 == 0:
                    frames.append(tab.screenshot())
    pictures = [Image.open(io.BytesIO(frame)).convert("RGB").resize((750, 720)) for frame in frames]
    first, *rest = (picture.quantize(96, dither=Image.Dither.NONE) for picture in pictures)
    shown = [1200, *[350] * (len(rest) - 1), 2500]  # ms
    first.save(
        Path(os.environ["STX_RECORD"]) / "explorer.gif", save_all=True, append_images=rest, duration=shown, loop=0
    )
