"""The explorer as a page for several visitors: Voilà with a number of places, names it goes by, and a domain.

    python -m stx.explorer.server notebooks/09_explorer.ipynb --template=lab --Voila.ip=0.0.0.0 --hosts=my.machine

Every visitor has a kernel with networks of its own (about 0.9 GB). Voilà alone keeps the kernels of closed tabs, starts
one for everybody who comes, and answers to any name in a request's `Host` (DNS rebinding). The domain, a name or a
folder of pictures, is that in $STX_DOMAIN. Of the notebook the page runs what has the tag "page" or "parameters".
"""

import os
from datetime import UTC, datetime
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import HTTPError, RequestHandler
from traitlets import Integer, List, Unicode
from voila.app import Voila

from stx.explorer.uploads import UPLOAD_MB

LOCAL = ("localhost", "127.0.0.1", "[::1]")
PAGE, PARAMETERS = "page", "parameters"  # tags of cells
LOADING = """<script>
document.documentElement.lang = "en";
window.voila_process = (cell) => window.update_loading_text(0, 0,
  cell < 3 ? "Starting Python…" : "Loading PyTorch and the networks: some ten seconds…");
window.voila_process(0);
</script>"""


class Places(AsyncMappingKernelManager):
    """Kernels up to a number. Who comes later gets the place of a closed tab, or is told that there is none."""

    places = Integer(4, min=1, config=True, help="Visitors at a time; each needs about 0.9 GB of memory.")
    cull_idle_timeout = Integer(60, config=True, help="Seconds after which the kernel of a closed tab ends.")
    cull_interval = Integer(5, config=True, help="Seconds between looks for such kernels.")

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._starting: set[str] = set()
        self._left: dict[str, None] = {}  # kernels of closed tabs, the one first closed first

    async def start_kernel(self, **kwargs) -> str:
        """A new kernel's id. Raises `HTTPError` 503 in words when every place is taken."""
        while self._full() and self._left:
            await self.shutdown_kernel(next(iter(self._left)))
        if self._full():
            raise HTTPError(503, reason=self._sorry())
        kernel_id = self.new_kernel_id(**kwargs)
        self._starting.add(kernel_id)
        try:
            return await super().start_kernel(kernel_id=kernel_id, **kwargs)
        finally:
            self._starting.discard(kernel_id)

    async def shutdown_kernel(self, kernel_id: str, *args, **kwargs) -> None:
        """Ends a kernel, whose place is free when its process is gone."""
        self._left.pop(kernel_id, None)
        await super().shutdown_kernel(kernel_id, *args, **kwargs)

    def notify_connect(self, kernel_id: str) -> None:
        """A tab has come, or come back."""
        super().notify_connect(kernel_id)
        self._left.pop(kernel_id, None)

    def notify_disconnect(self, kernel_id: str) -> None:
        """A tab has gone; the time until its kernel ends counts from now, not from its last use."""
        super().notify_disconnect(kernel_id)
        if kernel_id in self and not self.kernel_model(kernel_id)["connections"]:
            self.get_kernel(kernel_id).last_activity = datetime.now(UTC)
            self._left[kernel_id] = None

    def _full(self) -> bool:
        return len(self._starting.union(self.list_kernel_ids())) >= self.places

    def _sorry(self) -> str:
        return (
            f"every place of this explorer is taken (there are {self.places}). Reload this page when somebody has "
            f"closed theirs, or start the server with more: make explore PLACES={2 * self.places}"
        )


class Elsewhere(Matcher):
    """Requests for a host that is none of `names`."""

    def __init__(self, names: set[str]):
        self.names = names

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        return None if request.host_name in self.names else {}


class Refuse(RequestHandler):
    """403 in words, whatever is asked for."""

    def prepare(self):
        raise HTTPError(403, reason="this explorer does not go by the host name asked for; --hosts=NAME allows it")


def as_page(_: RequestHandler | None, notebook: NotebookNode, cwd: str) -> NotebookNode:
    """The notebook as a page runs it: with words while it loads, the domain asked for, and the tagged cells only."""
    tags = [set(cell.metadata.get("tags", ())) for cell in notebook.cells]
    if not any(PAGE in own for own in tags):
        return notebook
    cells = [new_markdown_cell(LOADING)]
    for cell, own in zip(notebook.cells, tags, strict=True):
        cells += [cell] if own & {PAGE, PARAMETERS} else []
        if PARAMETERS in own and (domain := os.environ.get("STX_DOMAIN")):
            cells.append(new_code_cell(f"domain = {domain!r}"))  # a literal, whatever the name
    title = {"title": "Latent explorer"}
    return NotebookNode(notebook | {"cells": cells, "metadata": NotebookNode(notebook.metadata | title)})


class ExplorerServer(Voila):
    """Voilà with `Places`, that refuses hosts it does not know, and shows a page of the notebook."""

    hosts = List(Unicode(), config=True, help="Names or addresses that visitors may ask for, beside this machine's.")
    upload_mb = Integer(UPLOAD_MB, min=1, config=True, help="Megabytes (10^6 bytes) that an uploaded picture may have.")
    aliases = Voila.aliases | {
        "hosts": "ExplorerServer.hosts",
        "places": "Places.places",
        "upload_mb": "ExplorerServer.upload_mb",
    }
    classes = [*Voila.classes, Places]

    def init_settings(self) -> dict[str, Any]:
        """Voilà's settings of tornado; kernels are told how large an upload may be."""
        os.environ["STX_UPLOAD_MB"] = str(self.upload_mb)
        self.voila_configuration.multi_kernel_manager_class = Places
        self.voila_configuration.prelaunch_hook = as_page
        return super().init_settings()

    def init_handlers(self) -> list:
        """Voilà's pages, behind a look at the host that is asked for."""
        names = {name.lower() for name in (*LOCAL, self.ip, *self.hosts)}
        return [Rule(Elsewhere(names), Refuse), *super().init_handlers()]


if __name__ == "__main__":
    ExplorerServer.launch_instance()
