"""How large an uploaded picture may be, and a script that keeps larger ones in the browser.

A message that is too large ends the page's connection without a word, so the page looks at a file before it is sent:
in place of one that is too large goes an empty one, whose type says how large it was. The kernel finds the words.
"""

import os
import re

import ipywidgets as widgets

from stx.files.errors import ImageError

MEGABYTE = 10**6
UPLOAD_MB = 50  # of `make explore`
JUPYTER_MB = 10  # what a Jupyter server takes, whose setting is not ours
MARK = "stx-upload"  # class of the button
TOO_LARGE = "application/x-too-large"

# The file input is no part of the document, so the button's click is caught, and in it the input's
SCRIPT = """
document.addEventListener("click", (event) => {
  if (!event.target.closest(".%(mark)s")) return;
  const click = HTMLInputElement.prototype.click;
  HTMLInputElement.prototype.click = function () {
    HTMLInputElement.prototype.click = click;
    if (!this.stxWatched) this.addEventListener("change", () => {
      const file = this.files[0], instead = new DataTransfer();
      if (!file || file.size <= %(most)d) return;
      instead.items.add(new File([], file.name, {type: "%(type)s;bytes=" + file.size}));
      this.files = instead.files;
    }, true);
    this.stxWatched = true;
    click.call(this);
  };
}, true);
"""


def limit() -> int:
    """Bytes that a picture may have on this server."""
    return int(os.environ.get("STX_UPLOAD_MB", JUPYTER_MB)) * MEGABYTE


def watch(button: widgets.FileUpload) -> widgets.Output:
    """Marks a button for the script, which the widget that is given back brings onto the page."""
    button.add_class(MARK)
    script = SCRIPT % {"mark": MARK, "most": limit(), "type": TOO_LARGE}
    shown = {"output_type": "display_data", "metadata": {}, "data": {"application/javascript": script}}
    return widgets.Output(outputs=(shown,))


def check(name: str, kind: str, size: int) -> None:
    """Raises `ImageError` for a file that was too large to be sent, or is too large as it came."""
    was = re.fullmatch(re.escape(TOO_LARGE) + r";bytes=(\d+)", kind)
    size = int(was[1]) if was else size
    if size > limit():
        raise ImageError(
            f"{name}: {size / MEGABYTE:.1f} MB are too many to upload here, at most {limit() // MEGABYTE}: make the "
            "picture smaller (the networks see far fewer pixels)"
        )
