"""The explorer as a page for several visitors: Voilà with a number of places, names it goes by, and large uploads.

    python -m stx.explorer.server notebooks/09_explorer.ipynb --template=lab --Voila.ip=0.0.0.0 --hosts=my.machine

Every visitor has a kernel with networks of its own (about 0.9 GB). Voilà alone keeps the kernels of closed tabs, starts
one for everybody who comes, takes 10 MB a message, and answers to any name in a request's `Host` (DNS rebinding).
"""

import os
from datetime import UTC, datetime
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.httputil import HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import HTTPError, RequestHandler
from traitlets import Integer, List, Unicode
from voila.app import Voila

from stx.explorer.uploads import MEGABYTE, UPLOAD_MB

LOCAL = ("localhost", "127.0.0.1", "[::1]")
AROUND = 2**20  # bytes of a message that are not the picture


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


class ExplorerServer(Voila):
    """Voilà with `Places`, that refuses hosts it does not know and takes pictures up to a size."""

    hosts = List(Unicode(), config=True, help="Names or addresses that visitors may ask for, beside this machine's.")
    upload_mb = Integer(UPLOAD_MB, min=1, config=True, help="Megabytes (10^6 bytes) that an uploaded picture may have.")
    aliases = Voila.aliases | {
        "hosts": "ExplorerServer.hosts",
        "places": "Places.places",
        "upload_mb": "ExplorerServer.upload_mb",
    }
    classes = [*Voila.classes, Places]

    def init_settings(self) -> dict[str, Any]:
        """Voilà's settings of tornado, with room for a picture in a message; kernels are told how much."""
        os.environ["STX_UPLOAD_MB"] = str(self.upload_mb)
        self.voila_configuration.multi_kernel_manager_class = Places
        return super().init_settings() | {"websocket_max_message_size": self.upload_mb * MEGABYTE + AROUND}

    def init_handlers(self) -> list:
        """Voilà's pages, behind a look at the host that is asked for."""
        names = {name.lower() for name in (*LOCAL, self.ip, *self.hosts)}
        return [Rule(Elsewhere(names), Refuse), *super().init_handlers()]


if __name__ == "__main__":
    ExplorerServer.launch_instance()
