"""Uploaded pictures: how large one may be, and how its parts become one again.

A message that is larger than a server takes ends the page's connection without a word, so the page sends a picture in
parts of a megabyte, and none of a picture that is too large.
"""

import os

from stx.files.errors import ImageError, InputError

MEGABYTE = 10**6
UPLOAD_MB = 50


def limit() -> int:
    """Bytes that a picture may have on this server. Raises `InputError` where STX_UPLOAD_MB is no whole number."""
    given = os.environ.get("STX_UPLOAD_MB") or str(UPLOAD_MB)
    if not given.isdecimal() or len(given) > 9:
        raise InputError(f"STX_UPLOAD_MB={given}: expected a whole number of megabytes")
    return int(given) * MEGABYTE


def check(name: str, size: int) -> None:
    """Raises `ImageError` for a file that is too large."""
    if size > limit():
        raise ImageError(
            f"{name}: {size / MEGABYTE:.1f} MB are too many to upload here, at most {limit() // MEGABYTE}: make the "
            "picture smaller (the networks see far fewer pixels)"
        )


class Parts:
    """The parts of a picture that is being uploaded; those of an upload that began anew are forgotten."""

    def __init__(self):
        self._name, self._content = "", bytearray()

    def add(self, name: str, start: int, part: bytes) -> bytes:
        """What has come so far. Raises `ImageError` for a part that does not follow, or one too many."""
        if start == 0:
            self._name, self._content = name, bytearray()
        if name != self._name or start != len(self._content):
            raise ImageError(f"{name}: a part of the picture was lost on the way; upload it again")
        check(name, start + len(part))
        self._content += part
        return bytes(self._content)
