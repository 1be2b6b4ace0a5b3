"""Draw the pictures of the pages, which are written as Mermaid, as SVG.

Mermaid itself would be a script from somewhere else, run by whoever reads the page. What the pages have of it
is little, so it is drawn here when they are built: the text goes through `states` or `sequence`.
"""

from __future__ import annotations

from typing import Any

import sequence
import states
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

DRAWN = {"stateDiagram-v2": states.draw, "sequenceDiagram": sequence.draw}


class Picture(SphinxDirective):
    """A Mermaid block."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        kind, _, _ = "\n".join(self.content).strip().partition("\n")
        try:
            svg = DRAWN[kind]("\n".join(self.content))
        except (KeyError, ValueError) as exc:
            raise self.error(f"cannot draw this {kind}: {exc!r}") from exc
        return [nodes.raw("", f'<div class="picture">{svg}</div>', format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("mermaid", Picture)
    return {"parallel_read_safe": True}
