"""How Sphinx makes the site: nothing is executed, nothing is asked of the network, formulas are MathML."""

import re
import tomllib
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

project = "stx"
author = "the authors of stx"
version = release = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text())["project"]["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = "stx"
html_show_copyright = html_show_sphinx = False
html_copy_source = False
templates_path, exclude_patterns = [], []
html_css_files = ["site.css"]
html_static_path = ["docs/static"]
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # of another host
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
html_math_renderer = "mathml"
suppress_warnings = ["misc.highlighting_failure"]


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code` in it: what reStructuredText would read into them is escaped."""
    for i, line in enumerate(lines):
        parts = line.split("`")
        if len(parts) % 2:
            text = [re.sub(r"([\\*|_])", r"\\\1", part) for part in parts[::2]]
            text[1:] = [re.sub(r"^(?=\w)", r"\\ ", part) for part in text[1:]]  # `Domain`s: code ends before the s
            parts[::2] = text
            lines[i] = "``".join(parts)


def mathml(formula: str, **options) -> str:
    """A formula as MathML: brackets grow by themselves there, so that `\\Big` says nothing."""
    formula = re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])\s*", "", formula).replace(r"\dots", r"\ldots")
    return tex2mathml(formula, **options)


def inline(self, node: nodes.math) -> None:
    """A formula in a line."""
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(self, node: nodes.math_block) -> None:
    """A formula of its own."""
    self.body.append(f'<div class="formula">{mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
