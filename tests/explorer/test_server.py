"""The explorer's server: kernels of closed tabs end, places are counted, hosts are known; uploads have a size."""

import os
import re
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
import websocket

from stx.explorer import uploads
from stx.files.errors import ImageError
from tests.explorer.test_browser import free_port, server

BOOK = """
import os
import ipywidgets as widgets
display(widgets.HTML(f"kernel {os.getpid()}"))
"""
IDLE = 5  # seconds until the kernel of a closed tab ends
FLAGS = [
    *("--no-browser", "--template=lab", "--places=2", "--hosts=Explorer.example"),
    *(f"--Places.cull_idle_timeout={IDLE}", "--Places.cull_interval=1"),
]


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """A server of a small page, for two visitors."""
    folder, number = tmp_path_factory.mktemp("server"), free_port()
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(BOOK)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / "page.ipynb")
    command = ["stx.explorer.server", "page.ipynb", f"--port={number}", *FLAGS]
    with server(folder, command, f"http://127.0.0.1:{number}/voila/static/voila.js"):
        yield number


def get(port: int, path: str = "", host: str = "localhost") -> tuple[int, str]:
    """Status and text of a page."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def visit(port: int) -> tuple[str, int]:
    """The kernel and the process of a new visitor."""
    status, text = get(port)
    assert status == 200, text
    return kernel_of(text)


def kernel_of(text: str) -> tuple[str, int]:
    return re.search(r'"kernelId": "([\w-]+)"', text)[1], int(re.search(r"kernel (\d+)", text)[1])


def connect(port: int, kernel: str, **options) -> websocket.WebSocket:
    """What a tab holds open."""
    url = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels?session_id={uuid.uuid4()}"
    return websocket.create_connection(url, timeout=120, **options)


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def seconds_until_gone(process: int, started: float) -> float:
    while runs(process):
        assert time.monotonic() - started < 120, "the kernel still runs"  # a busy machine is late
        time.sleep(0.1)
    return time.monotonic() - started


def test_hosts(port):
    for path in ("", "voila/static/voila.js", "voila/files/x.png", "api/kernels/1-2-3-4-5", "nothing"):
        for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "192.168.1.7"):
            status, text = get(port, path, host)
            assert status == 403
            assert "--hosts=NAME" in text
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]", "explorer.example", f"EXPLORER.example:{port}"):
        assert get(port, "voila/static/voila.js", host)[0] == 200


def test_places_and_closed_tabs(port):
    with ThreadPoolExecutor() as pool:  # three who come at once
        *two, (status, text) = sorted(pool.map(get, [port] * 3))
    first, second = (kernel_of(page) for _, page in two)
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        connect(port, first[0], host="evil.example")
    tabs = [connect(port, kernel) for kernel, _ in (first, second)]
    assert status == get(port)[0] == 503
    assert "every place of this explorer is taken (there are 2)" in text
    assert "Traceback" not in text
    time.sleep(IDLE + 2)
    assert runs(first[1])  # a tab that is open keeps its kernel, used or not
    assert runs(second[1])
    tabs[0].close()
    third = visit(port)  # the place of a closed tab is free at once
    assert not runs(first[1])
    tabs.append(connect(port, third[0]))
    started = time.monotonic()
    for tab in tabs[1:]:
        tab.close()
    waited = [seconds_until_gone(process, started) for _, process in (second, third)]
    assert waited[0] > IDLE - 1  # a connection that was lost can come back


def test_parts_become_one_upload():
    parts, content = uploads.Parts(), bytes(range(256)) * 9
    for start in range(0, len(content), 1000):
        whole = parts.add("me.png", start, content[start : start + 1000])
    assert whole == content
    assert parts.add("me.png", 0, b"anew") == b"anew"
    for name, start in (("me.png", 5), ("other.png", 4)):
        with pytest.raises(ImageError, match=f"{name}: a part of the picture was lost on the way"):
            parts.add(name, start, b"x")
    assert parts.add("empty.png", 0, b"") == b""


def test_sizes_are_told(monkeypatch):
    monkeypatch.delenv("STX_UPLOAD_MB", raising=False)
    uploads.check("me.png", 5 * 10**7)
    with pytest.raises(ImageError, match="me.png: 50.5 MB are too many to upload here, at most 50"):
        uploads.check("me.png", 50_500_000)
    monkeypatch.setenv("STX_UPLOAD_MB", "1")
    with pytest.raises(ImageError, match="me.png: 1.2 MB are too many to upload here, at most 1"):
        uploads.Parts().add("me.png", 0, bytes(1_200_000))
