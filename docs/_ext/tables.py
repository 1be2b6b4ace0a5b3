"""Long names in tables break where a reader would break them, and nowhere else.

A column of names is as wide as the longest of them, unless that may break: on a narrow page the others would
have no room. In a long one the page gets a `<wbr>` after `_`, `.`, `:` and `/`, and before a capital, which a
copy of the name does not have.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

LONG = 19  # characters; shorter ones stay whole
_BREAK = re.compile(r"(?<=[_.:/])(?=\w)|(?<=[a-z])(?=[A-Z])")


def pieces(text: str) -> list[str]:
    """Return the parts of a text between which it may break, besides at its spaces."""
    found = [""]
    for word in re.split(r"(\s+)", text):
        first, *rest = _BREAK.split(word) if len(word) >= LONG else [word]
        found[-1] += first
        found += rest
    return found


def let_names_break(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Mark where the code in the cells of tables may break."""
    for cell in doctree.findall(nodes.entry):
        for literal in cell.findall(nodes.literal):
            first, *rest = pieces(literal.astext())
            if rest:
                literal.children = []
                literal += nodes.Text(first)
                for piece in rest:
                    literal += [nodes.raw("", "<wbr>", format="html"), nodes.Text(piece)]


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("doctree-resolved", let_names_break)
    return {"parallel_read_safe": True}
