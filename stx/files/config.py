"""A network remembers what it was made with, so that its file can make it again."""

import functools
import inspect
from collections.abc import Callable
from typing import ClassVar


class Configured:
    """Keeps the arguments of the constructor in `config`, defaults filled in, as JSON has them.

    unrecorded: arguments that do not change what the weights mean.
    """

    unrecorded: ClassVar[tuple[str, ...]] = ()
    config: dict

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _recording(cls.__init__)


def _recording(init: Callable) -> Callable:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def recorded(self, *args, **kwargs):
        bound = signature.bind(self, *args, **kwargs)
        init(self, *args, **kwargs)
        bound.apply_defaults()
        _, *given = bound.arguments.items()
        self.config = {k: list(v) if isinstance(v, tuple) else v for k, v in given if k not in self.unrecorded}

    return recorded
