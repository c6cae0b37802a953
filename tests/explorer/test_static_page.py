"""The explorer without Python, as a static page in a real browser: pixels, time, the network off, phones, bad uploads.

Skipped, with the reason, where Chromium or the files of onnxruntime-web are missing.
"""

import contextlib
import functools
import http.server
import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import stx
from stx.checkpoints import onnx
from stx.domains import images
from tests.explorer.test_browser import CHROMIUM, browser, noise_picture, page  # noqa: F401

ROOT = Path(__file__).parents[2]
RUNTIME = Path(sys.prefix) / "onnxruntime-web"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
    pytest.mark.skipif(not RUNTIME.is_dir(), reason=f"no onnxruntime-web: python docs/web.py fetch {RUNTIME}"),
]


@contextlib.contextmanager
def served(folder: Path):
    """The address of a folder, served as it is."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    onnx.write(ROOT / "data" / "avatars", folder / "graphs")
    command = [sys.executable, ROOT / "docs" / "web.py", "page", folder / "graphs", RUNTIME, folder / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pipe():
    return stx.load("avatars", device="cpu")


@pytest.fixture(scope="module")
def tab(site, browser):  # noqa: F811
    """The page, loaded; then with the network off."""
    asked = []
    with served(site) as address, page(browser) as tab:
        tab.set_viewport_size({"width": 1280, "height": 800})
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"{address}/?backend=wasm")
        tab.wait_for_function("explorer.ready || explorer.failed")
        assert tab.evaluate("explorer.failed") is None
        assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
        tab.address = address
        yield tab


LOOP = """() => {
    const began = performance.now();
    let sum = 0;
    for (let i = 0; i < 2e7; i++) sum += Math.sqrt(i);
    return performance.now() - began + 0 * sum;
}"""
LOOP_MS = 120  # of LOOP where a step takes less than 100 ms


def drag(tab, strengths: dict[str, float]) -> np.ndarray:
    """The picture at these places of the sliders, the others at zero: float32 `[3, h, w]`."""
    steps = tab.evaluate("explorer.steps")
    tab.evaluate(
        """strengths => document.querySelectorAll('.attribute').forEach(row => {
            const slider = row.querySelector('input');
            slider.value = strengths[row.querySelector('label').textContent] || 0;
            slider.dispatchEvent(new Event('input'));
        })""",
        strengths,
    )
    tab.wait_for_function("n => explorer.steps > n", arg=steps)
    tab.wait_for_function("wanted => explorer.strengths.reduce((a, b) => a + Math.abs(b), 0) === wanted",
                          arg=sum(map(abs, strengths.values())))  # fmt: skip
    return np.float32(tab.evaluate("Array.from(explorer.image)")).reshape(3, 64, 64)


def by_python(pipe, picture, changes: list[tuple[str, float]]) -> np.ndarray:
    ws = pipe.invert(picture)
    matched = pipe.network("matched_pairs")
    parts = [abs(s) * matched(ws, [matched.attributes.index(name)], [float(s > 0)]) for name, s in changes]
    return pipe.synthesize(ws + sum(parts, torch.zeros_like(ws)))[0].numpy()


def test_pixels_are_those_of_python(tab, pipe):
    picture = pipe.domain.split("test", 4).uint8([3])
    tab.get_by_role("button", name="test picture 3").click()
    tab.wait_for_selector("[aria-label='test picture 3'][aria-pressed=true]")
    assert np.abs(drag(tab, {}) - by_python(pipe, picture, [])).max() < 1e-4
    changes = [("Eyeglasses", 1.0), ("Smiling", -0.5), ("Dark_Skin", 1.5)]
    drawn = drag(tab, {"Eyeglasses": 1.0, "Smiling": -0.5, "Dark skin": 1.5})
    assert np.abs(drawn - by_python(pipe, picture, changes)).max() < 1e-4
    assert tab.get_attribute("#edit", "aria-label") == "edit: Eyeglasses 1.00, Smiling -0.50, Dark skin 1.50"
    assert tab.evaluate("explorer.error") <= 1e-4


def test_uploads_are_read_as_python_reads_them(tab, pipe, tmp_path):
    """A larger picture with transparency: laid on white and resized by the same filter, here and there."""
    random = np.random.RandomState(0)
    smooth = Image.fromarray(random.randint(0, 255, (9, 7, 4), dtype=np.uint8)).resize(
        (210, 270), Image.Resampling.BICUBIC
    )
    buffer = io.BytesIO()
    smooth.save(buffer, "PNG")
    tab.set_input_files("#upload", {"name": "mine.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    tab.wait_for_function("document.getElementById('note').textContent.startsWith('mine.png')")
    read = images.read_image(io.BytesIO(buffer.getvalue()), name="mine.png")
    seen = tab.evaluate(
        "Array.from(document.getElementById('source').getContext('2d').getImageData(0, 0, 64, 64).data)"
    )
    levels = np.uint8(seen).reshape(64, 64, 4)[..., :3].astype(int)
    assert np.abs(levels - images.resize(read, 64, 64)).max() <= 1  # of 255: blending on white rounds its own way
    assert "unlike the pictures these networks know" in tab.inner_text("#note")
    assert np.abs(drag(tab, {}) - by_python(pipe, levels.astype(np.uint8)[None], [])).max() < 1e-4


def test_a_file_that_is_no_picture(tab):
    before = tab.evaluate("Array.from(explorer.image)")
    tab.set_input_files("#upload", {"name": "broken.png", "mimeType": "image/png", "buffer": b"no picture"})
    tab.wait_for_selector("#note.warning:has-text('broken.png: not a picture')")
    assert tab.evaluate("Array.from(explorer.image)") == before
    tab.set_input_files("#upload", {"name": "n.png", "mimeType": "image/png", "buffer": noise_picture()})
    tab.wait_for_selector("#note:has-text('n.png: unlike')")


def test_a_step_by_keyboard_takes_less_than_100_ms(tab):
    """As many more as a loop takes longer here: on a slow machine, or a busy one."""
    drag(tab, {})
    slider = tab.get_by_label("Eyeglasses", exact=True)
    slider.focus()
    times = []
    for presses in range(1, 16):
        steps = tab.evaluate("explorer.steps")
        slider.press("ArrowRight")
        tab.wait_for_function("n => explorer.steps > n", arg=steps)
        times.append(tab.evaluate("explorer.milliseconds"))
        assert tab.evaluate("explorer.strengths[0]") == pytest.approx(presses * 0.05, abs=1e-6)
    slower = max(1.0, min(tab.evaluate(LOOP) for _ in range(5)) / LOOP_MS)
    assert min(times) < 100 * slower, (times, slower)


def test_it_goes_on_with_the_network_off(tab):
    tab.context.set_offline(True)
    try:
        tab.get_by_role("button", name="test picture 5").click()
        tab.wait_for_selector("[aria-label='test picture 5'][aria-pressed=true]")
        first = drag(tab, {})
        assert not np.array_equal(drag(tab, {"Bald": 1.0}), first)
        tab.set_input_files("#upload", {"name": "off.png", "mimeType": "image/png", "buffer": noise_picture()})
        tab.wait_for_selector("#note:has-text('off.png')")
    finally:
        tab.context.set_offline(False)


def test_a_phone_shows_the_picture_beside_the_sliders(tab):
    tab.set_viewport_size({"width": 390, "height": 844})
    try:
        tab.evaluate("document.querySelectorAll('.attribute')[16].scrollIntoView()")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        box = tab.locator("#edit").bounding_box()
        assert 0 <= box["y"] < 200 and box["width"] > 200  # it stays in sight
    finally:
        tab.set_viewport_size({"width": 1280, "height": 800})


def test_a_missing_file_is_said(site, browser):  # noqa: F811
    with served(site) as address, page(browser) as tab:
        tab.route("**/generator.onnx.gz", lambda route: route.fulfill(status=404, body="gone"))
        tab.goto(f"{address}/?backend=wasm")
        tab.wait_for_selector("#status:has-text('could not start: generator.onnx.gz: 404')")


def test_sizes_are_told(site, tab):
    told = json.loads((site / "explorer.json").read_text())
    used = [told["runtimes"]["wasm"]["wasm"], "check.f32.gz", *(graph["file"] for graph in told["graphs"].values())]
    total = sum((site / name).stat().st_size for name in used)
    assert f"{total / 1e6:.0f} MB are loaded once" in tab.inner_text("header")
    assert total < 30e6


def test_webgpu_that_fails_is_left_in_words(site, browser):  # noqa: F811
    """A stand-in for WebGPU that gives no device; then one that is lost while the page is open."""
    with served(site) as address, page(browser) as tab:
        stub = "Object.defineProperty(navigator, 'gpu', {value: {requestAdapter: async () => ({features: new Set()})}})"
        tab.add_init_script(stub)
        tab.goto(address)
        tab.wait_for_function("explorer.ready || explorer.failed")
        assert tab.evaluate("explorer.failed") is None and tab.evaluate("explorer.backend") == "wasm"
        assert tab.inner_text("#status").startswith("WebAssembly (WebGPU failed: ")
        first = drag(tab, {"Eyeglasses": 1.0})
        told = json.loads((site / "explorer.json").read_text())["runtimes"]["wasm"]["script"]
        tab.evaluate(
            """async script => {
                const { InferenceSession } = await import(new URL(script, location));
                const run = InferenceSession.prototype.run;
                InferenceSession.prototype.run = function () {
                    InferenceSession.prototype.run = run;
                    throw new Error("device lost");
                };
                explorer.backend = "webgpu";
            }""",
            f"./{told}",
        )
        assert np.abs(drag(tab, {"Eyeglasses": 1.0}) - first).max() < 1e-6
        assert tab.inner_text("#status").startswith("WebAssembly (WebGPU failed: device lost)")
        assert tab.evaluate("explorer.backend") == "wasm" and tab.evaluate("explorer.error") <= 1e-4
